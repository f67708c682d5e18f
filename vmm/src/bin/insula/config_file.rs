//! `insula guest start --config FILE`

use std::path::{Path, PathBuf};

use guest_agent::protocol::Name;
use serde::{Deserialize, Deserializer, de};

use crate::cli::{MachineOptions, values};
use crate::failure::Failure;

/// What a configuration file may say: the options of `insula guest start`
/// under their own names, as TOML or JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    vcpus: Option<u64>,
    memory: Option<String>,
    disk: Option<String>,
    data: Option<PathBuf>,
    kernel: Option<PathBuf>,
    #[serde(default, deserialize_with = "names")]
    templates: Vec<Name>,
    cmdline: Option<String>,
    ready_timeout: Option<String>,
}

fn names<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Name>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    names
        .into_iter()
        .map(|name| Name::new(name).map_err(de::Error::custom))
        .collect()
}

/// `options`, completed by the file that they name.
///
/// # Errors
/// The file can't be read, or a field of it is unknown or wrong; the message
/// names both.
pub(crate) fn complete(options: &MachineOptions) -> Result<MachineOptions, Failure> {
    let Some(path) = &options.config else {
        return Ok(options.clone());
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!(
            "cannot read the configuration {}: {error}",
            path.display()
        ))
    })?;
    parse(&text, path)
        .and_then(|file| merge(options, file, path))
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

fn parse(text: &str, path: &Path) -> Result<ConfigFile, String> {
    let is_json =
        path.extension().is_some_and(|end| end == "json") || text.trim_start().starts_with('{');
    if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())
    } else {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }
}

/// The command line wins. Paths in a file are meant from where the file is.
fn merge(
    options: &MachineOptions,
    file: ConfigFile,
    path: &Path,
) -> Result<MachineOptions, String> {
    let from_here = |named: PathBuf| match path.parent() {
        Some(dir) => dir.join(named),
        None => named,
    };
    let field = |name: &'static str| move |error: String| format!("{name}: {error}");
    let vcpus = file.vcpus.map(|number| values::vcpus(&number.to_string()));
    let memory = file.memory.map(|text| values::guest_memory(&text));
    let disk = file
        .disk
        .map(|text| text.parse().map_err(|error| format!("disk: {error}")));
    let timeout = file.ready_timeout.map(|text| values::some_duration(&text));
    Ok(MachineOptions {
        vcpus: options.vcpus.or(vcpus.transpose().map_err(field("vcpus"))?),
        memory: options
            .memory
            .or(memory.transpose().map_err(field("memory"))?),
        disk: options.disk.or(disk.transpose()?),
        data: options.data.clone().or(file.data.map(from_here)),
        kernel: options.kernel.clone().or(file.kernel.map(from_here)),
        templates: if options.templates.is_empty() {
            file.templates
        } else {
            options.templates.clone()
        },
        cmdline: options.cmdline.clone().or(file.cmdline),
        ready_timeout: options
            .ready_timeout
            .or(timeout.transpose().map_err(field("ready_timeout"))?),
        config: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<MachineOptions, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let options = MachineOptions {
            config: Some(path),
            ..MachineOptions::default()
        };
        complete(&options).map_err(|failure| failure.to_string())
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = read(
            "a.toml",
            "vcpus = 2\nmemory = \"1G\"\ntemplates = [\"busybox\"]\n",
        );
        let json = read(
            "a.json",
            r#"{"vcpus":2,"memory":"1G","templates":["busybox"]}"#,
        );
        for options in [toml.unwrap(), json.unwrap()] {
            assert_eq!(options.vcpus.unwrap().get(), 2);
            assert_eq!(options.memory.unwrap().get(), 1024);
            assert_eq!(options.templates[0].as_str(), "busybox");
        }
    }

    #[test]
    fn errors_name_file_and_field() {
        for (text, words) in [
            ("memmory = \"64M\"\n", ["memmory", "a.toml"]),
            ("vcpus = 17\n", ["vcpu_count must be 1 to 16", "a.toml"]),
            ("vcpus = \"two\"\n", ["vcpus", "a.toml"]),
            (
                "memory = \"lots\"\n",
                ["memory: \"lots\" is not a size", "a.toml"],
            ),
            (
                "disk = \"lots\"\n",
                ["disk: \"lots\" is not a size", "a.toml"],
            ),
            (
                "templates = [\"A\"]\n",
                ["\"A\" is not a valid name", "a.toml"],
            ),
            (
                "ready_timeout = \"soon\"\n",
                ["ready_timeout: \"soon\"", "a.toml"],
            ),
            ("vcpus = \n", ["line 1", "a.toml"]),
        ] {
            let error = read("a.toml", text).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{word:?} is not in {error:?}");
            }
        }
        assert!(
            read("a.json", r#"{"memmory":1}"#)
                .unwrap_err()
                .contains("memmory")
        );
    }

    #[test]
    fn the_command_line_wins_and_paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, "memory = \"1G\"\nkernel = \"vmlinux\"\n").unwrap();
        let options = MachineOptions {
            config: Some(path),
            memory: values::guest_memory("64M").ok(),
            ..MachineOptions::default()
        };
        let options = complete(&options).unwrap();
        assert_eq!(options.memory.unwrap().get(), 64);
        assert_eq!(options.kernel.unwrap(), dir.path().join("vmlinux"));
    }
}
