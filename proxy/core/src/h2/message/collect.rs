//! From the fields of a block to those of a map.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, TE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::limits::{Exceeded, HeadLimits, HeadSize, MAP_FIELDS};
use super::malformed::{Answerable, Defect, Malformed};
use super::pseudo::{Pseudo, PseudoName};
use super::scratch::{CHUNK_BYTES, Scratch};
use crate::field_name::{known_lower_case, map_for};
use crate::h1::{Excerpt, Message, note_length};
use crate::h2::hpack::{CompressionError, Decoder, Field, FieldList};

/// What a block is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    /// The head of a request; whether `:protocol` is known (RFC 8441 section 3).
    Request { extended_connect: bool },
    /// The head of a response.
    Response,
    /// The trailers of either.
    Trailers(Message),
}

impl Section {
    fn message(self) -> Message {
        match self {
            Self::Request { .. } => Message::Request,
            Self::Response => Message::Response,
            Self::Trailers(message) => message,
        }
    }

    fn too_large(self, exceeded: Exceeded) -> Defect {
        match self {
            Self::Request { .. } | Self::Response => Defect::HeadTooLarge(exceeded),
            Self::Trailers(_) => Defect::TrailersTooLarge(exceeded),
        }
    }
}

/// The fields of one block, and what they say of the message.
#[derive(Debug)]
pub(super) struct Collector<'s> {
    scratch: &'s mut Scratch,
    /// The block, which values are slices of; empty where it is a large one: a value that is kept would
    /// keep all of it.
    block: Bytes,
    section: Section,
    limits: HeadLimits,
    size: HeadSize,
    /// The first that was found.
    defect: Option<Defect>,
    caller: Caller,
    pub(super) pseudo: Pseudo,
    pub(super) host: Option<HeaderValue>,
    pub(super) content_length: Option<u64>,
}

/// What an answer to a request needs to know. It is noted also where there is a defect already.
#[derive(Debug, Default)]
struct Caller {
    method: CallerMethod,
    is_grpc: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum CallerMethod {
    /// None came yet.
    #[default]
    Unknown,
    Head,
    Connect,
    Other,
}

/// Decodes a block to its end and makes what `finish` makes of its fields.
pub(super) fn decode<T>(
    decoder: &mut Decoder,
    block: &[u8],
    scratch: &mut Scratch,
    section: Section,
    limits: HeadLimits,
    finish: impl FnOnce(&mut Collector<'_>) -> Result<T, Defect>,
) -> Result<Result<T, Malformed>, CompressionError> {
    let shared = match block.len() <= CHUNK_BYTES {
        true => scratch.share(block),
        false => Bytes::new(),
    };
    let block = if shared.is_empty() { block } else { &shared };
    let mut collector = Collector {
        scratch,
        block: shared.clone(),
        section,
        limits,
        size: HeadSize::default(),
        defect: None,
        caller: Caller::default(),
        pseudo: Pseudo::default(),
        host: None,
        content_length: None,
    };
    let list = decoder.decode(block, |field| collector.on_field(field));
    let message = list.map(|list| {
        let found = match (collector.defect.take(), list) {
            (Some(defect), _) => Err(defect),
            (None, FieldList::TooLarge { bytes, limit }) => {
                Err(section.too_large(Exceeded::List { bytes, limit }))
            }
            (None, FieldList::Complete { .. }) => finish(&mut collector),
        };
        found.map_err(|defect| collector.malformed(defect))
    });
    collector.scratch.clear();
    message
}

impl Collector<'_> {
    fn on_field(&mut self, field: Field<'_>) {
        if let Section::Request { .. } = self.section {
            self.caller.note(field);
        }
        if self.defect.is_none()
            && let Err(defect) = self.take(field)
        {
            self.defect = Some(defect);
        }
    }

    fn take(&mut self, field: Field<'_>) -> Result<(), Defect> {
        let exceeded = self.size.count(field.name, field.value, self.limits);
        if let Some(exceeded) = exceeded {
            return Err(self.section.too_large(exceeded));
        }
        // RFC 9113 section 8.2.1; the decoder of HTTP/1.1 has removed it.
        if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = field.value {
            let name = Excerpt::of(field.name);
            return Err(Defect::WhiteSpace { name });
        }
        if field.name.first() == Some(&b':') {
            return self.take_pseudo(field);
        }
        if let Some(known) = known_lower_case(field.name)
            && known.is_ordinary
        {
            let value = shared_value(self.share(field.value), field)?;
            self.scratch.fields.push((known.name.clone(), value));
            return Ok(());
        }
        let name = field_name(field.name)?;
        let mut value = shared_value(self.share(field.value), field)?;
        check_hop_by_hop(&name, &value)?;
        if self.is_kept(&name, &mut value)? {
            self.scratch.fields.push((name, value));
        }
        Ok(())
    }

    /// The bytes in memory that is shared with other values: those of the block are there already, those
    /// of Huffman codes and of the dynamic table are not.
    fn share(&mut self, bytes: &[u8]) -> Bytes {
        let begin = bytes
            .as_ptr()
            .addr()
            .wrapping_sub(self.block.as_ptr().addr());
        match begin.checked_add(bytes.len()) {
            Some(end) if end <= self.block.len() && !bytes.is_empty() => {
                self.block.slice(begin..end)
            }
            Some(_) | None => self.scratch.share(bytes),
        }
    }

    fn take_pseudo(&mut self, field: Field<'_>) -> Result<(), Defect> {
        let name = PseudoName::of(field.name, self.section)?;
        if self.size.fields() > 0 {
            let name = name.as_str();
            return Err(Defect::PseudoMisplaced { name });
        }
        match name {
            PseudoName::Method => self.pseudo.set_method(field.value),
            PseudoName::Scheme => self.pseudo.set_scheme(field.value),
            PseudoName::Status => self.pseudo.set_status(field.value),
            PseudoName::Authority => {
                let value = self.share(field.value);
                self.pseudo.set_authority(value)
            }
            PseudoName::Path => {
                let value = self.share(field.value);
                self.pseudo.set_path(value)
            }
            PseudoName::Protocol => {
                let value = shared_value(self.share(field.value), field)?;
                self.pseudo.set_protocol(value)
            }
        }
    }

    /// Notes what a field says of the message and whether it is one of its fields: a repeated
    /// `Content-Length` is not.
    fn is_kept(&mut self, name: &HeaderName, value: &mut HeaderValue) -> Result<bool, Defect> {
        match self.section {
            Section::Trailers(_) => Ok(true),
            Section::Request { .. } | Section::Response if name == CONTENT_LENGTH => {
                note_length(&mut self.content_length, value).map_err(Defect::ContentLength)
            }
            Section::Request { .. } if name == HOST => {
                let first = self.host.replace(value.clone());
                first.map_or(Ok(true), |_first| Err(Defect::HostRepeated))
            }
            Section::Request { .. } | Section::Response => Ok(true),
        }
    }

    /// The fields, which are then no longer here.
    pub(super) fn headers(&mut self) -> Result<HeaderMap, Defect> {
        // Neither happens: fields were counted.
        let exceeded = |_| self.section.too_large(Exceeded::Fields(MAP_FIELDS));
        let mut headers = map_for(self.scratch.fields.len()).map_err(exceeded)?;
        for (name, value) in self.scratch.fields.drain(..) {
            headers.try_append(name, value).map_err(exceeded)?;
        }
        Ok(headers)
    }

    fn malformed(&self, defect: Defect) -> Malformed {
        let answerable = self.caller.answerable();
        Malformed {
            message: self.section.message(),
            answerable: answerable.filter(|_| defect.is_answered()),
            defect,
        }
    }
}

impl Caller {
    fn note(&mut self, field: Field<'_>) {
        let Field { name, value, .. } = field;
        if name == b":method" && self.method == CallerMethod::Unknown {
            self.method = match value {
                b"HEAD" => CallerMethod::Head,
                b"CONNECT" => CallerMethod::Connect,
                _ => CallerMethod::Other,
            };
        }
        self.is_grpc |= name == b"content-type" && value.starts_with(b"application/grpc");
    }

