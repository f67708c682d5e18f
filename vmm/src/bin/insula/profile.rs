//! `insula guest profile`

use std::time::Duration;

use guest_agent::protocol::Name;
use serde_json::json;
use vmm::config::MachineConfig;
use vmm::guest::{RunRoot, Symbols};

use crate::failure::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::output::{Output, table};

/// What to sample.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Span {
    /// The boot, which was sampled as the guest started.
    Boot,
    /// From now on for so long.
    Now(Duration),
}

/// Shows where a guest spends its time: at most `top` functions.
pub(crate) fn main(name: &Name, span: Span, top: usize, output: &Output) -> Outcome {
    let dir = RunRoot::for_user()?.find_living(name)?;
    let config = MachineConfig::from_file(&dir.config_path()).map_err(Failure::new)?;
    let symbols =
        Symbols::of_kernel(&config.boot_source.kernel_image_path).map_err(Failure::new)?;
    let profile = match span {
        Span::Boot => dir.boot_profile()?.ok_or_else(|| {
            Failure::new(format!(
                "the boot of guest {name} was not profiled: start it with --profile"
            ))
        })?,
        Span::Now(duration) => {
            let interrupt = Interrupt::catch()?;
            let spinner = output.spinner(format!("sampling guest {name}"));
            let profile = dir.profile(duration, Some(interrupt.fd()))?;
            drop(spinner);
            profile
        }
    };
    let functions = symbols.summarize(&profile);
    let value = json!({
        "name": name.as_str(),
        "span": match span {
            Span::Boot => "boot",
            Span::Now(_) => "now",
        },
        "vcpus": config.machine.vcpu_count.get(),
        "interval_us": vmm::machine::SAMPLING_INTERVAL.as_micros() as u64,
        "samples": profile.samples,
        "functions": functions
            .iter()
            .map(|(function, samples)| json!({"function": function, "samples": samples}))
            .collect::<Vec<_>>(),
    });
    output.result(&value, || {
        let mut table = table(&["samples", "share", "function"]);
        for (function, samples) in functions.iter().take(top) {
            let share = *samples as f64 * 100.0 / profile.samples.max(1) as f64;
            table.add_row([
                samples.to_string(),
                format!("{share:.1} %"),
                function.clone(),
            ]);
        }
        let more = match functions.len().saturating_sub(top) {
            0 => String::new(),
            rest => format!("… and {rest} functions more (--top)\n"),
        };
        format!("{table}\n{more}{} samples", profile.samples)
    })
}
