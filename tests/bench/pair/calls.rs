//! System calls of the proxies, counted in a run of its own: counting disturbs what is measured.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::load::Outcome;
use crate::process::LOAD_CORE;
use crate::tools::Counter;

/// Until the counter has taken hold of the processes; the few calls before that do not count.
const ATTACH: Duration = Duration::from_millis(500);

/// System calls of processes per unit of a load; nothing where the load failed or the count cannot be read.
pub(crate) fn per_unit(
    counter: Counter,
    pids: &[u32],
    dir: &Path,
    load: impl FnOnce() -> Result<Outcome, String>,
) -> Option<f64> {
    if pids.is_empty() {
        return None;
    }
    let file = dir.join("calls");
    std::fs::remove_file(&file).ok();
    let mut child = command(counter, pids, &file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    std::thread::sleep(ATTACH);
    let outcome = load();
    // Both write what they have counted when they are interrupted.
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).ok();
    child.wait().ok()?;
    let text = std::fs::read_to_string(&file).ok()?;
    let count = match counter {
        Counter::Perf => of_perf(&text),
        Counter::Strace => of_strace(&text),
    }?;
    let units = outcome.ok()?.units;
    (units > 0.0).then(|| count / units)
}

fn command(counter: Counter, pids: &[u32], file: &Path) -> Command {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut command = Command::new("taskset");
    command.args(["-c", LOAD_CORE]);
    match counter {
        Counter::Perf => {
            command.args(["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p"]);
            command.arg(pids.join(","));
        }
        Counter::Strace => {
            command.args(["strace", "-f", "-c"]);
            command.args(pids.iter().flat_map(|pid| ["-p", pid]));
        }
    }
    command.arg("-o").arg(file);
    command
}

/// `12345,,raw_syscalls:sys_enter,…`.
fn of_perf(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

/// `100.00    0.012345           1     12345       678 total`.
fn of_strace(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
