//! How many workers a sidecar starts: as many as it may use processors.

use std::fs;
use std::path::{Path, PathBuf};

/// The CPU limit of the cgroup, rounded up, and at most the processors this process may run on; at
/// least 1.
///
/// `std::thread::available_parallelism` rounds a limit of 1.5 processors down to 1; a sidecar with
/// two workers uses what it is given.
pub fn default_workers() -> usize {
    let allowed = rustix::thread::sched_getaffinity(None)
        .map_or(1, |set| usize::try_from(set.count()).unwrap_or(1));
    workers(cpu_limit(Path::new("/")), allowed)
}

/// A share of processors: `quota` microseconds of every `period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuLimit {
    quota: u64,
    period: u64,
}

fn workers(limit: Option<CpuLimit>, allowed: usize) -> usize {
    let allowed = allowed.max(1);
    let Some(CpuLimit { quota, period }) = limit else {
        return allowed;
    };
    let rounded_up = usize::try_from(quota.div_ceil(period.max(1))).unwrap_or(usize::MAX);
    rounded_up.clamp(1, allowed)
}

/// The tightest limit of this process's cgroup and its ancestors, version 2 or 1. `root` is `/`, or
/// a copy of it in a test.
fn cpu_limit(root: &Path) -> Option<CpuLimit> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = root.join("sys/fs/cgroup");
    let limits = memberships.lines().flat_map(|line| {
        // HIERARCHY:CONTROLLERS:PATH, see cgroups(7); version 2 has no controllers here.
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next().unwrap_or_default();
        let group = fields.next().unwrap_or_default().trim_start_matches('/');
        if controllers.is_empty() {
            // With both versions mounted, version 2 is beside the others.
            let mut limits = walk(&mounts, group, read_v2);
            limits.extend(walk(&mounts.join("unified"), group, read_v2));
            limits
        } else if controllers.split(',').any(|c| c == "cpu") {
            let mut limits = walk(&mounts.join(controllers), group, read_v1);
            limits.extend(walk(&mounts.join("cpu"), group, read_v1));
            limits
        } else {
            Vec::new()
        }
    });
    limits.min_by(|a, b| {
        let left = u128::from(a.quota) * u128::from(b.period);
        left.cmp(&(u128::from(b.quota) * u128::from(a.period)))
    })
}

/// The limits of `group` below `mount`, and of each of its ancestors. In a container the path may
/// be the host's and not exist; the mount's root is then the container's own group.
fn walk(mount: &Path, group: &str, read: fn(&Path) -> Option<CpuLimit>) -> Vec<CpuLimit> {
    let full: PathBuf = mount.join(group);
    full.ancestors()
        .take_while(|dir| dir.starts_with(mount))
        .filter_map(read)
        .collect()
}

/// `cpu.max`: `QUOTA PERIOD`, where QUOTA may be `max`.
fn read_v2(dir: &Path) -> Option<CpuLimit> {
    let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
    let mut fields = text.split_ascii_whitespace();
    Some(CpuLimit {
        quota: fields.next()?.parse().ok()?,
        period: fields.next()?.parse().ok()?,
    })
}

/// `cpu.cfs_quota_us`, -1 when there is no limit, and `cpu.cfs_period_us`.
fn read_v1(dir: &Path) -> Option<CpuLimit> {
    let read = |name: &str| {
        let text = fs::read_to_string(dir.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    Some(CpuLimit {
        quota: read("cpu.cfs_quota_us")?,
        period: read("cpu.cfs_period_us")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_up_and_stays_within_the_allowed_processors() {
        let check = |quota, period, allowed, expected| {
            let limit = Some(CpuLimit { quota, period });
            assert_eq!(workers(limit, allowed), expected, "{quota}/{period}");
        };
        check(100_000, 100_000, 8, 1);
        check(150_000, 100_000, 8, 2);
        check(1_000, 100_000, 8, 1);
        check(0, 0, 8, 1);
        check(1_600_000, 100_000, 8, 8);
        assert_eq!(workers(None, 6), 6);
        assert_eq!(workers(None, 0), 1);
        assert!(default_workers() >= 1);
    }

    #[test]
    fn reads_both_versions() {
        let check = |files: &[(&str, &str)], expected: Option<(u64, u64)>| {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let expected = expected.map(|(quota, period)| CpuLimit { quota, period });
            assert_eq!(cpu_limit(root.path()), expected, "{files:?}");
        };
        let v2 = ("proc/self/cgroup", "0::/pod/app\n");
        check(&[], None);
        check(&[v2], None);
        check(
            &[v2, ("sys/fs/cgroup/pod/app/cpu.max", "max 100000\n")],
            None,
        );
        // The pod's limit is tighter than the container's.
        check(
            &[
                v2,
                ("sys/fs/cgroup/pod/app/cpu.max", "400000 100000\n"),
                ("sys/fs/cgroup/pod/cpu.max", "150000 100000\n"),
            ],
            Some((150_000, 100_000)),
        );
        // The path is the host's; what is mounted is the container's own group.
        check(
            &[v2, ("sys/fs/cgroup/cpu.max", "50000 100000\n")],
            Some((50_000, 100_000)),
        );
        let v1 = ("proc/self/cgroup", "4:cpu,cpuacct:/app\n3:memory:/app\n");
        check(
            &[
                v1,
                ("sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us", "25000\n"),
                (
                    "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us",
                    "100000\n",
                ),
            ],
            Some((25_000, 100_000)),
        );
        check(
            &[
                v1,
                ("sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "-1\n"),
                ("sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000\n"),
            ],
            None,
        );
    }
}
