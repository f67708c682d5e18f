//! `insula-agent service`: the agent on a machine that something else booted.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use rustix::fs::{Mode, OFlags, open};

use crate::machine::{Machine, MachineRoot};
use crate::protocol::{Code, Failure, Name};
use crate::server::{Agent, Listener, Setup, failure, log};
use crate::supervisor::{Supervisor, Templates, remove_cgroups};
use crate::vps::place::on_initramfs;
use crate::vps::{EngineConfig, TemplateSource, leave_initramfs, own_mounts};

const USAGE: &str = "\
Usage: insula-agent service (--socket PATH | --listen tcp:ADDR:PORT --token-file FILE) [OPTION]...

Serves requests on this machine: processes in it, and VPSs from the templates given.

  --socket PATH           listen on a Unix socket, for root and one's own user
  --listen tcp:ADDR:PORT  listen on TCP, for callers that know the token
  --token-file FILE       the token: the file's content without surrounding white space
  --template NAME=PATH    a template: an EROFS image or a directory (repeatable)
  --templates DIR         all templates NAME.erofs and NAME/ in a directory
  --state DIR             keep VPSs here; without it they live as long as the service
  --cgroup DIR            the cgroup for VPSs [/sys/fs/cgroup/insula-… by socket]

Without --template or --templates there are no VPSs, and no privileges are needed.
A name given by --template wins over one found by --templates.

Exit: 0 told to end, 1 cannot serve, 2 wrong usage.
";

/// What the command line says.
#[derive(Debug, Default)]
struct Options {
    socket: Option<PathBuf>,
    listen: Option<SocketAddr>,
    token_file: Option<PathBuf>,
    templates: Templates,
    state: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    help: bool,
}

#[derive(Debug)]
struct UsageError(String);

impl<T: fmt::Display> From<T> for UsageError {
    fn from(error: T) -> Self {
        Self(error.to_string())
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Options, UsageError> {
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("socket") => options.socket = Some(parser.value()?.into()),
            Long("listen") => {
                let value = parser.value()?.string()?;
                let address = value
                    .strip_prefix("tcp:")
                    .and_then(|address| address.parse().ok());
                options.listen = Some(address.ok_or_else(|| {
                    format!("--listen {value}: use tcp:ADDRESS:PORT, such as tcp:127.0.0.1:7000")
                })?);
            }
            Long("token-file") => options.token_file = Some(parser.value()?.into()),
            Long("template") => {
                let value = parser.value()?.string()?;
                let (name, path) = value
                    .split_once('=')
                    .ok_or_else(|| format!("--template {value}: use NAME=PATH"))?;
                let path = PathBuf::from(path);
                let source = if path.is_dir() {
                    TemplateSource::Directory(path)
                } else {
                    TemplateSource::Erofs(path)
                };
                options.templates.named.insert(Name::new(name)?, source);
            }
            Long("templates") => options.templates.directory = Some(parser.value()?.into()),
            Long("state") => options.state = Some(parser.value()?.into()),
            Long("cgroup") => options.cgroup = Some(parser.value()?.into()),
            Long("help") | Short('h') => options.help = true,
            other => return Err(other.unexpected().into()),
        }
    }
    if options.help {
        return Ok(options);
    }
    match (&options.socket, &options.listen, &options.token_file) {
        (None, None, _) => Err("say where to listen: --socket or --listen".into()),
        (_, Some(_), None) => Err("--listen needs --token-file".into()),
        (_, None, Some(_)) => Err("--token-file goes with --listen".into()),
        _ => Ok(options),
    }
}

/// Runs `insula-agent service` with the arguments behind `service`; returns
/// the exit code.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let options = match parse(args) {
        Ok(options) => options,
        Err(UsageError(error)) => {
            log(&format!("{error}\n\n{USAGE}"));
            return 2;
        }
    };
    if options.help {
        print!("{USAGE}");
        return 0;
    }
    match serve(options) {
        Ok(()) => 0,
        Err(error) => {
            log(&error);
            1
        }
    }
}

fn serve(options: Options) -> Result<(), String> {
    let listeners = listen(&options)?;
    let own_cgroup = options.cgroup.is_none().then(|| default_cgroup(&options));
    let disk = options.state.clone();
    let (machine, supervisor) = partition(options);
    match &supervisor {
        Err(why) if why.code != Code::Unsupported => {
            log(&format!("there can be no VPSs here: {}", why.message));
        }
        _ => {}
    }
    let mut agent = Agent::new(Setup {
        listeners,
        host: None,
        supervisor,
        machine,
        sessions: None,
        disk,
        protected: false,
    })
    .map_err(|e| format!("cannot wait for events: {e}"))?;
    agent.autostart();
    let served = agent.run();
    drop(agent);
    if let Some(cgroup) = own_cgroup {
        // It is not there when there were no VPSs.
        let _ = remove_cgroups(&cgroup);
    }
    served.map_err(|e| e.to_string())
}

