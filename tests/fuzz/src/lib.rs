//! Bodies of the fuzz targets: each takes any bytes and panics where an invariant does not hold.
//!
//! The programs in `targets/` give them to libFuzzer, `tests/corpus.rs` gives them what is kept in
//! `corpus/`, so that what was found once is tried by every `cargo test`. A target says in its first
//! lines how it reads its input.

pub mod body;
pub mod bootstrap;
pub mod client_hello;
pub mod connection;
pub mod dns;
pub mod documents;
pub mod frames;
pub mod head;
pub mod hpack;
mod input;
mod peer;
pub mod trailers;

/// A target: its name, and what it does with an input.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its program in `targets/`, and of its folder in `corpus/`.
    pub name: &'static str,
    /// Panics where an invariant does not hold.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 10] = [
    Target::new("body", body::run),
    Target::new("bootstrap", bootstrap::run),
    Target::new("client_hello", client_hello::run),
    Target::new("connection", connection::run),
    Target::new("dns", dns::run),
    Target::new("documents", documents::run),
    Target::new("frames", frames::run),
    Target::new("head", head::run),
    Target::new("hpack", hpack::run),
    Target::new("trailers", trailers::run),
];

impl Target {
    const fn new(name: &'static str, run: fn(&[u8])) -> Self {
        Self { name, run }
    }
}
