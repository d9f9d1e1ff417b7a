//! Why a sidecar did not take what it was sent.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A rejection's reasons are cut here by the sidecar, in bytes: what is not named in a text of
/// (nearly) this length may have been rejected as well.
const REASONS_CUT_BYTES: usize = 8 * 1024 - 4;
/// What is kept of one reason, in characters.
const REASON_MAX_CHARS: usize = 512;
/// Names everything that was sent.
const ALL: &str = "*";

/// The reasons of a rejection, by resource.
#[derive(Debug)]
pub(super) struct Reasons {
    by_name: BTreeMap<String, String>,
    /// For everything that is not named.
    for_all: Option<String>,
}

impl Reasons {
    /// Reads one line `NAME: reason` for every resource that was sent and not taken.
    pub(super) fn parse(text: &str, sent: &BTreeMap<Arc<str>, Arc<str>>) -> Self {
        let shorten = |reason: &str| reason.chars().take(REASON_MAX_CHARS).collect::<String>();
        let mut by_name = BTreeMap::new();
        let mut for_all = None;
        for line in text.lines() {
            match line.split_once(": ") {
                Some((ALL, reason)) => for_all = Some(shorten(reason)),
                Some((name, reason)) if sent.contains_key(name) => {
                    by_name.insert(name.to_owned(), shorten(reason));
                }
                Some(_) | None => {}
            }
        }
        // A rejection that names nothing we know is one of everything: better too many than one
        // too few.
        if by_name.is_empty() {
            for_all.get_or_insert_with(|| shorten(text));
        }
        if text.len() >= REASONS_CUT_BYTES {
            let cut = "not named, but the list of reasons was cut".to_owned();
            for_all.get_or_insert(cut);
        }
        Self { by_name, for_all }
    }

    /// Why a resource was not taken; `None` where it was.
    pub(super) fn of(&self, name: &str) -> Option<String> {
        let named = self.by_name.get(name);
        named.or(self.for_all.as_ref()).cloned()
    }
}
