//! The nest, proven with real namespaces, sockets and processes, as root and as an ordinary user.
//!
//! A user namespace can only be entered while a process has one thread, so this program has no
//! test harness of the usual kind. It plays four parts, by its first argument: the list of tests
//! (none), a sidecar that runs one scenario (`drive`), the nest's first process ([`NEST_ARG`]), and
//! the program inside (`inside`).

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "this is a test program"
)]

mod inside;
mod outside;
mod scenarios;

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use scenarios::{Part, SCENARIOS, Scenario};
use weft_proxy::nest::{NEST_ARG, nest_main};

/// The ordinary user that tests run as when they are started by root.
const ORDINARY: u32 = 1000;

/// How long one scenario may take.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|first| first.to_str()) {
        Some(NEST_ARG) => nest_main(arguments),
        Some("drive") => {
            let name = arguments.next().unwrap().into_string().unwrap();
            scenarios::drive(&name);
            ExitCode::SUCCESS
        }
        Some("inside") => {
            let arguments: Vec<String> = arguments
                .map(|argument| argument.into_string().unwrap())
                .collect();
            inside::main(&arguments)
        }
        _ => list(),
    }
}

/// Runs the tests whose name contains one of the arguments, or all.
fn list() -> ExitCode {
    let filters: Vec<String> = env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let only_names = env::args().any(|argument| argument == "--list");
    let root = rustix::process::geteuid().is_root();
    let users = if root {
        vec![0, ORDINARY]
    } else {
        vec![rustix::process::geteuid().as_raw()]
    };
    if !root {
        println!("SKIPPED, because this is not root: every test as root");
    }
    let mut failed = Vec::new();
    for &user in &users {
        for Scenario { name, who, part } in SCENARIOS {
            let title = format!("{}::{name}", if user == 0 { "root" } else { "user" });
            let wanted = filters.is_empty() || filters.iter().any(|filter| title.contains(filter));
            if !who.includes(user) || !wanted {
                continue;
            }
            if only_names {
                println!("{title}: test");
                continue;
            }
            let start = Instant::now();
            let result = match part {
                Part::Sidecar(_) => run_driver(user, name),
                Part::Outside(test) => std::panic::catch_unwind(|| test(user))
                    .map_err(|_| "see the panic above".to_owned()),
            };
            match result {
                Ok(()) => println!("test {title} ... ok ({} ms)", start.elapsed().as_millis()),
                Err(output) => {
                    println!("test {title} ... FAILED\n{output}");
                    failed.push(title);
                }
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::FAILURE
}

/// A copy of this program, started as `user`, in a process group of its own.
fn myself(user: u32) -> Command {
    // Not the path in the build directory: another user may not be able to reach it.
    let mut command = Command::new("/proc/self/exe");
    command.process_group(0);
    if user != rustix::process::geteuid().as_raw() {
        command
            .uid(user)
            .gid(user)
            .env("HOME", "/")
            .env("USER", "ordinary");
    }
    command
}

fn run_driver(user: u32, name: &str) -> Result<(), String> {
    let mut command = myself(user);
    command
        .args(["drive", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let err = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        text
    });
    let out = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.read_to_end(&mut text);
        text
    });
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let text = [out.join().unwrap(), err.join().unwrap()].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    for line in text
        .lines()
        .filter(|line| line.starts_with("SKIPPED") || line.starts_with("note"))
    {
        println!("{line}");
    }
    if status.success() {
        Ok(())
    } else {
        Err(format!("{status}\n{text}"))
    }
}

/// Waits for `condition`.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 10 s for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The processes on the host with `argument` on their command line.
fn processes_with(argument: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|&byte| byte == 0)
                .any(|part| part == argument.as_bytes())
        })
        .collect()
}
