//! What is wrong with documents: where, what was found, and what is allowed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use weft_core::name::ServiceName;

/// One thing that is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{source_name}: document {document}: {path}: found {found}; allowed: {allowed}")]
pub struct Problem {
    /// The file, or `-`.
    pub source_name: String,
    /// Which document in it, from 1.
    pub document: usize,
    /// The path of the field, as in `spec.ports[1].port`.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
}

/// Collects what is wrong with one document while it is read.
#[derive(Debug)]
pub struct Check<'a> {
    /// The file, or `-`.
    source: &'a str,
    /// Which document in it, from 1.
    document: usize,
    /// Whether it is out of the store.
    pub(super) stored: bool,
    pub(super) problems: Vec<Problem>,
    /// Names that are referred to as ExternalServices.
    pub(super) externals: BTreeSet<ServiceName>,
}

impl<'a> Check<'a> {
    pub(super) fn new(source: &'a str, document: usize) -> Self {
        Self {
            source,
            document,
            stored: false,
            problems: Vec::new(),
            externals: BTreeSet::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        path: impl Into<String>,
        found: impl ToString,
        allowed: impl Into<String>,
    ) {
        self.problems.push(Problem {
            source_name: self.source.to_owned(),
            document: self.document,
            path: path.into(),
            found: found.to_string(),
            allowed: allowed.into(),
        });
    }
}
