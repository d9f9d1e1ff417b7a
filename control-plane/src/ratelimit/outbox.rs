//! What is relayed next: pure. Of each limit of a stream the latest report waits, so that what waits is
//! bounded by what is held, however slowly it is taken.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use weft_core::rate::RuleName;
use weft_proto::relays::{RELAYED_MAX, RelayedReport, StreamReports};

/// Bytes of one message, roughly.
const MESSAGE_BYTES: usize = 128 * 1024;
/// Bytes of reports of one stream, roughly, after which it is the turn of others; one report at least.
const TURN_BYTES: usize = 4096;

/// Streams with something to tell.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: HashMap<u64, Waiting>,
    /// In which order they are told; each once. One with much to say is put at the end again and again.
    order: VecDeque<u64>,
}

#[derive(Debug)]
struct Waiting {
    instance: Arc<str>,
    reports: BTreeMap<RuleName, RelayedReport>,
    ended: bool,
}

impl Outbox {
    /// A stream begins.
    pub(super) fn open(&mut self, stream: u64, instance: &Arc<str>) {
        self.of(stream, instance);
    }

    /// A sidecar says something of a limit.
    pub(super) fn report(&mut self, stream: u64, instance: &Arc<str>, report: RelayedReport) {
        let reports = &mut self.of(stream, instance).reports;
        match reports.get_mut(&report.report.rule) {
            Some(waiting) => waiting.follow(report),
            None => {
                reports.insert(report.report.rule.clone(), report);
            }
        }
    }

    /// A stream ends.
    pub(super) fn close(&mut self, stream: u64, instance: &Arc<str>) {
        let waiting = self.of(stream, instance);
        waiting.reports.clear();
        waiting.ended = true;
    }

    /// The next message; nothing where there is nothing to tell.
    pub(super) fn next(&mut self) -> Vec<StreamReports> {
        let (mut message, mut bytes, mut count) = (Vec::new(), 0, 0);
        let is_full = |bytes, count| bytes >= MESSAGE_BYTES || count >= RELAYED_MAX;
        while !is_full(bytes, count)
            && let Some(stream) = self.order.pop_front()
        {
            let Some(mut waiting) = self.waiting.remove(&stream) else {
                continue;
            };
            (bytes, count) = (bytes + 32 + waiting.instance.len(), count + 1);
            let (mut reports, mut turn) = (Vec::new(), 0);
            while !is_full(bytes, count)
                && turn < TURN_BYTES
                && let Some((_, report)) = waiting.reports.pop_first()
            {
                let len = report.wire_len();
                (bytes, turn, count) = (bytes + len, turn + len, count + 1);
                reports.push(report);
            }
            let is_all = waiting.reports.is_empty();
            message.push(StreamReports {
                stream,
                instance: Arc::clone(&waiting.instance),
                reports,
                ended: waiting.ended && is_all,
            });
            if !is_all {
                self.order.push_back(stream);
                self.waiting.insert(stream, waiting);
            }
        }
        message
    }

    fn of(&mut self, stream: u64, instance: &Arc<str>) -> &mut Waiting {
        self.waiting.entry(stream).or_insert_with(|| {
            self.order.push_back(stream);
            Waiting {
                instance: Arc::clone(instance),
                reports: BTreeMap::new(),
                ended: false,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use weft_core::rate::lease::{Demand, Report, Shares};

    use super::*;

    fn report(policy: usize, version: u64, asked: u64) -> RelayedReport {
        RelayedReport {
            report: Report {
                rule: RuleName {
                    namespace: "shop".into(),
                    policy: policy.to_string().into(),
                    rule: 0,
                },
                version,
                holds: Shares::even(2),
                demand: Some(Demand {
                    base: asked,
                    ..Demand::default()
                }),
            },
            service: "shop/web".parse().unwrap(),
        }
    }

    #[test]
    fn the_latest_is_told_once_and_in_order() {
        let mut outbox = Outbox::default();
        let [a, b]: [Arc<str>; 2] = ["a".into(), "b".into()];
        outbox.open(3, &a);
        outbox.report(5, &b, report(0, 1, 2));
        outbox.report(3, &a, report(0, 4, 1));
        outbox.report(5, &b, report(0, 2, 3));
        outbox.report(5, &b, report(1, 7, 1));
        let told = outbox.next();
        let streams: Vec<u64> = told.iter().map(|of| of.stream).collect();
        assert_eq!(streams, [3, 5]);
        assert_eq!(told[1].reports, [report(0, 2, 5), report(1, 7, 1)]);
        assert!(outbox.next().is_empty());
        // What it said last does not count when it has ended.
        outbox.report(5, &b, report(0, 2, 3));
        outbox.close(5, &b);
        let told = outbox.next();
        assert!(told[0].ended && told[0].reports.is_empty());
        assert!(outbox.next().is_empty());
    }

    #[test]
    fn much_is_several_messages() {
        let mut outbox = Outbox::default();
        for stream in 0..10_000 {
            let instance = format!("i-{stream}").into();
            outbox.open(stream, &instance);
            outbox.report(stream, &instance, report(0, 1, 2));
        }
        let mut told = Vec::new();
        while let message = outbox.next()
            && !message.is_empty()
        {
            let bytes: usize = message
                .iter()
                .flat_map(|of| &of.reports)
                .map(RelayedReport::wire_len)
                .sum();
            assert!(bytes < 2 * MESSAGE_BYTES && message.len() <= RELAYED_MAX);
            told.extend(message.into_iter().map(|of| of.stream));
        }
        // One may be told of in two messages.
        told.sort_unstable();
        told.dedup();
        assert!(told.into_iter().eq(0..10_000));
        // One that has more to say than a message holds, and does not keep the others waiting.
        let instance = "i".into();
        for policy in 0..1024 {
            outbox.report(1, &instance, report(policy, 1, 2));
        }
        outbox.report(2, &instance, report(0, 1, 2));
        outbox.close(3, &instance);
        let first = outbox.next();
        let others = first.iter().filter(|of| of.stream != 1);
        let ends: Vec<(u64, bool)> = others.map(|of| (of.stream, of.ended)).collect();
        assert_eq!(ends, [(2, false), (3, true)]);
        let mut of_first = 0;
        let mut message = first;
        while !message.is_empty() {
            let of = message.iter().filter(|of| of.stream == 1);
            of_first += of.map(|of| of.reports.len()).sum::<usize>();
            message = outbox.next();
        }
        assert_eq!(of_first, 1024);
    }
}
