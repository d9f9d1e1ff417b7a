//! Pods whose traffic is not redirected to their sidecars any more: what the control plane has told of
//! them in Events, and what their sidecars say through the API server.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use http::StatusCode;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams};

use super::collect::Asked;
use super::facts::{LapsedFact, PodFact, Sidecar};
use super::trying::{self, ANSWER, ASKED_MAX, AT_A_TIME};
use crate::interception::{LOST, RESTORED};
use crate::kubernetes::told;
use crate::status::one_line;

/// Events in one answer of the API.
const PAGE: u32 = 500;
/// Answers that are read: whoever may write Events may write many.
const PAGES_MAX: usize = 40;
/// What `/readyz` of a sidecar says before the reason.
const NOT_IN_FORCE: &str = "interception: ";
/// The reason of a sidecar that has only just begun.
const NOT_PROVED_YET: &str = "not proved yet";

/// The pods that are not ready and whose interception is lost. A pod that is ready has it: that is
/// what its readiness says, too.
pub(super) async fn lapsed(client: &Client, pods: &[PodFact]) -> Asked<Vec<LapsedFact>> {
    let not_ready: Vec<&PodFact> = pods
        .iter()
        .filter(|pod| matches!(pod.sidecar, Sidecar::Injected { ready: false, .. }))
        .collect();
    if not_ready.is_empty() {
        return Ok(Vec::new());
    }
    let lost = newest(client, LOST).await?;
    let restored = newest(client, RESTORED).await?;
    let asked = not_ready.iter().take(ASKED_MAX).map(|pod| async {
        let said = tokio::time::timeout(ANSWER, trying::ask(client, &pod.name, "readyz")).await;
        // One that does not answer has been told of in an Event, or has another trouble.
        let said = said.ok().and_then(Result::ok);
        let said = said.and_then(|(status, said)| answer(status, &said));
        (pod.uid.clone(), said)
    });
    let asked = futures_util::stream::iter(asked).buffered(AT_A_TIME);
    let mut asked: BTreeMap<String, Option<Option<String>>> = asked.collect().await;
    let lapsed = not_ready.iter().filter_map(|pod| {
        let said = asked.remove(&pod.uid).flatten();
        let why = why(said, lost.get(&pod.uid), restored.get(&pod.uid))?;
        let pod = pod.name.clone();
        Some(LapsedFact { pod, why })
    });
    Ok(lapsed.collect())
}

/// Why interception of a pod is lost, if it is: its sidecar's answer decides, and where there is none,
/// what was told last.
fn why(
    said: Option<Option<String>>,
    lost: Option<&Timestamp>,
    restored: Option<&Timestamp>,
) -> Option<String> {
    match (said, lost, restored) {
        (Some(reason), _, _) => reason,
        (None, Some(lost), restored) if restored.is_none_or(|restored| restored < lost) => {
            Some(format!("Event {LOST} of {lost}"))
        }
        (None, _, _) => None,
    }
}

/// A sidecar's answer to `/readyz`: why interception is lost, if it is. Nothing where the API server
/// answers instead, in JSON, because it has not reached the sidecar.
fn answer(status: StatusCode, readyz: &str) -> Option<Option<String>> {
    let is_sidecars = status.is_success() || status == StatusCode::SERVICE_UNAVAILABLE;
    if !is_sidecars || readyz.starts_with('{') {
        return None;
    }
    let reason = readyz.split_once(NOT_IN_FORCE);
    let reason = reason.map(|(_, reason)| reason.lines().next().unwrap_or_default());
    let reason = reason.filter(|reason| !reason.starts_with(NOT_PROVED_YET));
    Some(reason.map(one_line))
}

/// When an Event of this reason was written last about each pod, by the pod's uid.
async fn newest(client: &Client, reason: &str) -> Asked<BTreeMap<String, Timestamp>> {
    let api = Api::<Event>::all(client.clone());
    let selector = format!("reason={reason},involvedObject.kind=Pod");
    let mut params = ListParams::default().limit(PAGE).fields(&selector);
    let mut newest = BTreeMap::new();
    for _ in 0..PAGES_MAX {
        let page = api.list(&params).await;
        let page = page.map_err(|error| format!("list of Events: {}", told(&error)))?;
        for event in page.items {
            let (Some(uid), Some(at)) = (event.involved_object.uid, event.last_timestamp) else {
                continue;
            };
            let known = newest.entry(uid).or_insert(at.0);
            *known = at.0.max(*known);
        }
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            Some(_) | None => break,
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecars_answer_decides_and_then_the_newest_event() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let (one, two) = (at(1), at(2));
        let event = Some("Event InterceptionLost of 1970-01-01T00:00:02Z".to_owned());
        let unready = StatusCode::SERVICE_UNAVAILABLE;
        let says = |text: &str| answer(unready, text);
        let other = answer(StatusCode::BAD_REQUEST, "interception: none");
        for (said, lost, restored, expected) in [
            (None, None, None, None),
            (None, Some(&two), None, event.clone()),
            (None, Some(&two), Some(&one), event.clone()),
            (None, Some(&one), Some(&two), None),
            (None, None, Some(&two), None),
            (other, Some(&two), None, event.clone()),
            (
                says(r#"{"kind": "Status"}"#),
                Some(&two),
                None,
                event.clone(),
            ),
            (answer(StatusCode::OK, "ready"), Some(&two), None, None),
            (says("not ready: discovery"), Some(&two), None, None),
            (says("interception: not proved yet"), Some(&two), None, None),
            (
                says("not ready: interception: 240.239.255.253:15001 is not redirected\u{1b}\nx"),
                None,
                None,
                Some("240.239.255.253:15001 is not redirected ".to_owned()),
            ),
        ] {
            assert_eq!(why(said.clone(), lost, restored), expected, "{said:?}");
        }
    }
}
