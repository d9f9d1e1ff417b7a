//! The kubelet's probes of the application, which it sends to the sidecar: under strict mutual TLS it
//! could not reach the application itself.
//!
//! Only probes that are configured can be asked for, at the pod's own address and the ports that they
//! name.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use weft_core::health::grpc;
use weft_core::hold::Hold;
use weft_core::time::Instant;

use crate::clock::now;
use crate::config::{HttpProbe, Probe, ProbeAction};
use crate::local_application::{Failed, LocalApplication};

/// An answer of the application holds for this long, for whoever asks: the kubelet asks once a second at
/// most, and others who reach the port must neither load the application nor take the kubelet's place.
const ANSWER_HOLDS: Duration = Duration::from_millis(500);

/// The application's probes.
#[derive(Debug)]
pub struct Probes {
    probes: BTreeMap<String, Asked>,
    application: LocalApplication,
    now: fn() -> Instant,
}

/// A probe, with the last answer. It is carried out once at a time, however many ask.
#[derive(Debug)]
struct Asked {
    probe: Probe,
    last: Mutex<Hold<Answer>>,
}

/// What the kubelet is answered.
type Answer = (StatusCode, String);

impl Default for Probes {
    /// None.
    fn default() -> Self {
        let application = LocalApplication::at(Ipv4Addr::LOCALHOST.into());
        Self::new(application, BTreeMap::new(), now)
    }
}

impl Probes {
    /// Those that are configured, of this application; `now` is the clock by which answers hold.
    pub fn new(
        application: LocalApplication,
        probes: BTreeMap<String, Probe>,
        now: fn() -> Instant,
    ) -> Self {
        let probes = probes.into_iter().map(|(path, probe)| {
            let last = Mutex::new(Hold::new(ANSWER_HOLDS));
            (path, Asked { probe, last })
        });
        Self {
            probes: probes.collect(),
            application,
            now,
        }
    }

    /// What the kubelet is answered; `None` where no probe has this path.
    pub async fn answer(&self, path: &str) -> Option<Answer> {
        let Asked { probe, last } = self.probes.get(path)?;
        let mut last = last.lock().await;
        if let Some(answer) = last.get((self.now)()) {
            return Some(answer);
        }
        let limit = Duration::from_secs(probe.timeout_seconds.max(1).into());
        let answered = timeout(limit, Box::pin(self.run(probe))).await;
        let answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            Err(_elapsed) => {
                let text = format!("the application has not answered within {limit:?}\n");
                (StatusCode::GATEWAY_TIMEOUT, text)
            }
        };
        last.put((self.now)(), answer.clone());
        Some(answer)
    }

    async fn run(&self, probe: &Probe) -> Result<Answer, Failed> {
        match probe.action() {
            Some(ProbeAction::Http(probe)) => self.http(probe).await,
            Some(ProbeAction::Tcp(port)) => {
                let _connected = self.application.dial(port).await?;
                Ok((StatusCode::OK, "connected\n".to_owned()))
            }
            Some(ProbeAction::Grpc(port, service)) => {
                let stream = self.application.dial(port).await?;
                self.grpc(stream, port, service).await
            }
            // The configuration was checked.
            None => Err(Failed("the probe does nothing".to_owned())),
        }
    }

    async fn http(&self, probe: &HttpProbe) -> Result<Answer, Failed> {
        let request = self.request(probe)?;
        let sent = self.application.send(probe.port, probe.scheme, request);
        let status = sent.await?.response.status();
        // The kubelet looks at nothing else, and others who ask are told nothing else.
        let text = format!("the application has answered {status}\n");
        // As the kubelet has it: 200 to 399 is success. A redirection is not followed, and is
        // none of the sidecar's.
        let status = match status.is_redirection() {
            true => StatusCode::OK,
            false => status,
        };
        Ok((status, text))
    }

    fn request(&self, probe: &HttpProbe) -> Result<Request<Full<Bytes>>, Failed> {
        let path = match probe.path.as_str() {
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        let host = self.application.socket_address(probe.port).to_string();
        let mut request = Request::get(path)
            .header(header::USER_AGENT, "kube-probe/weft")
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close")
            .header(header::HOST, host)
            .body(Full::default())?;
        let headers = request.headers_mut();
        for field in &probe.http_headers {
            let name: header::HeaderName = field.name.parse().map_err(http::Error::from)?;
            let value = HeaderValue::from_str(&field.value).map_err(http::Error::from)?;
            headers.insert(name, value);
        }
        Ok(request)
    }

    async fn grpc(&self, stream: TcpStream, port: u16, service: &str) -> Result<Answer, Failed> {
        let host = self.application.socket_address(port);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{host}{}", grpc::CHECK_PATH))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, "kube-probe/weft")
            .body(Full::new(Bytes::from(grpc::request(service))))?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        let _driven = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, grpc::MAX_ANSWER).collect().await;
        let body = body.map_err(|error| Failed(format!("the answer cannot be read: {error}")))?;
        let trailers = body.trailers().cloned();
        judge(&parts.headers, trailers.as_ref(), &body.to_bytes())
    }
}

/// What the answer of a gRPC server says of its health.
fn judge(headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &[u8]) -> Result<Answer, Failed> {
    let code = trailers.unwrap_or(headers).get("grpc-status");
    let code = code.and_then(|code| code.to_str().ok());
    if code != Some("0") {
        let code = code.unwrap_or("none");
        return Err(Failed(format!("the call has failed: grpc-status {code}")));
    }
    match grpc::answer(body) {
        Some(grpc::Serving::Serving) => Ok((StatusCode::OK, "SERVING\n".to_owned())),
        Some(serving) => Err(Failed(serving.as_str().to_owned())),
        None => Err(Failed("the answer is no HealthCheckResponse".to_owned())),
    }
}

#[cfg(test)]
mod tests;