    fn answerable(&self) -> Option<Answerable> {
        let (head, connect) = match self.method {
            CallerMethod::Unknown => return None,
            CallerMethod::Head => (true, false),
            CallerMethod::Connect => (false, true),
            CallerMethod::Other => (false, false),
        };
        let grpc = self.is_grpc && !connect;
        Some(Answerable { head, grpc })
    }
}

/// Whether a field is for a connection in HTTP/1.1 (RFC 9113 section 8.2.2).
pub(super) fn is_connection_specific(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
}

/// Whether a value of `te` may be sent (RFC 9113 section 8.2.2).
pub(super) fn is_trailers(te: &[u8]) -> bool {
    te.eq_ignore_ascii_case(b"trailers")
}

fn check_hop_by_hop(name: &HeaderName, value: &HeaderValue) -> Result<(), Defect> {
    if is_connection_specific(name) {
        let name = Excerpt::of(name.as_str().as_bytes());
        return Err(Defect::ConnectionSpecific { name });
    }
    if name == TE && !is_trailers(value.as_bytes()) {
        let found = Excerpt::of(value.as_bytes());
        return Err(Defect::Te { found });
    }
    Ok(())
}

/// A token in lower case (RFC 9113 section 8.2.1).
fn field_name(bytes: &[u8]) -> Result<HeaderName, Defect> {
    if let Some(known) = known_lower_case(bytes) {
        return Ok(known.name.clone());
    }
    let name = HeaderName::from_lowercase(bytes).ok();
    // It takes quotation marks, of which no token is made (RFC 9110 section 5.6.2).
    name.filter(|_| !bytes.contains(&b'"')).ok_or_else(|| {
        let found = Excerpt::of(bytes);
        match bytes.iter().any(u8::is_ascii_uppercase) {
            true => Defect::UpperCase { found },
            false => Defect::Name { found },
        }
    })
}

/// A value without control characters; `bytes` are those of the field.
fn shared_value(bytes: Bytes, field: Field<'_>) -> Result<HeaderValue, Defect> {
    let value = HeaderValue::from_maybe_shared(bytes);
    let mut value = value.map_err(|_| Defect::Value {
        name: Excerpt::of(field.name),
    })?;
    value.set_sensitive(field.never_indexed);
    Ok(value)
}
