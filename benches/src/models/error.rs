//! What can go wrong with a model.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::ModelId;

/// What can go wrong with a model.
#[derive(Debug, Error)]
pub enum ModelError {
    /// It does not run here.
    #[error("{model} does not run here: {reason}")]
    Unavailable {
        /// The model.
        model: ModelId,
        /// Why, and what to do.
        reason: String,
    },
    /// A file or process of the host failed.
    #[error("cannot {doing} {path}: {source}")]
    Host {
        /// The verb.
        doing: &'static str,
        /// The file or program.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// Something took too long.
    #[error("{what} did not end within {} s", .within.as_secs())]
    Late {
        /// What.
        what: String,
        /// How long was waited.
        within: Duration,
    },
    /// The machinery of the model failed.
    #[error("{model}: {doing} failed: {source}")]
    Machinery {
        /// The model.
        model: ModelId,
        /// What was being done.
        doing: String,
        /// Its word.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// An instance was destroyed and left something.
    #[error("{model} left {what} behind")]
    Left {
        /// The model.
        model: ModelId,
        /// What.
        what: String,
    },
}

impl ModelError {
    /// Wraps an error of the model's machinery.
    pub fn machinery(
        model: ModelId,
        doing: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self::Machinery {
            model,
            doing: doing.into(),
            source: Box::new(source),
        }
    }

    pub(super) fn host(
        doing: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Host {
            doing,
            path: path.into(),
            source: source.into(),
        }
    }
}
