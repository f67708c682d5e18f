//! Links `insula-vmm` statically where the host can: half of what it cost to
//! start was the dynamic linker. It stays position-independent.
//!
//! Cargo can link a whole target statically (`crt-static`), but not one of a
//! package's programs. So this program gets a directory of linker scripts
//! first in its search path, in which the shared libraries that Rust's standard
//! library asks for by name are the archives of the same code; glibc's own
//! `libc.so` is such a script, too.
//!
//! Another script has the linker put what a restore executes side by side:
//! `link/restore.order`.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Library as the standard library names it, and the archives in its place.
const SCRIPTS: [(&str, &str); 3] = [
    ("libgcc_s.so", "GROUP(libgcc_eh.a libgcc.a libc.a)"),
    ("libc.so", "GROUP(libc.a libgcc_eh.a libgcc.a)"),
    ("libm.so", "INPUT(libm.a)"),
];

/// What a static, position-independent program is linked from.
const NEEDED: [&str; 5] = ["libc.a", "libm.a", "libgcc_eh.a", "libgcc.a", "rcrt1.o"];

/// What comes first in the program.
const ORDER: &str = "link/restore.order";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={ORDER}");
    let gnu = env::var("TARGET")? == "x86_64-unknown-linux-gnu";
    if !gnu || !NEEDED.iter().all(|file| has(file)) {
        // Linked as any other program: the same, but slower to start.
        return Ok(());
    }
    let scripts = PathBuf::from(env::var("OUT_DIR")?).join("static");
    fs::create_dir_all(&scripts)?;
    for (name, script) in SCRIPTS {
        fs::write(scripts.join(name), format!("{script}\n"))?;
    }
    println!(
        "cargo::rustc-link-arg-bin=insula-vmm=-L{}",
        scripts.display()
    );
    println!("cargo::rustc-link-arg-bin=insula-vmm=-static-pie");
    let order = scripts.join("order.ld");
    fs::write(&order, order_script(&fs::read_to_string(ORDER)?))?;
    println!(
        "cargo::rustc-link-arg-bin=insula-vmm=-Wl,-T,{}",
        order.display()
    );
    Ok(())
}

/// A linker script that adds to the linker's own: a section before that of all
/// other code, with the sections of `order`, of which each function has one of
/// its own and each object of the C library one in all.
fn order_script(order: &str) -> String {
    let names = order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let patterns: String = names
        .map(|name| match name.strip_prefix("libc.a:") {
            Some(object) => format!("    *libc.a:{object}.o(.text .text.*)\n"),
            None => format!("    *({})\n", section_pattern(name)),
        })
        .collect();
    format!("SECTIONS {{\n  .text.restore : {{\n{patterns}  }}\n}}\nINSERT BEFORE .text;\n")
}

/// The section of a function, whose name the compiler ends with a hash, and
/// whose rarely used parts it calls so.
fn section_pattern(name: &str) -> String {
    // Means something to the linker.
    let name = name.replace('$', "?");
    let end = match &name {
        legacy if legacy.starts_with("_ZN") => "17h*",
        v0 if v0.starts_with("_R") => "*",
        _ => "",
    };
    format!(".text.{name}{end} .text.unlikely.{name}{end}")
}

/// Whether the C compiler, which links, finds a file.
fn has(file: &str) -> bool {
    Command::new("cc")
        .arg(format!("-print-file-name={file}"))
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        // It answers with the bare name when it has no such file.
        .is_some_and(|path| Path::new(path.trim()).is_absolute())
}
