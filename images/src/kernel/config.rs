//! Kernel configuration: fragments, and the check that they were heeded.

use std::collections::BTreeMap;

use super::Flavour;

const FEATURES: &str = include_str!("../../kernel/features.config");
const BASE: &str = include_str!("../../kernel/base.config");
const HARDWARE: &str = include_str!("../../kernel/hardware.config");
const PVM: &str = include_str!("../../kernel/pvm.config");
const PVM_UP: &str = include_str!("../../kernel/pvm-up.config");
const YARDSTICK: &str = include_str!("../../kernel/yardstick.config");

impl Flavour {
    /// The flavour's fragments, in the order in which they are merged. The first
    /// one has what every guest needs.
    pub(super) fn fragments(self) -> &'static [&'static str] {
        match self {
            Self::Hardware => &[FEATURES, BASE, HARDWARE],
            Self::Pvm => &[FEATURES, PVM],
            Self::PvmUp => &[FEATURES, PVM, PVM_UP],
            Self::Yardstick => &[FEATURES, YARDSTICK],
        }
    }

    /// The kernel's own configuration that the fragments are put on.
    pub(super) fn foundation(self) -> Foundation {
        match self {
            Self::Hardware | Self::Pvm | Self::PvmUp => Foundation::Nothing,
            Self::Yardstick => Foundation::Defaults(&["x86_64_defconfig", "kvm_guest.config"]),
        }
    }
}

/// What a flavour's configuration starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foundation {
    /// `allnoconfig`: whatever no fragment asks for is off.
    Nothing,
    /// These configuration targets of the kernel's makefile, one after the other.
    Defaults(&'static [&'static str]),
}

/// The kernel's top-level Kconfig with another frequency of the timer tick in it,
/// for those that its menu does not offer: of two definitions of a symbol the first
/// one's default counts. `None` if the file is not as expected.
pub(super) fn with_frequency(kconfig: &str, hertz: u32) -> Option<String> {
    const FIRST: &str = "source \"scripts/Kconfig.include\"\n";
    let (head, rest) = kconfig.split_once(FIRST)?;
    Some(format!(
        "{head}{FIRST}\nconfig HZ\n\tint\n\tdefault {hertz}\n{rest}"
    ))
}

/// The options that a configuration or fragment sets: name (with `CONFIG_`) to
/// value, `n` for those said to be off.
pub(super) fn options(text: &str) -> BTreeMap<&str, &str> {
    let mut options = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let off = line
            .strip_prefix("# ")
            .and_then(|rest| rest.strip_suffix(" is not set"));
        match (off, line.split_once('=')) {
            (Some(name), _) if name.starts_with("CONFIG_") => options.insert(name, "n"),
            (None, Some((name, value))) if name.starts_with("CONFIG_") => {
                options.insert(name, value)
            }
            _ => None,
        };
    }
    options
}

/// What of the wanted options did not survive in `config`, as
/// `NAME=wanted (is value)`. A later fragment overrides an earlier one.
pub(super) fn lost(fragments: &[&str], config: &str) -> Vec<String> {
    let mut wanted = BTreeMap::new();
    for fragment in fragments {
        wanted.extend(options(fragment));
    }
    let got = options(config);
    wanted
        .into_iter()
        .filter_map(|(name, value)| {
            // An option that is not mentioned is one whose dependencies are off.
            let is = got.get(name).copied().unwrap_or("n");
            (is != value).then(|| format!("{name}={value} (is {is})"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_on_off_and_with_values() {
        let text = "# a comment = x\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"text\"\n\n";
        let expected = [
            ("CONFIG_A", "y"),
            ("CONFIG_B", "n"),
            ("CONFIG_C", "\"text\""),
        ];
        assert_eq!(options(text), BTreeMap::from(expected));
    }

    #[test]
    fn lost_options_are_named() {
        let fragments = [
            "CONFIG_A=y\nCONFIG_B=y\n",
            "# CONFIG_B is not set\nCONFIG_C=y\n",
        ];
        let lost = lost(&fragments, "CONFIG_A=m\n");
        assert_eq!(lost, ["CONFIG_A=y (is m)", "CONFIG_C=y (is n)"]);
    }

    /// The options that the flavour takes back from another fragment.
    fn taken_back(flavour: Flavour) -> Vec<&'static str> {
        const PVM: &[&str] = &[
            "CONFIG_PARAVIRT_SPINLOCKS",
            "CONFIG_SECURITY",
            "CONFIG_SECURITY_YAMA",
            "CONFIG_WIREGUARD",
            "CONFIG_HW_RANDOM",
            "CONFIG_HW_RANDOM_VIRTIO",
        ];
        const UP: &[&str] = &[
            "CONFIG_SMP",
            "CONFIG_CPUSETS",
            "CONFIG_NR_CPUS",
            "CONFIG_LOCALVERSION",
            "CONFIG_LOG_CPU_MAX_BUF_SHIFT",
        ];
        match flavour {
            Flavour::Hardware => Vec::new(),
            Flavour::Yardstick => vec!["CONFIG_IO_URING"],
            Flavour::Pvm => PVM.to_vec(),
            Flavour::PvmUp => [PVM, UP].concat(),
        }
    }

    #[test]
    fn no_fragment_sets_an_option_twice() {
        for flavour in Flavour::ALL {
            let taken_back = taken_back(flavour);
            let mut seen = BTreeMap::new();
            for (name, value) in flavour.fragments().iter().flat_map(|f| options(f)) {
                let other = seen.insert(name, value);
                if let Some(other) = other.filter(|_| !taken_back.contains(&name)) {
                    assert_ne!(value, other, "{name} is set twice for {flavour}");
                }
            }
        }
    }

    #[test]
    fn another_frequency_comes_before_the_kernels_own() {
        let kconfig = "mainmenu \"x\"\n\nsource \"scripts/Kconfig.include\"\n\nsource \"a\"\n";
        let with = with_frequency(kconfig, 50).unwrap();
        assert_eq!(
            with,
            "mainmenu \"x\"\n\nsource \"scripts/Kconfig.include\"\n\nconfig HZ\n\tint\n\
             \tdefault 50\n\nsource \"a\"\n"
        );
        assert_eq!(with_frequency("source \"a\"\n", 50), None);
    }

    #[test]
    fn what_partitioning_needs_is_asked_for_in_every_flavour() {
        for flavour in Flavour::ALL {
            let options = options(flavour.fragments()[0]);
            for name in [
                "TIME_NS",
                "USER_NS",
                "CGROUP_BPF",
                "SECCOMP_FILTER",
                "QFMT_V2",
            ] {
                assert_eq!(
                    options.get(&*format!("CONFIG_{name}")),
                    Some(&"y"),
                    "{name}"
                );
            }
            assert_eq!(options.get("CONFIG_MEMCG_V1"), Some(&"n"));
        }
    }
}
