//! Changes of facts: what sources make of what they see.

use std::sync::Arc;

use weft_core::model::TrustBundle;
use weft_core::name::{ServiceName, WorkloadName};

use super::addresses::Assigned;
use super::cluster::{ClusterService, ClusterSlice, Pod};
use super::facts::Stated;
use crate::model::{ObjectName, ResourceKey};
use crate::registry::Entry;

/// A change of one fact.
#[derive(Debug, Clone)]
pub enum Delta {
    /// A document is there, or says something else.
    Document(Box<Stated>),
    /// A document is not there any more.
    DocumentGone(ResourceKey),
    /// A workload is there, or announces something else.
    Workload(Arc<Entry>),
    /// A workload is not there any more.
    WorkloadGone(WorkloadName),
    /// A Service of the cluster is there, or says something else.
    ClusterService(Arc<ClusterService>),
    /// A Service of the cluster is not there any more, or not one that is reached.
    ClusterServiceGone(ServiceName),
    /// An EndpointSlice of the cluster is there, or says something else.
    ClusterSlice(Arc<ClusterSlice>),
    /// An EndpointSlice of the cluster is not there any more.
    ClusterSliceGone(ObjectName),
    /// A pod is there, or is another.
    Pod(Arc<Pod>),
    /// A pod is not there any more.
    PodGone(WorkloadName),
    /// A node is there, in a zone; empty when unknown.
    Node(Arc<str>, Arc<str>),
    /// A node is not there any more.
    NodeGone(Arc<str>),
    /// What other control planes have put on record of virtual addresses.
    Addresses(Vec<(ServiceName, Assigned)>),
    /// Trust bundle: roots and revoked instances.
    Bundle(Arc<TrustBundle>),
}

impl Delta {
    /// How much work it is to take it, in facts.
    pub fn weight(&self) -> usize {
        match self {
            Self::ClusterSlice(slice) => slice.endpoints.len().max(1),
            Self::Addresses(theirs) => theirs.len().max(1),
            Self::Document(_)
            | Self::DocumentGone(_)
            | Self::Workload(_)
            | Self::WorkloadGone(_)
            | Self::ClusterService(_)
            | Self::ClusterServiceGone(_)
            | Self::ClusterSliceGone(_)
            | Self::Pod(_)
            | Self::PodGone(_)
            | Self::Node(..)
            | Self::NodeGone(_)
            | Self::Bundle(_) => 1,
        }
    }
}
