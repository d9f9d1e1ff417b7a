//! Keeps the plugin on a node, and redirects what the plugin missed.
//!
//! It asks nobody and has no rights in the cluster. Pods that were made before the plugin was there wait
//! in their first init container (`weft-proxy verify`), and sidecars whose rules were taken away run on:
//! which namespaces are theirs, and how they are redirected, is `pods.rs`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::netns::{self, Identity};
use super::repair::Repair;
use super::{PLUGIN, conflist, ready, records};

/// How often namespaces are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the plugin is installed as it should be.
const INSTALL_EVERY: Duration = Duration::from_secs(2);

/// Keeps the CNI plugin on this node, and redirects the traffic of pods that it missed.
///
/// Examples:
///   weft-proxy cni-node --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d --state-dir /run/weft-cni
///   weft-proxy cni-node --bin-dir /host/bin --conf-dir /host/conf --state-dir /host/state \
///     --node-state-dir /run/weft-cni --ready-file /run/weft/ready --remove
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct NodeArgs {
    /// Where the node's plugins are.
    #[arg(long, value_name = "DIRECTORY")]
    pub bin_dir: PathBuf,
    /// Where the configurations of its networks are.
    #[arg(long, value_name = "DIRECTORY")]
    pub conf_dir: PathBuf,
    /// Where the plugin records what it redirects; an absolute path.
    #[arg(long, value_name = "DIRECTORY", value_parser = absolute)]
    pub state_dir: PathBuf,
    /// The same as the node's own programs see it [default: --state-dir].
    #[arg(long, value_name = "DIRECTORY", value_parser = absolute)]
    pub node_state_dir: Option<PathBuf>,
    /// Where it says for `weft-proxy cni-ready` whether it is ready [default: nowhere].
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Where the node's processes are.
    #[arg(long, value_name = "DIRECTORY", default_value = "/proc")]
    pub proc_dir: PathBuf,
    /// Take the plugin away from the node and keep it away, as before an uninstallation.
    #[arg(long)]
    pub remove: bool,
}

/// The plugin runs in a directory of its runtime's.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.is_absolute() {
        true => Ok(path),
        false => Err("allowed: an absolute path".to_owned()),
    }
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
    let mut installation = Installation::default();
    let mut repair = Repair::new(Instant::now());
    let mut said = None;
    // What the container before this one has said is over.
    tell(args, Err("the first round has not ended".to_owned()));
    loop {
        installation.keep(args, &program);
        let looked = match args.remove {
            true => Ok(()),
            false => look(args, own, &mut repair, &mut said),
        };
        tell(args, installation.problem.clone().map_or(looked, Err));
        thread::sleep(LOOK_EVERY);
    }
}

fn tell(args: &NodeArgs, found: Result<(), String>) {
    let told = { args.ready_file.as_ref() }.map_or(Ok(()), |path| ready::tell(path, found));
    if let Err(error) = told {
        tracing::debug!(error, "whether this is ready cannot be said");
    }
}

/// Looks at the pods; the same failure again and again is said once.
fn look(
    args: &NodeArgs,
    own: Identity,
    repair: &mut Repair,
    said: &mut Option<String>,
) -> Result<(), String> {
    let looked = repair.look(&args.proc_dir, own, &args.state_dir);
    let failure = looked.as_ref().err().cloned();
    if let Some(error) = &failure
        && said.is_none()
    {
        tracing::error!(error, "pods cannot be looked at");
    }
    *said = failure;
    looked
}

/// Whether the plugin is installed as it should be.
#[derive(Debug, Default)]
struct Installation {
    looked: Option<Instant>,
    problem: Option<String>,
}

