//! Delta discovery as a gRPC service whose responses are encoded already. The generated server
//! would copy and encode every resource for every sidecar.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Status, Streaming};
use weft_proto::codec::buffer_settings;
use weft_proto::envelope::DeltaResponse;
use weft_proto::xds::DeltaDiscoveryRequest;

use super::grpc::{DiscoveryService, Responses};
use crate::budget::DISCOVERY_MESSAGE_MAX_BYTES;

const NAME: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The server of delta discovery.
#[derive(Debug, Clone)]
pub struct DiscoveryServer(Arc<DiscoveryService>);

impl DiscoveryServer {
    /// Serves discovery.
    pub fn new(service: DiscoveryService) -> Self {
        Self(Arc::new(service))
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = NAME;
}

impl StreamingService<DeltaDiscoveryRequest> for DiscoveryServer {
    type Response = DeltaResponse;
    type ResponseStream = Responses;
    type Future = BoxFuture<'static, Result<tonic::Response<Responses>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move { service.begin(request) })
    }
}

impl<B> tower::Service<Request<B>> for DiscoveryServer
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            if request.uri().path() != DELTA {
                let text = "only DeltaAggregatedResources is served";
                return Ok(Status::unimplemented(text).into_http());
            }
            let mut grpc = Grpc::new(DeltaCodec)
                .apply_max_message_size_config(Some(DISCOVERY_MESSAGE_MAX_BYTES), None);
            Ok(grpc.streaming(server, request).await)
        })
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct DeltaCodec;

impl Codec for DeltaCodec {
    type Encode = DeltaResponse;
    type Decode = DeltaDiscoveryRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for DeltaCodec {
    type Item = DeltaResponse;
    type Error = Status;

    fn buffer_settings(&self) -> BufferSettings {
        buffer_settings()
    }

    fn encode(&mut self, item: DeltaResponse, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        let encoded = item.encode(buffer);
        encoded.map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for DeltaCodec {
    type Item = DeltaDiscoveryRequest;
    type Error = Status;

    fn buffer_settings(&self) -> BufferSettings {
        buffer_settings()
    }

    fn decode(
        &mut self,
        buffer: &mut DecodeBuf<'_>,
    ) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        let decoded = weft_proto::envelope::decode_request(buffer);
        let decoded = decoded.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(decoded))
    }
}
