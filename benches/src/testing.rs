//! Stand-ins for tests: models that take no time and fixed samples.

use std::collections::VecDeque;
use std::time::Duration;

use crate::environment::{Environment, Fact, HostKind};
use crate::metric::{Measurement, Metric};
use crate::models::{
    Conditions, Execution, Instance, InstanceLimits, Model, ModelError, ModelId, Usage,
};
use crate::plan::{Plan, Profile, Wishes};
use crate::result::{
    DensityPoint, Event, FORMAT, Header, Outside, Recording, Sample, UnavailableModel, VERSION,
    Validity, Waterfall,
};
use crate::stats::Random;

/// An instance that follows a script: nanoseconds, exit code, output.
pub(crate) struct FakeInstance {
    script: Option<VecDeque<(u64, u8, String)>>,
    waterfall: Waterfall,
}

impl FakeInstance {
    pub(crate) fn new(script: Vec<(u64, u8, String)>) -> Self {
        Self {
            script: Some(script.into()),
            waterfall: Waterfall::new(),
        }
    }
}

/// What the real workload would print.
fn answer(argv: &[&str]) -> (u64, String) {
    let (name, work) = match argv {
        [_, "hello"] => return (1000, "hello\n".into()),
        [_, name, "--work", work] => (*name, work.parse().unwrap()),
        [_, name, "--budget-ms", _] => (*name, 1000_u64),
        other => panic!("{other:?}"),
    };
    let metric = Metric::WORK
        .into_iter()
        .find(|metric| metric.workload() == Some(name))
        .unwrap();
    let operations = work * metric.operations_per_work();
    let line = format!(
        "{{\"v\":1,\"workload\":\"{name}\",\"value\":null,\"unit\":\"x\",\"work\":{work},\
         \"iterations\":{operations},\"expected\":{work},\"actual\":{work},\"inside_ns\":5}}"
    );
    (1000 + operations * 50_000, line)
}

impl Instance for FakeInstance {
    fn waterfall(&self) -> &Waterfall {
        &self.waterfall
    }

    fn exec(&mut self, argv: &[&str], _: Duration) -> Result<Execution, ModelError> {
        let (ns, exit_code, stdout) = if let Some(script) = &mut self.script {
            script.pop_front().ok_or_else(|| ModelError::Unavailable {
                model: ModelId::Process,
                reason: "the script is over".into(),
            })?
        } else {
            let (ns, line) = answer(argv);
            (ns, 0, line)
        };
        let mut waterfall = Waterfall::new();
        waterfall.set(Event::FirstByte, ns);
        waterfall.set(Event::Exit, ns);
        Ok(Execution {
            exit_code,
            stdout: stdout.into_bytes(),
            stderr: Vec::new(),
            waterfall,
        })
    }

    fn usage(&mut self) -> Result<Usage, ModelError> {
        Ok(Usage::default())
    }

    fn host_processes(&self) -> Vec<u32> {
        Vec::new()
    }

    fn destroy(self: Box<Self>) -> Result<(), ModelError> {
        Ok(())
    }
}

/// A model of instances that take no time.
pub(crate) struct FakeModel {
    id: ModelId,
    broken: bool,
}

impl FakeModel {
    pub(crate) fn new(id: ModelId) -> Self {
        Self { id, broken: false }
    }

    pub(crate) fn broken(id: ModelId) -> Self {
        Self { id, broken: true }
    }
}

impl Model for FakeModel {
    fn id(&self) -> ModelId {
        self.id
    }

    fn conditions(&self) -> Conditions {
        conditions(self.id)
    }

