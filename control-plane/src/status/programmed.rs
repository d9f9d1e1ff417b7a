//! Whether the proxies that a document concerns have it. Pure.
//!
//! Any sidecar may ask for any service, so one of another namespace than the document's may be anybody's.
//! It counts as long as it is in time, and where it rejects the document; it is not waited for without
//! end, takes nothing back that was acknowledged, and is shown by name and never by its own words.

use super::standing::condition;
use super::{Condition, PROGRAMMED};
use crate::peer::PeerIdentity;
use crate::publish::{ACKNOWLEDGED_WITHIN, Progress, RefusedBy, RejectedBy, Waiting};
use crate::store::Revision;

/// Characters of what a sidecar says of a rejection that are shown in a status.
const REASON_CHARS_MAX: usize = 256;
/// Sidecars that a message names.
const NAMED_MAX: usize = 3;

/// Whether every proxy concerned has acknowledged a revision, for a document of a namespace. The text
/// names nobody who is merely slow: it would change, and be written, with each of them.
pub(super) fn programmed(
    namespace: &str,
    revision: Revision,
    progress: &Progress,
    elsewhere: Option<&RefusedBy>,
) -> Condition {
    if let Some(refused) = elsewhere {
        return refused_by(refused);
    }
    if let Some(rejected) = rejected(namespace, progress) {
        return rejected;
    }
    let is_own = |waiting: &&Waiting| waiting.peer.identity.namespace() == namespace;
    let overdue = progress.waiting.iter().filter(|one| one.is_overdue);
    let (own, others): (Vec<&Waiting>, Vec<&Waiting>) = overdue.partition(is_own);
    let is_early = progress.published < revision;
    if is_early || own.len() + others.len() < progress.waiting.len() {
        let text = "proxies concerned have not acknowledged it yet: see `weft proxies`";
        return kept_true("Pending", Err(text.to_owned()));
    }
    if !own.is_empty() {
        let text = format!("proxies of its namespace {}", late(&own));
        return kept_true("Stale", Err(text));
    }
    if !progress.unknown.is_empty() {
        let names = progress.unknown.join(", ");
        let text = format!("nothing is heard of control planes, nor of their sidecars: {names}");
        return kept_true("Pending", Err(text));
    }
    if others.is_empty() {
        return condition(PROGRAMMED, "Programmed", Ok(()));
    }
    // Said when it turns true: it is not written again for sidecars of others that come and go.
    Condition {
        message: format!(
            "not waited for: proxies of other namespaces {}",
            late(&others)
        ),
        ..kept_true("Programmed", Ok(()))
    }
}

/// The condition of what another control plane refuses. Its sidecars do not have it, those to come
/// included: that ends what was acknowledged before it was there.
fn refused_by(refused: &RefusedBy) -> Condition {
    let name = &refused.control_plane;
    match &refused.why {
        Some(why) => {
            let text =
                format!("control plane {name} refuses it, so its sidecars do not have it: {why}");
            condition(PROGRAMMED, "RefusedByReplica", Err(text))
        }
        None => {
            let text = format!(
                "control plane {name} refuses more documents of this namespace than it tells of: whether this is one is not known"
            );
            kept_true("Pending", Err(text))
        }
    }
}

/// The condition of what proxies reject.
fn rejected(namespace: &str, progress: &Progress) -> Option<Condition> {
    // Always the same first one, or it would be written again and again.
    let first = { progress.rejected.iter() }.min_by_key(|one| {
        let is_other = one.peer.identity.namespace() != namespace;
        (is_other, &one.peer.instance, &one.resource)
    })?;
    let RejectedBy {
        peer,
        resource,
        reason,
    } = first;
    let is_own = |one: &&RejectedBy| one.peer.identity.namespace() == namespace;
    let own = progress.rejected.iter().filter(is_own).count();
    if own > 0 {
        let (instance, reason) = (&peer.instance, one_line(reason));
        let text = format!(
            "at least {own} rejections by proxies of its namespace; {resource} by instance {instance}: {reason}"
        );
        return Some(condition(PROGRAMMED, "Rejected", Err(text)));
    }
    let text = format!(
        "{} rejections by proxies of other namespaces; {resource} by {}: `weft proxies` has the reason",
        progress.rejected.len(),
        name(peer),
    );
    Some(kept_true("RejectedElsewhere", Err(text)))
}

