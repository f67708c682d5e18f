//! Carrying out a plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::measure::{Place, burst, calibrate, cold_start, density, restored_start, work};
use crate::metric::{Measurement, Metric};
use crate::models::{Instance, InstanceLimits, Model, ModelError, ModelId, PATIENCE, WORKLOAD};
use crate::plan::{Cost, Plan, Visit};
use crate::progress::Progress;
use crate::result::{Footer, Sample, StoreError, UnavailableModel, Validity, Writer};

/// Tries every model once: what does not run is unavailable, the rest has its
/// costs noted. The fixed work of each workload is found on the way, on
/// `baseline`, which is `process` whether it is compared or not.
///
/// # Errors
/// The baseline does not run: nothing can be compared.
pub fn warm_up(
    plan: &mut Plan,
    baseline: &mut dyn Model,
    models: &mut Vec<Box<dyn Model>>,
    stop: &AtomicBool,
    progress: &Progress,
) -> Result<(BTreeMap<ModelId, Cost>, Vec<UnavailableModel>), ModelError> {
    progress.say("finding the amount of work on process");
    let limits = plan.limits;
    let mut instance = baseline.launch(&limits)?;
    for metric in plan.work_metrics() {
        let amount = calibrate(&mut *instance, metric, plan.work_ms).map_err(|reason| {
            ModelError::Unavailable {
                model: ModelId::Process,
                reason,
            }
        })?;
        plan.work.insert(metric, amount);
    }
    instance.destroy()?;

    let mut costs = BTreeMap::new();
    let mut unavailable = Vec::new();
    let mut tried = Vec::new();
    for mut model in models.drain(..) {
        let id = model.id();
        if stop.load(Ordering::Relaxed) {
            break;
        }
        progress.say(&format!("warming up {id}"));
        match try_out(&mut *model, plan, &limits) {
            Ok(cost) => {
                costs.insert(id, cost);
                tried.push(model);
            }
            Err(error) => {
                // It may have got half way.
                let _ = model.close();
                let text = error.to_string();
                let reason = text
                    .strip_prefix(&format!("{id}: "))
                    .unwrap_or(&text)
                    .to_owned();
                unavailable.push(UnavailableModel { model: id, reason });
            }
        }
    }
    *models = tried;
    plan.models.retain(|id| costs.contains_key(id));
    Ok((costs, unavailable))
}

/// Everything once, thrown away.
fn try_out(
    model: &mut dyn Model,
    plan: &mut Plan,
    limits: &InstanceLimits,
) -> Result<Cost, ModelError> {
    let opened = Instant::now();
    model.open()?;
    let mut open_s = opened.elapsed().as_secs_f64();

    let launched = Instant::now();
    let mut instance = model.launch(limits)?;
    let mut launch_s = launched.elapsed().as_secs_f64();

    let executed = Instant::now();
    let hello = instance.exec(&[WORKLOAD, "hello"], PATIENCE)?;
    let exec_s = executed.elapsed().as_secs_f64();
    if hello.exit_code != 0 {
        return Err(ModelError::Unavailable {
            model: model.id(),
            reason: format!(
                "{WORKLOAD} exits with {} there ({})",
                hello.exit_code,
                String::from_utf8_lossy(&hello.stderr).trim()
            ),
        });
    }
    if let Some(budget_ms) = plan.guest_work_ms.filter(|_| model.id().has_snapshots()) {
        cut_work(&mut *instance, model.id(), plan, budget_ms)?;
    }
    let worked = Instant::now();
    let place = Place {
        block: 0,
        position: 0,
        model: model.id(),
    };
    for (metric, amount) in &plan.work {
        work(&mut *instance, place, *metric, *amount, plan.work_ms);
    }
    let expected = plan.work.len().max(1) as f64 * plan.work_ms as f64 / 1e3;
    let slowdown = worked.elapsed().as_secs_f64() / expected;

    let destroyed = Instant::now();
    instance.destroy()?;
    launch_s += destroyed.elapsed().as_secs_f64();
    let (mut snapshot_s, mut burst_s) = (0.0, 0.0);
    if plan.measures_of(model.id(), Measurement::StartRestore)
        || plan.measures(Measurement::StartBurst)
    {
        let taken = Instant::now();
        model.take_snapshot(limits)?;
        snapshot_s = taken.elapsed().as_secs_f64();
        let asked = Instant::now();
        model.burst(limits, &[WORKLOAD, "hello"], 1)?;
        burst_s = asked.elapsed().as_secs_f64();
    }
    let closed = Instant::now();
    model.close()?;
    open_s += closed.elapsed().as_secs_f64();
    Ok(Cost {
        open_s,
        launch_s,
        exec_s,
        slowdown,
        snapshot_s,
        burst_s,
    })
}

