//! The checks.

pub(super) mod gateway;
mod pods;
mod running;

use std::collections::BTreeSet;

use super::facts::{Facts, NamespaceFact};
use super::{Check, Outcome, When};
use crate::injector;
use crate::kubernetes::names;

/// What sidecars and API server may differ by: certificates are valid from 5 min before they are
/// made, and a minute of that is left.
const SKEW_MAX_SECONDS: i64 = 240;
/// From here the difference is worth a warning.
const SKEW_WARN_SECONDS: i64 = 30;
/// The oldest version whose API has what the chart installs.
const SERVER_MIN: (u32, u32) = (1, 27);
/// The first with native sidecars (KEP-753).
const NATIVE_SIDECARS: (u32, u32) = (1, 29);
/// The first that says which addresses are those of Services (KEP-1880, `networking.k8s.io/v1`).
const SERVICE_CIDRS: (u32, u32) = (1, 33);
/// A root that ends sooner than this is worth a warning: 30 days.
const ROOT_WARN_SECONDS: i64 = 30 * 24 * 3600;
/// Names in one message.
const NAMED_MAX: usize = 5;

/// Documents in the message of [`DOCUMENTS`]: each has to be looked at before an upgrade.
const DOCUMENTS_MAX: usize = 20;

/// The check of what this version would not enforce.
pub(super) const DOCUMENTS: &str = "documents";

/// Every check, in the order in which they are shown.
pub const CHECKS: [Check; 23] = [
    Check {
        id: "api-version",
        when: When::Always,
        mend: "upgrade the cluster, or reach it: KUBECONFIG names it",
        look: api_version,
    },
    Check {
        id: "clock-skew",
        when: When::Always,
        mend: "synchronise the clocks of this machine and of the cluster's (NTP): certificates are \
               valid from 5 minutes before they are made",
        look: clock_skew,
    },
    Check {
        id: "node-clocks",
        when: When::Always,
        mend: "synchronise the clocks of the nodes (NTP): certificates are valid from 5 minutes before \
               they are made",
        look: running::node_clocks,
    },
    Check {
        id: "permissions",
        when: When::Before,
        mend: "install as a user with the ClusterRole cluster-admin, or one with these rights: RBAC lets \
               nobody make a role that gives more than he has himself without escalate, nor bind it \
               without bind",
        look: permissions,
    },
    Check {
        id: "service-ranges",
        when: When::Before,
        mend: "set mesh.serviceRanges to what the API server's --service-cluster-ip-range says",
        look: service_ranges,
    },
    Check {
        id: "gateway-api",
        when: When::Always,
        mend: "install the Gateway API's custom resource definitions, experimental channel, 1.5: \
               routes of a kind that is not served cannot be made, and the API server drops fields \
               that a definition does not have without a word",
        look: gateway::gateway_api,
    },
    Check {
        id: "crds",
        when: When::After,
        mend: "weft install --apply, or helm upgrade with crds.install=true",
        look: crds,
    },
    Check {
        id: DOCUMENTS,
        when: When::Always,
        mend: "use a version that knows them, or change or delete these documents yourself: this version \
               does not enforce what is named here, the API server drops fields that its definitions do \
               not have, and what they protect is unprotected. Where you accept that: \
               upgradeCheck.acceptUnenforced=true for helm upgrade, --accept-unenforced for weft install \
               --apply and weft check",
        look: documents,
    },
    Check {
        id: "control-plane",
        when: When::After,
        mend: "kubectl -n NAMESPACE describe pods; kubectl -n NAMESPACE logs deployment/weft-control-plane",
        look: control_plane,
    },
    Check {
        id: "cluster-followed",
        when: When::After,
        mend: "the log of the replica says why; its permissions are in the chart's ClusterRole \
               weft-control-plane: weft install --apply. Of one that was not asked: the API server has \
               to reach port 15014 of the control plane's pods, which networkPolicy.metricsRanges with \
               the API servers' addresses allows it",
        look: running::cluster_followed,
    },
    Check {
        id: "cni",
        when: When::After,
        mend: "kubectl -n NAMESPACE logs daemonset/weft-cni: pods on a node without the plugin wait for it",
        look: cni,
    },
    Check {
        id: "version",
        when: When::After,
        mend: "use the `weft` of the control plane's version, or upgrade the control plane",
        look: version,
    },
    Check {
        id: "webhook",
        when: When::After,
        mend: "weft install --apply, or helm upgrade with injector.enabled=true",
        look: webhook,
    },
    Check {
        id: "webhook-endpoints",
        when: When::After,
        mend: "without a ready replica no pod of a namespace with sidecars can be made: look at the \
               control plane",
        look: webhook_endpoints,
    },
    Check {
        id: "webhook-authority",
        when: When::After,
        mend: "the control plane's leader writes it: look at its log, and at its permissions on \
               MutatingWebhookConfiguration weft-injector",
        look: webhook_authority,
    },
    Check {
        id: "webhook-answers",
        when: When::After,
        mend: "the API server has to reach port 15017 of the control plane's pods (firewalls, network \
               policies), and the control plane's log says what it refused",
        look: running::webhook_answers,
    },
    Check {
        id: "roots",
        when: When::After,
        mend: "the control plane writes ConfigMap weft-trust-bundle to every namespace with \
               sidecars: look at its log; a root near its end has to be replaced",
        look: roots,
    },
    Check {
        id: "namespace-labels",
        when: When::After,
        mend: "kubectl label --overwrite namespace NAME weft-mesh.io/inject=enabled (or disabled)",
        look: namespace_labels,
    },
    Check {
        id: "pods-injected",
        when: When::After,
        mend: "make the pods anew: kubectl -n NAMESPACE rollout restart deployment NAME; they were \
               made before the label, or while the webhook was ignored",
        look: pods::pods_injected,
    },
    Check {
        id: "sidecars-ready",
        when: When::After,
        mend: "kubectl -n NAMESPACE logs POD -c weft-proxy",
        look: pods::sidecars_ready,
    },
    Check {
        id: "interception",
        when: When::After,
        mend: "kubectl -n NAMESPACE delete pod POD, so that it is made anew: the rules in its network \
               namespace were taken away (a flushed table, a restarted node); with cni.enabled the node \
               puts them back: kubectl -n NAMESPACE logs daemonset/weft-cni",
        look: pods::interception,
    },
    Check {
        id: "certificates",
        when: When::After,
        mend: "kubectl -n NAMESPACE logs POD -c weft-proxy: it says why its certificate is not renewed",
        look: running::certificates,
    },
    Check {
        id: "sidecars-current",
        when: When::After,
        mend: "kubectl -n NAMESPACE rollout restart deployment NAME: new pods get the new sidecar",
        look: pods::sidecars_current,
    },
];

