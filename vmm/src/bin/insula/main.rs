//! `insula`: the command line.

mod agent;
mod assets;
mod cli;
mod companions;
mod compare;
mod config_file;
mod doctor;
mod failure;
mod forward;
mod guest;
mod image;
mod interrupt;
mod lab;
mod machine;
mod memory_use;
mod output;
mod place;
mod profile;
mod run;
mod snapshot;
mod top;
mod vps;
mod warm;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};
use failure::Outcome;
use output::Output;

fn main() -> ExitCode {
    // `insula compare --help` is insula-compare's business, like all that
    // follows `compare`; `insula help exit-codes` is clap's shape for us.
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|word| word == "help")
        && arguments.get(2).is_some_and(|word| word == "exit-codes")
    {
        print!("{}", cli::EXIT_CODES);
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse();
    let output = Output::new(&cli.global);
    match dispatch(&cli, &output) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("insula: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(cli: &Cli, output: &Output) -> Outcome {
    let on = cli.global.on;
    match &cli.command {
        Command::Guest(command) => guest::main(command, on, output),
        Command::Vps(command) => vps::main(command, on, output),
        Command::Run(options) => run::main(options, on, output),
        Command::Image(command) => image::main(command, output),
        Command::Lab(command) => lab::main(command, output),
        Command::Doctor => doctor::main(on, output),
        Command::Compare { args } => compare::main(args, on, output),
        Command::Completions { shell } => {
            clap_complete::generate(
                *shell,
                &mut Cli::command(),
                "insula",
                &mut std::io::stdout(),
            );
            Ok(0)
        }
        Command::ExitCodes => {
            print!("{}", cli::EXIT_CODES);
            Ok(0)
        }
    }
}
