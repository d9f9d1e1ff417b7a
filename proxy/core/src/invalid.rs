//! Values that are not allowed: where, what was found, and what is allowed.

use std::fmt;

/// Most entries of a list of statuses or codes: it is read for every answer.
pub const MAX_LIST: usize = 32;

/// A value of a document that is not allowed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: found {found}; allowed: {allowed}")]
pub struct PolicyError {
    /// The path of the field, as users write it.
    pub field: String,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
}

/// Everything that is wrong with a document.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<PolicyError>);

impl Errors {
    /// Notes the value of a field unless it fits.
    pub fn require(&mut self, fits: bool, field: &str, found: impl ToString, allowed: &str) {
        if !fits {
            self.0.push(PolicyError {
                field: field.to_owned(),
                found: found.to_string(),
                allowed: allowed.to_owned(),
            });
        }
    }

    /// Notes what is wrong with a list that has at most [`MAX_LIST`] entries, each once.
    pub fn check_list<T: PartialEq + fmt::Debug>(&mut self, field: &str, list: &[T]) {
        let found = format!("{} of them", list.len());
        self.require(list.len() <= MAX_LIST, field, found, "32 at most");
        for (index, item) in list.iter().enumerate().take(MAX_LIST) {
            let again = list[..index].contains(item);
            let (at, found) = (format!("{field}[{index}]"), format!("{item:?} again"));
            self.require(!again, &at, found, "each once");
        }
    }
}
