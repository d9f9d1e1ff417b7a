//! Keeps the plugin on a node, and redirects what the plugin missed.
//!
//! It asks nobody and has no rights in the cluster. Pods that were made before the plugin was there wait
//! in their first init container (`weft-proxy verify`), and sidecars whose rules were taken away run on:
//! both processes carry the arguments of their interception in a variable, so that what a process of a
//! namespace says holds for that namespace alone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::{PLUGIN, VARIABLE, arguments, conflist, netns};
use crate::intercept::{self, InterceptArgs};

/// How often namespaces are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the plugin is installed as it should be.
const INSTALL_EVERY: Duration = Duration::from_secs(2);
/// What is read of a process's environment and command line, bytes.
const READ_MAX: u64 = 128 * 1024;
/// Namespaces that are looked at side by side.
const AT_ONCE: usize = 32;
/// Namespaces that are looked at in one round; a node has about a hundred pods.
const NAMESPACES_MAX: usize = 2048;
/// The program of the processes that are looked at.
const PROGRAM: &str = "weft-proxy";

/// Keeps the CNI plugin on this node, and redirects the traffic of pods that it missed.
///
/// Examples:
///   weft-proxy cni-node --bin-dir /host/opt/cni/bin --conf-dir /host/etc/cni/net.d
///   weft-proxy cni-node --bin-dir /host/opt/cni/bin --conf-dir /host/etc/cni/net.d --remove
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct NodeArgs {
    /// Where the node's plugins are.
    #[arg(long, value_name = "DIRECTORY")]
    pub bin_dir: PathBuf,
    /// Where the configurations of its networks are.
    #[arg(long, value_name = "DIRECTORY")]
    pub conf_dir: PathBuf,
    /// Where the node's processes are.
    #[arg(long, value_name = "DIRECTORY", default_value = "/proc")]
    pub proc_dir: PathBuf,
    /// Take the plugin away from the node and keep it away, as before an uninstallation.
    #[arg(long)]
    pub remove: bool,
}

/// Why the program cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its own file cannot be read, so that nothing can be installed.
    #[error("reading the own program: {0}")]
    OwnProgram(io::Error),
    /// The namespace that is the node's own is not known, which must never be changed.
    #[error("{0}/1/ns/net: {1}; the pod needs hostPID and the capability SYS_PTRACE")]
    OwnNamespace(String, io::Error),
}

/// Runs until the process ends.
pub fn run(args: &NodeArgs) -> Result<(), NodeError> {
    let program = fs::read("/proc/self/exe").map_err(NodeError::OwnProgram)?;
    let own = args.proc_dir.join("1/ns/net");
    let own = netns::identity(&own)
        .map_err(|error| NodeError::OwnNamespace(args.proc_dir.display().to_string(), error))?;
    let (mut installed, mut said) = (None::<Instant>, None);
    loop {
        if installed.is_none_or(|at| at.elapsed() >= INSTALL_EVERY) {
            installed = Some(Instant::now());
            let done = match args.remove {
                true => remove(args),
                false => install(args, &program),
            };
            // The same failure again and again is said once.
            let failure = done.as_ref().err().cloned();
            match done {
                Ok(true) => tracing::info!(removed = args.remove, "the node's plugin was changed"),
                Ok(false) => {}
                Err(error) if said.as_ref() != Some(&error) => {
                    tracing::error!(
                        error,
                        "the node's plugin is not as it should be; tried again"
                    );
                }
                Err(_said) => {}
            }
            said = failure;
        }
        if !args.remove {
            repair(&args.proc_dir, own);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Puts the program and its entry in place; whether something had to be changed.
fn install(args: &NodeArgs, program: &[u8]) -> Result<bool, String> {
    let path = args.bin_dir.join(PLUGIN);
    let is_current = fs::read(&path).is_ok_and(|found| found == program);
    if !is_current {
        replace(&path, program, 0o755)?;
    }
    // The entry comes after the program that it names.
    Ok(edit(args, conflist::with_plugin)? || !is_current)
}

/// Takes the entry away, and then the program.
fn remove(args: &NodeArgs) -> Result<bool, String> {
    let edited = edit(args, conflist::without_plugin)?;
    match fs::remove_file(args.bin_dir.join(PLUGIN)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(edited),
        Err(error) => Err(format!("removing {PLUGIN}: {error}")),
    }
}

/// Changes the configuration that the runtime uses.
fn edit(
    args: &NodeArgs,
    change: fn(&str) -> Result<Option<String>, String>,
) -> Result<bool, String> {
    let place = args.conf_dir.display();
    let entries = fs::read_dir(&args.conf_dir).map_err(|error| format!("{place}: {error}"))?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let name = conflist::first(names);
    let name = name.ok_or_else(|| format!("{place}: found no configuration of a network"))?;
    if !name.ends_with(".conflist") {
        return Err(format!(
            "{place}/{name}: found a single plugin; allowed: a .conflist"
        ));
    }
    let path = args.conf_dir.join(&name);
    let text = fs::read_to_string(&path).map_err(|error| format!("{place}/{name}: {error}"))?;
    let changed = change(&text).map_err(|error| format!("{place}/{name}: {error}"))?;
    let Some(changed) = changed else {
        return Ok(false);
    };
    let mode = path
        .metadata()
        .map_or(0o644, |found| found.permissions().mode());
    replace(&path, changed.as_bytes(), mode & 0o7777)?;
    Ok(true)
}

/// Replaces a file as a whole: nobody sees a part of it, and a program that runs goes on.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), String> {
    // No runtime reads a name that ends so.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".weft-new");
    let fresh = PathBuf::from(fresh);
    let write = || {
        fs::write(&fresh, content)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))?;
        fs::File::open(&fresh)?.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|error| format!("{}: {error}", path.display()))
}

