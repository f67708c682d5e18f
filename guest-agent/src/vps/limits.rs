//! Limits of VPSs as the kernel takes them: files of a cgroup.

use crate::protocol::Limits;

/// The files that carry `limits`, with what is to be written to them.
pub(crate) fn files(limits: &Limits) -> Vec<(&'static str, String)> {
    /// Microseconds over which CPU time is shared out.
    const PERIOD: u64 = 100_000;
    let mut files = Vec::new();
    if let Some(bytes) = limits.memory_bytes {
        files.push(("memory.max", bytes.to_string()));
        // An honest limit: swap is no second memory.
        files.push(("memory.swap.max", "0".to_owned()));
    }
    if let Some(milli) = limits.cpu_milli {
        // The kernel's least quota is one millisecond.
        let quota = (u64::from(milli) * PERIOD / 1000).max(1000);
        files.push(("cpu.max", format!("{quota} {PERIOD}")));
    }
    if let Some(weight) = limits.cpu_weight {
        files.push(("cpu.weight", weight.clamp(1, 10_000).to_string()));
    }
    if let Some(pids) = limits.pids {
        files.push(("pids.max", pids.to_string()));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            memory_bytes: Some(64 << 20),
            cpu_milli: Some(1500),
            cpu_weight: None,
            pids: Some(32),
        };
        let expected = [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("cpu.max", "150000 100000"),
            ("pids.max", "32"),
        ];
        assert_eq!(
            files(&limits),
            expected.map(|(file, text)| (file, text.to_owned()))
        );
        assert!(files(&Limits::default()).is_empty());
    }

    #[test]
    fn a_tiny_share_of_a_cpu_is_the_least_that_the_kernel_takes() {
        let limits = Limits {
            cpu_milli: Some(1),
            ..Limits::default()
        };
        assert_eq!(files(&limits), [("cpu.max", "1000 100000".to_owned())]);
    }
}
