//! Whether namespaces are to be had, and entering the user namespace where root's powers are not.
//!
//! The whole set-up is tried first, in a child: Ubuntu 24.04's AppArmor lets `unshare` succeed and
//! then refuses the capabilities, so that a process that asked only for the call would find itself
//! in a user namespace that is of no use.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{DumpableBehavior, getegid, geteuid, set_dumpable_behavior};
use rustix::thread::UnshareFlags;

use super::{NestError, privileges, sys};
use crate::intercept::link;

/// Where a nest's powers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The process has them already.
    Root,
    /// It is in a user namespace of its own now, where its user and group are what they were.
    UserNamespace,
}

/// Which network the program is in. Its mount and PID namespaces are its own either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A namespace of its own: [`super::Nest`].
    Own,
    /// The host's: [`super::Child::spawn_in_host_network`].
    Host,
}

/// Makes this process able to give a program namespaces: tries the whole set-up in a child, then,
/// where the process is not root, enters a user namespace in which its user and group ids are
/// unchanged. The process is sealed ([`seal`]) from here on.
///
/// Call it first in `main`: a user namespace can be entered only while there is one thread.
///
/// # Errors
///
/// [`NestError::Threads`], or [`NestError::Denied`] with what refused and what would allow it. The
/// process is then where it was.
pub fn enter(network: Network) -> Result<Privilege, NestError> {
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(NestError::Threads { threads });
    }
    let may_build = privileges::may_build(network).map_err(|source| NestError::Denied {
        step: Step::Capabilities,
        source,
        remedy: remedy(&Host::observe()),
    })?;
    let privilege = if may_build {
        Privilege::Root
    } else {
        Privilege::UserNamespace
    };
    let denied = |(step, source)| NestError::Denied {
        step,
        source,
        remedy: remedy(&Host::observe()),
    };
    probe(privilege, network).map_err(denied)?;
    if privilege == Privilege::UserNamespace {
        enter_user_namespace().map_err(denied)?;
    }
    seal().map_err(|error| denied((Step::Undumpable, error)))?;
    Ok(privilege)
}

/// Keeps other processes of the same user from this one's memory, environment, descriptors and
/// directories: it cannot be traced, and its files in `/proc` are root's. Nor does it leave a core
/// dump.
///
/// # Errors
///
/// What the system call came to.
pub fn seal() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// A step of the set-up that can be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reading the capabilities of the process.
    Capabilities,
    /// Starting the child that tries the set-up.
    Probe,
    /// `unshare(CLONE_NEWUSER)`.
    UserNamespace,
    /// Writing `uid_map`, `setgroups` and `gid_map`.
    UserMap,
    /// `unshare(CLONE_NEWNET)`.
    NetworkNamespace,
    /// Bringing up the loopback interface.
    Loopback,
    /// `unshare(CLONE_NEWNS)`.
    MountNamespace,
    /// Mounting a tmpfs.
    Mount,
    /// `unshare(CLONE_NEWPID)` and starting a process in it.
    PidNamespace,
    /// `PR_SET_DUMPABLE`.
    Undumpable,
}

impl Step {
    const ALL: [Self; 10] = [
        Self::Capabilities,
        Self::Probe,
        Self::UserNamespace,
        Self::UserMap,
        Self::NetworkNamespace,
        Self::Loopback,
        Self::MountNamespace,
        Self::Mount,
        Self::PidNamespace,
        Self::Undumpable,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capabilities => "read the capabilities of this process",
            Self::Probe => "start a child that tries the set-up",
            Self::UserNamespace => "make a user namespace",
            Self::UserMap => "map the user into its namespace",
            Self::NetworkNamespace => "make a network namespace",
            Self::Loopback => "bring up the namespace's loopback interface",
            Self::MountNamespace => "make a mount namespace",
            Self::Mount => "mount a file system in it",
            Self::PidNamespace => "make a PID namespace",
            Self::Undumpable => "keep other processes from reading this one's memory",
        })
    }
}

type Refusal = (Step, io::Error);

fn refused<E: Into<io::Error>>(step: Step) -> impl FnOnce(E) -> Refusal {
    move |error| (step, error.into())
}

/// Tries everything in a child and throws it away with it.
fn probe(privilege: Privilege, network: Network) -> Result<(), Refusal> {
    let (mut reader, mut writer) = io::pipe().map_err(refused(Step::Probe))?;
    sys::fork_and_wait(|| {
        let (step, error) = match try_all(privilege, network) {
            Ok(()) => return 0,
            Err(refusal) => refusal,
        };
        let step = Step::ALL.iter().position(|&other| other == step);
        let mut message = vec![u8::try_from(step.unwrap_or_default()).unwrap_or_default()];
        message.extend(error.raw_os_error().unwrap_or(libc::EIO).to_be_bytes());
        u8::from(writer.write_all(&message).is_err()) + 1
    })
    .map_err(refused(Step::Probe))
    .and_then(|status| {
        drop(writer);
        if status == 0 {
            return Ok(());
        }
        let mut message = [0; 5];
        reader
            .read_exact(&mut message)
            .map_err(refused(Step::Probe))?;
        let [step, errno @ ..] = message;
        let step = Step::ALL.get(usize::from(step)).copied();
        let error = io::Error::from_raw_os_error(i32::from_be_bytes(errno));
        Err((step.unwrap_or(Step::Probe), error))
    })
}

