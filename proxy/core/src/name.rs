//! Names: parsed once at the wall, so that nothing inside has to check them again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The suffix of every hostname that the mesh answers for itself.
pub const MESH_SUFFIX: &str = "mesh";

/// The domain of the names in a Kubernetes cluster's DNS, unless it was made with another.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The namespace of the mesh's own parts. No workload, service or token is in it.
pub const RESERVED_NAMESPACE: &str = "weft-system";

/// The service account of the control plane, in [`RESERVED_NAMESPACE`].
pub const CONTROL_PLANE_ACCOUNT: &str = "control-plane";

/// The extended key usage (RFC 5280 section 4.2.1.12) that the control plane's certificate has and
/// no workload's: sidecars take nobody without it for the control plane. Under 2.25, the arc for
/// identifiers that nobody has to register (ITU-T X.667).
pub const CONTROL_PLANE_USAGE: &[u64] = &[2, 25, 8_452_017_640_593_276_113];

/// [`CONTROL_PLANE_USAGE`] as the content of its DER encoding.
pub const CONTROL_PLANE_USAGE_DER: &[u8] =
    &[0x69, 0xf5, 0xa5, 0xe6, 0xa8, 0xb6, 0xf7, 0x96, 0xf9, 0x51];

/// Longest DNS label (RFC 1035 section 2.3.4).
const LABEL_MAX: usize = 63;

/// Longest DNS name as text, as Kubernetes has it for names of objects.
const SUBDOMAIN_MAX: usize = 253;

/// Longest trust domain name (SPIFFE ID specification, section 2.1).
const TRUST_DOMAIN_MAX: usize = 255;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a DNS label as RFC 1123 has it.
    #[error(
        "{found:?} is not a name: allowed are 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit (RFC 1123)"
    )]
    Label {
        /// What was given.
        found: String,
    },
    /// Not a DNS subdomain as RFC 1123 has it.
    #[error(
        "{found:?} is not a name: allowed are 1 to 253 of a-z, 0-9, '-' and '.', each part between dots beginning and ending with a letter or digit (RFC 1123)"
    )]
    Subdomain {
        /// What was given.
        found: String,
    },
    /// Not of the form `NAMESPACE/NAME`.
    #[error("{found:?} is not of the form NAMESPACE/NAME, as in shop/web")]
    Qualified {
        /// What was given.
        found: String,
    },
    /// Not a trust domain.
    #[error("{found:?} is not a trust domain: allowed are 1 to 255 of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain {
        /// What was given.
        found: String,
    },
    /// Not a SPIFFE ID of the form that the mesh issues.
    #[error(
        "{found:?} is not a workload's SPIFFE ID: expected spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
    )]
    SpiffeId {
        /// What was given.
        found: String,
    },
}

/// Checks that `text` is a DNS label (RFC 1123 section 2.1).
pub fn check_label(text: &str) -> Result<(), NameError> {
    if text.len() <= LABEL_MAX && is_part(text) {
        Ok(())
    } else {
        Err(NameError::Label {
            found: text.chars().take(80).collect(),
        })
    }
}

/// Checks that `text` is a DNS subdomain as Kubernetes has it for names of most objects, service
/// accounts among them: parts between dots of any length, [`SUBDOMAIN_MAX`] in all.
pub fn check_subdomain(text: &str) -> Result<(), NameError> {
    if text.len() <= SUBDOMAIN_MAX && text.split('.').all(is_part) {
        Ok(())
    } else {
        Err(NameError::Subdomain {
            found: text.chars().take(260).collect(),
        })
    }
}

fn is_part(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    let inner = bytes
        .iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    inner && edge(bytes.first()) && edge(bytes.last())
}

