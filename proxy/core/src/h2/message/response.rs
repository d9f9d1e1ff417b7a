//! Heads of responses (RFC 9113 section 8.3.2), and trailers of both messages (section 8.1).

use http::{HeaderMap, Response, StatusCode, Version, response};

use super::collect::{Collector, Section, decode};
use super::limits::HeadLimits;
use super::malformed::{Defect, Malformed};
use super::pseudo::PseudoName;
use super::scratch::Scratch;
use crate::h1::Message;
use crate::h2::hpack::{CompressionError, Decoder};

/// The head of a response. A 1xx is a head of its own, which others follow.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status, version (HTTP/2) and fields as received, but that identical repetitions of
    /// `Content-Length` are one. Values that no hop may index are sensitive.
    pub parts: response::Parts,
    /// Bytes of the content, where the head says it. Where the response has none ([`Length`]), it
    /// says what another would have.
    ///
    /// [`Length`]: super::Length
    pub content_length: Option<u64>,
}

impl ResponseHead {
    /// Whether another head follows (RFC 9110 section 15.2).
    pub fn is_interim(&self) -> bool {
        self.parts.status.is_informational()
    }
}

/// Decodes the head of a response. `block` is a whole field block, `end_stream` whether the stream ends
/// with it.
///
/// # Errors
///
/// The outer one ends the connection (RFC 9113 section 4.3), the inner one the stream.
pub fn decode_response(
    decoder: &mut Decoder,
    block: &[u8],
    scratch: &mut Scratch,
    limits: HeadLimits,
    end_stream: bool,
) -> Result<Result<ResponseHead, Malformed>, CompressionError> {
    decode(
        decoder,
        block,
        scratch,
        Section::Response,
        limits,
        |fields| finish(fields, end_stream),
    )
}

fn finish(fields: &mut Collector<'_>, end_stream: bool) -> Result<ResponseHead, Defect> {
    let name = PseudoName::Status.as_str();
    let status = fields.pseudo.status;
    let status = status.ok_or(Defect::PseudoMissing { name })?;
    // Section 8.6.
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Defect::SwitchingProtocols);
    }
    if status.is_informational() && end_stream {
        let status = status.as_u16();
        return Err(Defect::InterimAtEnd { status });
    }
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.version = Version::HTTP_2;
    parts.headers = fields.headers()?;
    Ok(ResponseHead {
        parts,
        content_length: fields.content_length,
    })
}

/// Decodes the trailers of a message. `block` is a whole field block that follows the final head,
/// `end_stream` whether the stream ends with it, as it has to (RFC 9113 section 8.1).
///
/// # Errors
///
/// The outer one ends the connection (RFC 9113 section 4.3), the inner one the stream.
pub fn decode_trailers(
    decoder: &mut Decoder,
    block: &[u8],
    scratch: &mut Scratch,
    limits: HeadLimits,
    message: Message,
    end_stream: bool,
) -> Result<Result<HeaderMap, Malformed>, CompressionError> {
    let section = Section::Trailers(message);
    decode(
        decoder,
        block,
        scratch,
        section,
        limits,
        |fields| match end_stream {
            true => fields.headers(),
            false => Err(Defect::TrailersNotAtEnd),
        },
    )
}
