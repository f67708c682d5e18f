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
use rustix::thread::{
    Gid, LinkNameSpaceType, ThreadNameSpaceType, Uid, move_into_link_name_space,
    move_into_thread_name_spaces,
};

use super::Error;
use super::handshake::Newcomer;
use super::launch::{self, Failure, Launch};
use super::raw::{self, Cloned};
use super::step::Step;
use super::users::User;

/// Where a session is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In the VPS with that init, behind that system call filter.
    Vps {
        init: BorrowedFd<'a>,
        filter: &'a [libc::sock_filter],
    },
    /// Beside all VPSs: in that mount namespace, or the agent's own.
    Machine { root: Option<BorrowedFd<'a>> },
}

/// All that a session needs.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) user: Option<&'a str>,
    pub(crate) cwd: Option<&'a CString>,
    /// Added to what its user has.
    pub(crate) env: &'a [String],
    pub(crate) oom_score_adj: Option<i16>,
    pub(crate) launch: &'a Launch,
}

/// The new process: becomes the session, or the usher that starts it.
pub(crate) fn run(plan: &Plan<'_>, engine: &Newcomer) -> Result<Infallible, Failure> {
    let entered = |errno| (Step::Enter, errno);
    launch::shed_inheritance(plan.oom_score_adj)?;
    match plan.place {
        Place::Machine { root } => {
            if let Some(namespace) = root {
                let kind = Some(LinkNameSpaceType::Mount);
                move_into_link_name_space(namespace, kind).map_err(entered)?;
            }
            session(plan)
        }
        Place::Vps { init, .. } => usher(plan, init, engine),
    }
}

/// Enters a VPS, and starts the session beside itself.
fn usher(plan: &Plan<'_>, init: BorrowedFd<'_>, engine: &Newcomer) -> Result<Infallible, Failure> {
    let entered = |errno| (Step::Enter, errno);
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
    let refused = |errno| (Step::Credentials, errno);
    let ids = match plan.place {
        Place::Vps { .. } => {
            // The VPS's root, from here on: its files are read with its rights.
            become_user(&User::root()).map_err(refused)?;
            super::idmap::RANGE
        }
        Place::Machine { .. } => u32::MAX,
    };
    let user = match plan.user {
        None => User::root(),
        Some(text) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root =
                openat(CWD, "/", flags, Mode::empty()).map_err(|errno| (Step::User, errno))?;
            User::find(root, text, ids).ok_or((Step::User, Errno::NOENT))?
        }
    };
    let env = environment(plan, &user).map_err(|_| (Step::User, Errno::INVAL))?;
    let home = CString::new(user.home.as_str()).unwrap_or_default();
    let failure = plan.launch.execute(&env, || {
        match plan.place {
            Place::Vps { filter, .. } => {
                launch::confine(filter)?;
                become_user(&user).map_err(refused)?;
                launch::die_with_engine()?;
            }
            Place::Machine { .. } => become_machine_user(plan, &user)?,
        }
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

/// An agent that is not root serves its own user, and nobody else.
fn become_machine_user(plan: &Plan<'_>, user: &User) -> Result<(), Failure> {
    let own = rustix::process::geteuid();
    if own.is_root() {
        become_user(user).map_err(|errno| (Step::Credentials, errno))
    } else if plan.user.is_some() && own.as_raw() != user.uid {
        Err((Step::User, Errno::PERM))
    } else {
        Ok(())
    }
}

fn become_user(user: &User) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn environment(plan: &Plan<'_>, user: &User) -> Result<Vec<CString>, Error> {
    let mut base = vec![
        launch::PATH.to_owned(),
        format!("HOME={}", user.home),
        format!("SHELL={}", user.shell),
    ];
    if let Some(name) = &user.name {
        base.push(format!("USER={name}"));
        base.push(format!("LOGNAME={name}"));
    }
    if matches!(plan.place, Place::Vps { .. }) {
        base.push(format!("container={}", super::CONTAINER));
    }
    if matches!(plan.launch.streams, launch::Streams::Terminal(_)) {
        base.push("TERM=xterm".to_owned());
    }
    launch::environment(&base, plan.env)
}
