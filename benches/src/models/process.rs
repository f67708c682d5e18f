//! `process`: bare processes on the host's kernel, the baseline.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::burst::at_once;
use super::{
    Clock, Conditions, Execution, Instance, InstanceLimits, Model, ModelError, ModelId, PATIENCE,
    Usage, WORKLOAD,
};
use crate::result::{Event, Waterfall};

/// Most output of one program that is kept.
const MAX_OUTPUT: usize = 64 * 1024;

/// The baseline.
#[derive(Debug)]
pub struct ProcessModel {
    workload: PathBuf,
}

impl ProcessModel {
    /// With the workload binary at `workload`: the very file that is in the
    /// template of the other models.
    pub fn new(workload: PathBuf) -> Self {
        Self { workload }
    }
}

impl Model for ProcessModel {
    fn id(&self) -> ModelId {
        ModelId::Process
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            model: ModelId::Process,
            kernel: super::host_kernel(),
            limits: "none".into(),
            image: format!("the host's root; {} by its path", self.workload.display()),
            shares: "everything with the host".into(),
        }
    }

    fn launch(&mut self, _: &InstanceLimits) -> Result<Box<dyn Instance>, ModelError> {
        let mut waterfall = Waterfall::new();
        let clock = Clock::start();
        let mut child = command(&self.workload, &[WORKLOAD, "idle"])
            .spawn()
            .map_err(|source| ModelError::host("start", &self.workload, source))?;
        waterfall.set(Event::RuntimeStarted, clock.elapsed_ns());
        let output = child.stdout.take();
        let instance = Box::new(ProcessInstance {
            workload: self.workload.clone(),
            idle: Some(child),
            waterfall,
        });
        // Its line says that it is there.
        let mut byte = [0];
        match output.map(|mut output| output.read(&mut byte)) {
            Some(Ok(1)) => Ok(instance),
            _ => Err(ModelError::host(
                "run",
                &self.workload,
                io::Error::other("it said nothing"),
            )),
        }
    }

    fn run_once(&mut self, _: &InstanceLimits, argv: &[&str]) -> Result<Execution, ModelError> {
        // A process is its own instance.
        let mut execution = execute(&self.workload, argv, PATIENCE, Clock::start())?;
        if let Some(exit) = execution.waterfall.get(Event::Exit) {
            // It was waited for: that is all that it took.
            execution.waterfall.set(Event::Returned, exit);
        }
        Ok(execution)
    }

    fn burst(
        &mut self,
        _: &InstanceLimits,
        argv: &[&str],
        count: u32,
    ) -> Result<Vec<Execution>, ModelError> {
        let clock = Clock::start();
        at_once(
            0..count,
            |_| execute(&self.workload, argv, PATIENCE, clock),
            Ok,
        )
    }
}

/// One idle process.
struct ProcessInstance {
    workload: PathBuf,
    idle: Option<Child>,
    waterfall: Waterfall,
}

impl ProcessInstance {
    fn end(&mut self) -> io::Result<()> {
        let Some(mut child) = self.idle.take() else {
            return Ok(());
        };
        child.kill()?;
        child.wait().map(drop)
    }
}

impl Instance for ProcessInstance {
    fn waterfall(&self) -> &Waterfall {
        &self.waterfall
    }

    fn exec(&mut self, argv: &[&str], within: Duration) -> Result<Execution, ModelError> {
        execute(&self.workload, argv, within, Clock::start())
    }

    fn usage(&mut self) -> Result<Usage, ModelError> {
        Ok(Usage::default())
    }

    fn host_processes(&self) -> Vec<u32> {
        self.idle.iter().map(Child::id).collect()
    }

    fn destroy(mut self: Box<Self>) -> Result<(), ModelError> {
        self.end()
            .map_err(|source| ModelError::host("end", &self.workload, source))
    }
}

impl Drop for ProcessInstance {
    fn drop(&mut self) {
        // Fails only for a process that is gone.
        let _ = self.end();
    }
}

