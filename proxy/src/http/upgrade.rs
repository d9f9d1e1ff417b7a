//! Connections that stop being HTTP: `CONNECT`, and what was agreed on with `Upgrade`.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::tls::Replayed;

/// A connection of any kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> Io for IO {}

/// A message's connection, once it is no longer HTTP.
#[derive(Debug, Clone)]
pub struct Upgrade(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Hyper(hyper::upgrade::OnUpgrade),
    Http1(Arc<Mutex<Option<oneshot::Receiver<Upgraded>>>>),
}

/// The connection is not handed over.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It ended before, or the other side did not agree.
    #[error("the connection was not handed over")]
    NotAgreed,
    /// hyper has it, and its connection failed.
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
}

impl Upgrade {
    /// Of a connection in HTTP/1.1, which is handed over through the sender.
    pub fn pending() -> (oneshot::Sender<Upgraded>, Self) {
        let (sender, receiver) = oneshot::channel();
        let kind = Kind::Http1(Arc::new(Mutex::new(Some(receiver))));
        (sender, Self(kind))
    }

    /// Takes it from a message, where its connection can be handed over.
    pub fn take(extensions: &mut http::Extensions) -> Option<Self> {
        let own = extensions.remove::<Self>();
        own.or_else(|| {
            let hypers = extensions.remove::<hyper::upgrade::OnUpgrade>()?;
            Some(Self(Kind::Hyper(hypers)))
        })
    }

    /// Whether a message's connection can be handed over.
    pub fn is_offered(extensions: &http::Extensions) -> bool {
        extensions.get::<Self>().is_some()
            || extensions.get::<hyper::upgrade::OnUpgrade>().is_some()
    }

    /// Waits until the connection is handed over.
    pub async fn upgraded(self) -> Result<Upgraded, UpgradeError> {
        match self.0 {
            Kind::Hyper(upgrade) => {
                let stream = upgrade.await?;
                Ok(Upgraded::new(TokioIo::new(stream), Bytes::new()))
            }
            Kind::Http1(receiver) => {
                let receiver = {
                    let mut receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
                    receiver.take()
                };
                let receiver = receiver.ok_or(UpgradeError::NotAgreed)?;
                receiver.await.map_err(|_dropped| UpgradeError::NotAgreed)
            }
        }
    }
}

/// A connection that was handed over.
pub struct Upgraded {
    stream: Replayed<Box<dyn Io>>,
    /// Dropped with it, where somebody waits for its end.
    _alive: Option<oneshot::Sender<Infallible>>,
}

impl Upgraded {
    /// A connection of which these bytes have been read and not used.
    pub fn new(io: impl Io + 'static, first: Bytes) -> Self {
        Self {
            stream: Replayed::new(first, Box::new(io)),
            _alive: None,
        }
    }

    /// The same, and what ends when it is dropped.
    pub fn watched(io: impl Io + 'static, first: Bytes) -> (Self, oneshot::Receiver<Infallible>) {
        let (alive, ended) = oneshot::channel();
        let mut stream = Self::new(io, first);
        stream._alive = Some(alive);
        (stream, ended)
    }

    /// The stream: first what had been read of the connection, then itself.
    pub fn stream(&mut self) -> &mut Replayed<Box<dyn Io>> {
        &mut self.stream
    }
}

impl std::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgraded")
            .field("first", &self.stream.first().len())
            .finish_non_exhaustive()
    }
}
