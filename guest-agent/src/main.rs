//! `insula-agent`: PID 1 of a guest, a service on a host, or one VPS in one
//! process.

use std::ffi::OsString;
use std::process::ExitCode;

use guest_agent::{init, oneshot, service, steady};

const USAGE: &str = "\
insula-agent: the partitioning agent of insula

  insula-agent                 as PID 1: the init of a guest
  insula-agent service --help  serve on this machine
  insula-agent run --help      run one command in a VPS of its own
  insula-agent steady --help   keep an emulated host's kernel from patching itself
  insula-agent --version
";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let role = args.next();
    // The kernel hands words of its command line to PID 1 as arguments, so
    // that only the names of roles count there.
    match role.as_ref().and_then(|role| role.to_str()) {
        Some("service") => service::main(args).into(),
        Some("run") => oneshot::main(args).into(),
        Some("steady") => steady::main(args).into(),
        _ if rustix::process::getpid().is_init() => init::main(),
        Some("--version") => {
            println!("insula-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("--help" | "-h" | "help") => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            let role = role.unwrap_or_else(|| OsString::from("nothing"));
            eprintln!(
                "insula-agent: {} is not something it does\n\n{USAGE}",
                role.display()
            );
            ExitCode::from(2)
        }
    }
}
