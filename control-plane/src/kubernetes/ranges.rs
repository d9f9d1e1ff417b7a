//! The ranges of addresses by which a sidecar in the cluster knows what it has to ask about.

use std::time::Duration;

use kube::api::{ListParams, ObjectList};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use weft_core::model::Cidr;

use super::retry::{Pauses, until_answered};
use super::told;

/// Ranges that pods' addresses are in where nobody says which: RFC 1918, RFC 6598 and RFC 4193. A
/// sidecar asks the control plane about an address in them before anything goes there.
pub const PRIVATE_RANGES: [&str; 5] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
];

/// The newest version of `ServiceCIDR` first (KEP-1880).
const SERVICE_CIDR_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Why the range of services' addresses is not known.
#[derive(Debug, thiserror::Error)]
pub enum RangesError {
    /// The API server has no ServiceCIDR.
    #[error(
        "kubernetes: the API server does not say which addresses Services have (it has no networking.k8s.io ServiceCIDR); say it with --service-range, as in --service-range 10.96.0.0/12"
    )]
    Unknown,
    /// What it says makes no sense.
    #[error("kubernetes: ServiceCIDR {name}: spec.cidrs: found {found:?}; allowed: ADDRESS/PREFIX")]
    Range {
        /// The object.
        name: String,
        /// What was found.
        found: String,
    },
    /// It cannot be asked.
    #[error("kubernetes: list of ServiceCIDRs: {}", told(.0))]
    Api(Box<kube::Error>),
}

/// Pauses between attempts to ask an API server that is away.
const ASKED_AGAIN: Pauses = Pauses {
    first: Duration::from_millis(500),
    longest: Duration::from_secs(10),
};

/// The ranges as [`service_ranges`] has them, as soon as the API server answers.
pub async fn wait_for_service_ranges(client: &Client) -> Result<Vec<Cidr>, RangesError> {
    until_answered("ranges of Services", ASKED_AGAIN, || async {
        match service_ranges(client).await {
            Err(error @ RangesError::Api(_)) => Err(error),
            answered => Ok(answered),
        }
    })
    .await
}

/// The ranges of the addresses of the cluster's Services, as the API server has them.
pub async fn service_ranges(client: &Client) -> Result<Vec<Cidr>, RangesError> {
    for version in SERVICE_CIDR_VERSIONS {
        let kind = GroupVersionKind::gvk("networking.k8s.io", version, "ServiceCIDR");
        let resource = ApiResource::from_gvk_with_plural(&kind, "servicecidrs");
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        match api.list(&ListParams::default()).await {
            Ok(list) if list.items.is_empty() => {}
            Ok(list) => return ranges_of(&list),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(RangesError::Api(Box::new(error))),
        }
    }
    Err(RangesError::Unknown)
}

fn ranges_of(list: &ObjectList<DynamicObject>) -> Result<Vec<Cidr>, RangesError> {
    let mut ranges = Vec::new();
    for object in &list.items {
        let cidrs = object.data.pointer("/spec/cidrs");
        for text in cidrs
            .and_then(|cidrs| cidrs.as_array())
            .into_iter()
            .flatten()
        {
            let range = text.as_str().and_then(Cidr::parse);
            ranges.push(range.ok_or_else(|| RangesError::Range {
                name: object.metadata.name.clone().unwrap_or_default(),
                found: text.to_string(),
            })?);
        }
    }
    match ranges.is_empty() {
        true => Err(RangesError::Unknown),
        false => Ok(ranges),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(cidrs: &serde_json::Value) -> ObjectList<DynamicObject> {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDRList",
            "metadata": {},
            "items": [{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}],
        }))
        .unwrap()
    }

    #[test]
    fn ranges_are_those_of_every_object() {
        let found = ranges_of(&list(&serde_json::json!(["10.96.0.0/16", "fd00:96::/108"])));
        let found: Vec<String> = found.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.96.0.0/16", "fd00:96::/108"]);
        let error = ranges_of(&list(&serde_json::json!(["10.96"]))).unwrap_err();
        assert!(
            error.to_string().contains("found \"\\\"10.96\\\"\""),
            "{error}"
        );
        let error = ranges_of(&list(&serde_json::json!([]))).unwrap_err();
        assert!(error.to_string().contains("--service-range"), "{error}");
    }

    #[test]
    fn private_ranges_are_ranges() {
        assert!(
            PRIVATE_RANGES
                .iter()
                .all(|text| Cidr::parse(text).is_some())
        );
    }
}
