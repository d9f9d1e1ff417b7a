//! Writes: documents and records, each on the version that was read.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject};
use serde_json::Value;

use super::object::{self, Object};
use super::{Failure, RECORDS, Writer, asked};
use crate::kubernetes::watched::Entry;
use crate::model::ResourceKey;
use crate::store::resource::decide;
use crate::store::{Change, Conflict, Expect, Fence, RecordWrite, Revision, StoreError};

/// How often a write without a condition is made anew, because another writer was faster.
const TRIES: usize = 5;

/// A change with what is needed to make it.
struct Planned {
    key: ResourceKey,
    document: Option<Value>,
    expect: Expect,
    resource: ApiResource,
    found: Option<Entry<Object>>,
}

/// What became of an object.
enum Outcome {
    Put(Box<Entry<Object>>),
    Deleted {
        uid: String,
    },
    /// It was not there.
    Nothing,
}

impl Writer {
    /// Makes a commit.
    pub(super) async fn make(
        &self,
        author: &str,
        changes: Vec<Change>,
        fence: Option<Fence>,
    ) -> Result<Revision, StoreError> {
        self.fenced(fence.as_ref()).await?;
        let planned = self.plan(author, changes)?;
        if planned.is_empty() {
            return Ok(self.shared.mirror().revision());
        }
        // One change is whole by itself.
        if planned.len() > 1 {
            for one in &planned {
                self.change(author, one, true).await?;
            }
        }
        self.shared
            .mirror()
            .hold(planned.iter().map(|one| one.key.clone()));
        let mut written = Vec::new();
        let mut failure = None;
        for one in &planned {
            match self.change(author, one, false).await {
                Ok(outcome) => written.push((one, outcome)),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let keys: Vec<ResourceKey> = written.iter().map(|(one, _)| one.key.clone()).collect();
        let mut mirror = self.shared.mirror();
        for (one, outcome) in written {
            match outcome {
                Outcome::Put(entry) => {
                    mirror.objects.wrote(&one.key.kind, one.key.clone(), *entry);
                }
                Outcome::Deleted { uid } => {
                    mirror.objects.removed(&one.key.kind, &one.key, &uid);
                }
                Outcome::Nothing => {}
            }
        }
        let event = mirror.release();
        self.shared.publish(&mut mirror, event);
        match failure {
            None => Ok(mirror.revision()),
            Some(error) if keys.is_empty() => Err(error),
            Some(error) => Err(StoreError::Partial {
                written: keys.iter().map(ToString::to_string).collect(),
                cause: Box::new(error),
            }),
        }
    }

    /// Checks conditions against the mirror, and leaves out what changes nothing.
    fn plan(&self, author: &str, changes: Vec<Change>) -> Result<Vec<Planned>, StoreError> {
        let mirror = self.shared.mirror();
        let found = changes.iter();
        let found = found.map(|change| mirror.documents().get(&change.key).cloned());
        let found: Vec<_> = found.collect();
        let asked_for: Vec<(ResourceKey, Expect)> = changes
            .iter()
            .map(|change| (change.key.clone(), change.expect))
            .collect();
        let decided = decide(mirror.revision() + 1, 0, author, changes, found)?;
        let mut planned = Vec::with_capacity(decided.len());
        for changed in decided {
            let key = changed.key;
            let Some(resource) = self.shared.resource(&key.kind) else {
                return Err(StoreError::NoSuchKind { key });
            };
            let expect = asked_for.iter().find(|(other, _)| *other == key);
            planned.push(Planned {
                document: changed.resource.map(|resource| resource.document),
                expect: expect.map_or(Expect::Any, |(_, expect)| *expect),
                resource,
                found: mirror.objects.get(&key).cloned(),
                key,
            });
        }
        Ok(planned)
    }

    /// Makes one change, or has it tried. Without a condition, what another writer has made
    /// meanwhile is written over; with one, it is a conflict.
    async fn change(
        &self,
        author: &str,
        planned: &Planned,
        dry_run: bool,
    ) -> Result<Outcome, StoreError> {
        let key = &planned.key;
        let client = self.shared.client.clone();
        let api: Api<DynamicObject> =
            Api::namespaced_with(client, &key.namespace, &planned.resource);
        let mut found = planned.found.clone();
        for _ in 0..TRIES {
            let made = self
                .attempt(&api, author, planned, found.as_ref(), dry_run)
                .await;
            let failure = match made {
                Ok(outcome) => return Ok(outcome),
                Err(failure) if failure.is_conflict() || failure.is_not_found() => failure,
                Err(failure) => return Err(refused(key, failure)),
            };
            let now = asked(api.get_opt(&key.name)).await?;
            if failure.is_not_found()
                && planned.document.is_some()
                && now.is_none()
                && found.is_none()
            {
                // The namespace, or the kind.
                return Err(refused(key, failure));
            }
            let now = now.and_then(|now| object::read(&key.kind, now));
            found = now.map(|(_key, entry)| entry);
            if planned.expect != Expect::Any {
                return Err(self.conflict(planned, found));
            }
        }
        Err(self.conflict(planned, found))
    }

    async fn attempt(
        &self,
        api: &Api<DynamicObject>,
        author: &str,
        planned: &Planned,
        found: Option<&Entry<Object>>,
        dry_run: bool,
    ) -> Result<Outcome, Failure> {
        let Planned {
            key,
            document,
            resource,
            ..
        } = planned;
        let Some(document) = document else {
            let Some(found) = found else {
                return Ok(Outcome::Nothing);
            };
            let params = DeleteParams {
                dry_run,
                preconditions: Some(Preconditions {
                    resource_version: Some(found.version.clone()),
                    uid: Some(found.uid.clone()),
                }),
                ..DeleteParams::default()
            };
            asked(api.delete(&key.name, &params)).await?;
            let uid = found.uid.clone();
            return Ok(Outcome::Deleted { uid });
        };
        let params = PostParams {
            dry_run,
            field_manager: Some(object::manager(author)),
        };
        let hidden = match found {
            Some(found) if found.value.has_hidden => {
                let now = asked(api.get_opt(&key.name)).await?;
                now.map(object::hidden).unwrap_or_default()
            }
            Some(_) | None => BTreeMap::new(),
        };
        let object = object::write(resource, key, document, found, hidden);
        let answer = match found {
            None => asked(api.create(&params, &object)).await?,
            Some(_) => asked(api.replace(&key.name, &params, &object)).await?,
        };
        let Some((_key, mut entry)) = object::read(&key.kind, answer) else {
            return Ok(Outcome::Nothing);
        };
        // Times of managers are whole seconds: of two in one second, this one was the last.
        entry.value.author = object::manager(author);
        Ok(Outcome::Put(Box::new(entry)))
    }

    fn conflict(&self, planned: &Planned, found: Option<Entry<Object>>) -> StoreError {
        let mut mirror = self.shared.mirror();
        if let Some(entry) = found
            && mirror.objects.applied(planned.key.clone(), entry)
        {
            let event = mirror.refresh([planned.key.clone()]);
            self.shared.publish(&mut mirror, event);
        }
        StoreError::Conflict(vec![Conflict {
            key: planned.key.clone(),
            expected: planned.expect,
            found: mirror.documents().get(&planned.key).cloned(),
        }])
    }

    /// Writes records, one after the other. Conditions are checked first.
    pub(super) async fn put(
        &self,
        records: Vec<RecordWrite>,
        fence: Option<Fence>,
    ) -> Result<(), StoreError> {
        self.fenced(fence.as_ref()).await?;
        {
            let mirror = self.shared.mirror();
            for record in &records {
                let place = (record.table.to_owned(), record.key.clone());
                let found = mirror.records.get(&place).map(|found| &*found.value);
                if !record.expect.holds(found) {
                    return Err(record.conflict());
                }
            }
        }
        let mut written = Vec::new();
        for record in records {
            match self.write_record(&record).await {
                Ok(()) => written.push(record.row()),
                Err(error) if written.is_empty() => return Err(error),
                Err(error) => {
                    return Err(StoreError::Partial {
                        written,
                        cause: Box::new(error),
                    });
                }
            }
        }
        Ok(())
    }

    async fn write_record(&self, record: &RecordWrite) -> Result<(), StoreError> {
        let api: Api<Secret> = Api::namespaced(self.shared.client.clone(), &self.shared.namespace);
        let place = (record.table.to_owned(), record.key.clone());
        let name = object::record_name(record.table, &record.key);
        let mut found = self.shared.mirror().records.get(&place).cloned();
        for _ in 0..TRIES {
            if !record
                .expect
                .holds(found.as_ref().map(|found| &*found.value))
            {
                return Err(record.conflict());
            }
            match put_record(&api, record, &name, found.as_ref()).await {
                Ok(Some(secret)) => {
                    if let Some((key, entry)) = object::read_record(secret) {
                        self.shared.mirror().records.wrote(RECORDS, key, entry);
                    }
                    return Ok(());
                }
                Ok(None) => {
                    if let Some(found) = found {
                        let mut mirror = self.shared.mirror();
                        mirror.records.removed(RECORDS, &place, &found.uid);
                    }
                    return Ok(());
                }
                Err(failure)
                    if failure.is_conflict() || (failure.is_not_found() && found.is_some()) =>
                {
                    let now = asked(api.get_opt(&name)).await?;
                    found = now.and_then(object::read_record).map(|(_, entry)| entry);
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(record.conflict())
    }
}

/// Writes or removes the Secret of a record; what it is now.
async fn put_record(
    api: &Api<Secret>,
    record: &RecordWrite,
    name: &str,
    found: Option<&Entry<Vec<u8>>>,
) -> Result<Option<Secret>, Failure> {
    let params = PostParams {
        dry_run: false,
        field_manager: Some(crate::kubernetes::names::FIELD_MANAGER.to_owned()),
    };
    match (&record.value, found) {
        (None, None) => Ok(None),
        (None, Some(found)) => {
            let delete = DeleteParams {
                preconditions: Some(Preconditions {
                    resource_version: Some(found.version.clone()),
                    uid: Some(found.uid.clone()),
                }),
                ..DeleteParams::default()
            };
            asked(api.delete(name, &delete)).await?;
            Ok(None)
        }
        (Some(value), None) => {
            let secret = object::record(record.table, &record.key, value, None);
            asked(api.create(&params, &secret)).await.map(Some)
        }
        (Some(value), Some(found)) => {
            let version = Some(found.version.clone());
            let secret = object::record(record.table, &record.key, value, version);
            asked(api.replace(name, &params, &secret)).await.map(Some)
        }
    }
}

/// The error when the API server does not take a document.
fn refused(key: &ResourceKey, failure: Failure) -> StoreError {
    match failure.status() {
        Some(status) => StoreError::Refused {
            key: key.clone(),
            cause: status.message.clone(),
        },
        None => failure.into(),
    }
}
