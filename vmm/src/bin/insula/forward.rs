//! Doing this very command in the lab.
//!
//! The lab gets this program, its companions and the images that guests need;
//! then the same arguments are run there, on our streams. Files that are
//! named by options are brought in first.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};
use crate::lab;
use crate::output::Output;

/// Where files that options name are put in the lab.
const FILES: &str = "/root/.insula-files";

/// Options that name a file which is read.
const READ: [&str; 2] = ["--kernel", "--config"];
/// Options whose value can be taken from the environment here.
const ENVIRONMENT: [&str; 2] = ["--env", "-e"];
/// Options that are about where to run, which is decided.
const PLACE: [&str; 1] = ["--on"];

/// Arguments for the lab, and the files that they name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    arguments: Vec<String>,
    files: Vec<(PathBuf, String)>,
}

/// Does this command in the lab. `kernel` is a kernel that a configuration
/// file names and no option.
pub(crate) fn to_lab(kernel: Option<&Path>, output: &Output) -> Outcome {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let plan = plan(&arguments, kernel)?;
    for (path, _) in &plan.files {
        std::fs::File::open(path).map_err(|error| {
            Failure::new(format!("cannot read {}: {error}", path.display())).with_code(23)
        })?;
    }
    let mut argv = vec!["insula".to_owned()];
    argv.extend(plan.arguments);
    lab::run_ours(argv, &plan.files, output)
}

/// Translates arguments for the lab.
fn plan(arguments: &[OsString], kernel: Option<&Path>) -> Result<Plan, Failure> {
    let mut plan = Plan::default();
    let mut names_kernel = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = utf8(argument)?;
        if text == "--" {
            if !names_kernel && let Some(kernel) = kernel {
                let place = plan.bring(kernel);
                plan.arguments.extend(["--kernel".to_owned(), place]);
                names_kernel = true;
            }
            plan.arguments.push(text);
            for argument in rest.by_ref() {
                plan.arguments.push(utf8(argument)?);
            }
            break;
        }
        let (option, inline) = match text.split_once('=') {
            Some((option, value)) if option.starts_with("--") => {
                (option.to_owned(), Some(value.to_owned()))
            }
            _ => (text.clone(), None),
        };
        let known = READ.iter().chain(&ENVIRONMENT).chain(&PLACE);
        if !known.into_iter().any(|known| *known == option) {
            plan.arguments.push(text);
            continue;
        }
        // The grammar was checked: what needs a value has one.
        let value = match inline {
            Some(value) => value,
            None => rest.next().map(utf8).transpose()?.unwrap_or_default(),
        };
        if PLACE.contains(&option.as_str()) {
            continue;
        }
        let value = if READ.contains(&option.as_str()) {
            names_kernel |= option == "--kernel";
            plan.bring(Path::new(&value))
        } else {
            crate::cli::values::env(&value).map_err(Failure::usage)?
        };
        plan.arguments.extend([option, value]);
    }
    if !names_kernel && let Some(kernel) = kernel {
        let place = plan.bring(kernel);
        plan.arguments.extend(["--kernel".to_owned(), place]);
    }
    Ok(plan)
}

impl Plan {
    /// Notes a file that is to be brought in; its place in the lab, where it
    /// keeps its name, which messages show.
    fn bring(&mut self, path: &Path) -> String {
        let name = path.file_name().map_or_else(String::new, |name| {
            name.to_string_lossy()
                .replace(|c: char| c.is_control() || c == '/', "_")
        });
        let place = format!("{FILES}/{}-{}/{name}", std::process::id(), self.files.len());
        self.files.push((path.to_owned(), place.clone()));
        place
    }
}

fn utf8(argument: &OsString) -> Result<String, Failure> {
    argument.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::usage(format!(
            "the argument {} is not UTF-8, which the lab needs",
            argument.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(line: &str, kernel: Option<&str>) -> (String, Vec<String>) {
        let arguments: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        let plan = plan(&arguments, kernel.map(Path::new)).unwrap();
        let files = plan
            .files
            .iter()
            .map(|(path, _)| path.display().to_string())
            .collect();
        let mut text = plan.arguments.join(" ");
        for (index, (_, place)) in plan.files.iter().enumerate() {
            text = text.replace(place, &format!("<{index}>"));
        }
        (text, files)
    }

    #[test]
    fn place_is_left_out_and_files_are_brought() {
        assert_eq!(
            planned(
                "guest start main --on lab --kernel ./vmlinux --config=a.toml --on=lab",
                None
            ),
            (
                "guest start main --kernel <0> --config <1>".to_owned(),
                vec!["./vmlinux".to_owned(), "a.toml".to_owned()]
            )
        );
    }

    #[test]
    fn what_follows_two_dashes_is_the_command_s_own() {
        let line = "run --on lab -- tool --on x --kernel=y -- -e Z";
        let expected = "run -- tool --on x --kernel=y -- -e Z".to_owned();
        assert_eq!(planned(line, None), (expected, Vec::new()));
    }

    #[test]
    fn a_kernel_from_a_file_becomes_an_option() {
        let (text, files) = planned("guest start --config a.toml", Some("/k/vmlinux"));
        assert_eq!(text, "guest start --config <0> --kernel <1>");
        assert_eq!(files, ["a.toml", "/k/vmlinux"]);
        let (text, _) = planned("guest start --kernel /own", Some("/own"));
        assert_eq!(text, "guest start --kernel <0>");
    }

    #[test]
    fn variables_are_taken_from_here() {
        let (text, _) = planned("vps exec -e CARGO_PKG_NAME --env A=b web", None);
        let name = std::env::var("CARGO_PKG_NAME").unwrap();
        assert_eq!(
            text,
            format!("vps exec -e CARGO_PKG_NAME={name} --env A=b web")
        );
    }
}
