//! The program beside its sidecar: signals, and its end.

use tokio::signal::unix::{Signal, SignalKind, signal};
use weft_proxy::app::Sidecar;
use weft_proxy::nest;

use super::Failure;
use crate::FAILED;

/// The program, in namespaces or without.
pub(super) enum Running {
    Nested(nest::Child),
    Bare(nest::Bare),
}

impl Running {
    async fn wait(&mut self) -> std::io::Result<std::process::ExitStatus> {
        match self {
            Self::Nested(child) => child.wait().await,
            Self::Bare(child) => child.wait().await,
        }
    }

    fn signal(&self, signal: i32) -> std::io::Result<()> {
        match self {
            Self::Nested(child) => child.signal(signal),
            Self::Bare(child) => child.signal(signal),
        }
    }
}

/// Follows the program to its end; the first SIGTERM reaches it after the leaving sequence.
pub(super) async fn follow(
    sidecar: &mut Sidecar,
    signals: &mut Signals,
    mut program: Running,
) -> Result<u8, Failure> {
    let mut leaving = false;
    let vital = sidecar.vital().clone();
    loop {
        let asked = tokio::select! {
            status = program.wait() => return Ok(nest::exit_code(status?)),
            asked = signals.any() => asked,
            part = vital.lost() => {
                // A program that is served in part only is better started anew.
                program.signal(libc::SIGTERM)?;
                return Err(Failure(format!("the sidecar lost a part of itself: {part}"), FAILED));
            }
        };
        if asked == libc::SIGTERM && !leaving {
            leaving = true;
            // A second signal cuts the leaving short.
            tokio::select! {
                () = sidecar.leave() => {}
                _ = signals.any() => sidecar.cut(),
            }
        }
        program.signal(asked)?;
    }
}

/// Signals that are passed on.
pub(super) struct Signals {
    streams: Vec<(i32, Signal)>,
}

impl Signals {
    pub(super) fn register() -> Result<Self, Failure> {
        let kinds = [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGHUP,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGWINCH,
        ];
        let stream = |raw: i32| Ok((raw, signal(SignalKind::from_raw(raw))?));
        let streams: Result<Vec<_>, std::io::Error> = kinds.into_iter().map(stream).collect();
        Ok(Self { streams: streams? })
    }

    pub(super) async fn any(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (raw, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*raw);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
