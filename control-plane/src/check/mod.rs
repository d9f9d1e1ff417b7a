//! `weft check --kubernetes`: what has to be so that the mesh works in a cluster.
//!
//! [`collect`] asks the cluster's API for [`Facts`]; [`CHECKS`] is a table of pure functions of them.
//! What could not be asked is a failure with the reason, never a success.

mod collect;
mod facts;
mod following;
mod interception;
mod permissions;
mod rules;
mod trying;

use kube::Client;
use serde::Serialize;

pub use collect::collect;
pub use facts::{
    CertificateFact, Crd, Deployment, Facts, Installed, LapsedFact, NamespaceFact, NodeClock,
    PodFact, ReplicaFact, ServerFact, Sidecar, Trial, TrialFact, Webhook,
};
pub use rules::CHECKS;

/// When a check makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before an installation and after it.
    Always,
    /// Before an installation only (`--pre`).
    Before,
    /// After an installation only.
    After,
}

/// One thing that has to be so.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name, which does not change between versions.
    pub id: &'static str,
    /// When it makes sense.
    pub when: When,
    /// What to do when it is not so.
    pub mend: &'static str,
    /// Looks at the facts.
    pub look: fn(&Facts) -> Outcome,
}

/// What a check says, with what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is so.
    Good(String),
    /// The mesh works, and something should be looked at.
    Warning(String),
    /// Something does not work.
    Failed(String),
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is so.
    Ok,
    /// Something should be looked at.
    Warning,
    /// Something does not work.
    Failed,
}

impl Status {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// A check and what it said.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The check's name.
    pub id: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do; nothing where it is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<&'static str>,
}

/// Runs every check that makes sense, `before` an installation or after it.
pub fn run(facts: &Facts, before: bool) -> Vec<Finding> {
    let makes_sense = |check: &&Check| match check.when {
        When::Always => true,
        When::Before => before,
        When::After => !before,
    };
    let findings = CHECKS.iter().filter(makes_sense);
    findings
        .map(|check| check.finding((check.look)(facts)))
        .collect()
}

/// Runs the check `documents` alone, for which nothing is asked but documents. With `accept`, what
/// this version would not enforce is a warning.
pub async fn documents(client: &Client, accept: bool) -> Vec<Finding> {
    documents_found(&collect::unenforced(client).await, accept)
}

fn documents_found(unenforced: &Result<Vec<String>, String>, accept: bool) -> Vec<Finding> {
    let outcome = match (rules::documents_of(unenforced), unenforced) {
        // What could not be asked is not accepted.
        (Outcome::Failed(found), Ok(_)) if accept => Outcome::Warning(found),
        (outcome, _) => outcome,
    };
    let check = CHECKS.iter().filter(|check| check.id == rules::DOCUMENTS);
    check.map(|check| check.finding(outcome.clone())).collect()
}

impl Check {
    fn finding(&self, outcome: Outcome) -> Finding {
        let (status, found) = match outcome {
            Outcome::Good(found) => (Status::Ok, found),
            Outcome::Warning(found) => (Status::Warning, found),
            Outcome::Failed(found) => (Status::Failed, found),
        };
        Finding {
            id: self.id,
            status,
            found,
            mend: (status != Status::Ok).then_some(self.mend),
        }
    }
}

#[cfg(test)]
mod tests;
