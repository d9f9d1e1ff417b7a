//! gRPC as a sidecar speaks it, on HTTP/2 frames directly: what the client spends here it takes from the
//! control plane on a small machine.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The name in the control plane's certificate.
const HOST: &str = "control-plane.weft";
/// As the sidecar has them.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Connecting, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a message: compression, and length.
const FRAME_HEAD: usize = 5;

/// Bytes that came in, TLS and its handshake included.
pub(crate) type Meter = Rc<Cell<u64>>;

/// Why a call, or a connection, is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// The status of gRPC, where there is one.
    pub(crate) code: Option<u16>,
    /// What was said.
    pub(crate) message: String,
}

impl Failed {
    /// `RESOURCE_EXHAUSTED` or `UNAVAILABLE`: later it may go well.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.code, None | Some(8 | 14))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "status {code}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self {
            code: None,
            message: error.to_string(),
        }
    }
}

/// One connection. It ends with the last clone and the calls on it.
#[derive(Clone)]
pub(crate) struct Line {
    sender: SendRequest<Bytes>,
}

impl Line {
    /// Connects, and says a PING now and then as sidecars do.
    pub(crate) async fn connect(
        port: u16,
        tls: Arc<ClientConfig>,
        meter: Meter,
    ) -> Result<Self, Failed> {
        let connecting = async {
            let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            let counted = Counted { tcp, meter };
            let name = ServerName::try_from(HOST).map_err(io::Error::other)?;
            TlsConnector::from(tls).connect(name, counted).await
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, mut connection) = builder.handshake(connected).await?;
        let pings = connection.ping_pong();
        let driven = async {
            // Its end is seen by the calls on it.
            let _ended = connection.await;
        };
        let pinging = async {
            let Some(mut pings) = pings else {
                return std::future::pending().await;
            };
            loop {
                tokio::time::sleep(KEEP_ALIVE_INTERVAL).await;
                if pings.ping(h2::Ping::opaque()).await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = driven => {}
                () = pinging => {}
            }
        });
        Ok(Self { sender })
    }

    /// Opens a call and says the first message on it.
    pub(crate) async fn call(
        &self,
        path: &str,
        first: &impl Message,
        last: bool,
    ) -> Result<Call, Failed> {
        let mut sender = self.sender.clone().ready().await?;
        let request = http::Request::builder()
            .method(http::Method::POST)
            .uri(format!("https://{HOST}{path}"))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(())?;
        let (response, mut requests) = sender.send_request(request, false)?;
        requests.send_data(frame(first), last)?;
        Ok(Call {
            requests,
            response: Some(response),
            body: None,
            read: BytesMut::new(),
        })
    }
}

/// A call: messages both ways.
pub(crate) struct Call {
    requests: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    read: BytesMut,
}

impl Call {
    /// Says something; it is on its way when the connection's task runs.
    pub(crate) fn say(&mut self, message: &impl Message) -> Result<(), Failed> {
        Ok(self.requests.send_data(frame(message), false)?)
    }

    /// The next message and its bytes; the end of a call is a failure too. May be cancelled.
    pub(crate) async fn next<M: Message + Default>(&mut self) -> Result<(M, usize), Failed> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            if let Some(response) = &mut self.response {
                let response = response.await?;
                self.response = None;
                check(response.headers(), false)?;
                self.body = Some(response.into_body());
            }
            let Some(body) = &mut self.body else {
                return Err(ended("no answer"));
            };
            match body.data().await {
                Some(data) => {
                    let data = data?;
                    body.flow_control().release_capacity(data.len())?;
                    self.read.put(data);
                }
                None => {
                    let trailers = body.trailers().await?;
                    check(&trailers.unwrap_or_default(), true)?;
                    return Err(ended("the call has ended"));
                }
            }
        }
    }

    fn take<M: Message + Default>(&mut self) -> Result<Option<(M, usize)>, Failed> {
        let Some(mut head) = self.read.get(..FRAME_HEAD) else {
            return Ok(None);
        };
        head.advance(1);
        let length = FRAME_HEAD + head.get_u32() as usize;
        if self.read.len() < length {
            return Ok(None);
        }
        let frame = self.read.split_to(length).freeze();
        Ok(Some((M::decode(frame.slice(FRAME_HEAD..))?, length)))
    }
}

fn ended(message: &str) -> Failed {
    Failed {
        code: None,
        message: message.to_owned(),
    }
}

/// The status in headers or trailers, if it is not "ok".
fn check(fields: &HeaderMap, last: bool) -> Result<(), Failed> {
    let text = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status").and_then(|code| code.parse().ok());
    match code {
        None | Some(0) if !last => Ok(()),
        Some(0) | None => Err(ended("the call has ended")),
        Some(code) => Err(Failed {
            code: Some(code),
            message: text("grpc-message").unwrap_or_default().to_owned(),
        }),
    }
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message.encode_to_vec());
    frame.freeze()
}

/// A TCP connection of which the bytes that come in are counted.
struct Counted {
    tcp: TcpStream,
    meter: Meter,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(context, buffer);
        let more = (buffer.filled().len() - before) as u64;
        self.meter.set(self.meter.get() + more);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
