//! What an earlier mesh has left in a cluster. Each of it is written only after the root was put into
//! its Secret: where one is found and the Secret is not there, the root was lost, and another one would
//! be believed by none of the sidecars that run.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use crate::kubernetes::names::{
    CONTROL_PLANE, FIELD_MANAGER, MANAGED_BY_LABEL, TRUST_BUNDLE_CONFIG_MAP, WEBHOOK,
};

/// The label of the Secrets that are records of the mesh, with the name of their table.
const RECORDS: &str = "weft-mesh.io/table";
/// Records that are counted, and namespaces that are looked for.
const LISTED_MAX: u32 = 500;
/// Namespaces that are named.
const NAMED_MAX: usize = 5;

/// What was found, and the command that takes each of it away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remains(Vec<Remain>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Remain {
    what: String,
    command: String,
}

impl Remains {
    /// Looks for what an earlier mesh has left.
    pub(super) async fn find(client: &Client, namespace: &str) -> Result<Self, kube::Error> {
        let named = |name: &str| {
            let params = ListParams::default().limit(LISTED_MAX);
            params.fields(&format!("metadata.name={name}"))
        };
        let records = ListParams::default().labels(RECORDS).limit(LISTED_MAX);
        let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
        let secrets = secrets.list(&records).await?.items;
        let leases = Api::<Lease>::namespaced(client.clone(), namespace);
        let has_lease = leases.get_opt(CONTROL_PLANE).await?.is_some();
        let maps = Api::<ConfigMap>::all(client.clone());
        let maps = maps.list(&named(TRUST_BUNDLE_CONFIG_MAP)).await?.items;
        let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone());
        let webhooks = webhooks.list(&named(WEBHOOK)).await?.items;
        let found = [
            of_records(namespace, &secrets),
            of_maps(&maps),
            webhooks.first().and_then(of_webhook),
            has_lease.then(|| Remain {
                what: format!("the lease {namespace}/{CONTROL_PLANE}"),
                command: format!("kubectl -n {namespace} delete lease {CONTROL_PLANE}"),
            }),
        ];
        Ok(Self(found.into_iter().flatten().collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The commands that take all of it away.
    pub fn commands(&self) -> impl fmt::Display {
        let commands = self.0.iter().map(|remain| remain.command.clone());
        commands.collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<&str> = self.0.iter().map(|remain| &*remain.what).collect();
        f.write_str(&all.join("; "))
    }
}

fn of_records(namespace: &str, secrets: &[Secret]) -> Option<Remain> {
    let mut tables = BTreeMap::<&str, usize>::new();
    for secret in secrets {
        let table = secret.labels().get(RECORDS);
        *tables.entry(table.map_or("", |table| table)).or_default() += 1;
    }
    let tables = tables
        .iter()
        .map(|(table, count)| format!("{count} {table}"));
    let tables: Vec<_> = tables.collect();
    (!tables.is_empty()).then(|| Remain {
        what: format!(
            "records in secrets of namespace {namespace} with the label {RECORDS} ({})",
            tables.join(", ")
        ),
        command: format!("kubectl -n {namespace} delete secrets -l {RECORDS}"),
    })
}

fn of_maps(maps: &[ConfigMap]) -> Option<Remain> {
    let written = maps.iter().filter(|map| is_written_by_a_mesh(map));
    let namespaces: Vec<String> = written.filter_map(|map| map.namespace()).collect();
    let more = match namespaces.len() > NAMED_MAX {
        true => format!(" and {} more", namespaces.len() - NAMED_MAX),
        false => String::new(),
    };
    let first = &namespaces[..namespaces.len().min(NAMED_MAX)];
    (!first.is_empty()).then(|| Remain {
        what: format!(
            "its root in the config map {TRUST_BUNDLE_CONFIG_MAP} of namespace {}{more}",
            first.join(", ")
        ),
        command: format!(
            "kubectl delete configmaps -A --field-selector metadata.name={TRUST_BUNDLE_CONFIG_MAP}"
        ),
    })
}

/// Whoever may make config maps may make one of this name; what a mesh writes has its label, or its
/// manager where the label was taken away.
fn is_written_by_a_mesh(map: &ConfigMap) -> bool {
    let label = map.labels().get(MANAGED_BY_LABEL);
    let mut managers = map.managed_fields().iter();
    label.is_some_and(|label| label == FIELD_MANAGER)
        || managers.any(|one| one.manager.as_deref() == Some(FIELD_MANAGER))
}

fn of_webhook(webhook: &MutatingWebhookConfiguration) -> Option<Remain> {
    let all = webhook.webhooks.iter().flatten().enumerate();
    let bundles = all.filter(|(_, one)| {
        let bundle = one.client_config.ca_bundle.as_ref();
        bundle.is_some_and(|bundle| !bundle.0.is_empty())
    });
    let removed = bundles.map(|(index, _)| {
        format!(r#"{{"op":"remove","path":"/webhooks/{index}/clientConfig/caBundle"}}"#)
    });
    let removed: Vec<_> = removed.collect();
    (!removed.is_empty()).then(|| Remain {
        what: format!("its root in the caBundle of the webhook {WEBHOOK}"),
        command: format!(
            "kubectl patch mutatingwebhookconfiguration {WEBHOOK} --type=json -p '[{}]'",
            removed.join(",")
        ),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(remain: Option<Remain>) -> (String, String) {
        let remain = remain.unwrap();
        (remain.what, remain.command)
    }

    #[test]
    fn what_was_found_is_named_with_what_takes_it_away() {
        let secret = |table: &str| -> Secret {
            serde_json::from_value(json!({"metadata": {"labels": {RECORDS: table}}})).unwrap()
        };
        let secrets = ["address", "instance", "address"].map(secret);
        let (what, command) = found(of_records("weft-system", &secrets));
        assert!(what.ends_with("(2 address, 1 instance)"), "{what}");
        assert_eq!(
            command,
            "kubectl -n weft-system delete secrets -l weft-mesh.io/table"
        );
        assert_eq!(of_records("weft-system", &[]), None);

        let map = |namespace: String, mark: serde_json::Value| -> ConfigMap {
            let mut metadata = mark;
            metadata["namespace"] = json!(namespace);
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let label = json!({"labels": {MANAGED_BY_LABEL: FIELD_MANAGER}});
        let manager = json!({"managedFields": [{"manager": FIELD_MANAGER}]});
        let marks = [label, manager];
        let maps: Vec<_> = (0..7)
            .map(|n| map(format!("n{n}"), marks[n % 2].clone()))
            .collect();
        let (what, _) = found(of_maps(&maps));
        assert!(
            what.ends_with("of namespace n0, n1, n2, n3, n4 and 2 more"),
            "{what}"
        );
        assert_eq!(of_maps(&[]), None);
        // Somebody else's of the same name.
        for mark in [
            json!({}),
            json!({"labels": {MANAGED_BY_LABEL: "Helm"}, "managedFields": [{"manager": "kubectl"}]}),
        ] {
            assert_eq!(of_maps(&[map("shop".to_owned(), mark)]), None);
        }

        // As the chart makes it, and with the root of a mesh.
        let mut webhook = json!({"webhooks": [
            {"name": "a", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]},
            {"name": "b", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]},
        ]});
        let read = |webhook: &serde_json::Value| serde_json::from_value(webhook.clone()).unwrap();
        assert_eq!(of_webhook(&read(&webhook)), None);
        webhook["webhooks"][1]["clientConfig"]["caBundle"] = json!("bmV3");
        let (_, command) = found(of_webhook(&read(&webhook)));
        assert!(
            command
                .ends_with(r#"-p '[{"op":"remove","path":"/webhooks/1/clientConfig/caBundle"}]'"#)
        );
    }
}