/// A program of the template: there is only the workload; anything with a path
/// is the host's own.
fn command(workload: &Path, argv: &[&str]) -> Command {
    let (program, arguments) = match argv {
        [program, rest @ ..] if program.contains('/') => (Path::new(*program), rest),
        [_, rest @ ..] => (workload, rest),
        [] => (workload, argv),
    };
    let mut command = Command::new(program);
    command.args(arguments);
    // As in the other models: an environment of its own, no input.
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a process to its end; it was asked for at `clock`'s start.
fn execute(
    workload: &Path,
    argv: &[&str],
    within: Duration,
    clock: Clock,
) -> Result<Execution, ModelError> {
    let mut command = command(workload, argv);
    let failed = |doing| move |source| ModelError::host(doing, workload, source);
    let mut waterfall = Waterfall::new();
    let mut child = command.spawn().map_err(failed("start"))?;
    waterfall.set(Event::RuntimeStarted, clock.elapsed_ns());

    let outputs = [
        child.stdout.take().map(OwnedFd::from),
        child.stderr.take().map(OwnedFd::from),
    ];
    let collected = collect(outputs, clock, &mut waterfall, Instant::now() + within);
    if !matches!(collected, Ok(Some(_))) {
        // Fails only for a process that is gone.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed("wait for"))?;
    waterfall.set(Event::Exit, clock.elapsed_ns());
    match collected.map_err(|errno| ModelError::host("read the output of", workload, errno))? {
        Some([stdout, stderr]) => Ok(Execution {
            exit_code: shell_code(status),
            stdout,
            stderr,
            waterfall,
        }),
        None => Err(ModelError::Late {
            what: argv.join(" "),
            within,
        }),
    }
}

fn shell_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// Reads both outputs to their ends; `None` when the deadline came first.
fn collect(
    outputs: [Option<OwnedFd>; 2],
    clock: Clock,
    waterfall: &mut Waterfall,
    deadline: Instant,
) -> Result<Option<[Vec<u8>; 2]>, Errno> {
    let mut files = outputs.map(|output| output.map(File::from));
    let mut kept = [Vec::new(), Vec::new()];
    let mut buffer = vec![0; 16 * 1024];
    while files.iter().any(Option::is_some) {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds: Vec<PollFd<'_>> = files
            .iter()
            .flatten()
            .map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        for (index, slot) in files.iter_mut().enumerate() {
            let Some(file) = slot.as_mut() else { continue };
            if !ready.next().unwrap_or(false) {
                continue;
            }
            match file.read(&mut buffer) {
                Ok(0) => *slot = None,
                Ok(count) => {
                    if index == 0 && waterfall.get(Event::FirstByte).is_none() {
                        waterfall.set(Event::FirstByte, clock.elapsed_ns());
                    }
                    let room = MAX_OUTPUT - kept[index].len();
                    kept[index].extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
    }
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, within: Duration) -> Result<Execution, ModelError> {
        execute(
            Path::new("/nowhere"),
            &["/bin/sh", "-c", script],
            within,
            Clock::start(),
        )
    }

    #[test]
    fn output_and_codes_come_back() {
        let execution = shell("echo out; echo err >&2; exit 7", PATIENCE).unwrap();
        assert_eq!(execution.exit_code, 7);
        assert_eq!(execution.stdout, b"out\n");
        assert_eq!(execution.stderr, b"err\n");
        assert_eq!(execution.waterfall.disorder(), None);
        let first = execution.waterfall.get(Event::FirstByte).unwrap();
        assert!(first > 0 && first <= execution.waterfall.get(Event::Exit).unwrap());

        let killed = shell("kill -9 $$", PATIENCE).unwrap();
        assert_eq!(killed.exit_code, 137);
        assert_eq!(killed.waterfall.get(Event::FirstByte), None);
    }

    #[test]
    fn endless_output_is_cut_and_a_late_end_is_an_error() {
        let execution = shell("head -c 300000 /dev/zero", PATIENCE).unwrap();
        assert_eq!(execution.stdout.len(), MAX_OUTPUT);
        let error = shell("sleep 30", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ModelError::Late { .. }), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let argv = [WORKLOAD, "hello"];
        let error = execute(Path::new("/nowhere"), &argv, PATIENCE, Clock::start()).unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }
}
