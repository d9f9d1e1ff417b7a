//! The domain model of the mesh and every decision it makes.
//!
//! Architecture invariant: this crate never waits, never reads a clock, never logs and opens no
//! socket. Time is an argument ([`time::Instant`], nanoseconds on a clock the caller chose), and so
//! are random bits. It knows neither tokio nor protobuf. The same functions answer a live request
//! in the sidecar, `weft explain` in the command line and validation in the control plane.
#![forbid(unsafe_code)]

pub mod adaptive;
pub mod balance;
pub mod breaker;
pub mod choice;
pub mod connections;
pub mod dialling;
pub mod endpoint;
pub mod exposition;
pub mod extended_connect;
pub mod external;
pub mod fault;
mod field_name;
pub mod h1;
pub mod h2;
pub mod headers;
pub mod health;
pub mod hedge;
pub mod hold;
pub mod hops;
pub mod http1_form;
pub mod interception;
pub mod interim;
pub mod invalid;
pub mod label;
pub mod leaving;
pub mod limit;
pub mod locality;
pub mod model;
pub mod name;
pub mod opaque;
pub mod outcome;
pub mod path;
pub mod peer;
pub mod policy;
pub mod protocol;
pub mod rate;
pub mod reason;
pub mod registration;
pub mod resets;
pub mod resolve;
pub mod retry;
pub mod route;
pub mod server;
pub mod shares;
pub mod shedding;
pub mod slices;
pub mod slots;
pub mod standing;
pub mod terms;
pub mod time;
pub mod timeout;
pub mod trace;
pub mod unknown;
pub mod unready;