/// How many have had their time, and who: always the same first ones.
fn late(proxies: &[&Waiting]) -> String {
    let mut peers: Vec<&PeerIdentity> = proxies.iter().map(|one| &one.peer).collect();
    peers.sort_by_key(|peer| &peer.instance);
    let named: Vec<String> = peers.iter().take(NAMED_MAX).copied().map(name).collect();
    let more = match peers.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (named, within) = (named.join(", "), ACKNOWLEDGED_WITHIN.as_secs());
    format!("have not acknowledged it within {within} s: {named}{more}")
}

fn name(peer: &PeerIdentity) -> String {
    format!("{} (instance {})", peer.identity, peer.instance)
}

/// A condition that takes nothing back that was acknowledged before.
fn kept_true(reason: &str, holds: Result<(), String>) -> Condition {
    Condition {
        stays_true: true,
        ..condition(PROGRAMMED, reason, holds)
    }
}

/// A sidecar's own words, as far as others are shown them: one line of bounded length.
pub(crate) fn one_line(said: &str) -> String {
    let mut chars = said
        .chars()
        .map(|c| match c.is_control() || is_formatting(c) {
            true => ' ',
            false => c,
        });
    let mut text: String = chars.by_ref().take(REASON_CHARS_MAX).collect();
    if chars.next().is_some() {
        text.push('…');
    }
    text
}

