//! What other control planes of the same store have put on record: taken over, so that what was
//! revoked at one of them is revoked at each.

use std::sync::Arc;
use std::time::Duration;

use super::identities::Identities;
use super::operator::OperatorRecord;
use super::records::{INSTANCES, OPERATORS, Records};
use super::token::InstanceRecord;
use crate::store::{RecordWrite, record};

/// Records that come within this time are read together.
const TOGETHER: Duration = Duration::from_millis(50);

impl Identities {
    /// Takes over what others write. Runs until the task is dropped.
    pub async fn keep_followed(self: Arc<Self>) {
        let mut others = self.store.watch_records();
        while others.changed().await.is_ok() {
            tokio::time::sleep(TOGETHER).await;
            others.mark_unchanged();
            let read = match Records::read(&*self.store) {
                Ok(read) => read,
                Err(error) => {
                    tracing::error!(%error, "records of other control planes are not taken over");
                    continue;
                }
            };
            let (revoked, written) = {
                let mut records = self.records();
                let (revoked, writes) = records.follow(read);
                let written = (!writes.is_empty()).then(|| self.store.write(writes));
                (revoked, written)
            };
            if revoked {
                self.revoked.send_modify(|count| *count += 1);
            }
            if let Some(written) = written
                && let Err(error) = written.await
            {
                tracing::error!(%error, "a revocation that another control plane wrote over is not kept again");
            }
        }
        // A store of one process: there are no others.
        std::future::pending().await
    }
}

impl Records {
    /// Takes over what the store has. Whether something is revoked that was not, and what is to be
    /// written again: a revocation that another control plane, which did not know of it, has written
    /// over.
    fn follow(&mut self, read: Self) -> (bool, Vec<RecordWrite>) {
        let mut revoked = false;
        let mut writes = Vec::new();
        for (id, token) in read.tokens {
            let ours = self.tokens.entry(id).or_insert_with(|| token.clone());
            if ours.redeemed.is_none() {
                *ours = token;
            }
        }
        for (id, theirs) in read.instances {
            let Some(ours) = self.instances.get_mut(&id) else {
                revoked |= theirs.revoked.is_some();
                self.instances.insert(id, theirs);
                continue;
            };
            revoked |= ours.revoked.is_none() && theirs.revoked.is_some();
            let lost = ours.revoked.is_some() && theirs.revoked.is_none();
            let ends = ours.revoked.or(theirs.revoked);
            if theirs.last_used > ours.last_used {
                *ours = theirs;
            }
            ours.revoked = ends;
            if lost {
                writes.push(record::<InstanceRecord>(INSTANCES, &id, Some(ours)));
            }
        }
        for (id, theirs) in read.operators {
            let Some(ours) = self.operators.get_mut(&id) else {
                revoked |= theirs.revoked.is_some();
                self.operators.insert(id, theirs);
                continue;
            };
            revoked |= ours.revoked.is_none() && theirs.revoked.is_some();
            let lost = ours.revoked.is_some() && theirs.revoked.is_none();
            ours.revoked = ours.revoked.or(theirs.revoked);
            if lost {
                writes.push(record::<OperatorRecord>(OPERATORS, &id, Some(ours)));
            }
        }
        (revoked, writes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operators(list: &[(&str, Option<i64>)]) -> Records {
        let list = list.iter().map(|(id, revoked)| {
            let operator = OperatorRecord {
                id: (*id).to_owned(),
                name: "ada".to_owned(),
                created: 1,
                not_after: 100,
                revoked: *revoked,
            };
            ((*id).to_owned(), operator)
        });
        let mut records = Records::default();
        records.operators = list.collect();
        records
    }

    #[test]
    fn what_is_revoked_anywhere_is_revoked() {
        let mut ours = operators(&[("a", None), ("b", Some(5))]);
        // One revoked there, one whose revocation was written over there, and a new one.
        let (revoked, writes) = ours.follow(operators(&[("a", Some(3)), ("b", None), ("c", None)]));
        assert!(revoked);
        let rows: Vec<_> = writes.iter().map(|write| &*write.key).collect();
        assert_eq!(rows, ["b"]);
        assert_eq!(ours.operators["a"].revoked, Some(3));
        assert_eq!(ours.operators["b"].revoked, Some(5));
        assert_eq!(ours.operators.len(), 3);
        let again = operators(&[("a", Some(3)), ("b", Some(5)), ("c", None)]);
        assert_eq!(ours.follow(again), (false, Vec::new()));
        // What is not in the store yet is not forgotten.
        assert_eq!(ours.follow(Records::default()), (false, Vec::new()));
        assert_eq!(ours.operators.len(), 3);
    }
}