/// Cuts the work of every workload to what this guest does in its time.
fn cut_work(
    instance: &mut dyn Instance,
    model: ModelId,
    plan: &mut Plan,
    budget_ms: u64,
) -> Result<(), ModelError> {
    for metric in plan.work_metrics() {
        let amount = calibrate(instance, metric, budget_ms)
            .map_err(|reason| ModelError::Unavailable { model, reason })?;
        plan.cut_work(metric, amount);
    }
    Ok(())
}

/// Carries out a plan.
pub struct Run<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The models, warmed up.
    pub models: &'a mut [Box<dyn Model>],
    /// Where samples go.
    pub writer: Writer,
    /// Set by signals.
    pub stop: Arc<AtomicBool>,
    /// Tells how far it is.
    pub progress: &'a Progress,
}

impl Run<'_> {
    /// Runs all blocks, or as many as the signals allow.
    ///
    /// # Errors
    /// Samples can't be written.
    pub fn run(mut self) -> Result<(), StoreError> {
        let started = Instant::now();
        let order = self.plan.order();
        let visits = order.iter().map(Vec::len).sum::<usize>();
        self.progress.start(visits as u64, self.plan.estimate_s);
        let mut troubles = Vec::new();
        let mut sequence = 0;
        'run: for (index, block) in order.iter().enumerate() {
            for (position, visit) in block.iter().enumerate() {
                let place = Place {
                    block: index as u32 + 1,
                    position: position as u32,
                    model: visit.model,
                };
                if self.is_stopped() {
                    break 'run;
                }
                let visited = self.visit(place, visit, &mut sequence, &mut troubles);
                self.progress.visited();
                visited?;
            }
        }
        for model in self.models.iter_mut() {
            if let Err(error) = model.close() {
                troubles.push(error.to_string());
            }
        }
        self.progress.finish();
        self.writer.finish(&Footer {
            interrupted: self.stop.load(Ordering::Relaxed),
            took_s: started.elapsed().as_secs(),
            load_after: crate::environment::load(),
            troubles,
        })
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One model's turn in a block.
    fn visit(
        &mut self,
        place: Place,
        visit: &Visit,
        sequence: &mut u64,
        troubles: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let (plan, progress, stop) = (self.plan, self.progress, Arc::clone(&self.stop));
        let Some(model) = self
            .models
            .iter_mut()
            .find(|model| model.id() == visit.model)
        else {
            return Ok(());
        };
        let writer = &mut self.writer;
        let mut record = |mut sample: Sample| {
            // A signal hits what is running, too: what it was is not known.
            if stop.load(Ordering::Relaxed) && sample.validity == Validity::Valid {
                sample.validity = Validity::Excluded("interrupted".into());
            }
            sample.sequence = *sequence;
            *sequence += 1;
            writer.sample(&sample)
        };
        let doing = |what: &str| {
            progress.doing(format!("{}: {what}", place.model));
        };
        progress.turn(
            place.block,
            plan.blocks,
            place.model.name(),
            plan.estimate_s,
        );

        if let Err(error) = model.open() {
            for metric in plan.metrics() {
                if plan.expects(place.block, place.model, metric) > 0 {
                    record(place.failed(metric, &error))?;
                }
            }
            return Ok(());
        }
        if !visit.work.is_empty() {
            doing("launching");
            match model.launch(&plan.limits) {
                Ok(mut instance) => {
                    // The first program of an instance pays for what is loaded once.
                    if let Err(error) = instance.exec(&[WORKLOAD, "hello"], PATIENCE) {
                        troubles.push(error.to_string());
                    }
                    for metric in &visit.work {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        doing(metric.name());
                        record(one_work(&mut *instance, place, *metric, plan))?;
                    }
                    if let Err(error) = instance.destroy() {
                        troubles.push(error.to_string());
                    }
                }
                Err(error) => {
                    for metric in &visit.work {
                        record(place.failed(*metric, &error))?;
                    }
                }
            }
        }
        for _ in 0..plan.expects(place.block, place.model, Metric::StartFirstByte) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            doing(Measurement::StartCold.name());
            for sample in cold_start(&mut **model, place, &plan.limits) {
                record(sample)?;
            }
        }
        for _ in 0..plan.expects(place.block, place.model, Metric::RestoreFirstByte) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            doing(Measurement::StartRestore.name());
            record(restored_start(&mut **model, place, &plan.limits))?;
        }
        for &metric in &plan.bursts {
            if plan.expects(place.block, place.model, metric) == 0 || stop.load(Ordering::Relaxed) {
                break;
            }
            doing(metric.name());
            record(burst(&mut **model, place, metric, &plan.limits))?;
        }
        if plan.expects(place.block, place.model, Metric::DensityMem) > 0
            && !stop.load(Ordering::Relaxed)
        {
            doing(Measurement::DensityMem.name());
            record(density(
                &mut **model,
                place,
                &plan.limits,
                plan.density_steps,
                &stop,
            ))?;
        }
        if let Err(error) = model.close() {
            troubles.push(error.to_string());
        }
        Ok(())
    }
}