macro_rules! qualified_name {
    ($(#[$doc:meta])* $name:ident, $check:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            namespace: Arc<str>,
            name: Arc<str>,
        }

        impl $name {
            #[doc = concat!("The namespace has to be a DNS label, the name ", $kind, ".")]
            pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
                check_label(namespace)?;
                $check(name)?;
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }

            /// The namespace, a DNS label.
            pub fn namespace(&self) -> &str {
                &self.namespace
            }

            #[doc = concat!("The name within its namespace, ", $kind, ".")]
            pub fn name(&self) -> &str {
                &self.name
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let Some((namespace, name)) = text.split_once('/') else {
                    return Err(NameError::Qualified { found: text.chars().take(140).collect() });
                };
                Self::new(namespace, name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

qualified_name! {
    /// A service, written `NAMESPACE/NAME`.
    ServiceName, check_label, "a DNS label"
}

qualified_name! {
    /// A workload, written `NAMESPACE/NAME`. Several instances may run under one name over time,
    /// at any moment one of them does.
    WorkloadName, check_subdomain, "a DNS subdomain"
}

impl ServiceName {
    /// `NAME.NAMESPACE.mesh`, the name that programs resolve.
    pub fn hostname(&self) -> String {
        format!("{}.{}.{MESH_SUFFIX}", self.name, self.namespace)
    }

    /// Reads `NAME.NAMESPACE.mesh`, in any case and with or without the final dot.
    pub fn from_hostname(hostname: &str) -> Option<Self> {
        let lower = hostname.trim_end_matches('.').to_ascii_lowercase();
        let rest = lower.strip_suffix(MESH_SUFFIX)?.strip_suffix('.')?;
        let (name, namespace) = rest.split_once('.')?;
        Self::new(namespace, name).ok()
    }

    /// Reads any name that a service goes by, in any case, with or without the final dot and a port:
    /// `NAME.NAMESPACE.mesh`, and those of a cluster's DNS as somebody in `namespace` uses them,
    /// `NAME`, `NAME.NAMESPACE`, `NAME.NAMESPACE.svc`, `NAME.NAMESPACE.svc.DOMAIN`. Whether there is
    /// such a service is not said: `example.com` may be one.
    pub fn from_host(host: &str, namespace: &str, cluster_domain: &str) -> Option<Self> {
        let host = match host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            Some(_) => return None,
            None => host,
        };
        if let Some(service) = Self::from_cluster_host(host, cluster_domain) {
            return Some(service);
        }
        let lower = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if let Some(rest) = lower.strip_suffix(MESH_SUFFIX)
            && let Some(rest) = rest.strip_suffix('.')
        {
            let (name, namespace) = rest.split_once('.')?;
            return Self::new(namespace, name).ok();
        }
        let short = lower.strip_suffix(".svc").unwrap_or(&lower);
        match short.split_once('.') {
            Some((name, namespace)) => Self::new(namespace, name).ok(),
            // `web.svc` has no namespace.
            None if short == lower => Self::new(namespace, short).ok(),
            None => None,
        }
    }

    /// Reads `NAME.NAMESPACE.svc.DOMAIN`, in any case and with or without the final dot.
    pub fn from_cluster_host(host: &str, cluster_domain: &str) -> Option<Self> {
        let lower = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let rest = lower.strip_suffix(cluster_domain)?.strip_suffix(".svc.")?;
        let (name, namespace) = rest.split_once('.')?;
        Self::new(namespace, name).ok()
    }
}

/// The name of a trust domain (SPIFFE ID specification, section 2.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Its text, lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let ok = !text.is_empty()
            && text.len() <= TRUST_DOMAIN_MAX
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if ok {
            Ok(Self(text.into()))
        } else {
            Err(NameError::TrustDomain {
                found: text.chars().take(140).collect(),
            })
        }
    }
}

/// A workload's identity: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    // Byte offsets of the parts within `text`.
    trust_domain_end: usize,
    namespace_end: usize,
}

const SCHEME: &str = "spiffe://";
const NS: &str = "/ns/";
const SA: &str = "/sa/";

