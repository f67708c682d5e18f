//! The images that the models launch.

use std::path::PathBuf;

use guest_agent::protocol::Name;
use images::kernel::Flavour;
use vmm::config::HostKvm;

/// The images that the models launch, the same for all of them.
#[derive(Debug, Clone)]
pub struct Images {
    /// What kind of KVM guests run on.
    pub host_kvm: HostKvm,
    /// Which kernel guests have.
    pub flavour: Flavour,
    /// ELF kernel of guests.
    pub kernel: PathBuf,
    /// Initramfs of guests: the agent.
    pub initramfs: PathBuf,
    /// EROFS template with the workload in it.
    pub template: PathBuf,
    /// The template's name.
    pub template_name: Name,
    /// The agent, for the host.
    pub agent: PathBuf,
}

impl Images {
    pub(super) fn in_words(&self) -> String {
        format!("template {} (EROFS) under an overlay", self.template_name)
    }

    pub(super) fn kernel_in_words(&self) -> String {
        // The cache names directories by the hash of what an image is made of.
        let hash = self
            .kernel
            .parent()
            .and_then(|directory| directory.file_name())
            .map(|name| name.to_string_lossy().chars().take(12).collect::<String>())
            .unwrap_or_default();
        format!("the guest's, 6.12 of our configuration (image {hash})")
    }
}
