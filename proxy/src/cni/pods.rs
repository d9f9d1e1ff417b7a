//! Which network namespaces of a node are those of pods of the mesh, by what a container cannot forge.
//!
//! A pod is known by its cgroup, which the kubelet makes and no container of it may leave. Its namespace is
//! the one that the plugin has recorded for it; without a record that of the oldest process in that cgroup:
//! the sandbox's, which the container runtime starts before any container and which runs nothing of the pod.
//! So a pod has one namespace, however many others its programs make. How it is redirected says the record;
//! a pod that was made before the plugin was there says it by the oldest process of the mesh in that
//! namespace, once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::netns::{self, Identity};
use super::records::Record;
use super::{VARIABLE, arguments};
use crate::intercept::InterceptArgs;

/// The program of the processes that say how their pod is redirected.
const PROGRAM: &str = "weft-proxy";
/// Pods that are looked at; a kubelet runs 110 unless it is told otherwise.
const PODS_MAX: usize = 1024;
/// Processes of one pod that are asked how it is redirected.
const ASKED_MAX: usize = 16;
/// What is read of a process's environment and command line, bytes.
const READ_MAX: u64 = 128 * 1024;

/// A pod of the mesh, and the namespace that is to be redirected.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The pod's uid.
    pub(super) pod: String,
    /// A path to its network namespace, through the sandbox's process.
    pub(super) netns: PathBuf,
    /// The namespace that the path led to.
    pub(super) namespace: Identity,
    /// How it is redirected.
    pub(super) rules: Arc<InterceptArgs>,
}

/// The pods of a node in which there is, or was, a process of the mesh.
#[derive(Debug, Default)]
pub(super) struct Pods {
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    sandbox: Sandbox,
    /// Of the plugin's record.
    recorded: Option<Arc<InterceptArgs>>,
    /// What a process has said, where there is no record.
    said: Option<Arc<InterceptArgs>>,
}

/// The oldest process of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sandbox {
    process: Process,
    namespace: Identity,
    cgroup: Cgroup,
}

/// A process; of two with the same number one has started earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    /// When it was started, ticks since the machine was.
    started: u64,
    pid: u32,
}

/// Where a process is among the node's cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cgroup {
    /// The uid of the pod.
    pod: String,
    path: String,
}

impl Pods {
    /// Looks at the node's processes and at the plugin's records. Never a target is the node's own namespace.
    pub(super) fn look(
        &mut self,
        proc_dir: &Path,
        own: Identity,
        records: &[Record],
    ) -> Vec<Target> {
        let pids = pids(proc_dir);
        let mut of_mesh: BTreeMap<String, Vec<Process>> = BTreeMap::new();
        for pid in &pids {
            let dir = proc_dir.join(pid.to_string());
            if let Some((process, pod)) = of_the_mesh(&dir, *pid)
                && (of_mesh.len() < PODS_MAX || of_mesh.contains_key(&pod))
            {
                of_mesh.entry(pod).or_default().push(process);
            }
        }
        self.known
            .retain(|_, known| known.sandbox.is_there(proc_dir));
        let room = PODS_MAX.saturating_sub(self.known.len());
        let unknown = of_mesh.keys().filter(|pod| !self.known.contains_key(*pod));
        let unknown: BTreeSet<&str> = unknown.map(String::as_str).take(room).collect();
        for (pod, sandbox) in sandboxes(proc_dir, &pids, &unknown, records) {
            let known = Known {
                sandbox,
                recorded: None,
                said: None,
            };
            self.known.insert(pod, known);
        }
        let known = self.known.iter_mut();
        let targets = known.filter(|(_, known)| known.sandbox.namespace != own);
        let targets = targets.filter_map(|(pod, known)| {
            let asked = of_mesh.get(pod).map_or(&[][..], Vec::as_slice);
            Some(Target {
                pod: pod.clone(),
                netns: known.sandbox.netns(proc_dir),
                namespace: known.sandbox.namespace,
                rules: known.rules(proc_dir, records, asked)?,
            })
        });
        targets.collect()
    }

    /// Whether a record is that of a sandbox that is there.
    pub(super) fn has(&self, record: &Record) -> bool {
        self.known.values().any(|known| known.sandbox.is_of(record))
    }
}

impl Known {
    fn rules(
        &mut self,
        proc_dir: &Path,
        records: &[Record],
        asked: &[Process],
    ) -> Option<Arc<InterceptArgs>> {
        if self.recorded.is_none() {
            let record = records.iter().find(|record| self.sandbox.is_of(record));
            let recorded = record.and_then(|record| arguments(&record.arguments).ok());
            self.recorded = recorded.map(Arc::new);
        }
        if let Some(recorded) = &self.recorded {
            return Some(Arc::clone(recorded));
        }
        if self.said.is_none() {
            let mut asked = asked.to_vec();
            asked.sort_unstable();
            let mut places = asked
                .iter()
                .take(ASKED_MAX)
                .map(|process| proc_dir.join(process.pid.to_string()));
            self.said = places.find_map(|dir| {
                let namespace = netns::identity(&dir.join("ns/net")).ok()?;
                let said = (namespace == self.sandbox.namespace).then(|| said_by(&dir))?;
                said.map(Arc::new)
            });
        }
        self.said.clone()
    }
}

impl Sandbox {
    fn netns(&self, proc_dir: &Path) -> PathBuf {
        proc_dir.join(self.process.pid.to_string()).join("ns/net")
    }