fn unknown(error: &str) -> Outcome {
    Outcome::Failed(format!("not known: {error}"))
}

fn api_version(facts: &Facts) -> Outcome {
    let server = match &facts.server {
        Ok(server) => server,
        Err(error) => return unknown(error),
    };
    let (major, minor) = server.version;
    let found = format!("Kubernetes {major}.{minor}");
    if server.version < SERVER_MIN {
        let (major, minor) = SERVER_MIN;
        return Outcome::Failed(format!("{found}; {major}.{minor} and newer are supported"));
    }
    if server.version < NATIVE_SIDECARS {
        let (major, minor) = NATIVE_SIDECARS;
        return Outcome::Warning(format!(
            "{found} has no native sidecars ({major}.{minor} has): Jobs do not end by themselves"
        ));
    }
    Outcome::Good(found)
}

fn clock_skew(facts: &Facts) -> Outcome {
    let skew = match &facts.server {
        Ok(server) => server.skew,
        Err(error) => return unknown(error),
    };
    let Some(skew) = skew else {
        return Outcome::Warning("the API server's answers have no date".to_owned());
    };
    let found = format!("the API server's clock is {skew} s from this machine's");
    match skew.abs() {
        seconds if seconds > SKEW_MAX_SECONDS => Outcome::Failed(found),
        seconds if seconds > SKEW_WARN_SECONDS => Outcome::Warning(found),
        _ => Outcome::Good(found),
    }
}

fn permissions(facts: &Facts) -> Outcome {
    match &facts.denied {
        Err(error) => unknown(error),
        Ok(denied) if denied.is_empty() => Outcome::Good("all that installing takes".to_owned()),
        Ok(denied) => Outcome::Failed(format!("you may not: {}", some(denied))),
    }
}

