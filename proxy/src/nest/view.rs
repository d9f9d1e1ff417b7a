//! The program's view of the file system: a mount namespace in which Weft's own directories are
//! covered, `/proc` shows the program's processes only, and, where its network is its own, names are
//! resolved by the sidecar.
//!
//! Mounts of the host still arrive (the namespace is a slave), ours never reach the host.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use rustix::process::{chdir, getcwd};
use rustix::thread::UnshareFlags;

use super::protocol::Plan;
use super::sys;

/// The name server that the program sees. Nothing listens there: whatever the address, the
/// redirect rules bring DNS to the sidecar.
const NAME_SERVER: &str = "127.0.0.53";

/// Caches that would answer in the sidecar's place.
const NAME_CACHES: [&str; 2] = ["/run/nscd", "/var/run/nscd"];

/// Where systemd-resolved keeps its sockets, beside the file that `/etc/resolv.conf` often links to.
const RESOLVED: &str = "/run/systemd/resolve";

const NO_DEVICES: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Why the view could not be made.
#[derive(Debug)]
pub(super) enum ViewError {
    /// A step failed.
    Step(&'static str, io::Error),
    /// A place could not be covered.
    Hide(OsString, io::Error),
}

/// Gives the calling process, which has one thread, a view of its own. Returns whether the search
/// domains, if there shall be any, are in place; where the host has no resolv.conf to cover they
/// are not.
pub(super) fn make(plan: &Plan) -> Result<bool, ViewError> {
    let step = |name| move |error| ViewError::Step(name, error);
    // Known before anything is covered: a working directory inside a covered one would be a way in.
    let directory = getcwd(Vec::new());
    sys::unshare(UnshareFlags::NEWNS).map_err(step("make a mount namespace"))?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|errno| ViewError::Step("keep our mounts to ourselves", errno.into()))?;
    let mut search = true;
    if plan.own_network {
        search = direct_names_to_sidecar(&plan.search_domains)
            .map_err(step("cover resolv.conf and nsswitch.conf"))?;
        silence_caches().map_err(step("cover the sockets of name caches"))?;
    }
    for path in &plan.hide {
        cover(Path::new(path)).map_err(|error| ViewError::Hide(path.clone(), error))?;
    }
    // A container engine that has masked parts of /proc makes the kernel refuse a fresh one in a
    // user namespace. The program then sees the host's processes, but cannot look into them: they
    // are outside its user namespace, or, as the sidecar, not dumpable and with capabilities that
    // it does not have. Without a user namespace there is no such wall, and it must not start.
    match mount("proc", "/proc", "proc", NO_DEVICES, None) {
        Err(errno) if plan.only_own_processes => {
            return Err(ViewError::Step("mount a /proc of its own", errno.into()));
        }
        Ok(()) | Err(_) => {}
    }
    if let Ok(directory) = directory
        && chdir(directory.as_c_str()).is_err()
    {
        chdir("/").map_err(|errno| ViewError::Step("leave a covered directory", errno.into()))?;
    }
    Ok(search)
}

/// Binds our own resolv.conf and nsswitch.conf over the host's.
fn direct_names_to_sidecar(search_domains: &[String]) -> io::Result<bool> {
    // The files live on a nameless tmpfs: mounted over /proc, which is always there, for a moment,
    // and kept alive by the bind mounts.
    let scratch = Path::new("/proc");
    mount(
        "weft",
        scratch,
        "tmpfs",
        NO_DEVICES,
        Some(c"mode=0755,size=64k"),
    )?;
    let place = |name: &str, content: &str| -> io::Result<bool> {
        let file = scratch.join(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o444);
        options.open(&file)?.write_all(content.as_bytes())?;
        match mount_bind(&file, Path::new("/etc").join(name)) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    };
    let search = place("resolv.conf", &resolv_conf(search_domains))?;
    match fs::read_to_string("/etc/nsswitch.conf") {
        Ok(host) => {
            place("nsswitch.conf", &nsswitch_conf(&host))?;
        }
        // Without the file the C library's own default is `files dns` or near it.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    unmount(scratch, UnmountFlags::DETACH)?;
    Ok(search)
}

fn resolv_conf(search_domains: &[String]) -> String {
    let search = if search_domains.is_empty() {
        String::new()
    } else {
        format!("search {}\n", search_domains.join(" "))
    };
    format!("# Weft: the sidecar answers.\nnameserver {NAME_SERVER}\n{search}options ndots:1\n")
}

/// The host's file with hosts looked up in `/etc/hosts` and DNS only: modules such as `resolve`
/// and `mdns` would ask past the sidecar.
fn nsswitch_conf(host: &str) -> String {
    let others = host.lines().filter(|line| {
        let database = line.split(':').next().unwrap_or_default();
        database.trim() != "hosts"
    });
    let mut content = String::from("hosts: files dns\n");
    for line in others {
        content.push_str(line);
        content.push('\n');
    }
    content
}

fn silence_caches() -> io::Result<()> {
    for directory in NAME_CACHES.map(Path::new) {
        if directory.is_dir() {
            cover(directory)?;
        }
    }
    let Ok(entries) = fs::read_dir(RESOLVED) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            cover(&entry.path())?;
        }
    }
    Ok(())
}

/// Covers a directory with an empty read-only one, anything else with `/dev/null`. What this
/// process may not look at, the program, whose rights are fewer, cannot either.
fn cover(path: &Path) -> io::Result<()> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(()),
        found => found?,
    };
    if found.is_dir() {
        let flags = NO_DEVICES | MountFlags::RDONLY;
        mount("weft", path, "tmpfs", flags, Some(c"mode=0555,size=4k"))?;
    } else {
        mount_bind("/dev/null", path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_line_of_nsswitch_changes() {
        let check = |host: &str, expected: &str| assert_eq!(nsswitch_conf(host), expected);
        check("", "hosts: files dns\n");
        check(
            "passwd: files systemd\nhosts:  mymachines resolve [!UNAVAIL=return] dns\nnetworks: files",
            "hosts: files dns\npasswd: files systemd\nnetworks: files\n",
        );
        check(
            " hosts : dns\n# hosts: x\n",
            "hosts: files dns\n# hosts: x\n",
        );
    }

    #[test]
    fn resolv_conf_names_the_search_domains() {
        let check = |domains: &[&str], expected: &str| {
            let domains: Vec<String> = domains.iter().map(ToString::to_string).collect();
            let content = resolv_conf(&domains);
            let (_, content) = content.split_once('\n').unwrap();
            assert_eq!(content, expected);
        };
        check(&[], "nameserver 127.0.0.53\noptions ndots:1\n");
        check(
            &["shop.mesh", "mesh"],
            "nameserver 127.0.0.53\nsearch shop.mesh mesh\noptions ndots:1\n",
        );
    }
}
