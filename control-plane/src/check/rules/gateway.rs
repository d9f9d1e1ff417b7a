//! The Gateway API's definitions: those that are read here, and what they lack.

use std::collections::BTreeSet;

use super::super::Outcome;
use super::super::facts::{Crd, Facts};
use super::{some, unknown};
use crate::model::{GATEWAY_GROUP, Kind, gateway_kinds};

pub(super) fn gateway_api(facts: &Facts) -> Outcome {
    let crds = match &facts.crds {
        Ok(crds) => crds,
        Err(error) => return unknown(error),
    };
    let mut wrong = Vec::new();
    let mut bundles = BTreeSet::new();
    for kind in gateway_kinds() {
        let name = format!("{}.{GATEWAY_GROUP}", kind.plural);
        let versions: Vec<&str> = short_versions(kind).collect();
        let mut established = crds.iter().filter(|crd| crd.established);
        let served = established.find(|crd| {
            let mut served = crd.served.iter();
            crd.name == name && served.any(|one| versions.contains(&one.as_str()))
        });
        let Some(crd) = served else {
            let versions = versions.join(" or ");
            wrong.push(format!("the cluster does not serve {name} {versions}"));
            continue;
        };
        let bundle = bundle(crd);
        if !crd.lacks.is_empty() {
            let fields = some(&crd.lacks);
            wrong.push(format!("{} ({bundle}) drops {fields}", kind.name));
        }
        bundles.insert(bundle);
    }
    match wrong.is_empty() {
        true => {
            let bundles: Vec<String> = bundles.into_iter().collect();
            Outcome::Good(format!("routes of every kind ({})", bundles.join("; ")))
        }
        false => Outcome::Warning(wrong.join("; ")),
    }
}

/// Versions that a kind is read in, as definitions name them: `v1`.
pub(in crate::check) fn short_versions(kind: &Kind) -> impl Iterator<Item = &'static str> {
    kind.versions().filter_map(|one| one.split('/').next_back())
}

/// Which bundle a definition is of, as its annotations say.
fn bundle(crd: &Crd) -> String {
    let version = crd.bundle.as_deref().unwrap_or("of no known version");
    let channel = crd.channel.as_deref().unwrap_or("no known");
    format!("{version}, {channel} channel")
}
