//! The wire of the mesh: protobuf definitions, the code generated from them, and the conversions
//! between wire and domain.
//!
//! Architecture invariant: this crate opens no socket, and the types generated here are named by
//! nobody else, except for the service traits and envelopes of discovery, identity and registry.
//! What a conversion let through is not checked again.
#![forbid(unsafe_code)]

pub mod codec;
mod convert;
mod endpoints;
pub mod envelope;
mod external;
mod health;
mod hedge;
mod observed;
mod policy;
mod rates;
pub mod refusals;
mod registration;
pub mod relays;
pub mod replicas;
pub mod resource;
mod route;
mod server;
mod shedding;

pub use convert::Rejection;
pub use observed::interception;

pub use generated::envoy::config::core::v3 as xds_core;
pub use generated::envoy::service::discovery::v3 as xds;
pub use generated::google::rpc;
pub use generated::weft::identity::v1 as identity;
pub use generated::weft::mesh::v1 as mesh;
pub use generated::weft::ratelimit::v1 as ratelimit;
pub use generated::weft::registry::v1 as registry;
pub use generated::weft::replica::v1 as replica;

/// Generated code, in the modules that its own cross references expect. The test `generated` says
/// whether it is that of the definitions, and writes it anew.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    clippy::too_many_lines,
    clippy::wildcard_enum_match_arm,
    clippy::or_fun_call,
    unused_qualifications,
    elided_lifetimes_in_paths,
    reason = "generated code"
)]
mod generated {
    pub mod envoy {
        pub mod config {
            pub mod core {
                pub mod v3 {
                    include!("generated/envoy.config.core.v3.rs");
                }
            }
        }
        pub mod service {
            pub mod discovery {
                pub mod v3 {
                    include!("generated/envoy.service.discovery.v3.rs");
                }
            }
        }
    }
    pub mod google {
        pub mod rpc {
            include!("generated/google.rpc.rs");
        }
    }
    pub mod weft {
        pub mod mesh {
            pub mod v1 {
                include!("generated/weft.mesh.v1.rs");
            }
        }
        pub mod identity {
            pub mod v1 {
                include!("generated/weft.identity.v1.rs");
            }
        }
        pub mod ratelimit {
            pub mod v1 {
                include!("generated/weft.ratelimit.v1.rs");
            }
        }
        pub mod registry {
            pub mod v1 {
                include!("generated/weft.registry.v1.rs");
            }
        }
        pub mod replica {
            pub mod v1 {
                include!("generated/weft.replica.v1.rs");
            }
        }
    }
}