fn try_all(privilege: Privilege, network: Network) -> Result<(), Refusal> {
    if privilege == Privilege::UserNamespace {
        enter_user_namespace()?;
    }
    if network == Network::Own {
        sys::unshare(UnshareFlags::NEWNET).map_err(refused(Step::NetworkNamespace))?;
        link::up_loopback().map_err(refused(Step::Loopback))?;
    }
    sys::unshare(UnshareFlags::NEWNS).map_err(refused(Step::MountNamespace))?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(refused(Step::Mount))?;
    mount("weft", "/proc", "tmpfs", MountFlags::RDONLY, None).map_err(refused(Step::Mount))?;
    sys::unshare(UnshareFlags::NEWPID).map_err(refused(Step::PidNamespace))?;
    match sys::fork_and_wait(|| 0) {
        Ok(0) => Ok(()),
        Ok(_) => Err((
            Step::PidNamespace,
            io::Error::from_raw_os_error(libc::EPERM),
        )),
        Err(error) => Err((Step::PidNamespace, error)),
    }
}

/// Enters a user namespace in which the user and group are themselves: mapped to 0 instead,
/// `initdb` and others refuse to start. Only one id of each kind can be mapped without root's
/// help, and setgroups must be given up for it.
fn enter_user_namespace() -> Result<(), Refusal> {
    // Read before: inside, unmapped, both are 65534.
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    sys::unshare(UnshareFlags::NEWUSER).map_err(refused(Step::UserNamespace))?;
    let write = |file, content: String| {
        fs::write(format!("/proc/self/{file}"), content).map_err(refused(Step::UserMap))
    };
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("setgroups", "deny".to_owned())?;
    write("gid_map", format!("{gid} {gid} 1"))
}

/// What the host says about user namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Host {
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu since 23.10).
    apparmor_restricts: bool,
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's switch).
    clone_disabled: bool,
    /// `user.max_user_namespaces` is 0.
    none_allowed: bool,
    /// A seccomp filter is on this process: most container engines'.
    filtered: bool,
    /// The path of this program, for the AppArmor profile.
    program: String,
}

impl Host {
    fn observe() -> Self {
        let is = |path: &str, value: &str| {
            fs::read_to_string(path).is_ok_and(|content| content.trim() == value)
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            apparmor_restricts: is(
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1",
            ),
            clone_disabled: is("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            none_allowed: is("/proc/sys/user/max_user_namespaces", "0"),
            filtered: status
                .lines()
                .filter_map(|line| line.strip_prefix("Seccomp:"))
                .any(|mode| mode.trim() == "2"),
            program: std::env::current_exe()
                .map_or_else(|_| "PATH".to_owned(), |path| path.display().to_string()),
        }
    }
}

/// What would allow it, for the operator.
fn remedy(host: &Host) -> String {
    let mut ways = Vec::new();
    if host.apparmor_restricts {
        ways.push(format!(
            "allow user namespaces for this program with an AppArmor profile (file \
             /etc/apparmor.d/weft: `abi <abi/4.0>, include <tunables/global> profile weft {} \
             flags=(unconfined) {{ userns, }}`, then `apparmor_parser -r /etc/apparmor.d/weft`), or \
             for all with `sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
            host.program
        ));
    }
    if host.clone_disabled {
        ways.push(
            "allow user namespaces with `sysctl kernel.unprivileged_userns_clone=1`".to_owned(),
        );
    }
    if host.none_allowed {
        ways.push("allow user namespaces with `sysctl user.max_user_namespaces=15000`".to_owned());
    }
    if host.filtered {
        ways.push(
            "in a container, allow `unshare` and `mount` in its seccomp profile or add the \
             capabilities SYS_ADMIN and NET_ADMIN"
                .to_owned(),
        );
    }
    ways.push("run as root and name the program's user".to_owned());
    ways.join("; or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_what_stands_in_the_way() {
        let check = |host: Host, expected: &[&str]| {
            let remedy = remedy(&host);
            for part in expected {
                assert!(remedy.contains(part), "{part} in {remedy}");
            }
            assert_eq!(remedy.split("; or ").count(), expected.len(), "{remedy}");
        };
        let root = "run as root";
        check(Host::default(), &[root]);
        check(
            Host {
                clone_disabled: true,
                ..Host::default()
            },
            &["unprivileged_userns_clone=1", root],
        );
        check(
            Host {
                none_allowed: true,
                ..Host::default()
            },
            &["max_user_namespaces", root],
        );
        check(
            Host {
                filtered: true,
                ..Host::default()
            },
            &["seccomp", root],
        );
        let ubuntu = Host {
            apparmor_restricts: true,
            program: "/opt/weft".to_owned(),
            ..Host::default()
        };
        check(ubuntu, &["profile weft /opt/weft", root]);
    }
}