/// Redirects the traffic of namespaces that have a process of the mesh and no rules in force.
fn repair(proc_dir: &Path, own: (u64, u64)) {
    let found = namespaces(proc_dir, own);
    let found: Vec<_> = found.into_iter().collect();
    for together in found.chunks(AT_ONCE) {
        thread::scope(|scope| {
            for (identity, (netns, rules)) in together {
                scope.spawn(|| repair_one(netns, *identity, rules));
            }
        });
    }
}

/// Works on the namespace that was looked at: the process may have ended, and its number may be that
/// of one in the node's own namespace by now.
fn repair_one(netns: &Path, identity: (u64, u64), rules: &InterceptArgs) {
    let uid = rules.uid;
    let opened = || netns::open(netns, identity);
    let Some((first, second)) = opened().zip(opened()) else {
        return;
    };
    match netns::within_file(first, netns, move || netns::is_redirected(uid)) {
        Ok(Ok(())) => {}
        // It was open: whatever keeps this from entering keeps it from every other one, too.
        Err(error) => {
            static SAID: AtomicBool = AtomicBool::new(false);
            if !SAID.swap(true, Ordering::Relaxed) {
                tracing::error!(error, "pods are not looked at; said once");
            }
        }
        Ok(Err(why)) => {
            let rules = rules.clone();
            let put = netns::within_file(second, netns, move || intercept::run(&rules));
            let place = netns.display();
            match put {
                Ok(Ok(())) => tracing::warn!(%place, why, "a pod was not redirected: it is now"),
                Ok(Err(error)) => tracing::error!(%place, %error, "a pod is not redirected"),
                Err(error) => tracing::debug!(%place, error, "a pod has gone"),
            }
        }
    }
}

/// Namespaces in which a process of the mesh says how they are to be redirected; of several the first
/// process counts. Never the node's own.
fn namespaces(proc_dir: &Path, own: (u64, u64)) -> BTreeMap<(u64, u64), (PathBuf, InterceptArgs)> {
    let mut found = BTreeMap::new();
    let mut pids: Vec<u32> = fs::read_dir(proc_dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let dir = proc_dir.join(pid.to_string());
        let Some(rules) = said_by(&dir) else { continue };
        let netns = dir.join("ns/net");
        let Ok(identity) = netns::identity(&netns) else {
            continue;
        };
        if identity != own && found.len() < NAMESPACES_MAX {
            found.entry(identity).or_insert((netns, rules));
        }
    }
    found
}