fn service_ranges(facts: &Facts) -> Outcome {
    match &facts.server {
        Err(error) => unknown(error),
        Ok(server) if server.version < SERVICE_CIDRS => Outcome::Warning(
            "this version's API does not say which addresses are those of Services".to_owned(),
        ),
        Ok(_) => Outcome::Good("the API says them".to_owned()),
    }
}

fn cni(facts: &Facts) -> Outcome {
    match &facts.installed.cni {
        Err(error) => unknown(error),
        Ok(None) => Outcome::Good("no plugin: an init container redirects each pod".to_owned()),
        Ok(Some((wanted, ready))) => {
            let found = format!("ready on {ready} of {wanted} nodes");
            match ready < wanted {
                true => Outcome::Failed(found),
                false => Outcome::Good(found),
            }
        }
    }
}

fn crds(facts: &Facts) -> Outcome {
    let crds = match &facts.crds {
        Ok(crds) => crds,
        Err(error) => return unknown(error),
    };
    let wanted = match &facts.wanted_crds {
        Ok(wanted) => wanted,
        Err(error) => return unknown(error),
    };
    let there = |name: &&String| crds.iter().any(|crd| crd.name == **name && crd.established);
    let missing = wanted.iter().filter(|name| !there(name));
    let missing: Vec<String> = missing.cloned().collect();
    match missing.is_empty() {
        true => Outcome::Good(format!("{} kinds of documents", wanted.len())),
        false => Outcome::Failed(format!("the cluster does not serve {}", some(&missing))),
    }
}

fn documents(facts: &Facts) -> Outcome {
    documents_of(&facts.unenforced)
}

/// The outcome of the check [`DOCUMENTS`] where this would not be enforced.
pub(super) fn documents_of(unenforced: &Result<Vec<String>, String>) -> Outcome {
    match unenforced {
        Err(error) => unknown(error),
        Ok(all) if all.is_empty() => Outcome::Good("this version enforces all of them".to_owned()),
        Ok(all) => {
            let named = first(all, DOCUMENTS_MAX);
            Outcome::Failed(format!("would not be enforced: {named}"))
        }
    }
}

fn control_plane(facts: &Facts) -> Outcome {
    match &facts.installed.deployment {
        Err(error) => unknown(error),
        Ok(None) => Outcome::Failed(format!(
            "there is no Deployment {}/{}: weft install",
            facts.namespace,
            names::CONTROL_PLANE
        )),
        Ok(Some(found)) => {
            let said = format!("{} of {} replicas available", found.available, found.wanted);
            match found.available {
                0 => Outcome::Failed(said),
                available if available < found.wanted => Outcome::Warning(said),
                _ => Outcome::Good(said),
            }
        }
    }
}

fn version(facts: &Facts) -> Outcome {
    match &facts.installed.deployment {
        Err(error) => unknown(error),
        Ok(None) => Outcome::Failed("there is no control plane".to_owned()),
        Ok(Some(found)) => {
            let theirs = found.version.as_deref().unwrap_or("of no known version");
            let said = format!("control plane {theirs}, this program {}", facts.version);
            match theirs == facts.version {
                true => Outcome::Good(said),
                false => Outcome::Warning(said),
            }
        }
    }
}

fn webhook(facts: &Facts) -> Outcome {
    let service = format!("{}/{}", facts.namespace, names::CONTROL_PLANE);
    match &facts.installed.webhooks {
        Err(error) => unknown(error),
        Ok(None) => Outcome::Failed(format!(
            "there is no MutatingWebhookConfiguration {}: pods get no sidecars",
            names::WEBHOOK
        )),
        Ok(Some(found)) => {
            let mut elsewhere = found.iter().filter(|one| one.service != service);
            match elsewhere.next() {
                Some(one) => Outcome::Failed(format!(
                    "{} calls {}, and the control plane is {service}",
                    one.name, one.service
                )),
                None => Outcome::Good(format!("{} webhooks", found.len())),
            }
        }
    }
}

fn webhook_endpoints(facts: &Facts) -> Outcome {
    match &facts.installed.endpoints {
        Err(error) => unknown(error),
        Ok(0) => Outcome::Failed("the control plane's Service has no ready endpoint".to_owned()),
        Ok(found) => Outcome::Good(format!("{found} ready")),
    }
}

