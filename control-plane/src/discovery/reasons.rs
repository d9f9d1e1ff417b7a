//! Why a sidecar did not take what it was sent.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::session::Rejection;

/// A rejection's reasons are cut here by the sidecar, in bytes: what is not named in a text of
/// (nearly) this length may have been rejected as well.
const REASONS_CUT_BYTES: usize = 8 * 1024 - 4;
/// What is kept of one reason, bytes.
const REASON_MAX_BYTES: usize = 512;
/// All reasons that are kept of one stream, bytes: eight answers of a sidecar with nothing cut.
pub(super) const REASONS_MAX_BYTES: usize = 64 * 1024;
/// Of a rejection, so many resources are named in the log.
const LOGGED_MAX: usize = 3;
/// Names everything that was sent.
const ALL: &str = "*";
/// Stands in the place of a reason for which there is no room.
const NO_ROOM: &str = "rejected; the reason was cut: those of this sidecar exceed 65536 bytes";

/// The bytes of reasons that a stream keeps.
#[derive(Debug, Default)]
pub(super) struct ReasonBudget {
    used: Arc<AtomicUsize>,
    no_room: Option<Reason>,
}

impl ReasonBudget {
    /// Keeps a text, cut to what is kept of one; where there is no room, [`NO_ROOM`].
    fn keep(&mut self, text: &str) -> Reason {
        let text = cut(text, REASON_MAX_BYTES);
        if self.used() + text.len() <= REASONS_MAX_BYTES {
            return Reason::new(text, Arc::clone(&self.used));
        }
        // Not counted: there is one of it.
        let no_room = || Reason::new(NO_ROOM, Arc::default());
        self.no_room.get_or_insert_with(no_room).clone()
    }

    /// The bytes of all reasons that are kept.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Why a resource was not taken. Clones share the text; its bytes count once, until the last one is
/// dropped.
#[derive(Debug, Clone)]
pub struct Reason(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    text: Arc<str>,
    used: Arc<AtomicUsize>,
}

impl Reason {
    fn new(text: &str, used: Arc<AtomicUsize>) -> Self {
        used.fetch_add(text.len(), Ordering::Relaxed);
        let text = text.into();
        Self(Arc::new(Kept { text, used }))
    }

    /// The text.
    pub fn text(&self) -> &Arc<str> {
        &self.0.text
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.used.fetch_sub(self.text.len(), Ordering::Relaxed);
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl PartialEq for Reason {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Reason {}

/// The reasons of a rejection, by resource.
#[derive(Debug)]
pub(super) struct Reasons<'a> {
    by_name: BTreeMap<&'a str, &'a str>,
    /// For everything that is not named; `kept` once it was needed.
    for_all: Option<&'a str>,
    kept: Option<Reason>,
}

impl<'a> Reasons<'a> {
    /// Reads one line `NAME: reason` for every resource that was sent and not taken.
    pub(super) fn parse(text: &'a str, sent: &BTreeMap<Arc<str>, Arc<str>>) -> Self {
        let mut by_name = BTreeMap::new();
        let mut for_all = None;
        for line in text.lines() {
            match line.split_once(": ") {
                Some((ALL, reason)) => for_all = Some(reason),
                Some((name, reason)) if sent.contains_key(name) => {
                    by_name.insert(name, reason);
                }
                Some(_) | None => {}
            }
        }
        // A rejection that names nothing we know is one of everything: better too many than one
        // too few.
        if by_name.is_empty() {
            for_all.get_or_insert(text);
        }
        if text.len() >= REASONS_CUT_BYTES {
            for_all.get_or_insert("not named, but the list of reasons was cut");
        }
        Self {
            by_name,
            for_all,
            kept: None,
        }
    }

    /// Why a resource was not taken; `None` where it was.
    pub(super) fn of(&mut self, name: &str, budget: &mut ReasonBudget) -> Option<Reason> {
        if let Some(reason) = self.by_name.get(name) {
            return Some(budget.keep(reason));
        }
        let for_all = self.for_all?;
        Some(
            self.kept
                .get_or_insert_with(|| budget.keep(for_all))
                .clone(),
        )
    }
}

/// What the log says of rejections: the first few, and how many there are; `None` where all of them
/// are of resources that are not rejected any more.
pub(super) fn summary(rejections: &[Rejection]) -> Option<String> {
    let mut rejected = 0_usize;
    let mut text = String::new();
    for rejection in rejections {
        let Some(reason) = &rejection.reason else {
            continue;
        };
        rejected += 1;
        if rejected <= LOGGED_MAX {
            let (kind, name) = (rejection.kind.as_str(), &rejection.name);
            let separator = if rejected == 1 { "" } else { "; " };
            text.push_str(&format!("{separator}{kind}/{name}: {reason}"));
        }
    }
    if rejected > LOGGED_MAX {
        text.push_str(&format!("; and {} more", rejected - LOGGED_MAX));
    }
    (rejected > 0).then_some(text)
}

/// The beginning of a text, of so many bytes at most.
fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use weft_proto::resource::Kind;

    use super::*;

    fn sent(count: usize) -> BTreeMap<Arc<str>, Arc<str>> {
        let names = (0..count).map(|n| (format!("shop/s{n}").into(), "1".into()));
        names.collect()
    }

    #[test]
    fn reasons_of_one_stream_are_bounded_and_given_back() {
        let (mut budget, sent) = (ReasonBudget::default(), sent(1_000));
        let text: String = sent
            .keys()
            .map(|n| format!("{n}: {n} {}\n", "ä".repeat(1_000)))
            .collect();
        let mut reasons = Reasons::parse(&text, &sent);
        let kept: Vec<_> = sent
            .keys()
            .map(|n| reasons.of(n, &mut budget).unwrap())
            .collect();
        assert!((REASONS_MAX_BYTES - 512..=REASONS_MAX_BYTES).contains(&budget.used()));
        assert!(kept[0].text().starts_with("shop/s0 ää"), "{}", kept[0]);
        assert_eq!(&**kept[999].text(), NO_ROOM);
        assert!(
            Arc::ptr_eq(kept[998].text(), kept[999].text()),
            "one for all"
        );
        assert!(NO_ROOM.contains(&REASONS_MAX_BYTES.to_string()));
        drop(kept);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_reason_for_everything_is_kept_once() {
        let (mut budget, sent) = (ReasonBudget::default(), sent(20_000));
        let text = format!("*: {}", "x".repeat(600));
        let mut reasons = Reasons::parse(&text, &sent);
        let kept: Vec<_> = sent
            .keys()
            .map(|n| reasons.of(n, &mut budget).unwrap())
            .collect();
        assert_eq!(budget.used(), REASON_MAX_BYTES);
        assert!(
            kept.iter()
                .all(|other| Arc::ptr_eq(other.text(), kept[0].text()))
        );
    }

    #[test]
    fn the_log_names_the_first_few() {
        let mut budget = ReasonBudget::default();
        let mut rejection = |n: u32, reason: Option<&str>| Rejection {
            kind: Kind::Service,
            name: format!("shop/s{n}").into(),
            reason: reason.map(|reason| budget.keep(reason)),
        };
        let mut all = vec![rejection(0, None)];
        assert_eq!(summary(&all), None);
        all.push(rejection(1, Some("no")));
        assert_eq!(summary(&all).unwrap(), "Service/shop/s1: no");
        all.extend((2..20_000).map(|n| rejection(n, Some("never"))));
        assert_eq!(
            summary(&all).unwrap(),
            "Service/shop/s1: no; Service/shop/s2: never; Service/shop/s3: never; and 19996 more"
        );
    }
}
