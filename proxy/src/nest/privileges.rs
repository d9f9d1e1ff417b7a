//! What is left of root's powers in the program.
//!
//! A program that is not root keeps no capability and none is in its bounding set, so that no file
//! can give it any. One that is root keeps what ordinary daemons use and nothing with which it
//! could leave the nest, undo the redirection or read what is hidden. `no_new_privs` is not set:
//! the bounding set says all there is to say, and it would break `sudo` and security labels that
//! change at exec.

use std::io;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::{Network, User};

/// What a program that runs as root keeps: users and files, its own processes, low ports, memory
/// locks. Not here: SYS_ADMIN (setns, mount), SYS_PTRACE, NET_ADMIN (the redirect rules),
/// DAC_READ_SEARCH (opens hidden files by handle), MKNOD, SYS_MODULE, SYS_RAWIO, BPF and the like.
const KEPT_BY_ROOT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::IPC_OWNER)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::SYS_TTY_CONFIG)
    .union(CapabilitySet::LEASE)
    .union(CapabilitySet::AUDIT_WRITE);

/// What init needs until it has prepared the program's view: mounts, the bounding set, the user.
const NEEDED_BY_INIT: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// Whether the calling thread may make the namespaces as it is.
pub(super) fn may_build(network: Network) -> io::Result<bool> {
    let needed = match network {
        Network::Own => NEEDED_BY_INIT | CapabilitySet::NET_ADMIN,
        Network::Host => NEEDED_BY_INIT,
    };
    Ok(capabilities(None)?.effective.contains(needed))
}

/// Whether the calling thread may run a program as another user.
pub(super) fn may_become_another() -> io::Result<bool> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    Ok(capabilities(None)?.effective.contains(needed))
}

/// Makes what init needs survive the next exec of the calling thread's children, also where the
/// uid is not 0.
pub(super) fn hand_down() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    let handed = NEEDED_BY_INIT & sets.permitted;
    sets.inheritable |= handed;
    set_capabilities(None, sets)?;
    for capability in handed.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Becomes `user`, if one is given, and drops what the program must not have.
pub(super) fn drop_to(user: Option<&User>) -> io::Result<()> {
    let uid = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    let kept = if uid == 0 {
        KEPT_BY_ROOT
    } else {
        CapabilitySet::empty()
    };
    clear_ambient_capability_set()?;
    // Bits without a name too: a newer kernel has capabilities that we do not know. The first that
    // the kernel does not know ends the list.
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => {
                remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if let Some(user) = user {
        UserIds::of(user).assume()?;
    }
    let permitted = capabilities(None)?.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets {
            effective: permitted,
            permitted,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// A user's ids as the system calls take them, so that they can be assumed between fork and exec.
#[derive(Debug)]
pub(super) struct UserIds {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl UserIds {
    pub(super) fn of(user: &User) -> Self {
        Self {
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            groups: user.groups.iter().copied().map(Gid::from_raw).collect(),
        }
    }

    /// Sets the ids of the calling thread, which must be the only one of its process. Allocates
    /// nothing.
    pub(super) fn assume(&self) -> io::Result<()> {
        set_thread_groups(&self.groups)?;
        set_thread_res_gid(self.gid, self.gid, self.gid)?;
        set_thread_res_uid(self.uid, self.uid, self.uid)?;
        Ok(())
    }
}
