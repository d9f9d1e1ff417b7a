//! Checks of what only shows itself when it is used: the webhook, the nodes' clocks, and the
//! certificates that sidecars hold.

use super::{SKEW_MAX_SECONDS, SKEW_WARN_SECONDS, some, unknown};
use crate::check::Outcome;
use crate::check::facts::{Facts, Trial};
use crate::kubernetes::names;

/// A certificate is renewed when half of its life is over: where less than this part is left, renewal
/// has been failing for long.
const RENEWAL_IS_LATE: i64 = 6;

pub(super) fn webhook_answers(facts: &Facts) -> Outcome {
    match &facts.trial {
        Err(error) => unknown(error),
        Ok(None) => Outcome::Warning("there is no webhook to ask".to_owned()),
        Ok(Some(trial)) => {
            let place = &trial.namespace;
            match &trial.trial {
                Trial::Injected => Outcome::Good(format!("a pod in {place} would get a sidecar")),
                Trial::Untouched => Outcome::Failed(format!(
                    "a pod in {place} with the label {}={} would get no sidecar: no webhook concerns it, \
                     or failures of it are ignored",
                    names::INJECT,
                    names::ENABLED
                )),
                Trial::Refused(why) => {
                    Outcome::Failed(format!("no pod can be made in {place}: {why}"))
                }
                Trial::NotTried(why) => Outcome::Warning(format!("not tried: {why}")),
            }
        }
    }
}

/// Whether each replica follows what it watches of the cluster's API.
pub(super) fn cluster_followed(facts: &Facts) -> Outcome {
    let replicas = match &facts.replicas {
        Ok(replicas) => replicas,
        Err(error) => return unknown(error),
    };
    let wrong = replicas.iter().filter_map(|one| match &one.said {
        Ok(lines) if lines.is_empty() => None,
        Ok(lines) => Some(format!("{}: {}", one.pod, some(lines))),
        Err(error) => Some(format!("{} was not asked: {error}", one.pod)),
    });
    let mut wrong: Vec<String> = wrong.collect();
    let all = replicas_at_least(facts);
    if replicas.is_empty() {
        wrong.push("there is no replica to ask".to_owned());
    } else if replicas.len() < all {
        wrong.insert(
            0,
            format!("{} of {all} replicas were asked", replicas.len()),
        );
    }
    match wrong.is_empty() {
        true => Outcome::Good(format!("by {} replicas", replicas.len())),
        false => Outcome::Warning(some(&wrong)),
    }
}

/// How many replicas there are or should be, as far as that is known.
fn replicas_at_least(facts: &Facts) -> usize {
    let deployment = facts.installed.deployment.as_ref().ok();
    let wanted = deployment
        .and_then(|one| one.as_ref())
        .map(|one| one.wanted);
    let wanted = wanted.and_then(|wanted| usize::try_from(wanted).ok());
    let ready = facts.installed.endpoints.as_ref().ok().copied();
    wanted.max(ready).unwrap_or(0)
}

pub(super) fn node_clocks(facts: &Facts) -> Outcome {
    let clocks = match &facts.node_clocks {
        Ok(clocks) => clocks,
        Err(error) => return unknown(error),
    };
    let beyond = |limit: i64| -> Vec<String> {
        let beyond = clocks.iter().filter(|one| one.skew.abs() > limit);
        beyond
            .map(|one| format!("{} ({} s)", one.node, one.skew))
            .collect()
    };
    let (failed, warned) = (beyond(SKEW_MAX_SECONDS), beyond(SKEW_WARN_SECONDS));
    let said = |names: &[String]| format!("differ from the API server's: {}", some(names));
    match (failed.is_empty(), warned.is_empty()) {
        (false, _) => Outcome::Failed(said(&failed)),
        (true, false) => Outcome::Warning(said(&warned)),
        (true, true) => Outcome::Good(format!("{} nodes agree with the API server", clocks.len())),
    }
}

pub(super) fn certificates(facts: &Facts) -> Outcome {
    let certificates = match &facts.certificates {
        Ok(certificates) => certificates,
        Err(error) => return unknown(error),
    };
    let mut ended = Vec::new();
    let mut late = Vec::new();
    let mut silent = Vec::new();
    for one in certificates {
        match &one.left {
            Err(why) => silent.push(format!("{} ({why})", one.pod)),
            Ok(left) if *left <= 0 => ended.push(one.pod.clone()),
            Ok(left) if *left < facts.leaf_seconds / RENEWAL_IS_LATE => {
                late.push(format!("{} ({left} s)", one.pod));
            }
            Ok(_) => {}
        }
    }
    if !ended.is_empty() {
        return Outcome::Failed(format!("have ended: {}", some(&ended)));
    }
    if !late.is_empty() {
        return Outcome::Warning(format!("should have been renewed: {}", some(&late)));
    }
    if !silent.is_empty() {
        return Outcome::Warning(format!("not known of {}", some(&silent)));
    }
    Outcome::Good(format!("{} sidecars asked", certificates.len()))
}
