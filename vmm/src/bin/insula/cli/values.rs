//! Values of options.

use std::time::Duration;

use vmm::config::{MemSize, VcpuCount};
use vmm::guest::Size;

/// `--vcpus`
pub(crate) fn vcpus(text: &str) -> Result<VcpuCount, String> {
    let number: u64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a whole number"))?;
    VcpuCount::try_from(number)
}

/// `--memory` of a guest.
pub(crate) fn guest_memory(text: &str) -> Result<MemSize, String> {
    let size: Size = text
        .parse()
        .map_err(|error: vmm::guest::ParseSizeError| error.to_string())?;
    MemSize::try_from(size.as_mib()).map_err(|_| {
        format!(
            "a guest's memory must be {} to {}, not {size}",
            Size::new(MemSize::MIN.bytes()),
            Size::new(MemSize::MAX.bytes())
        )
    })
}

/// `--cpus`: CPUs with up to three decimals, in thousandths.
pub(crate) fn cpus(text: &str) -> Result<u32, String> {
    let wrong =
        || format!("{text:?} is not a number of cpus: write 0.01 to 1000, such as 0.5 or 2");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if text == "." || !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return Err(wrong());
    }
    let whole: u32 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| wrong())?
    };
    let milli: u32 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
    match whole
        .checked_mul(1000)
        .and_then(|thousands| thousands.checked_add(milli))
    {
        Some(milli @ 10..=1_000_000) => Ok(milli),
        _ => Err(wrong()),
    }
}

/// A duration: `10s`, `500ms`, `2m` or plain seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write 10s, 500ms or 2m");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let millis = match &text[digits..] {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" | "min" => number.checked_mul(60_000),
        _ => None,
    };
    match millis {
        // A day: what the machine's own limit is.
        Some(millis) if millis <= 86_400_000 => Ok(Duration::from_millis(millis)),
        _ => Err(wrong()),
    }
}

/// A duration that is not zero.
pub(crate) fn some_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?} is no time at all: write 10s, say")),
        duration => Ok(duration),
    }
}

/// `--env`: NAME=value, or NAME for the value that it has here.
pub(crate) fn env(text: &str) -> Result<String, String> {
    let name = text.split('=').next().unwrap_or_default();
    if name.is_empty() || text.contains('\0') {
        return Err(format!("{text:?} is not NAME=value"));
    }
    if text.contains('=') {
        return Ok(text.to_owned());
    }
    match std::env::var(name) {
        Ok(value) => Ok(format!("{name}={value}")),
        Err(_) => Err(format!("{name} is not set here: write {name}=value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_thousandths() {
        for (text, milli) in [
            ("1", 1000),
            ("0.5", 500),
            (".25", 250),
            ("1.5", 1500),
            ("2.", 2000),
        ] {
            assert_eq!(cpus(text), Ok(milli), "{text}");
        }
        for text in ["", ".", "0", "0.001", "-1", "1e3", "1.2345", "1001", "one"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for text in ["", "s", "-1s", "1h", "99999999999999999999s", "9999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(some_duration("0").is_err());
    }

    #[test]
    fn memory_of_a_guest_is_whole_mib() {
        assert_eq!(guest_memory("512M").map(MemSize::get), Ok(512));
        assert_eq!(guest_memory("1G").map(MemSize::get), Ok(1024));
        assert!(
            guest_memory("4M")
                .unwrap_err()
                .contains("16 MiB to 512 GiB, not 4 MiB")
        );
    }

    #[test]
    fn variables_have_names() {
        assert_eq!(env("A=b=c").as_deref(), Ok("A=b=c"));
        assert!(env("=b").is_err() && env("").is_err());
        assert!(
            env("NO_SUCH_VARIABLE_HERE")
                .unwrap_err()
                .contains("is not set")
        );
    }
}
