//! Who somebody is, and what proves it: the authority, tokens and instances, operators.

pub mod ca;
pub mod grpc;
pub mod operator;
pub mod token;