/// Characters that change how those around them are shown: directions, joiners, line separators
/// (Unicode Standard, 23.2 and 23.3).
fn is_formatting(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(of: &str) -> PeerIdentity {
        let (namespace, instance) = of.split_once('/').unwrap();
        let identity = format!("spiffe://weft.test/ns/{namespace}/sa/web");
        PeerIdentity {
            identity: identity.parse().unwrap(),
            instance: instance.into(),
            not_after: 0,
        }
    }

    /// How a revision stands that is published: sidecars NAMESPACE/INSTANCE that are in time, and overdue;
    /// control planes that are not heard; sidecars that reject it, with their words.
    fn progress(
        in_time: &[&str],
        overdue: &[&str],
        unknown: &[&str],
        rejected: &[(&str, &str)],
    ) -> Progress {
        let waiting = |peers: &[&str], is_overdue| -> Vec<Waiting> {
            let peers = peers.iter().map(|of| peer(of));
            peers.map(|peer| Waiting { peer, is_overdue }).collect()
        };
        Progress {
            rejected_otherwise: crate::publish::RejectedOtherwise::default(),
            published: 7,
            is_known: true,
            applied: Vec::new(),
            waiting: [waiting(in_time, false), waiting(overdue, true)].concat(),
            rejected: { rejected.iter() }
                .map(|(of, reason)| RejectedBy {
                    peer: peer(of),
                    resource: "Service/shop/web".to_owned(),
                    reason: (*reason).to_owned(),
                })
                .collect(),
            unknown: unknown.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// Whether it holds, the reason, whether it takes nothing back, and a part of the message.
    fn check(found: &Progress, expected: (bool, &str, bool, &str)) {
        let (holds, reason, kept, message) = expected;
        let condition = programmed("shop", 7, found, None);
        let stands = (condition.holds, &*condition.reason, condition.stays_true);
        assert_eq!(stands, (holds, reason, kept), "{found:?}");
        assert!(condition.message.contains(message), "{}", condition.message);
        assert!(!condition.message.contains("<b>"), "{}", condition.message);
        assert_eq!(message.is_empty(), condition.message.is_empty());
    }

    #[test]
    fn it_is_true_when_those_who_count_have_it() {
        for (found, expected) in [
            (
                progress(&[], &[], &[], &[]),
                (true, "Programmed", false, ""),
            ),
            (
                progress(&["evil/z"], &[], &[], &[]),
                (false, "Pending", true, "not acknowledged it yet"),
            ),
            (
                progress(&["evil/z"], &["shop/a", "evil/y"], &["cp-1"], &[]),
                (false, "Pending", true, "not acknowledged it yet"),
            ),
            // In its own namespace somebody can mend it.
            (
                progress(&[], &["shop/b", "evil/z", "shop/a"], &["cp-1"], &[]),
                (
                    false,
                    "Stale",
                    true,
                    "within 60 s: spiffe://weft.test/ns/shop/sa/web (instance a), \
                     spiffe://weft.test/ns/shop/sa/web (instance b)",
                ),
            ),
            (
                progress(&[], &["evil/z"], &["cp-1"], &[]),
                (false, "Pending", true, "sidecars: cp-1"),
            ),
            // Nobody else holds it up for ever.
            (
                progress(
                    &[],
                    &["evil/4", "evil/2", "evil/1", "evil/3", "lab/5"],
                    &[],
                    &[],
                ),
                (
                    true,
                    "Programmed",
                    true,
                    "not waited for: proxies of other namespaces have not acknowledged it within 60 s: \
                     spiffe://weft.test/ns/evil/sa/web (instance 1), \
                     spiffe://weft.test/ns/evil/sa/web (instance 2), \
                     spiffe://weft.test/ns/evil/sa/web (instance 3) and 2 more",
                ),
            ),
        ] {
            check(&found, expected);
        }
    }

    #[test]
    fn what_is_rejected_is_false_and_others_write_nothing_into_it() {
        let evil = ("evil/z", "<b>pay here</b>");
        let own = ("shop/b", "odd\nroute");
        for (found, expected) in [
            // Nobody else writes into it, and who is shown does not depend on the order.
            (
                progress(&["shop/a"], &[], &["cp-1"], &[evil, ("evil/y", "no")]),
                (
                    false,
                    "RejectedElsewhere",
                    true,
                    "2 rejections by proxies of other namespaces; Service/shop/web by \
                     spiffe://weft.test/ns/evil/sa/web (instance y): `weft proxies` has the reason",
                ),
            ),
            (
                progress(&[], &[], &[], &[("evil/a", "<b>"), own]),
                (
                    false,
                    "Rejected",
                    false,
                    "at least 1 rejections by proxies of its namespace; Service/shop/web by instance b: odd route",
                ),
            ),
        ] {
            check(&found, expected);
        }
    }

    #[test]
    fn what_a_control_plane_refuses_is_not_true() {
        for (why, reason, kept, message) in [
            (
                Some("Invalid: spec.retry: found 3"),
                "RefusedByReplica",
                false,
                "control plane cp-1 refuses it, so its sidecars do not have it: Invalid: spec.retry",
            ),
            (None, "Pending", true, "is not known"),
        ] {
            let refused = RefusedBy {
                control_plane: "cp-1".to_owned(),
                why: why.map(str::to_owned),
            };
            let everybody = progress(&[], &[], &[], &[]);
            let condition = programmed("shop", 7, &everybody, Some(&refused));
            let stands = (condition.holds, &*condition.reason, condition.stays_true);
            assert_eq!(stands, (false, reason, kept));
            assert!(condition.message.contains(message), "{}", condition.message);
        }
    }

    #[test]
    fn what_is_not_published_is_pending() {
        let condition = programmed("shop", 8, &progress(&[], &[], &[], &[]), None);
        assert_eq!((condition.holds, &*condition.reason), (false, "Pending"));
    }

    #[test]
    fn the_words_of_a_sidecar_are_one_short_line() {
        assert_eq!(one_line("no route \"a\""), "no route \"a\"");
        assert_eq!(one_line("a\nb\u{1b}[31m\u{202e}c"), "a b [31m c");
        let long = one_line(&"ü".repeat(5000));
        assert_eq!(long.chars().count(), REASON_CHARS_MAX + 1);
        assert!(long.ends_with("ü…"));
    }
}
