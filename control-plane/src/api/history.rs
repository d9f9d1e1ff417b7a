//! `GET /v1/history`: what was changed, when and by whom.

use axum::Json;
use axum::extract::{Query, State};

use super::Admin;
use super::input::kind;
use super::refusal::{Answer, Refusal};
use super::types::{HistoryInfo, HistoryPageInfo, ResourceKey, ResourceQuery};
use crate::store::{HistoryEntry, HistoryQuery};

/// Changes in one answer, by default and at most.
const HISTORY_DEFAULT: usize = 50;
const HISTORY_MAX: usize = 1000;

pub(super) async fn history(
    State(admin): State<Admin>,
    Query(query): Query<ResourceQuery>,
) -> Answer<HistoryPageInfo> {
    let limit = query.limit.unwrap_or(HISTORY_DEFAULT).min(HISTORY_MAX);
    let key = match (query.kind, query.namespace, query.name) {
        (None, None, None) => None,
        (Some(text), Some(namespace), Some(name)) => {
            let kind = kind(&text)?.to_owned();
            Some(ResourceKey {
                kind,
                namespace,
                name,
            })
        }
        _ => {
            let text = "history: name kind, namespace and name together, or none of them";
            return Err(Refusal::invalid(text));
        }
    };
    let before = query.before.as_deref().map(str::parse).transpose();
    let before = before.map_err(|error| Refusal::invalid(format!("before: {error}")))?;
    let query = HistoryQuery { key, before, limit };
    let page = admin.backend.store.history(query).await?;
    let items = page.items.into_iter().map(history_info);
    Ok(Json(HistoryPageInfo {
        items: items.collect(),
        next: page.next.map(|next| next.to_string()),
    }))
}

fn history_info(entry: HistoryEntry) -> HistoryInfo {
    HistoryInfo {
        revision: entry.revision,
        time: entry.time,
        author: entry.author,
        key: entry.key,
        digest: entry.digest,
        document: entry.document,
    }
}