/// What a process says of its namespace; nothing of processes that are not the mesh's.
fn said_by(dir: &Path) -> Option<InterceptArgs> {
    let command = read_some(&dir.join("cmdline"))?;
    let program = command.split(|byte| *byte == 0).next()?;
    let program = Path::new(std::str::from_utf8(program).ok()?).file_name();
    if program != Some(OsStr::new(PROGRAM)) {
        return None;
    }
    let environment = read_some(&dir.join("environ"))?;
    let mut variables = environment.split(|byte| *byte == 0);
    let said = variables.find_map(|variable| {
        let variable = std::str::from_utf8(variable).ok()?;
        variable.strip_prefix(VARIABLE)?.strip_prefix('=')
    });
    arguments(said?).ok()
}

fn read_some(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(READ_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path) -> NodeArgs {
        NodeArgs {
            bin_dir: dir.join("bin"),
            conf_dir: dir.join("conf"),
            proc_dir: dir.join("proc"),
            remove: false,
        }
    }

    #[test]
    fn the_plugin_is_put_in_place_kept_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path());
        fs::create_dir(&args.bin_dir).unwrap();
        fs::create_dir(&args.conf_dir).unwrap();
        let error = install(&args, b"program").unwrap_err();
        assert!(error.contains("no configuration of a network"), "{error}");
        let conflist = args.conf_dir.join("10-net.conflist");
        let before = r#"{"name": "pods", "plugins": [{"type": "bridge"}]}"#;
        fs::write(&conflist, before).unwrap();
        assert_eq!(install(&args, b"program"), Ok(true));
        assert_eq!(install(&args, b"program"), Ok(false));
        let plugin = args.bin_dir.join(PLUGIN);
        assert_eq!(
            plugin.metadata().unwrap().permissions().mode() & 0o777,
            0o755
        );
        assert!(fs::read_to_string(&conflist).unwrap().contains(PLUGIN));
        // The network's own program writes its configuration anew, and the program is upgraded.
        fs::write(&conflist, before).unwrap();
        assert_eq!(install(&args, b"newer"), Ok(true));
        assert_eq!(fs::read(&plugin).unwrap(), b"newer");
        assert!(fs::read_to_string(&conflist).unwrap().contains(PLUGIN));
        assert_eq!(remove(&args), Ok(true));
        assert_eq!(remove(&args), Ok(false));
        assert!(!plugin.exists() && !fs::read_to_string(&conflist).unwrap().contains(PLUGIN));
        let left = fs::read_dir(&args.conf_dir).unwrap().count();
        assert_eq!(left, 1);
        fs::write(args.conf_dir.join("05-single.conf"), "{}").unwrap();
        let error = install(&args, b"program").unwrap_err();
        assert!(error.contains("allowed: a .conflist"), "{error}");
    }

    #[test]
    fn processes_of_the_mesh_say_how_their_namespace_is_redirected_and_never_the_nodes_own() {
        let dir = tempfile::tempdir().unwrap();
        let process = |pid: &str, command: &[u8], environment: &[u8], namespace: &str| {
            let place = dir.path().join(pid);
            fs::create_dir_all(place.join("ns")).unwrap();
            fs::write(place.join("cmdline"), command).unwrap();
            fs::write(place.join("environ"), environment).unwrap();
            let namespace = dir.path().join(namespace);
            fs::write(&namespace, "").unwrap();
            std::os::unix::fs::symlink(namespace, place.join("ns/net")).unwrap();
        };
        let says = b"A=b\0WEFT_CNI_INTERCEPTION=[\"--no-dns\"]\0";
        process("1", b"init\0", b"", "host");
        process("20", b"/weft-proxy\0", says, "pod");
        process(
            "21",
            b"/weft-proxy\0verify\0",
            b"WEFT_CNI_INTERCEPTION=[]\0",
            "pod",
        );
        process("22", b"/bin/other\0", says, "other");
        process("23", b"/weft-proxy\0", b"A=b\0", "unsaid");
        process(
            "24",
            b"/weft-proxy\0",
            b"WEFT_CNI_INTERCEPTION=nonsense\0",
            "nonsense",
        );
        process("25", b"weft-proxy\0", says, "host");
        fs::create_dir(dir.path().join("self")).unwrap();
        let own = netns::identity(&dir.path().join("1/ns/net")).unwrap();
        let found: Vec<_> = namespaces(dir.path(), own).into_values().collect();
        let [(netns, rules)] = &*found else {
            panic!("{found:?}");
        };
        assert!(netns.ends_with("20/ns/net") && rules.no_dns);
    }
}
