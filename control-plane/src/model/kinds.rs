//! The list of kinds, and the documents that there are of them.
//!
//! A new kind is one line in the list below. The line names a variant of [`Document`] with what it
//! holds, and the types of `spec` that implement [`DocumentKind`](super::kind::DocumentKind).

use gateway_api::experimental::grpcroutes::GrpcRouteSpec;
use gateway_api::experimental::httproutes::HttpRouteSpec;
use gateway_api::experimental::referencegrants::ReferenceGrantSpec;
use gateway_api::experimental::tcproutes::TcpRouteSpec;
use gateway_api::experimental::tlsroutes::TlsRouteSpec;
use serde_json::Value;
use weft_core::name::ServiceName;

use super::check::{Check, Problem};
use super::external_service::ExternalServiceSpec;
use super::fault_injection::FaultInjectionSpec;
use super::input;
use super::key::{ObjectName, ResourceKey};
use super::kind::{Kind, Relations, Spec};
use super::mesh_config::MeshConfigSpec;
use super::rate_limit::RateLimitPolicySpec;
use super::route::RouteSpec;
use super::service::ServiceSpec;
use super::traffic_policy::TrafficPolicySpec;

/// Defines [`Document`], [`KINDS`], and the way from a document to its name and spec.
macro_rules! documents {
    ($($(#[$about:meta])* $variant:ident($($part:ident: $type:ty),+) = $($kind:ty),+;)+) => {
        /// A document that has been checked.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Document {
            $($(#[$about])* $variant($($type),+),)+
        }

        /// The kinds that exist.
        pub static KINDS: &[Kind] = &[$($(Kind::of::<$kind>(),)+)+];

        /// A variant of [`Document`], without what it holds.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum DocumentVariant {
            $($(#[$about])* $variant,)+
        }

        impl DocumentVariant {
            /// Of documents with this `kind`; `None` if there is no such kind.
            pub fn of(kind: &str) -> Option<Self> {
                $($(if Kind::of::<$kind>().name == kind {
                    return Some(Self::$variant);
                })+)+
                None
            }
        }

        impl Document {
            fn parts(&self) -> (ObjectName, &dyn Spec) {
                match self {
                    $(Self::$variant($($part),+) => Parts::parts(($($part,)+)),)+
                }
            }
        }
    };
}

documents! {
    /// A service that is to exist, whether or not anybody serves it.
    Service(name: ServiceName, spec: ServiceSpec) = ServiceSpec;
    /// Settings of the mesh as a whole; there is one, `weft-system/mesh`.
    MeshConfig(spec: MeshConfigSpec) = MeshConfigSpec;
    /// How callers treat a service.
    TrafficPolicy(name: ObjectName, spec: Box<TrafficPolicySpec>) = TrafficPolicySpec;
    /// A fault that routes may name.
    FaultInjection(name: ObjectName, spec: FaultInjectionSpec) = FaultInjectionSpec;
    /// A destination outside the mesh that programs reach by its ordinary names.
    ExternalService(name: ServiceName, spec: Box<ExternalServiceSpec>) = ExternalServiceSpec;
    /// How many requests the service's own sidecars let through.
    RateLimitPolicy(name: ObjectName, spec: RateLimitPolicySpec) = RateLimitPolicySpec;
    /// Where requests to a service go.
    Route(name: ObjectName, spec: RouteSpec)
        = HttpRouteSpec, GrpcRouteSpec, TlsRouteSpec, TcpRouteSpec;
    /// What routes of other namespaces may send requests to.
    ReferenceGrant(name: ObjectName, spec: ReferenceGrantSpec) = ReferenceGrantSpec;
}

impl Document {
    /// What it goes by.
    pub fn key(&self) -> ResourceKey {
        let (own, spec) = self.parts();
        ResourceKey {
            kind: spec.kind().to_owned(),
            namespace: own.namespace,
            name: own.name,
        }
    }

    /// The document without labels and annotations; see [`Placed::to_value`](super::Placed::to_value).
    pub fn to_value(&self) -> Value {
        let (own, spec) = self.parts();
        serde_json::json!({
            "apiVersion": version_of(spec.kind()),
            "kind": spec.kind(),
            "metadata": { "name": own.name, "namespace": own.namespace },
            "spec": spec.value(),
        })
    }

    /// Reads one that was stored. It was checked then: a field that is not known is one of another
    /// version's.
    pub fn from_value(value: Value) -> Result<Self, Vec<Problem>> {
        let mut check = Check::new("the store", 1);
        check.stored = true;
        input::checked(check, &value).map(|read| read.document)
    }

    /// What it is attached to, and what else it names.
    pub fn relations(&self) -> Relations {
        let (own, spec) = self.parts();
        spec.relations(&own)
    }
}

/// The names of the kinds, for people.
pub fn kind_names() -> String {
    let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    names.join(", ")
}

/// The version that a kind is shown in.
pub fn version_of(kind: &str) -> &'static str {
    Kind::find(kind).map_or(super::API_VERSION, |kind| kind.version)
}

/// What a variant of [`Document`] holds: a name and a spec, or the spec of the only document of its
/// kind.
trait Parts<'a> {
    fn parts(self) -> (ObjectName, &'a dyn Spec);
}

impl<'a, N, S: Spec> Parts<'a> for (&'a N, &'a S)
where
    ObjectName: From<&'a N>,
{
    fn parts(self) -> (ObjectName, &'a dyn Spec) {
        (self.0.into(), self.1)
    }
}

impl<'a> Parts<'a> for (&'a MeshConfigSpec,) {
    fn parts(self) -> (ObjectName, &'a dyn Spec) {
        (MeshConfigSpec::object_name(), self.0)
    }
}