    fn open(&mut self) -> Result<(), ModelError> {
        if self.broken {
            return Err(ModelError::Unavailable {
                model: self.id,
                reason: "broken".into(),
            });
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    fn launch(&mut self, _: &InstanceLimits) -> Result<Box<dyn Instance>, ModelError> {
        let mut waterfall = Waterfall::new();
        waterfall.set(Event::Ready, 0);
        Ok(Box::new(FakeInstance {
            script: None,
            waterfall,
        }))
    }

    fn run_once(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
    ) -> Result<Execution, ModelError> {
        let mut execution = self.launch(limits)?.exec(argv, Duration::ZERO)?;
        let mut waterfall = Waterfall::new();
        for (event, ns) in [
            (Event::FirstByte, 2_000_000),
            (Event::Exit, 3_000_000),
            (Event::Returned, 4_000_000),
        ] {
            waterfall.set(event, ns);
        }
        execution.waterfall = waterfall;
        Ok(execution)
    }

    fn run_restored(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
    ) -> Result<Execution, ModelError> {
        self.run_once(limits, argv)
    }

    fn burst(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
        count: u32,
    ) -> Result<Vec<Execution>, ModelError> {
        self.open()?;
        (0..u64::from(count))
            .map(|index| {
                let mut execution = self.run_once(limits, argv)?;
                // Not in the order in which they were asked for.
                let first_byte = 2_000_000 - index * 1000;
                execution.waterfall.set(Event::FirstByte, first_byte);
                Ok(execution)
            })
            .collect()
    }
}

fn conditions(model: ModelId) -> Conditions {
    Conditions {
        model,
        kernel: "6.12 <test>".into(),
        limits: "128 MiB".into(),
        image: "bench".into(),
        shares: "nothing".into(),
    }
}

/// A header of a run of eight blocks.
pub(crate) fn header() -> Header {
    let wishes = Wishes {
        profile: Profile::Quick,
        seed: 7,
        models: ModelId::ALL.to_vec(),
        measurements: Measurement::ALL.to_vec(),
        blocks: Some(8),
    };
    let mut plan = Plan::new(&wishes, HostKind::Virtual);
    plan.work = Metric::WORK
        .into_iter()
        .map(|metric| (metric, 1000))
        .collect();
    Header {
        format: FORMAT.into(),
        version: VERSION,
        plan,
        environment: Environment {
            host: HostKind::Virtual,
            cpus: 2,
            memory_bytes: 1 << 30,
            facts: vec![
                Fact {
                    group: "kernel".into(),
                    name: "command line".into(),
                    value: Some("a=\"b\" <script>alert(1)</script>".into()),
                },
                Fact {
                    group: "cpu".into(),
                    name: "governor".into(),
                    value: None,
                },
            ],
        },
        conditions: ModelId::ALL.into_iter().map(conditions).collect(),
        unavailable: vec![UnavailableModel {
            model: ModelId::Microvm,
            reason: "no /dev/kvm & <b>no</b> lab".into(),
        }],
    }
}

/// A whole run of [`header`]'s plan that was killed at its end.
pub(crate) fn recording() -> Recording {
    Recording {
        header: header(),
        samples: samples(),
        footer: None,
        unreadable_lines: 0,
    }
}

/// Samples of a whole run of [`header`]'s plan, two of them excluded.
pub(crate) fn samples() -> Vec<Sample> {
    let header = header();
    let mut random = Random::new(3);
    let mut samples: Vec<Sample> = Vec::new();
    for (index, block) in header.plan.order().iter().enumerate() {
        for (position, visit) in block.iter().enumerate() {
            for metric in header.plan.metrics() {
                if !metric.measurement().applies_to(visit.model) {
                    continue;
                }
                let factor = 1.0 + visit.model as u8 as f64 / 3.0;
                let noise = 1.0 + random.below(1000) as f64 / 10_000.0;
                samples.push(Sample {
                    sequence: samples.len() as u64,
                    block: index as u32 + 1,
                    position: position as u32,
                    value: Some(300.0 * factor * noise),
                    at_unix_ms: 1_700_000_000_000,
                    outside: Some(Outside {
                        whole_ns: 5,
                        empty_ns: 1,
                        operations: 2,
                    }),
                    inside_value: Some(299.0),
                    waterfall: waterfall(visit.model, metric, noise),
                    burst_ns: (0..u64::from(metric.burst().unwrap_or(0)))
                        .map(|n| 250_000_000 + n * 1_000_000)
                        .collect(),
                    density: density(metric, factor),
                    shared_bytes: (metric == Metric::DensityMem).then_some(5 << 20),
                    ..Sample::blank(visit.model, metric)
                });
            }
        }
    }
    samples[3].validity = Validity::Excluded("the workload printed \"<i>garbage</i>\"".into());
    samples[9].value = None;
    samples[9].check_range();
    samples
}

fn waterfall(model: ModelId, metric: Metric, noise: f64) -> Option<Waterfall> {
    let quicker = match metric.measurement() {
        Measurement::StartCold => 1.0,
        Measurement::StartRestore => 0.1,
        _ => return None,
    };
    let at = |ms: f64| (ms * noise * quicker * 1e6) as u64;
    let mut waterfall = Waterfall::new();
    if model == ModelId::Microvm {
        waterfall.set(Event::RuntimeStarted, at(4.0));
        waterfall.set(Event::KernelEntry, at(20.0));
        waterfall.set(Event::Init, at(150.0));
    }
    if model != ModelId::Process {
        waterfall.set(Event::Ready, at(170.0));
    }
    waterfall.set(Event::FirstByte, at(200.0));
    waterfall.set(Event::Exit, at(210.0));
    waterfall.set(Event::Returned, at(260.0));
    Some(waterfall)
}

fn density(metric: Metric, factor: f64) -> Vec<DensityPoint> {
    if metric != Metric::DensityMem {
        return Vec::new();
    }
    (0..5)
        .map(|instances| DensityPoint {
            instances,
            available_bytes: (1 << 30) - (f64::from(instances) * factor * 3e6) as u64,
            host_pss_bytes: Some(u64::from(instances) << 20),
            cgroup_bytes: None,
        })
        .collect()
}
