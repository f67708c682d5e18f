//! Why a configuration is refused.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a configuration file is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the machine configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not valid JSON, or a field of it is wrong.
    #[error("{} is not a valid machine configuration: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Which field is wrong, and where.
        source: serde_json::Error,
    },
}
