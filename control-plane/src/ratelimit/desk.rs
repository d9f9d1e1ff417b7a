//! Where the books are that the sidecars of this control plane are on: pure, `now` is an argument.
//!
//! One control plane keeps the books of all shared limits, for a term; the others relay to it what
//! their sidecars say. Whoever begins a term knows nothing, and raises nothing before a grace is over.
//! Where the books move, or cannot be reached, the streams of the sidecars end: they hold what they
//! have by the rule for a control plane that is out of touch, and say it anew where the books are then.
//!
//! Terms are numbered, and a later one has the greater number. A lease elects and does not fence: one
//! that was suspended may believe to be in its term still. It keeps no books, and nobody relays to it,
//! as soon as a later term was heard of. Until then it raises nothing for streams that began after it
//! was confirmed last that it is elected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weft_core::rate::RuleName;
use weft_core::rate::lease::Grant;
use weft_core::time::Instant;
use weft_proto::relays::{RelayedReport, StreamGrants, StreamReports};

use super::books::{Books, Excess, OWN, StreamId, TOLD_MAX};
use super::limits::KnownLimits;
use super::outbox::Outbox;

/// A control plane that says nothing for this long is not waited for: its stream of reports or grants
/// ends.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);
/// A term that was not heard of for this long may have been numbered anew: somebody has deleted the
/// lease that elects. Longer than a term lasts that is not renewed.
const TERM_FORGOTTEN: Duration = Duration::from_secs(60);

/// Where the books are, as a user asks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// This process keeps them.
    Kept,
    /// Another one does, and it is reached.
    Relayed,
    /// Nobody is known who does, or it is not reached.
    Unreached,
}

/// That this process is elected to keep the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Elected {
    /// Its term.
    pub(super) term: u64,
    /// When the election was asked last and said so; `None` where nobody else can be elected.
    pub(super) asked_at: Option<Instant>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Send grants on a stream of a sidecar. None at all say that what it uses is on the books.
    Grant(u64, Vec<Grant>),
    /// End a stream of a sidecar: it has to begin anew.
    EndStream(u64),
    /// Send grants on the link of a control plane that relays.
    Relay(u64, Vec<StreamGrants>),
    /// End a link.
    EndLink(u64),
}

/// The sidecars' streams of one control plane, and where the books are.
#[derive(Debug)]
pub(super) struct Desk {
    grace: Duration,
    place: Place,
    /// The latest term that was heard of, and when.
    latest: Option<(u64, Instant)>,
    /// All are on the books of this place.
    streams: BTreeMap<u64, OwnStream>,
    /// The number of the newest link; 0 is none.
    links: u64,
    effects: Vec<Effect>,
}

/// A stream of a sidecar of this control plane.
#[derive(Debug)]
struct OwnStream {
    /// Who has opened it.
    instance: Arc<str>,
    /// Limits that it has told of.
    told: BTreeSet<RuleName>,
}

#[derive(Debug)]
enum Place {
    Nowhere,
    Here(Box<Here>),
    There(There),
}

/// This process keeps the books.
#[derive(Debug)]
struct Here {
    term: u64,
    books: Books,
    /// Of control planes that relay.
    links: BTreeSet<u64>,
}

/// Another process keeps the books.
#[derive(Debug)]
struct There {
    term: u64,
    link: u64,
    outbox: Outbox,
}

