//! A real Kubernetes node, with Weft installed: pods that really run, in namespaces of their own.

mod cluster;
mod node;

pub(crate) use cluster::Cluster;