fn one_work(instance: &mut dyn Instance, place: Place, metric: Metric, plan: &Plan) -> Sample {
    match plan.work.get(&metric) {
        Some(amount) => work(instance, place, metric, *amount, plan.work_ms),
        None => place.failed(metric, "its amount of work was not found"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::read;
    use crate::testing::{FakeModel, header};

    fn run(stop: bool) -> crate::result::Recording {
        let directory = tempfile::tempdir().unwrap();
        let mut header = header();
        header.plan.density_blocks = 0;
        let mut models: Vec<Box<dyn Model>> = header
            .plan
            .models
            .iter()
            .map(|&id| Box::new(FakeModel::new(id)) as Box<dyn Model>)
            .collect();
        let writer = Writer::create(directory.path(), &header).unwrap();
        let run = Run {
            plan: &header.plan,
            models: &mut models,
            writer,
            stop: Arc::new(AtomicBool::new(stop)),
            progress: &Progress::hidden(),
        };
        run.run().unwrap();
        read(directory.path()).unwrap()
    }

    #[test]
    fn every_model_is_measured_in_every_block() {
        let recording = run(false);
        assert!(recording.is_complete());
        let plan = &recording.header.plan;
        for block in 1..=plan.blocks {
            for model in &plan.models {
                for metric in plan.metrics() {
                    let count = recording
                        .samples
                        .iter()
                        .filter(|sample| {
                            (sample.block, sample.model, sample.metric) == (block, *model, metric)
                        })
                        .count();
                    let expected = plan.expects(block, *model, metric);
                    assert_eq!(count, expected as usize, "{block} {model} {metric}");
                }
            }
        }
        let numbers: Vec<u64> = recording
            .samples
            .iter()
            .map(|sample| sample.sequence)
            .collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
        assert!(
            recording
                .samples
                .iter()
                .all(|sample| sample.validity == Validity::Valid)
        );
    }

    #[test]
    fn a_signal_leaves_a_recording() {
        let recording = run(true);
        assert!(!recording.is_complete());
        assert!(recording.footer.unwrap().interrupted);
        assert!(recording.samples.is_empty());
    }

    #[test]
    fn a_model_that_does_not_run_is_listed() {
        let mut plan = header().plan;
        let mut models: Vec<Box<dyn Model>> = vec![
            Box::new(FakeModel::new(ModelId::Process)),
            Box::new(FakeModel::broken(ModelId::Microvm)),
        ];
        let (costs, unavailable) = warm_up(
            &mut plan,
            &mut FakeModel::new(ModelId::Process),
            &mut models,
            &AtomicBool::new(false),
            &Progress::hidden(),
        )
        .unwrap();
        assert_eq!(models.len(), 1);
        assert_eq!(plan.models, [ModelId::Process]);
        assert!(costs.contains_key(&ModelId::Process));
        assert_eq!(unavailable[0].model, ModelId::Microvm);
        assert!(unavailable[0].reason.contains("broken"));
    }
}
