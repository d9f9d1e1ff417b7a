//! Responses of delta discovery of which the resources were encoded before: once, for everybody.

use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost_types::Any;

use crate::xds;

/// The number of the field `resources` in `DeltaDiscoveryResponse`.
const RESOURCES: u32 = 2;

/// Encodes a resource as it stands in a response.
pub fn encode_resource(name: &str, version: &str, aliases: &[String], content: Any) -> Bytes {
    let resource = xds::Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        aliases: aliases.to_vec(),
        resource: Some(content),
    };
    resource.encode_to_vec().into()
}

/// A `DeltaDiscoveryResponse` with resources that are encoded already.
#[derive(Debug, Clone, Default)]
pub struct DeltaResponse {
    /// Everything but the resources.
    pub head: xds::DeltaDiscoveryResponse,
    /// The resources, as [`encode_resource`] gives them.
    pub resources: Vec<Bytes>,
}

impl DeltaResponse {
    /// The length of the message, bytes.
    pub fn encoded_len(&self) -> usize {
        let resources = self.resources.iter().map(|resource| {
            let length = resource.len();
            key_len(RESOURCES) + encoded_len_varint(length as u64) + length
        });
        self.head.encoded_len() + resources.sum::<usize>()
    }

    /// Writes the message. The order of fields means nothing in protobuf.
    pub fn encode(&self, buffer: &mut impl BufMut) -> Result<(), prost::EncodeError> {
        self.head.encode(buffer)?;
        for resource in &self.resources {
            encode_key(RESOURCES, WireType::LengthDelimited, buffer);
            encode_varint(resource.len() as u64, buffer);
            buffer.put_slice(resource);
        }
        Ok(())
    }
}

/// Reads a request.
pub fn decode_request(buffer: impl Buf) -> Result<xds::DeltaDiscoveryRequest, prost::DecodeError> {
    xds::DeltaDiscoveryRequest::decode(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_as_any_other_response() {
        let content = Any {
            type_url: "type.googleapis.com/weft.mesh.v1.Service".to_owned(),
            value: vec![7; 300],
        };
        let resource = xds::Resource {
            name: "shop/web".to_owned(),
            version: "1".to_owned(),
            aliases: vec!["web.shop.mesh".to_owned()],
            resource: Some(content.clone()),
        };
        let whole = xds::DeltaDiscoveryResponse {
            system_version_info: "3".to_owned(),
            resources: vec![resource.clone(), resource.clone()],
            type_url: content.type_url.clone(),
            removed_resources: vec!["shop/gone".to_owned()],
            nonce: "4".to_owned(),
        };
        let encoded = encode_resource("shop/web", "1", &resource.aliases, content);
        let response = DeltaResponse {
            head: xds::DeltaDiscoveryResponse {
                resources: Vec::new(),
                ..whole.clone()
            },
            resources: vec![encoded.clone(), encoded],
        };
        let mut buffer = Vec::new();
        response.encode(&mut buffer).unwrap();
        assert_eq!(buffer.len(), response.encoded_len());
        let decoded = xds::DeltaDiscoveryResponse::decode(buffer.as_slice()).unwrap();
        assert_eq!(decoded, whole);
    }
}
