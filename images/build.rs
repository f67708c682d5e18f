//! Records which compiler builds this library: the same one will build the
//! static programs, and asking `rustc` again at every start would cost more
//! than all the rest of it.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(&rustc).arg("--version").output();
    let version = version.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    println!(
        "cargo::rustc-env=IMAGES_RUSTC={}",
        version.unwrap_or_default()
    );

    // A musl target makes the smaller static programs; use it where it is installed.
    let sysroot = Command::new(&rustc).args(["--print", "sysroot"]).output();
    let sysroot = sysroot.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    let musl = std::path::Path::new(&sysroot.unwrap_or_default())
        .join("lib/rustlib/x86_64-unknown-linux-musl/lib");
    let target = if musl.exists() {
        "x86_64-unknown-linux-musl"
    } else {
        "x86_64-unknown-linux-gnu"
    };
    println!("cargo::rustc-env=IMAGES_STATIC_TARGET={target}");
}