    /// Whether the process is still the one that it was, where it was.
    fn is_there(&self, proc_dir: &Path) -> bool {
        let dir = proc_dir.join(self.process.pid.to_string());
        started(&dir) == Some(self.process.started)
            && netns::identity(&self.netns(proc_dir)).is_ok_and(|found| found == self.namespace)
            && cgroup(&dir).is_some_and(|found| found == self.cgroup)
    }

    /// Whether the plugin's record is of this sandbox: of its pod and its namespace.
    fn is_of(&self, record: &Record) -> bool {
        record.namespace == self.namespace && self.cgroup.is_of(record)
    }
}

impl Cgroup {
    /// Whether it is of the pod, or of the sandbox's container, that a record names.
    fn is_of(&self, record: &Record) -> bool {
        if let Some(pod) = &record.pod {
            return *pod == self.pod;
        }
        let mut parts = self.path.split('/');
        parts.any(|part| {
            // cgroupfs: ID; systemd: cri-containerd-ID.scope.
            let part = part.strip_suffix(".scope").unwrap_or(part);
            let id = part.rsplit_once('-').map_or(part, |(_, id)| id);
            part == record.container || id == record.container
        })
    }
}

/// The sandboxes of these pods: of each the oldest process, of those of which the plugin has recorded the
/// namespace the oldest process that is in it. A runtime may have none for the sandbox itself.
fn sandboxes(
    proc_dir: &Path,
    pids: &[u32],
    pods: &BTreeSet<&str>,
    records: &[Record],
) -> Vec<(String, Sandbox)> {
    if pods.is_empty() {
        return Vec::new();
    }
    let recorded = |pod: &str, namespace: Identity| {
        let of_pod = |record: &&Record| record.pod.as_deref() == Some(pod);
        let mut of_pod = records.iter().filter(of_pod).peekable();
        of_pod.peek().is_none() || of_pod.any(|record| record.namespace == namespace)
    };
    let mut oldest: BTreeMap<String, Sandbox> = BTreeMap::new();
    for pid in pids {
        let dir = proc_dir.join(pid.to_string());
        let Some(cgroup) = cgroup(&dir).filter(|cgroup| pods.contains(&*cgroup.pod)) else {
            continue;
        };
        let (Some(started), Ok(namespace)) = (started(&dir), netns::identity(&dir.join("ns/net")))
        else {
            continue;
        };
        let is_oldest = |other: &Sandbox| Process { started, pid: *pid } < other.process;
        if recorded(&cgroup.pod, namespace) && oldest.get(&cgroup.pod).is_none_or(is_oldest) {
            let sandbox = Sandbox {
                process: Process { started, pid: *pid },
                namespace,
                cgroup,
            };
            oldest.insert(sandbox.cgroup.pod.clone(), sandbox);
        }
    }
    oldest.into_iter().collect()
}

fn pids(proc_dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc_dir).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.collect()
}

/// A process of the mesh in a pod, by its name, and the pod's uid.
fn of_the_mesh(dir: &Path, pid: u32) -> Option<(Process, String)> {
    let command = read_some(&dir.join("cmdline"))?;
    let program = command.split(|byte| *byte == 0).next()?;
    let program = Path::new(std::str::from_utf8(program).ok()?).file_name();
    if program != Some(OsStr::new(PROGRAM)) {
        return None;
    }
    let started = started(dir)?;
    Some((Process { started, pid }, cgroup(dir)?.pod))
}

/// What a process says of its pod.
fn said_by(dir: &Path) -> Option<InterceptArgs> {
    let environment = read_some(&dir.join("environ"))?;
    let mut variables = environment.split(|byte| *byte == 0);
    let said = variables.find_map(|variable| {
        let variable = std::str::from_utf8(variable).ok()?;
        variable.strip_prefix(VARIABLE)?.strip_prefix('=')
    });
    arguments(said?).ok()
}

/// When a process was started: field 22 of `stat` (proc_pid_stat(5)). The second field is its name in
/// parentheses, which may hold any.
fn started(dir: &Path) -> Option<u64> {
    let stat = read_some(&dir.join("stat"))?;
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_ends + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The cgroup of a pod that a process is in; nothing of a process that is in none.
fn cgroup(dir: &Path) -> Option<Cgroup> {
    let cgroups = read_some(&dir.join("cgroup"))?;
    let cgroups = std::str::from_utf8(&cgroups).ok()?;
    // One line for each hierarchy: NUMBER:CONTROLLERS:PATH.
    let paths = cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2));
    let mut paths = paths.filter_map(|path| {
        let pod = path.split('/').find_map(pod_uid)?;
        let path = path.to_owned();
        Some(Cgroup { pod, path })
    });
    paths.next()
}

/// The uid in the name of a pod's cgroup: `podUID` (cgroupfs) or `kubepods-…-podUID.slice` with `_` for `-`
/// (systemd).
fn pod_uid(part: &str) -> Option<String> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) => {
            let of_kubelet = slice.strip_prefix("kubepods-")?;
            let uid = of_kubelet.rsplit('-').next()?.strip_prefix("pod")?;
            uid.replace('_', "-")
        }
        None => part.strip_prefix("pod")?.to_owned(),
    };
    let is_uid = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    // That of a static pod has no dashes.
    ([32, 36].contains(&uid.len()) && uid.bytes().all(is_uid)).then_some(uid)
}

fn read_some(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(READ_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
