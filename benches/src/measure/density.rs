//! Density: what one more idle instance takes of the host's memory.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Place;
use crate::environment::{field_bytes, memory_field};
use crate::metric::Metric;
use crate::models::{Instance, InstanceLimits, Model};
use crate::plan::SETTLE_S;
use crate::result::{DensityPoint, Sample, Validity};
use crate::stats::theil_sen;

/// Points that a slope needs.
const MIN_POINTS: usize = 3;

/// Writing to it folds the counters that each CPU keeps to itself into those
/// that `/proc/meminfo` shows; else instances of a few pages do not show.
const STAT_REFRESH: &str = "/proc/sys/vm/stat_refresh";

/// Launches instances in `steps` steps and notes the host's memory after each;
/// the sample's value is the slope. Everything is destroyed again.
///
/// What instances share is opened afresh, since memory that a guest has touched
/// once does not come back to the host; what that takes is noted, too.
pub fn density(
    model: &mut dyn Model,
    place: Place,
    limits: &InstanceLimits,
    steps: u32,
    stop: &AtomicBool,
) -> Sample {
    let mut sample = place.sample(Metric::DensityMem);
    let mut instances: Vec<Box<dyn Instance>> = Vec::new();
    let mut trouble = None;
    match afresh(model).and_then(|before| Ok((before, point(&mut instances)?))) {
        Ok((before, first)) => {
            sample.shared_bytes = Some(before.cast_signed() - first.available_bytes.cast_signed());
            sample.density.push(first);
        }
        Err(why) => trouble = Some(why),
    }
    let count = steps * model.id().density_step();
    while trouble.is_none() && (instances.len() as u32) < count {
        if stop.load(Ordering::Relaxed) {
            trouble = Some("interrupted".to_owned());
            break;
        }
        match model.launch(limits) {
            Ok(instance) => instances.push(instance),
            Err(error) => trouble = Some(error.to_string()),
        }
        if trouble.is_none() && (instances.len() as u32).is_multiple_of(model.id().density_step()) {
            match point(&mut instances) {
                Ok(next) => sample.density.push(next),
                Err(why) => trouble = Some(why),
            }
        }
    }
    for instance in instances {
        if let Err(error) = instance.destroy() {
            trouble.get_or_insert(error.to_string());
        }
    }
    // Without the first step: it pays for what is loaded once.
    let points: Vec<(f64, f64)> = sample
        .density
        .iter()
        .filter(|point| point.instances > 0)
        .map(|point| (f64::from(point.instances), point.available_bytes as f64))
        .collect();
    if points.len() < MIN_POINTS {
        trouble.get_or_insert(format!("{} points are too few for a slope", points.len()));
    }
    sample.value = theil_sen(&points).map(|line| -line.slope / f64::from(1 << 20));
    if let Some(why) = trouble {
        sample.validity = Validity::Excluded(why);
    }
    sample.check_range();
    sample
}

/// Opens what instances share afresh; returns the host's memory before.
fn afresh(model: &mut dyn Model) -> Result<u64, String> {
    model.close().map_err(|error| error.to_string())?;
    let before = available()?;
    model.open().map_err(|error| error.to_string())?;
    Ok(before)
}

/// The host's available memory, settled, in bytes.
fn available() -> Result<u64, String> {
    std::thread::sleep(Duration::from_secs_f64(SETTLE_S));
    // Without the right to, the figure is only coarser.
    let _ = std::fs::write(STAT_REFRESH, "1");
    memory_field("MemAvailable").ok_or_else(|| "/proc/meminfo has no MemAvailable".into())
}

/// The host's memory now.
fn point(instances: &mut [Box<dyn Instance>]) -> Result<DensityPoint, String> {
    let available_bytes = available()?;
    let processes = instances
        .iter()
        .flat_map(|instance| instance.host_processes());
    let pss: Option<Vec<u64>> = processes.map(pss_bytes).collect();
    let mut cgroup = None;
    for instance in instances.iter_mut() {
        let usage = instance.usage().map_err(|error| error.to_string())?;
        if let Some(bytes) = usage.cgroup_bytes {
            cgroup = Some(cgroup.unwrap_or(0) + bytes);
        }
    }
    Ok(DensityPoint {
        instances: instances.len() as u32,
        available_bytes,
        host_pss_bytes: pss
            .filter(|all| !all.is_empty())
            .map(|all| all.iter().sum()),
        cgroup_bytes: cgroup,
    })
}

/// Proportional set size of a process, in bytes.
fn pss_bytes(pid: u32) -> Option<u64> {
    field_bytes(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_pss_can_be_read() {
        assert!(pss_bytes(std::process::id()).unwrap() > 100_000);
        assert_eq!(pss_bytes(0), None);
    }
}
