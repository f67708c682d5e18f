//! `insula-agent`: PID 1 of a guest, a service on a host, or one VPS in one
//! process.

#![cfg_attr(not(test), no_main)]

use std::ffi::{OsString, c_char, c_int};

use guest_agent::{init, oneshot, process, service, steady};

const USAGE: &str = "\
insula-agent: the partitioning agent of insula

  insula-agent                 as PID 1: the init of a guest
  insula-agent service --help  serve on this machine
  insula-agent run --help      run one command in a VPS of its own
  insula-agent steady --help   keep an emulated host's kernel from patching itself
  insula-agent --version
";

/// Exit code of a program that panicked, as Rust has it.
const PANICKED: u8 = 101;

/// Entered by the C library. What the standard library does before its `main`, to say a
/// word when the first thread's stack overflows, is a tenth of this program's size: every
/// guest copies it, and an emulated kernel at two thousand instructions a page.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    process::prepare();
    std::process::exit(std::panic::catch_unwind(run).unwrap_or(PANICKED).into())
}

fn run() -> u8 {
    let mut args = std::env::args_os().skip(1);
    let role = args.next();
    // The kernel hands words of its command line to PID 1 as arguments, so
    // that only the names of roles count there.
    match role.as_ref().and_then(|role| role.to_str()) {
        Some("service") => service::main(args),
        Some("run") => oneshot::main(args),
        Some("steady") => steady::main(args),
        _ if rustix::process::getpid().is_init() => init::main(),
        Some("--version") => {
            println!("insula-agent {}", env!("CARGO_PKG_VERSION"));
            0
        }
        Some("--help" | "-h" | "help") => {
            print!("{USAGE}");
            0
        }
        _ => {
            let role = role.unwrap_or_else(|| OsString::from("nothing"));
            eprintln!(
                "insula-agent: {} is not something it does\n\n{USAGE}",
                role.display()
            );
            2
        }
    }
}
