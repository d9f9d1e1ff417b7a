//! A JSON patch that is made step by step.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchError, PatchOperation};
use serde_json::{Value, json};

/// An edit that the object has no place for.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be edited: {0}")]
pub(super) struct EditError(#[from] Box<PatchError>);

/// The operations so far, and what the object looks like after them.
pub(super) struct Edits {
    edited: Value,
    operations: Vec<PatchOperation>,
}

impl Edits {
    pub(super) fn new(object: &Value) -> Self {
        Self {
            edited: object.clone(),
            operations: Vec::new(),
        }
    }

    /// Sets a field, whatever it was.
    pub(super) fn set(&mut self, place: &[String], value: Value) -> Result<(), EditError> {
        let path = PointerBuf::from_tokens(place);
        self.push(path, value)
    }

    /// Inserts an element before the one at this place of a list, or at its end (`-`).
    pub(super) fn insert(&mut self, place: &[&str], value: Value) -> Result<(), EditError> {
        self.push(PointerBuf::from_tokens(place.iter().copied()), value)
    }

    /// Makes a field an object, unless it is one.
    pub(super) fn ensure_object(&mut self, place: &[&str]) -> Result<(), EditError> {
        self.ensure(place, Value::is_object, json!({}))
    }

    /// Makes a field a list, unless it is one.
    pub(super) fn ensure_array(&mut self, place: &[&str]) -> Result<(), EditError> {
        self.ensure(place, Value::is_array, json!([]))
    }

    pub(super) fn into_patch(self) -> Patch {
        Patch(self.operations)
    }

    fn ensure(
        &mut self,
        place: &[&str],
        is: impl Fn(&Value) -> bool,
        empty: Value,
    ) -> Result<(), EditError> {
        let path = PointerBuf::from_tokens(place.iter().copied());
        if self.edited.pointer(path.as_str()).is_some_and(is) {
            return Ok(());
        }
        self.push(path, empty)
    }

    fn push(&mut self, path: PointerBuf, value: Value) -> Result<(), EditError> {
        // RFC 6902 section 4.1: adding a member that exists replaces it.
        let operation = PatchOperation::Add(AddOperation { path, value });
        json_patch::patch(&mut self.edited, std::slice::from_ref(&operation)).map_err(Box::new)?;
        self.operations.push(operation);
        Ok(())
    }
}
