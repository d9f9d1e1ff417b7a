//! Where our sidecars' spans go: an OTLP collector in this process that counts them and forgets them.

use std::net::{SocketAddr, TcpListener};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio_stream::wrappers::TcpListenerStream;

static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
static SPANS: AtomicU64 = AtomicU64::new(0);

/// Where it listens; the first to ask starts it.
pub(crate) fn address() -> SocketAddr {
    *ADDRESS.get_or_init(start)
}

/// Spans that have come so far.
pub(crate) fn spans() -> u64 {
    SPANS.load(Ordering::Relaxed)
}

fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind the collector");
    let address = listener.local_addr().expect("the collector's address");
    listener.set_nonblocking(true).expect("a socket of tokio's");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let serving = tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(Collector))
                .serve_with_incoming(TcpListenerStream::new(listener));
            serving.await.expect("serve spans");
        });
    });
    address
}

struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans;
        let scopes = resources.iter().flat_map(|resource| &resource.scope_spans);
        let count: usize = scopes.map(|scope| scope.spans.len()).sum();
        SPANS.fetch_add(count as u64, Ordering::Relaxed);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}
