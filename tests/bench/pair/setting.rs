//! What contenders are made from, and the applications behind them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::certificates::Certificates;
use crate::process::{Guard, LOAD_CORE, wait_for_port};
use crate::programs;
use crate::rows::Caller;
use crate::tools::Tools;

/// Connections that a pair keeps open between its halves and to the application.
pub(crate) const KEPT: u32 = 512;

/// What one contender is made from: the application is on `base`, the halves on the two ports after it.
pub(crate) struct Setting<'a> {
    /// The contender's name.
    pub(crate) name: String,
    /// The first of its ports.
    pub(crate) base: u16,
    /// What callers speak.
    pub(crate) caller: Caller,
    /// Certificates of the peers.
    pub(crate) certificates: &'a Certificates,
    /// Other programs.
    pub(crate) tools: &'a Tools,
    /// Where files go.
    pub(crate) dir: &'a Path,
}

impl Setting<'_> {
    /// The port on which the client's side accepts.
    pub(crate) fn client_port(&self) -> u16 {
        self.base + 1
    }

    /// The port on which the server's side accepts.
    pub(crate) fn server_port(&self) -> u16 {
        self.base + 2
    }

    /// Writes a file whose name begins with the contender's.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.join(format!("{}-{name}", self.name));
        std::fs::write(&path, content).expect("write a configuration");
        path
    }

    /// The application, which answers from memory, in HTTP/1.1 or in bytes.
    pub(crate) fn application(&self) -> Command {
        match self.caller {
            Caller::Http1 | Caller::Http2 => self.http_application(false),
            Caller::Tcp => programs::application_command(self.base),
        }
    }

    /// The application behind what only relays bytes: it speaks what callers speak.
    pub(crate) fn application_of_relay(&self) -> Command {
        match self.caller {
            Caller::Http1 | Caller::Tcp => self.application(),
            Caller::Http2 => self.http_application(true),
        }
    }

    /// nginx with `/` of 128 bytes and `/10k` of 10 KiB.
    fn http_application(&self, http2: bool) -> Command {
        let body = |size: usize| "x".repeat(size);
        let text = format!(
            "{}http {{ access_log off; keepalive_requests 1000000000;\n\
             server {{ listen 127.0.0.1:{port}{http2} backlog=4096; default_type text/plain;\n\
             location = / {{ return 200 {}; }}\n\
             location = /10k {{ set $part {}; return 200 $part$part$part$part$part; }} }} }}\n",
            nginx_head(self, "application"),
            body(128),
            // A single string of the configuration may have 4096 bytes.
            body(2048),
            port = self.base,
            http2 = if http2 { " http2" } else { "" },
        );
        let config = self.write("application.conf", &text);
        let mut command = Command::new("nginx");
        command.arg("-c").arg(config);
        command
    }

    /// Starts an application on the load's core and waits until it accepts.
    pub(crate) fn start_application(&self, mut command: Command) -> Guard {
        let application = Guard::start(LOAD_CORE, &mut command, self.dir);
        wait_for_port(self.base, self.dir);
        application
    }
}

/// The part of every nginx configuration: one process, in the foreground.
pub(crate) fn nginx_head(setting: &Setting<'_>, part: &str) -> String {
    format!(
        "daemon off; master_process off; worker_processes 1; pid {dir}/{name}-{part}.pid; error_log stderr crit;\n\
         events {{ worker_connections 8000; }}\n",
        dir = setting.dir.display(),
        name = setting.name,
    )
}