impl SpiffeId {
    /// The identity of a service account in a namespace. The namespace has to be a DNS label, the
    /// account a DNS subdomain.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, NameError> {
        check_label(namespace)?;
        check_subdomain(service_account)?;
        let trust_domain_end = SCHEME.len() + trust_domain.as_str().len();
        Ok(Self {
            text: format!("{SCHEME}{trust_domain}{NS}{namespace}{SA}{service_account}").into(),
            trust_domain_end,
            namespace_end: trust_domain_end + NS.len() + namespace.len(),
        })
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.trust_domain_end]
    }

    /// The namespace, a DNS label.
    pub fn namespace(&self) -> &str {
        &self.text[self.trust_domain_end + NS.len()..self.namespace_end]
    }

    /// The service account, a DNS subdomain.
    pub fn service_account(&self) -> &str {
        &self.text[self.namespace_end + SA.len()..]
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parts = || {
            let rest = text.strip_prefix(SCHEME)?;
            let (trust_domain, rest) = rest.split_once('/')?;
            let (namespace, service_account) = rest.strip_prefix("ns/")?.split_once(SA)?;
            let trust_domain = trust_domain.parse().ok()?;
            Self::new(&trust_domain, namespace, service_account).ok()
        };
        parts().ok_or_else(|| NameError::SpiffeId {
            found: text.chars().take(300).collect(),
        })
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_is_encoded() {
        // X.690 section 8.19: base 128, the first two arcs in one.
        let [joint, uuid, rest] = CONTROL_PLANE_USAGE else {
            panic!("three arcs");
        };
        let mut encoded = Vec::new();
        for arc in [joint * 40 + uuid, *rest] {
            let digits = (0..10).rev().map(|digit| (arc >> (7 * digit)) as u8 & 0x7f);
            let digits: Vec<u8> = digits.skip_while(|digit| *digit == 0).collect();
            let (last, more) = digits.split_last().unwrap();
            encoded.extend(more.iter().map(|digit| digit | 0x80));
            encoded.push(*last);
        }
        assert_eq!(encoded, CONTROL_PLANE_USAGE_DER);
    }

    #[test]
    fn labels() {
        for ok in ["a", "web", "web-1", "0", &"a".repeat(63)] {
            assert!(check_label(ok).is_ok(), "{ok}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "ä", &"a".repeat(64)] {
            assert!(check_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn subdomains() {
        let long = "a".repeat(253);
        for ok in ["a", "a.b", "0.web-1.x", "a".repeat(64).as_str(), &long] {
            assert!(check_subdomain(ok).is_ok(), "{ok}");
        }
        let long = "a".repeat(254);
        for bad in [
            "", ".", "a.", ".a", "a..b", "a.-b", "A.b", "a/b", "a_b", &long,
        ] {
            assert!(check_subdomain(bad).is_err(), "{bad}");
        }
        assert!("shop/web.v1".parse::<WorkloadName>().is_ok());
        assert!("shop/web.v1".parse::<ServiceName>().is_err());
        assert!("sh.op/web".parse::<WorkloadName>().is_err());
    }

    #[test]
    fn service_names_and_hostnames() {
        let name: ServiceName = "shop/web".parse().unwrap();
        assert_eq!(name.hostname(), "web.shop.mesh");
        assert_eq!(
            ServiceName::from_hostname("Web.Shop.MESH."),
            Some(name.clone())
        );
        for bad in ["web.shop", "mesh", ".mesh", "a.b.c.mesh", "web.shop.meshx"] {
            assert_eq!(ServiceName::from_hostname(bad), None, "{bad}");
        }
        assert!("web".parse::<ServiceName>().is_err());
        assert!("a/b/c".parse::<ServiceName>().is_err());
    }

    #[test]
    fn names_of_a_clusters_dns_are_one_service() {
        let cases = [
            ("web", Some("lab/web")),
            ("web.shop", Some("shop/web")),
            ("web.shop.svc", Some("shop/web")),
            ("web.shop.svc.cluster.local", Some("shop/web")),
            ("web.shop.mesh", Some("shop/web")),
            ("svc", Some("lab/svc")),
            ("web.svc", None),
            // A namespace may be called so.
            ("web.mesh", None),
            ("web.svc.svc", Some("svc/web")),
            ("web.shop.svc.cluster.localx", None),
            ("web.shop.svc.other.local", None),
            ("web-0.web.shop.svc.cluster.local", None),
            ("web.svc.cluster.local", None),
            ("", None),
            (".", None),
            ("..", None),
            ("[::1]", None),
            ("web_1", None),
            ("a.b.example.com", None),
        ];
        for (host, expected) in cases {
            for dot in ["", "."] {
                for port in ["", ":80", ":x"] {
                    for host in [host.to_owned(), host.to_ascii_uppercase()] {
                        let host = format!("{host}{dot}{port}");
                        let found = ServiceName::from_host(&host, "lab", "cluster.local");
                        let found = found.map(|name| name.to_string());
                        let expected = expected.filter(|_| port != ":x");
                        assert_eq!(found.as_deref(), expected, "{host}");
                    }
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_host_is_what_comes_out_is_a_name(host in "[a-zA-Z0-9.:_\\-\\[\\]é]{0,40}", suffix in "(|\\.svc|\\.svc\\.cluster\\.local|\\.mesh)(|\\.)(|:[0-9]{1,5})") {
            let host = format!("{host}{suffix}");
            if let Some(name) = ServiceName::from_host(&host, "lab", "cluster.local") {
                let again = ServiceName::new(name.namespace(), name.name());
                proptest::prop_assert_eq!(again, Ok(name.clone()));
                for form in ["{n}.{s}", "{n}.{s}.svc", "{n}.{s}.svc.cluster.local", "{n}.{s}.mesh"] {
                    let form = form.replace("{n}", name.name()).replace("{s}", name.namespace());
                    // A namespace that is called as a suffix cannot be said in the short form.
                    if form.matches('.').count() > 1 || !["svc", "mesh"].contains(&name.namespace()) {
                        let found = ServiceName::from_host(&form, "other", "cluster.local");
                        proptest::prop_assert_eq!(found.as_ref(), Some(&name), "{}", form);
                    }
                }
            }
        }
    }

    #[test]
    fn spiffe_ids() {
        let id: SpiffeId = "spiffe://weft.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("weft.local", "shop", "web")
        );
        let dotted: SpiffeId = "spiffe://weft.local/ns/shop/sa/web.v1-2".parse().unwrap();
        assert_eq!(
            (dotted.namespace(), dotted.service_account()),
            ("shop", "web.v1-2")
        );
        for bad in [
            "spiffe://weft.local/ns/sh.op/sa/web",
            "spiffe://weft.local/ns/shop/sa/..",
            "spiffe://weft.local/ns/shop/sa/web.",
            "spiffe://weft.local/ns/shop",
            "spiffe://weft.local/ns//sa/web",
            "spiffe://weft.local/ns/shop/sa/web/x",
            "http://weft.local/ns/shop/sa/web",
            "spiffe:///ns/shop/sa/web",
            "spiffe://Weft/ns/shop/sa/web",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
