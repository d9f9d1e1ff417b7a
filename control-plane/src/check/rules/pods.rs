//! Checks of the pods that are in the mesh or should be.

use super::{some, unknown};
use crate::check::Outcome;
use crate::check::facts::{Facts, PodFact, Sidecar};

/// Names of the pods that `concerned` says something about.
fn pods_of(pods: &[PodFact], concerned: impl Fn(&Sidecar) -> Option<String>) -> Vec<String> {
    let named = pods.iter().filter_map(|pod| {
        let said = concerned(&pod.sidecar)?;
        Some(match said.is_empty() {
            true => pod.name.clone(),
            false => format!("{} ({said})", pod.name),
        })
    });
    named.collect()
}

pub(super) fn pods_injected(facts: &Facts) -> Outcome {
    let pods = match &facts.pods {
        Err(error) => return unknown(error),
        Ok(pods) => pods,
    };
    let without = pods_of(pods, |sidecar| match sidecar {
        Sidecar::Missing => Some(String::new()),
        Sidecar::Refused(why) => Some(why.clone()),
        Sidecar::Injected { .. } => None,
    });
    match without.is_empty() {
        true => Outcome::Good(format!("{} pods in the mesh", pods.len())),
        false => Outcome::Failed(format!(
            "without a sidecar, so in plaintext: {}",
            some(&without)
        )),
    }
}

pub(super) fn sidecars_ready(facts: &Facts) -> Outcome {
    let pods = match &facts.pods {
        Err(error) => return unknown(error),
        Ok(pods) => pods,
    };
    let not = pods_of(pods, |sidecar| {
        let waits = matches!(sidecar, Sidecar::Injected { ready: false, .. });
        waits.then(String::new)
    });
    match not.is_empty() {
        true => Outcome::Good("all".to_owned()),
        false => Outcome::Warning(format!("not ready: {}", some(&not))),
    }
}

pub(super) fn interception(facts: &Facts) -> Outcome {
    let lapsed = match &facts.lapsed {
        Err(error) => return unknown(error),
        Ok(lapsed) => lapsed,
    };
    let named = lapsed
        .iter()
        .map(|one| format!("{} ({})", one.pod, one.why));
    let named: Vec<String> = named.collect();
    match named.is_empty() {
        true => Outcome::Good("no sidecar says that it is lost".to_owned()),
        false => Outcome::Failed(format!(
            "traffic is not redirected to the sidecar, so in plaintext: {}",
            some(&named)
        )),
    }
}

pub(super) fn sidecars_current(facts: &Facts) -> Outcome {
    let (pods, deployment) = match (&facts.pods, &facts.installed.deployment) {
        (Err(error), _) | (_, Err(error)) => return unknown(error),
        (Ok(pods), Ok(deployment)) => (pods, deployment),
    };
    let current = deployment.as_ref().and_then(|one| one.version.as_deref());
    let Some(current) = current else {
        return Outcome::Warning("the control plane's version is not known".to_owned());
    };
    let other = pods_of(pods, |sidecar| match sidecar {
        Sidecar::Injected { version, .. } if version.as_deref() != Some(current) => {
            Some(version.clone().unwrap_or_else(|| "no version".to_owned()))
        }
        Sidecar::Injected { .. } | Sidecar::Missing | Sidecar::Refused(_) => None,
    });
    match other.is_empty() {
        true => Outcome::Good(format!("all were injected by {current}")),
        false => Outcome::Warning(format!("not injected by {current}: {}", some(&other))),
    }
}
