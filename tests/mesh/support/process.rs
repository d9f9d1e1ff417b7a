//! Processes: described by [`Program`], held by [`Running`], over as [`Finished`].

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::wait_for;

/// How much of each log a failing test shows, in lines.
const TAIL: usize = 40;

/// A command line with its environment.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    user: Option<String>,
}

impl Program {
    /// A program without arguments.
    pub(crate) fn new(program: impl Into<OsString>) -> Self {
        Self {
            args: vec![program.into()],
            env: Vec::new(),
            user: None,
        }
    }

    /// A whole command line, split at blanks.
    pub(crate) fn line(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self::new(words.next().expect("a program")).args(words)
    }

    /// `sh -c script`.
    pub(crate) fn shell(script: impl Into<OsString>) -> Self {
        Self::new("sh").arg("-c").arg(script)
    }

    /// One more argument.
    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    pub(crate) fn args<I: Into<OsString>>(mut self, args: impl IntoIterator<Item = I>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One more environment variable.
    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The user it runs as, where the tests run as root.
    pub(crate) fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Takes the user out: for those who start it as that user in their own way.
    pub(crate) fn take_user(&mut self) -> Option<String> {
        self.user.take()
    }

    /// The same program under another one (`nsenter … PROGRAM`), in the other's environment too.
    pub(crate) fn under(mut self, outer: Self) -> Self {
        let mut args = outer.args;
        args.append(&mut self.args);
        let mut env = outer.env;
        env.append(&mut self.env);
        Self {
            args,
            env,
            user: outer.user,
        }
    }

    /// The same program with its user's credentials taken on by `setpriv`; [`Self::start`] does
    /// it last of all, so whoever wraps the program in what only root may do calls it before. It
    /// dies with the thread that starts it, so that a killed run leaves nothing behind.
    pub(crate) fn with_its_user(mut self) -> Self {
        let mut setpriv = Self::new("setpriv").args(["--pdeathsig", "KILL"]);
        if let Some(user) = self.take_user().filter(|_| super::root()) {
            setpriv = setpriv.arg(format!("--reuid={user}"));
            setpriv = if user.bytes().all(|byte| byte.is_ascii_digit()) {
                setpriv.arg(format!("--regid={user}")).arg("--clear-groups")
            } else {
                setpriv
                    .arg(format!("--regid={}", group_of(&user)))
                    .arg("--init-groups")
            };
        }
        self.under(setpriv.arg("--"))
    }

    /// Starts it with its output in files of `logs`; the guard kills it.
    pub(crate) fn start(self, name: &str, logs: &Path) -> Running {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = |kind: &str| logs.join(format!("{number:04}-{name}.{kind}"));
        let (stdout, stderr) = (path("out"), path("err"));
        let create = |path: &Path| {
            File::create(path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()))
        };
        let program = self.with_its_user();
        let child = Command::new(&program.args[0])
            .args(&program.args[1..])
            .envs(program.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("start {:?}: {error}", program.args));
        Running {
            name: name.to_owned(),
            child,
            status: None,
            stdout,
            stderr,
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(self, name: &str, logs: &Path, limit: Duration) -> Finished {
        self.start(name, logs).finish(limit)
    }
}

/// The primary group of a user, by number.
fn group_of(user: &str) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&user))
        .and_then(|fields| fields.get(3).map(|group| (*group).to_owned()))
        .unwrap_or_else(|| panic!("no user {user} on this machine"))
}

/// A process that ends with its guard; its output is in files.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has complained of so far.
    pub(crate) fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Its exit status, when it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for a child");
        }
        self.status
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.ended().is_none()
            && let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw)
        {
            // It may end in this very moment; there is nothing to do about that.
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
    }

    /// Waits for a condition, and fails early when the process ends before it.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) {
        wait_for(&format!("{}: {what}", self.name), limit, || {
            if condition(self) {
                return Some(());
            }
            let ended = self.ended();
            assert!(
                ended.is_none(),
                "{} ended ({ended:?}) before: {what}\n{}",
                self.name,
                self.tails()
            );
            None
        });
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self, limit: Duration) -> Finished {
        let name = self.name.clone();
        let status = wait_for(&format!("the end of {name}"), limit, || self.ended());
        Finished {
            name,
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    fn tails(&self) -> String {
        format!(
            "--- {} stdout\n{}\n--- {} stderr\n{}",
            self.name,
            tail(&self.stdout()),
            self.name,
            tail(&self.stderr())
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tails());
        }
        self.kill();
    }
}

/// A process that has ended, with all it printed.
#[derive(Debug)]
pub(crate) struct Finished {
    /// What the test calls it.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// All it printed.
    pub(crate) stdout: String,
    /// All it complained of.
    pub(crate) stderr: String,
}

impl Finished {
    /// Demands exit code 0.
    pub(crate) fn success(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Its exit code, or minus the signal that ended it.
    pub(crate) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| -self.status.signal().unwrap_or_default())
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ended with {}\n--- stdout\n{}\n--- stderr\n{}",
            self.name,
            self.status,
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
