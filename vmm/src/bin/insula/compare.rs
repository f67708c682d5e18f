//! `insula compare`

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::ValueEnum;

use crate::cli::On;
use crate::companions;
use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// Becomes `insula-compare`, which knows of the lab by itself.
pub(crate) fn main(args: &[OsString], on: Option<On>, output: &Output) -> Outcome {
    // It starts guests, so that its companion is needed too.
    companions::machine_process(output)?;
    let program = companions::compare(output)?;
    let mut command = Command::new(&program);
    command.args(args);
    if let Some(place) = on.and_then(|on| on.to_possible_value()) {
        command.env("INSULA_ON", place.get_name());
    }
    output.detail(format!("{command:?}"));
    Err(Failure::new(format!(
        "cannot execute {}: {}",
        program.display(),
        command.exec()
    )))
}
