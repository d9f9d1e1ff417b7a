//! Which endpoints a caller goes to first, by where both run: what a Kubernetes Service says by
//! `trafficDistribution` and `internalTrafficPolicy`, and its slices by hints (KEP-2433, KEP-4444,
//! KEP-2086). Pure.

use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;

/// Where something runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locality {
    /// The node; empty when unknown, or outside of any cluster.
    pub node: String,
    /// The zone; empty when unknown.
    pub zone: String,
}

/// How far the callers of a service go for an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// Anywhere.
    #[default]
    Anywhere,
    /// To their own zone, and further only where no endpoint there is well.
    PreferZone,
    /// To their own node, else to their own zone, and further only where none there is well.
    PreferNode,
    /// To their own node and never further.
    NodeOnly,
}

/// How near each endpoint is to a caller: 0 is gone to first, then 1, then 2; `None` never. Where all
/// are as near, all are 0.
///
/// Hints count where every endpoint has some and one has the caller's zone, as kube-proxy reads them;
/// else where the endpoints run does, as far as the distribution asks for it.
pub fn tiers(
    distribution: Distribution,
    caller: &Locality,
    endpoints: &[&Endpoint],
) -> Vec<Option<u8>> {
    let is_own_node = |node: &String| !node.is_empty() && *node == caller.node;
    let is_own_zone = |zone: &String| !zone.is_empty() && *zone == caller.zone;
    if distribution == Distribution::NodeOnly {
        let own = |endpoint: &&Endpoint| is_own_node(&endpoint.placement.node).then_some(0);
        return endpoints.iter().map(own).collect();
    }
    let by_hints = hinted(endpoints, is_own_zone);
    let (by_node, by_zone) = match distribution {
        Distribution::PreferNode => (true, true),
        Distribution::PreferZone => (false, true),
        Distribution::Anywhere | Distribution::NodeOnly => (false, false),
    };
    let tier = |endpoint: &&Endpoint| {
        let placement = &endpoint.placement;
        let zone = match by_hints {
            true => placement.zone_hints.iter().any(is_own_zone),
            false => by_zone && is_own_zone(&endpoint.zone),
        };
        match (by_node && is_own_node(&placement.node), zone) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        }
    };
    let tiers: Vec<u8> = endpoints.iter().map(tier).collect();
    let all_same = tiers.windows(2).all(|pair| pair[0] == pair[1]);
    let tiers = tiers.into_iter();
    tiers
        .map(|tier| Some(if all_same { 0 } else { tier }))
        .collect()
}

/// Whether hints count: every endpoint has some, and one has the caller's.
fn hinted(endpoints: &[&Endpoint], is_own: impl Fn(&String) -> bool) -> bool {
    let hints = endpoints.iter().map(|one| &one.placement.zone_hints);
    let mut any_own = false;
    for hints in hints {
        if hints.is_empty() {
            return false;
        }
        any_own |= hints.iter().any(&is_own);
    }
    any_own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Placement, Transport};

    /// An endpoint by `NODE ZONE HINTS`, `-` for nothing.
    fn endpoint(text: &str) -> Endpoint {
        let words: Vec<&str> = text.split(' ').collect();
        let word = |index: usize| words[index].trim_start_matches('-').to_owned();
        let list = |index: usize| {
            let all = words[index].split(',').filter(|one| *one != "-");
            all.map(ToOwned::to_owned).collect()
        };
        Endpoint {
            instance: text.into(),
            workload: "shop/web".parse().unwrap(),
            identity: None,
            zone: word(1),
            placement: Placement {
                node: word(0),
                zone_hints: list(2),
            },
            weight: 100,
            transport: Transport::Plain,
            ports: Vec::new(),
        }
    }

    #[track_caller]
    fn check(distribution: Distribution, caller: (&str, &str), all: &[&str], expected: &str) {
        let all: Vec<Endpoint> = all.iter().map(|text| endpoint(text)).collect();
        let all: Vec<&Endpoint> = all.iter().collect();
        let caller = Locality {
            node: caller.0.to_owned(),
            zone: caller.1.to_owned(),
        };
        let found = tiers(distribution, &caller, &all).into_iter();
        let found = found.map(|tier| tier.map_or_else(|| "-".to_owned(), |tier| tier.to_string()));
        assert_eq!(found.collect::<String>(), expected);
    }

    #[test]
    fn who_is_near() {
        use Distribution::{Anywhere, NodeOnly, PreferNode, PreferZone};
        let three = ["n1 a -", "n2 a -", "n3 b -"];
        let cases = [
            (Anywhere, ("n1", "a"), "000"),
            (PreferZone, ("n1", "a"), "112"),
            (PreferZone, ("n9", "b"), "221"),
            // Nobody is near: all are.
            (PreferZone, ("n9", "c"), "000"),
            (PreferZone, ("n9", ""), "000"),
            (PreferNode, ("n1", "a"), "012"),
            (PreferNode, ("n9", "a"), "112"),
            (PreferNode, ("", ""), "000"),
            (NodeOnly, ("n2", "a"), "-0-"),
            (NodeOnly, ("n9", "a"), "---"),
            // Who runs on no node has none on its own.
            (NodeOnly, ("", "a"), "---"),
        ];
        for (distribution, caller, expected) in cases {
            check(distribution, caller, &three, expected);
        }
        // An unknown node is nobody's own.
        check(NodeOnly, ("", ""), &["- a -"], "-");
        check(Anywhere, ("n1", "a"), &[], "");
    }

    #[test]
    fn hints_count_where_all_have_them_and_one_is_for_the_caller() {
        use Distribution::{Anywhere, PreferNode, PreferZone};
        let hinted = ["n1 a b", "n2 a a", "n3 b b"];
        check(Anywhere, ("n9", "a"), &hinted, "212");
        check(PreferZone, ("n9", "b"), &hinted, "121");
        check(Anywhere, ("n9", "c"), &hinted, "000");
        check(PreferNode, ("n1", "a"), &hinted, "012");
        // One without hints: none count, and where it runs does.
        let partly = ["n1 a b", "n2 a a", "n3 b -"];
        check(Anywhere, ("n9", "a"), &partly, "000");
        check(PreferZone, ("n9", "a"), &partly, "112");
    }
}
