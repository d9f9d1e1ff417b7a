//! What is wrong with documents: where, what was found, and what is allowed.

use std::collections::BTreeSet;

use weft_core::name::ServiceName;

pub use weft_api::types::Problem;

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