fn listen(options: &Options) -> Result<Vec<Listener>, String> {
    let mut listeners = Vec::new();
    if let Some(path) = &options.socket {
        let listener = Listener::unix(path)
            .map_err(|e| format!("cannot listen on {}: {e}", path.display()))?;
        listeners.push(listener);
    }
    if let (Some(address), Some(path)) = (options.listen, &options.token_file) {
        let token = fs::read(path)
            .map_err(|e| format!("cannot read the token file {}: {e}", path.display()))?
            .trim_ascii()
            .to_vec();
        if token.is_empty() {
            return Err(format!("the token file {} is empty", path.display()));
        }
        let listener = Listener::tcp(address, token)
            .map_err(|e| format!("cannot listen on tcp:{address}: {e}"))?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Prepares for VPSs, if there are templates for any. Sessions outside of
/// them go on seeing the mounts that everybody sees.
fn partition(mut options: Options) -> (Machine, Result<Supervisor, Failure>) {
    if options.templates.named.is_empty() && options.templates.directory.is_none() {
        let why = failure(Code::Unsupported, "it was started without templates");
        return (Machine::Own, Err(why));
    }
    let everybodys = match everybodys_mounts() {
        Ok(root) => root,
        Err(e) => return (Machine::Own, Err(failure(Code::Internal, e.to_string()))),
    };
    let cgroup_root = options
        .cgroup
        .take()
        .unwrap_or_else(|| default_cgroup(&options));
    let supervisor = check_cgroups(&cgroup_root).and_then(|()| {
        own_mounts().map_err(|e| failure(Code::Internal, format!("{e}; VPSs need root")))?;
        if on_initramfs().unwrap_or(false) {
            leave_initramfs().map_err(|e| failure(Code::Internal, e.to_string()))?;
        }
        options.templates.mount_dir = mount_directory(&options)?;
        let config = EngineConfig {
            state_dir: options.state.clone(),
            cgroup_root,
            oom_score_adj: None,
        };
        let (supervisor, troubles) = Supervisor::new(config, options.templates)?;
        for trouble in troubles {
            log(&trouble);
        }
        Ok(supervisor)
    });
    (Machine::Other(everybodys), supervisor)
}

fn everybodys_mounts() -> Result<MachineRoot, rustix::io::Errno> {
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(MachineRoot {
        namespace: open("/proc/self/ns/mnt", read, Mode::empty())?,
        directory: open("/", path, Mode::empty())?,
    })
}

/// Where images are mounted, in the agent's own mount namespace: a file
/// system in memory that is gone with it.
fn mount_directory(options: &Options) -> Result<PathBuf, Failure> {
    let base = match &options.state {
        Some(state) => state.join("run"),
        None => PathBuf::from("/run/insula-agent"),
    };
    let trouble = |e: &dyn fmt::Display| {
        failure(
            Code::Internal,
            format!("cannot prepare {} for mounts: {e}", base.display()),
        )
    };
    fs::create_dir_all(&base).map_err(|e| trouble(&e))?;
    rustix::mount::mount(
        "insula",
        &base,
        "tmpfs",
        rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOSUID,
        c"mode=700,size=1m",
    )
    .map_err(|e| trouble(&e))?;
    Ok(base.join("templates"))
}

/// A cgroup that is this service's alone: where it listens is, too.
fn default_cgroup(options: &Options) -> PathBuf {
    let place = match (&options.socket, &options.listen) {
        (Some(path), _) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        (None, address) => format!("{address:?}").into(),
    };
    // FNV-1a.
    let hash = place
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, b| {
            (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3_u64)
        });
    PathBuf::from(format!("/sys/fs/cgroup/insula-{hash:016x}"))
}

fn check_cgroups(root: &Path) -> Result<(), Failure> {
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    let parent = root.parent().unwrap_or(root);
    let found = rustix::fs::statfs(parent).map(|found| found.f_type as u64);
    if found == Ok(CGROUP2_SUPER_MAGIC) {
        return Ok(());
    }
    Err(failure(
        Code::Internal,
        format!(
            "{} is not in a cgroup v2 hierarchy, which VPSs need; boot with cgroup v2 alone \
             (systemd.unified_cgroup_hierarchy=1), or use VPSs in a guest or in the lab",
            root.display()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Options, String> {
        parse(args.iter().map(OsString::from)).map_err(|e| e.0)
    }

    #[test]
    fn options_are_read() {
        let options = parsed(&[
            "--listen=tcp:127.0.0.1:80",
            "--token-file",
            "t",
            "--template",
            "busybox=/x.erofs",
            "--template=root=/",
        ])
        .unwrap();
        assert_eq!(options.listen.unwrap().port(), 80);
        let named = &options.templates.named;
        let source = |name: &str| named.get(&Name::new(name).unwrap()).unwrap().clone();
        assert_eq!(source("busybox"), TemplateSource::Erofs("/x.erofs".into()));
        assert_eq!(source("root"), TemplateSource::Directory("/".into()));
    }

    #[test]
    fn wrong_usage_says_what_is_right() {
        for (args, hint) in [
            (&[][..], "--socket or --listen"),
            (&["--listen", "tcp:127.0.0.1:80"], "--token-file"),
            (&["--listen", "80", "--token-file", "t"], "tcp:ADDRESS:PORT"),
            (
                &["--socket", "s", "--token-file", "t"],
                "goes with --listen",
            ),
            (&["--socket", "s", "--template", "busybox"], "NAME=PATH"),
            (
                &["--socket", "s", "--template", "Bad=x"],
                "not a valid name",
            ),
            (&["--socket", "s", "--nonsense"], "--nonsense"),
        ] {
            let error = parsed(args).unwrap_err();
            assert!(error.contains(hint), "{args:?}: {error}");
        }
    }

    #[test]
    fn services_have_cgroups_of_their_own() {
        let of = |path: &str| {
            default_cgroup(&Options {
                socket: Some(path.into()),
                ..Options::default()
            })
        };
        assert_eq!(of("/run/a"), of("/run/a"));
        assert_ne!(of("/run/a"), of("/run/b"));
    }

    #[test]
    fn a_hierarchy_of_another_kind_is_named() {
        let error = check_cgroups(Path::new("/proc/insula")).unwrap_err();
        assert!(error.message.contains("cgroup v2"), "{error}");
    }
}