impl Desk {
    /// Nobody keeps books yet. Who begins to raises nothing for `grace`.
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            place: Place::Nowhere,
            latest: None,
            streams: BTreeMap::new(),
            links: 0,
            effects: Vec::new(),
        }
    }

    /// What is to be done now.
    pub(super) fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Where the books are.
    pub(super) fn whereabouts(&self) -> Whereabouts {
        match self.place {
            Place::Nowhere => Whereabouts::Unreached,
            Place::Here(_) => Whereabouts::Kept,
            Place::There(_) => Whereabouts::Relayed,
        }
    }

    /// The term in which this process keeps the books.
    pub(super) fn term(&self) -> Option<u64> {
        match &self.place {
            Place::Here(here) => Some(here.term),
            Place::Nowhere | Place::There(_) => None,
        }
    }

    /// Whether books are kept here, of as many limits as there is room for.
    pub(super) fn is_full(&self) -> bool {
        match &self.place {
            Place::Here(here) => here.books.is_full(),
            Place::Nowhere | Place::There(_) => false,
        }
    }

    /// Whether this process is elected to keep the books now. To be told before anything else is done.
    pub(super) fn elect(&mut self, elected: Option<Elected>, now: Instant) {
        self.move_books(elected.map(|elected| elected.term), now);
        if let (Place::Here(here), Some(elected)) = (&mut self.place, elected) {
            here.books.confirm(elected.asked_at, now);
        }
    }

    fn move_books(&mut self, term: Option<u64>, now: Instant) {
        let term = term.filter(|term| self.is_latest(*term, now));
        if self.term() == term {
            self.latest = term.map(|term| (term, now)).or(self.latest);
            return;
        }
        let was_here = matches!(self.place, Place::Here(_));
        if was_here || term.is_some() {
            self.leave();
        }
        if let Some(term) = term {
            self.latest = Some((term, now));
            self.place = Place::Here(Box::new(Here {
                term,
                books: Books::new(now + self.grace),
                links: BTreeSet::new(),
            }));
        }
    }

    /// Another control plane says that it keeps the books.
    pub(super) fn hear(&mut self, term: u64, now: Instant) {
        if !self.is_latest(term, now) {
            return;
        }
        self.latest = Some((term, now));
        let own = match &self.place {
            Place::Nowhere => return,
            Place::Here(here) => here.term,
            Place::There(there) => there.term,
        };
        if own < term {
            self.leave();
        }
    }

    fn is_latest(&self, term: u64, now: Instant) -> bool {
        self.latest.is_none_or(|(latest, heard)| {
            term >= latest || now.saturating_since(heard) >= TERM_FORGOTTEN
        })
    }

    /// Everything that is on the books of this place has to begin anew.
    fn leave(&mut self) {
        let place = std::mem::replace(&mut self.place, Place::Nowhere);
        let links = match place {
            Place::Nowhere => BTreeSet::new(),
            Place::Here(here) => here.links,
            Place::There(there) => BTreeSet::from([there.link]),
        };
        self.effects.extend(links.into_iter().map(Effect::EndLink));
        let streams = std::mem::take(&mut self.streams).into_keys();
        self.effects.extend(streams.map(Effect::EndStream));
    }

    /// A sidecar opens a stream; whether there are books.
    pub(super) fn open(&mut self, stream: u64, instance: &Arc<str>) -> bool {
        match &mut self.place {
            Place::Nowhere => return false,
            Place::Here(here) => {
                let id = StreamId { link: OWN, stream };
                if here.books.open(id, instance).is_err() {
                    return false;
                }
            }
            Place::There(there) => there.outbox.open(stream, instance),
        }
        let own = OwnStream {
            instance: Arc::clone(instance),
            told: BTreeSet::new(),
        };
        self.streams.insert(stream, own);
        true
    }

    /// A stream of a sidecar has ended.
    pub(super) fn close(&mut self, stream: u64, now: Instant) {
        let Some(OwnStream { instance, .. }) = self.streams.remove(&stream) else {
            return;
        };
        match &mut self.place {
            Place::Nowhere => {}
            Place::Here(here) => here.books.close(StreamId { link: OWN, stream }, now),
            Place::There(there) => there.outbox.close(stream, &instance),
        }
    }

    /// A sidecar says something of limits that it may tell of. `known` is what this process knows of
    /// limits. An error ends its stream, and no other: what one sidecar says too much does not get to
    /// who keeps the books.
    pub(super) fn report(
        &mut self,
        stream: u64,
        reports: Vec<RelayedReport>,
        known: &dyn KnownLimits,
        now: Instant,
    ) -> Result<(), Excess> {
        let Some(OwnStream { instance, told }) = self.streams.get_mut(&stream) else {
            return Ok(());
        };
        for RelayedReport { report, .. } in &reports {
            if !told.contains(&report.rule) {
                if told.len() >= TOLD_MAX {
                    return Err(Excess::Told);
                }
                told.insert(report.rule.clone());
            }
        }
        match &mut self.place {
            Place::Nowhere => {}
            Place::Here(here) => {
                let id = StreamId { link: OWN, stream };
                let names = here.books.handle(id, reports, known, now);
                if here.books.welcome(id) {
                    self.effects.push(Effect::Grant(stream, Vec::new()));
                }
                self.grant(&names, now);
            }
            Place::There(there) => {
                for report in reports {
                    there.outbox.report(stream, instance, report);
                }
            }
        }
        Ok(())
    }

    /// The books are reached at another control plane, which keeps them for a term; the number of the
    /// link, or nothing where the books are elsewhere.
    pub(super) fn begin_link(&mut self, term: u64, now: Instant) -> Option<u64> {
        self.hear(term, now);
        if !matches!(self.place, Place::Nowhere) || !self.is_latest(term, now) {
            return None;
        }
        self.links += 1;
        self.place = Place::There(There {
            term,
            link: self.links,
            outbox: Outbox::default(),
        });
        Some(self.links)
    }

    /// The books are not reached any more on a link.
    pub(super) fn end_link(&mut self, link: u64) {
        if matches!(&self.place, Place::There(there) if there.link == link) {
            self.leave();
        }
    }

    /// What is to be relayed on a link now; nothing where there is nothing.
    pub(super) fn next_relayed(&mut self, link: u64) -> Vec<StreamReports> {
        match &mut self.place {
            Place::There(there) if there.link == link => there.outbox.next(),
            Place::Nowhere | Place::Here(_) | Place::There(_) => Vec::new(),
        }
    }

    /// What was granted on a link to sidecars of this process.
    pub(super) fn granted(&mut self, link: u64, streams: Vec<StreamGrants>) {
        if !matches!(&self.place, Place::There(there) if there.link == link) {
            return;
        }
        for StreamGrants { stream, grants } in streams {
            if self.streams.contains_key(&stream) {
                self.effects.push(Effect::Grant(stream, grants));
            }
        }
    }

    /// A control plane begins to relay to this one: the number of the link, and the term. Nothing where
    /// no books are kept here.
    pub(super) fn open_link(&mut self) -> Option<(u64, u64)> {
        let Place::Here(here) = &mut self.place else {
            return None;
        };
        self.links += 1;
        here.links.insert(self.links);
        Some((self.links, here.term))
    }

    /// What a control plane relays on a link.
    pub(super) fn relayed(
        &mut self,
        link: u64,
        streams: Vec<StreamReports>,
        known: &dyn KnownLimits,
        now: Instant,
    ) -> Result<(), Excess> {
        let Place::Here(here) = &mut self.place else {
            return Ok(());
        };
        if !here.links.contains(&link) {
            return Ok(());
        }
        let (mut names, mut welcome) = (BTreeSet::new(), Vec::new());
        for of in streams {
            let id = StreamId {
                link,
                stream: of.stream,
            };
            here.books.open(id, &of.instance)?;
            names.extend(here.books.handle(id, of.reports, known, now));
            if here.books.welcome(id) {
                welcome.push(StreamGrants {
                    stream: of.stream,
                    grants: Vec::new(),
                });
            }
            if of.ended {
                here.books.close(id, now);
            }
        }
        if !welcome.is_empty() {
            self.effects.push(Effect::Relay(link, welcome));
        }
        self.grant(&names, now);
        Ok(())
    }

    /// A control plane relays no more on a link. It may notice so later than this process, and its
    /// sidecars later still.
    pub(super) fn close_link(&mut self, link: u64, now: Instant) {
        if let Place::Here(here) = &mut self.place
            && here.links.remove(&link)
        {
            here.books.close_link(link, now + SILENT_AFTER);
        }
    }

    /// Moves on what only time and policies move.
    pub(super) fn look(&mut self, known: &dyn KnownLimits, now: Instant) {
        if let Place::Here(here) = &mut self.place {
            here.books.sweep(known, now);
            let names = here.books.names();
            self.grant(&names, now);
        }
    }

    /// Grants what was put off.
    pub(super) fn look_again(&mut self, now: Instant) {
        if let Place::Here(here) = &mut self.place {
            let names = here.books.take_due();
            self.grant(&names, now);
        }
    }

    fn grant<'a>(&mut self, names: impl IntoIterator<Item = &'a RuleName>, now: Instant) {
        let Place::Here(here) = &mut self.place else {
            return;
        };
        let mut relayed: BTreeMap<u64, Vec<StreamGrants>> = BTreeMap::new();
        for (StreamId { link, stream }, grants) in here.books.poll(names, now) {
            match link {
                OWN => self.effects.push(Effect::Grant(stream, grants)),
                link => relayed
                    .entry(link)
                    .or_default()
                    .push(StreamGrants { stream, grants }),
            }
        }
        let relayed = relayed.into_iter();
        self.effects
            .extend(relayed.map(|(link, streams)| Effect::Relay(link, streams)));
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
