//! The registry together with what is known of its records on disk. Plain state;
//! [`super::Registrations`] locks it and writes the records.

use std::collections::{BTreeMap, HashMap};

use weft_core::name::WorkloadName;

use super::machine::Registry;

/// The registry, and the records that are being written or have to be written again.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) registry: Registry,
    /// Registrations that are being written down, by workload.
    pub(super) writing: HashMap<WorkloadName, Writing>,
    /// Counts writes of records.
    pub(super) writes: u64,
    /// Workloads whose record may not say what the registry says, each with the number of the write
    /// that was not made. Each was attested, so there are no more of them than instances on record.
    pub(super) unwritten: BTreeMap<WorkloadName, u64>,
}

/// Registrations of one workload that are being written down.
#[derive(Debug, Default)]
pub(super) struct Writing {
    under_way: usize,
    /// The newest write of the workload's record, by whomever.
    newest: u64,
}

impl State {
    /// Notes that the record of a workload is written; the write's number.
    pub(super) fn note_write(&mut self, workload: &WorkloadName) -> u64 {
        self.writes += 1;
        if let Some(writing) = self.writing.get_mut(workload) {
            writing.newest = self.writes;
        }
        self.writes
    }

    pub(super) fn begin_writing(&mut self, workload: &WorkloadName) -> u64 {
        self.writing.entry(workload.clone()).or_default().under_way += 1;
        self.note_write(workload)
    }

    /// The record of a workload is to be written again.
    pub(super) fn note_unwritten(&mut self, workload: WorkloadName) {
        self.writes += 1;
        self.unwritten.insert(workload, self.writes);
    }

    /// Ends what [`State::begin_writing`] began; whether its write is the newest of the workload.
    pub(super) fn end_writing(&mut self, workload: &WorkloadName, number: u64) -> bool {
        let Some(writing) = self.writing.get_mut(workload) else {
            return false;
        };
        let is_newest = writing.newest == number;
        writing.under_way -= 1;
        if writing.under_way == 0 {
            self.writing.remove(workload);
        }
        is_newest
    }
}
