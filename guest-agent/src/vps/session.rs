//! A process in a VPS that runs already: how it gets in.
//!
//! A process that enters a PID namespace does not live in it; its children
//! do. So there are two: the *usher* enters all namespaces, starts the session
//! as its sibling, reports its PID and ends. The session is then a child of
//! the engine's process, whose waiter sees its real exit.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::thread::{Gid, ThreadNameSpaceType, Uid, move_into_thread_name_spaces};

use super::Error;
use super::handshake::Newcomer;
use super::launch::{self, Failure, Launch};
use super::raw::{self, Cloned};
use super::step::Step;
use super::users::User;

/// All that a session needs.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The VPS's init, whose namespaces it enters; or none: the machine.
    pub(crate) init: Option<BorrowedFd<'a>>,
    /// The machine's root directory, when it is not the process's own.
    pub(crate) root: Option<BorrowedFd<'a>>,
    pub(crate) user: Option<&'a str>,
    pub(crate) cwd: Option<&'a CString>,
    /// Added to what its user has.
    pub(crate) env: &'a [String],
    pub(crate) oom_score_adj: Option<i16>,
    pub(crate) filter: &'a [libc::sock_filter],
    pub(crate) launch: &'a Launch,
}

/// The usher: enters, and starts the session beside itself.
pub(crate) fn usher(plan: &Plan<'_>, engine: &Newcomer) -> Result<Infallible, Failure> {
    let entered = |errno| (Step::Enter, errno);
    launch::shed_inheritance(plan.oom_score_adj)?;
    let Some(init) = plan.init else {
        return session(plan);
    };
    // Nothing in the VPS may look into this copy of the agent.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(entered)?;
    let all = ThreadNameSpaceType::USER
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::TIME;
    move_into_thread_name_spaces(init, all).map_err(entered)?;
    match raw::clone3(0, None, true).map_err(|errno| (Step::Fork, errno))? {
        Cloned::Child => session(plan),
        Cloned::Parent { pid, .. } => {
            engine.report_pid(pid);
            raw::exit_now(0)
        }
    }
}

/// The session, in its namespaces.
fn session(plan: &Plan<'_>) -> Result<Infallible, Failure> {
    if let Some(root) = plan.root {
        let entered = |errno| (Step::Enter, errno);
        rustix::process::fchdir(root).map_err(entered)?;
        rustix::process::chroot(".").map_err(entered)?;
    }
    let confined = plan.init.is_some();
    if confined {
        // The VPS's root, from here on: its files are read with its rights.
        become_user(&User::root()).map_err(|errno| (Step::Credentials, errno))?;
    }
    let user = match plan.user {
        None => User::root(),
        Some(text) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root =
                openat(CWD, "/", flags, Mode::empty()).map_err(|errno| (Step::User, errno))?;
            User::find(root, text).ok_or((Step::User, Errno::NOENT))?
        }
    };
    let env = environment(plan, &user).map_err(|_| (Step::User, Errno::INVAL))?;
    let home = CString::new(user.home.as_str()).unwrap_or_default();
    let failure = plan.launch.execute(&env, || {
        if confined {
            launch::confine(plan.filter)?;
        }
        become_user(&user).map_err(|errno| (Step::Credentials, errno))?;
        launch::die_with_engine()?;
        match plan.cwd {
            Some(cwd) => rustix::process::chdir(cwd.as_c_str()),
            None if plan.user.is_some() => {
                // A user without a home starts at the root, as with login.
                rustix::process::chdir(home.as_c_str()).or_else(|_| rustix::process::chdir("/"))
            }
            None => rustix::process::chdir("/"),
        }
        .map_err(|errno| (Step::WorkingDirectory, errno))
    });
    Err(failure)
}

fn become_user(user: &User) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn environment(plan: &Plan<'_>, user: &User) -> Result<Vec<CString>, Error> {
    let mut base = vec![launch::PATH.to_owned(), format!("HOME={}", user.home)];
    if let Some(name) = &user.name {
        base.push(format!("USER={name}"));
        base.push(format!("LOGNAME={name}"));
    }
    if plan.init.is_some() {
        base.push(format!("container={}", super::CONTAINER));
    }
    if matches!(plan.launch.streams, launch::Streams::Terminal(_)) {
        base.push("TERM=xterm".to_owned());
    }
    launch::environment(&base, plan.env)
}