/// The roots that are in the control plane's or the first namespace that has some.
fn mesh_roots(namespaces: &[NamespaceFact]) -> Option<&str> {
    namespaces.iter().find_map(|one| one.roots.as_deref())
}

fn webhook_authority(facts: &Facts) -> Outcome {
    let webhooks = match &facts.installed.webhooks {
        Err(error) => return unknown(error),
        Ok(None) => return Outcome::Failed("there is no webhook".to_owned()),
        Ok(Some(webhooks)) => webhooks,
    };
    if let Some(empty) = webhooks.iter().find(|one| one.authority.is_empty()) {
        return Outcome::Failed(format!(
            "{} has no caBundle: the API server does not believe the control plane, and refuses pods",
            empty.name
        ));
    }
    let roots = match &facts.namespaces {
        Err(error) => return unknown(error),
        Ok(namespaces) => mesh_roots(namespaces),
    };
    let Some(roots) = roots else {
        return Outcome::Warning(
            "no namespace has the mesh's roots yet, to compare caBundle with".to_owned(),
        );
    };
    let roots = certificates(roots);
    let wrong = webhooks.iter().find(|one| {
        let believed = certificates(&one.authority);
        believed.is_empty() || believed.is_disjoint(&roots)
    });
    match wrong {
        Some(one) => Outcome::Failed(format!(
            "caBundle of {} is not one of the mesh's roots",
            one.name
        )),
        None => Outcome::Good("caBundle is the mesh's".to_owned()),
    }
}

/// Certificates of a PEM file, in DER.
fn certificates(text: &str) -> BTreeSet<Vec<u8>> {
    let blocks = pem::parse_many(text).unwrap_or_default();
    let blocks = blocks.into_iter().filter(|one| one.tag() == "CERTIFICATE");
    blocks.map(pem::Pem::into_contents).collect()
}

fn roots(facts: &Facts) -> Outcome {
    let namespaces = match &facts.namespaces {
        Err(error) => return unknown(error),
        Ok(namespaces) => namespaces,
    };
    let without = namespaces
        .iter()
        .filter(|one| injector::asks(&one.labels) && one.roots.is_none());
    let without: Vec<String> = without.map(|one| one.name.clone()).collect();
    if !without.is_empty() {
        return Outcome::Failed(format!(
            "pods wait for the mesh's roots in {}",
            some(&without)
        ));
    }
    let mut ends = Vec::new();
    for root in mesh_roots(namespaces).map(certificates).unwrap_or_default() {
        match x509_parser::parse_x509_certificate(&root) {
            Ok((_, read)) => ends.push(read.validity().not_after.timestamp()),
            Err(_) => return Outcome::Failed("a root of the mesh is no certificate".to_owned()),
        }
    }
    // Of several, the newest goes on.
    let Some(end) = ends.into_iter().max() else {
        return Outcome::Good("no namespace needs them yet".to_owned());
    };
    let left = end - facts.now;
    let said = format!("valid for {} days", left / (24 * 3600));
    match left {
        ..=0 => Outcome::Failed("the mesh's root has ended".to_owned()),
        left if left < ROOT_WARN_SECONDS => Outcome::Warning(said),
        _ => Outcome::Good(said),
    }
}

fn namespace_labels(facts: &Facts) -> Outcome {
    let namespaces = match &facts.namespaces {
        Err(error) => return unknown(error),
        Ok(namespaces) => namespaces,
    };
    let wrong = namespaces.iter().filter_map(|one| {
        let value = one.labels.get(names::INJECT)?;
        let known = [names::ENABLED, names::DISABLED].contains(&value.as_str());
        (!known).then(|| format!("{}={value}", one.name))
    });
    let wrong: Vec<String> = wrong.collect();
    if !wrong.is_empty() {
        return Outcome::Failed(format!(
            "{}: nothing is injected there; allowed: {}, {}",
            some(&wrong),
            names::ENABLED,
            names::DISABLED
        ));
    }
    let enabled = namespaces
        .iter()
        .filter(|one| injector::asks(&one.labels))
        .count();
    Outcome::Good(format!("{enabled} namespaces with sidecars"))
}

/// The first of them, and how many more there are.
fn some(names: &[String]) -> String {
    first(names, NAMED_MAX)
}

fn first(names: &[String], max: usize) -> String {
    let shown = names[..names.len().min(max)].join(", ");
    match names.len().saturating_sub(max) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
