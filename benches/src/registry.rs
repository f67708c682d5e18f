//! Which models there are on this host.

use anyhow::Context;

use compare::environment::Environment;
use compare::models::{Model, ModelId, ProcessModel, find_workload};
use compare::progress::Progress;
use compare::result::UnavailableModel;

/// The models that can be tried, and those that can't.
pub(crate) struct Registry {
    /// `process`, for finding the amount of work.
    pub(crate) baseline: Box<dyn Model>,
    /// The models that were asked for.
    pub(crate) models: Vec<Box<dyn Model>>,
    /// Those that can't be tried, and why.
    pub(crate) unavailable: Vec<UnavailableModel>,
}

pub(crate) fn build(
    wanted: &[ModelId],
    _environment: &Environment,
    _progress: &Progress,
) -> anyhow::Result<Registry> {
    let workload = find_workload().context(
        "there is no insula-workload: set INSULA_WORKLOAD to it, or put it beside insula-compare",
    )?;
    let mut models: Vec<Box<dyn Model>> = Vec::new();
    let mut unavailable = Vec::new();
    for &model in wanted {
        match model {
            ModelId::Process => models.push(Box::new(ProcessModel::new(workload.clone()))),
            _ => unavailable.push(UnavailableModel {
                model,
                reason: "not built in yet".into(),
            }),
        }
    }
    Ok(Registry {
        baseline: Box::new(ProcessModel::new(workload)),
        models,
        unavailable,
    })
}
