//! A real Kubernetes node, with Weft installed: pods that really run, in namespaces of their own.

mod api_server;
mod apps;
mod check;
mod classic;
mod cluster;
mod cni;
mod conformance;
mod control_plane;
mod demo;
mod evicted;
mod injected;
mod kinds;
mod lost;
mod node;
mod outside;
mod policy;
mod upgrade;

pub(crate) use cluster::Cluster;
