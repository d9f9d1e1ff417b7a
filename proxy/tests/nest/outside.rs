//! Tests that look at a sidecar from outside, because it dies or is signalled.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{eventually, myself, processes_with};

/// Nothing outlives a sidecar that is killed, not even what has left its session.
pub(crate) fn sigkill_of_the_sidecar(user: u32) {
    let mark = mark(user, "7001");
    let script = format!("setsid sleep {mark} & sleep {mark} & wait");
    let mut sidecar = sidecar(user, &script);
    eventually("both sleeps", || processes_with(&mark).len() == 2);
    sidecar.kill().unwrap();
    let start = Instant::now();
    sidecar.wait().unwrap();
    eventually("no sleep", || processes_with(&mark).is_empty());
    println!(
        "note: everything gone {:?} after SIGKILL of the sidecar",
        start.elapsed()
    );
}

/// A signal to the whole process group, as Ctrl-C is, arrives once; so does one to the sidecar.
pub(crate) fn signals_arrive_once(user: u32) {
    let directory = tempfile::tempdir().unwrap();
    open_to_all(directory.path());
    let log = directory.path().join("log");
    let script = format!(
        "log={}; trap 'echo INT >> $log' INT; trap 'echo TERM >> $log; exit 5' TERM; \
         echo ready >> $log; while :; do sleep 0.02; done",
        log.display()
    );
    let mut sidecar = sidecar(user, &script);
    let pid = Pid::from_child(&sidecar);
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    let check = |expected: &str| eventually(expected, || logged() == expected);
    check("ready\n");
    kill_process_group(pid, Signal::INT).unwrap();
    check("ready\nINT\n");
    // Longer than twins may be apart.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(logged(), "ready\nINT\n");
    kill_process(pid, Signal::INT).unwrap();
    check("ready\nINT\nINT\n");
    kill_process(pid, Signal::TERM).unwrap();
    check("ready\nINT\nINT\nTERM\n");
    assert_eq!(sidecar.wait().unwrap().code(), Some(5));
}

/// From the start of the sidecar's process to the program's first line.
pub(crate) fn start_time(user: u32) {
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let start = Instant::now();
            let mut sidecar = sidecar(user, "echo up; exec sleep 600");
            let mut line = String::new();
            BufReader::new(sidecar.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            let took = start.elapsed();
            assert_eq!(line, "up\n");
            sidecar.kill().unwrap();
            sidecar.wait().unwrap();
            took
        })
        .collect();
    times.sort();
    println!(
        "note: start to first output: median {:?}, slowest {:?}",
        times[10], times[19]
    );
    assert!(times[10] < Duration::from_millis(500));
}

/// Container engines mask parts of /proc, and the kernel then refuses a fresh one in a user namespace.
pub(crate) fn masked_proc(user: u32) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED, because only root can mask /proc: a_masked_proc_gives_nothing_away");
        return;
    }
    let script = format!(
        "mount -t tmpfs weft /proc/fs && exec 9< /proc/{}/exe && \
         exec setpriv --reuid {user} --regid {user} --clear-groups /proc/self/fd/9 drive masked",
        std::process::id()
    );
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .status();
    assert!(status.unwrap().success());
}

/// A sidecar that runs `script` and relays signals.
fn sidecar(user: u32, script: &str) -> Child {
    let mut command: Command = myself(user);
    command.args(["drive", "run"]).env("SCRIPT", script);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// An argument for `sleep` that no other process has.
fn mark(user: u32, number: &str) -> String {
    format!("{number}.{}{user}", std::process::id())
}

pub(crate) fn open_to_all(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}
