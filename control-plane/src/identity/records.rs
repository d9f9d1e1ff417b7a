//! What is on record: tokens, instances, operators. Plain state; [`super::Identities`] locks it and
//! writes it down.

use std::collections::HashMap;

use super::operator::OperatorRecord;
use super::token::{InstanceRecord, TokenRecord};
use crate::store::{RecordWrite, Store, StoreError, read_records, record};

/// Tables of the store.
pub(super) const TOKENS: &str = "token";
pub(super) const INSTANCES: &str = "instance";
pub(super) const OPERATORS: &str = "operator";

/// An expired token is forgotten after this long, seconds.
const TOKEN_KEPT: i64 = 24 * 3600;

/// Tokens, instances and operators, by id.
#[derive(Debug, Default)]
pub struct Records {
    pub(super) tokens: HashMap<String, TokenRecord>,
    pub(super) instances: HashMap<String, InstanceRecord>,
    pub(super) operators: HashMap<String, OperatorRecord>,
}

impl Records {
    /// Takes up what the store holds.
    pub(super) fn read(store: &dyn Store) -> Result<Self, StoreError> {
        Ok(Self {
            tokens: read_records(store, TOKENS)?.into_iter().collect(),
            instances: read_records(store, INSTANCES)?.into_iter().collect(),
            operators: read_records(store, OPERATORS)?.into_iter().collect(),
        })
    }

    /// A token by its id.
    pub fn token(&self, id: &str) -> Option<&TokenRecord> {
        self.tokens.get(id)
    }

    /// An instance by its name.
    pub fn instance(&self, name: &str) -> Option<&InstanceRecord> {
        self.instances.get(name)
    }

    /// Forgets tokens that expired long ago; what is to be written.
    pub(super) fn clear(&mut self, now: i64) -> Vec<RecordWrite> {
        let limit = now - TOKEN_KEPT;
        let old = self.tokens.extract_if(|_id, token| token.expires < limit);
        old.map(|(id, _)| record::<TokenRecord>(TOKENS, &id, None))
            .collect()
    }
}