impl Installation {
    /// Looks again, when it is time.
    fn keep(&mut self, args: &NodeArgs, program: &[u8]) {
        if self.looked.is_some_and(|at| at.elapsed() < INSTALL_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let done = match args.remove {
            true => remove(args),
            false => install(args, program),
        };
        // The same failure again and again is said once.
        let problem = done.as_ref().err().cloned();
        match done {
            Ok(true) => tracing::info!(removed = args.remove, "the node's plugin was changed"),
            Ok(false) => {}
            Err(error) if self.problem.as_ref() != Some(&error) => {
                tracing::error!(
                    error,
                    "the node's plugin is not as it should be; tried again"
                );
            }
            Err(_said) => {}
        }
        self.problem = problem;
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
    let place = args.conf_dir.display();
    let used = configurations(&args.conf_dir)?.into_iter().next();
    let used = used.ok_or_else(|| format!("{place}: found no configuration of a network"))?;
    if !used.ends_with(".conflist") {
        return Err(format!(
            "{place}/{used}: found a single plugin; allowed: a .conflist"
        ));
    }
    let state_dir = args.node_state_dir.as_ref().unwrap_or(&args.state_dir);
    let state_dir = state_dir.display().to_string();
    let with_plugin = |text: &str| {
        let changed = conflist::with_plugin(text, &state_dir)?;
        // Before the entry: should this end in between, it is put again, and recorded again.
        if changed.is_some() {
            records::write_put(&args.state_dir)?;
        }
        Ok(changed)
    };
    Ok(edit(&args.conf_dir, &used, with_plugin)? || !is_current)
}

/// Takes the entry away from every configuration, and then the program and what it has recorded. One
/// configuration that cannot be read keeps nothing from being taken away from the others.
fn remove(args: &NodeArgs) -> Result<bool, String> {
    let (mut edited, mut problem) = (false, None);
    for name in configurations(&args.conf_dir)? {
        match edit(&args.conf_dir, &name, conflist::without_plugin) {
            Ok(one) => edited |= one,
            Err(error) => problem = Some(error),
        }
    }
    // A runtime that still finds the entry needs the program.
    if let Some(problem) = problem {
        return Err(problem);
    }
    records::remove_all(&args.state_dir);
    match fs::remove_file(args.bin_dir.join(PLUGIN)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(edited),
        Err(error) => Err(format!("removing {PLUGIN}: {error}")),
    }
}

/// The configurations of networks that a runtime reads, that which it uses first.
fn configurations(dir: &Path) -> Result<Vec<String>, String> {
    let place = dir.display();
    let entries = fs::read_dir(dir).map_err(|error| format!("{place}: {error}"))?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    Ok(conflist::read_by_runtimes(names))
}

/// Changes a configuration; whether there was something to change.
fn edit(
    dir: &Path,
    name: &str,
    change: impl Fn(&str) -> Result<Option<String>, String>,
) -> Result<bool, String> {
    let path = dir.join(name);
    let place = path.display();
    let text = fs::read_to_string(&path).map_err(|error| format!("{place}: {error}"))?;
    let changed = change(&text).map_err(|error| format!("{place}: {error}"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path) -> NodeArgs {
        NodeArgs {
            bin_dir: dir.join("bin"),
            conf_dir: dir.join("conf"),
            state_dir: dir.join("state"),
            node_state_dir: Some("/run/weft-cni".into()),
            ready_file: None,
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
        let missed_before = || records::read(&args.state_dir).missed_before;
        assert!(missed_before() > 0);
        records::remove_all(&args.state_dir);
        assert_eq!(install(&args, b"program"), Ok(false));
        assert_eq!(missed_before(), 0, "the entry was there");
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
        assert!(missed_before() > 0);
        assert!(
            fs::read_to_string(&conflist)
                .unwrap()
                .contains("/run/weft-cni")
        );
        // Another network came to be the first one.
        let first = args.conf_dir.join("05-net.conflist");
        fs::write(&first, before).unwrap();
        assert_eq!(install(&args, b"newer"), Ok(true));
        assert!(fs::read_to_string(&first).unwrap().contains(PLUGIN));
        assert_eq!(remove(&args), Ok(true));
        assert!(!fs::read_to_string(&first).unwrap().contains(PLUGIN));
        assert_eq!(remove(&args), Ok(false));
        assert!(!plugin.exists() && !fs::read_to_string(&conflist).unwrap().contains(PLUGIN));
        let left = fs::read_dir(&args.conf_dir).unwrap().count();
        assert_eq!(left, 2);
        // What others have in their files is no obstacle, unless it may be the plugin.
        let others = args.conf_dir.join("20-others.conf");
        fs::write(&others, "no JSON").unwrap();
        assert_eq!(remove(&args), Ok(false));
        fs::write(&others, "weft-cni").unwrap();
        fs::write(&first, before).unwrap();
        install(&args, b"program").unwrap();
        assert!(remove(&args).unwrap_err().contains("20-others.conf"));
        assert!(!fs::read_to_string(&first).unwrap().contains(PLUGIN) && plugin.exists());
        fs::write(args.conf_dir.join("04-single.conf"), "{}").unwrap();
        let error = install(&args, b"program").unwrap_err();
        assert!(error.contains("allowed: a .conflist"), "{error}");
    }
}
