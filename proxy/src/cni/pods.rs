//! Which network namespaces of a node are those of pods of the mesh, by what a container cannot forge.
//!
//! A pod is known by its cgroup, which the kubelet makes and no container of it may leave. Its namespace is
//! the one that the plugin has recorded for it; without a record that of the oldest process in that cgroup:
//! the sandbox's, which the container runtime starts before any container and which runs nothing of the pod.
//! So a pod has one namespace, however many others its programs make. How it is redirected says the record.
//! A pod without one is looked at only if its sandbox is older than the plugin's entry: it says how it is
//! redirected by the oldest process of the mesh in that namespace, once. All later pods of the mesh have a
//! record, and what programs of other pods say is not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::netns::{self, Identity};
use super::records::{Record, Records};
use super::{VARIABLE, arguments};
use crate::intercept::InterceptArgs;

/// The program of the processes that say how their pod is redirected, as the kernel names it.
const PROGRAM: &[u8] = b"weft-proxy";
/// Pods that are looked at; a kubelet runs 110 unless it is told otherwise.
const PODS_MAX: usize = 1024;
/// Processes of one pod that are asked how it is redirected.
const ASKED_MAX: usize = 16;
/// What is read of a process's environment, and of its cgroups, bytes.
const READ_MAX: u64 = 128 * 1024;
/// What is read of a process's name, which has 15 at most, bytes.
const NAME_MAX: u64 = 64;

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
    /// Of the plugin's record; the error says why that cannot be used.
    recorded: Option<Result<Arc<InterceptArgs>, String>>,
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
        records: &Records,
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
        let wanted = self.wanted(&of_mesh, &records.all);
        for (pod, sandbox) in sandboxes(proc_dir, &pids, &wanted, &records.all) {
            // A known one is the pod's, unless the plugin has recorded another.
            let is_new = match self.known.contains_key(&pod) {
                true => sandbox.is_recorded(&records.all),
                false => self.known.len() < PODS_MAX,
            };
            if is_new {
                let known = Known {
                    sandbox,
                    recorded: None,
                    said: None,
                };
                self.known.insert(pod, known);
            }
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

    /// Which sandboxes are to be looked for: those of the pods that the plugin has recorded, whatever runs in
    /// them, and of those in which a process of the mesh runs.
    fn wanted<'a>(
        &self,
        of_mesh: &'a BTreeMap<String, Vec<Process>>,
        records: &'a [Record],
    ) -> Wanted<'a> {
        let mut wanted = Wanted::default();
        for record in records.iter().filter(|record| !self.has(record)) {
            match &record.pod {
                Some(pod) => wanted.pods.insert(pod),
                None => wanted.containers.insert(&record.container),
            };
        }
        let unknown = of_mesh.keys().filter(|pod| !self.known.contains_key(*pod));
        wanted.pods.extend(unknown.map(String::as_str));
        wanted
    }

    /// The pods whose records cannot be used, and why.
    pub(super) fn unusable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.known.iter().filter_map(|(pod, known)| {
            let why = known.recorded.as_ref()?.as_ref().err()?;
            Some((&**pod, &**why))
        })
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
        records: &Records,
        asked: &[Process],
    ) -> Option<Arc<InterceptArgs>> {
        if self.recorded.is_none() {
            let mut records = records.all.iter();
            let record = records.find(|record| self.sandbox.is_of(record));
            self.recorded = record.map(|record| arguments(&record.arguments).map(Arc::new));
        }
        if let Some(recorded) = &self.recorded {
            return recorded.as_ref().ok().map(Arc::clone);
        }
        if self.sandbox.process.started >= records.missed_before {
            return None;
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

    fn is_recorded(&self, records: &[Record]) -> bool {
        records.iter().any(|record| self.is_of(record))
    }

    /// Whether the plugin's record is of this sandbox: of its pod and its namespace.
    fn is_of(&self, record: &Record) -> bool {
        record.namespace == self.namespace && self.cgroup.is_of(record)
    }
}

impl Cgroup {
    /// Whether it is of the pod, or of the sandbox's container, that a record names.
    fn is_of(&self, record: &Record) -> bool {
        match &record.pod {
            Some(pod) => *pod == self.pod,
            None => self.containers().any(|id| id == record.container),
        }
    }

    /// What may be the ids of containers in its path.
    fn containers(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').flat_map(|part| {
            // cgroupfs: ID; systemd: cri-containerd-ID.scope.
            let part = part.strip_suffix(".scope").unwrap_or(part);
            let id = part.rsplit_once('-').map_or(part, |(_, id)| id);
            [part, id]
        })
    }
}

/// The sandboxes that are looked for.
#[derive(Debug, Default)]
struct Wanted<'a> {
    /// By the uids of their pods.
    pods: BTreeSet<&'a str>,
    /// By the ids of their containers, where their pods are not known.
    containers: BTreeSet<&'a str>,
}

impl Wanted<'_> {
    fn has(&self, cgroup: &Cgroup) -> bool {
        self.pods.contains(&*cgroup.pod)
            || (!self.containers.is_empty()
                && cgroup.containers().any(|id| self.containers.contains(id)))
    }
}

/// The sandboxes of these pods: of each the oldest process in a namespace that the plugin has recorded for
/// it, and where there is none, the oldest of all. A runtime may have no process for the sandbox itself; and
/// a record may be that of an earlier sandbox of the pod.
fn sandboxes(
    proc_dir: &Path,
    pids: &[u32],
    wanted: &Wanted<'_>,
    records: &[Record],
) -> Vec<(String, Sandbox)> {
    if wanted.pods.is_empty() && wanted.containers.is_empty() {
        return Vec::new();
    }
    // What is preferred is less: those in a recorded namespace, and of those the oldest.
    let mut preferred: BTreeMap<String, ((bool, Process), Sandbox)> = BTreeMap::new();
    for pid in pids {
        let dir = proc_dir.join(pid.to_string());
        let Some(cgroup) = cgroup(&dir).filter(|cgroup| wanted.has(cgroup)) else {
            continue;
        };
        let (Some(started), Ok(namespace)) = (started(&dir), netns::identity(&dir.join("ns/net")))
        else {
            continue;
        };
        let process = Process { started, pid: *pid };
        let sandbox = Sandbox {
            process,
            namespace,
            cgroup,
        };
        let rank = (!sandbox.is_recorded(records), process);
        let pod = &sandbox.cgroup.pod;
        if preferred.get(pod).is_none_or(|(other, _)| rank < *other) {
            preferred.insert(pod.clone(), (rank, sandbox));
        }
    }
    let preferred = preferred.into_iter();
    let preferred = preferred.map(|(pod, (_, sandbox))| (pod, sandbox));
    preferred.collect()
}

fn pids(proc_dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc_dir).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.collect()
}

/// A process of the mesh in a pod, by its name, and the pod's uid. Reading the name takes no lock that the
/// process may hold, as reading its command line does.
fn of_the_mesh(dir: &Path, pid: u32) -> Option<(Process, String)> {
    if read(&dir.join("comm"), NAME_MAX)?.trim_ascii_end() != PROGRAM {
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
    read(path, READ_MAX)
}

fn read(path: &Path, max_bytes: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(max_bytes).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
