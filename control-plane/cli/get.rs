//! `weft get` and `weft status`: what is.

use std::collections::BTreeMap;

use clap::Args;
use comfy_table::Table;
use serde::Serialize;
use serde::de::DeserializeOwned;
use weft_api::client::{Client, query};
use weft_api::types::{
    EffectiveInfo, Items, ResourceInfo, ResourceStatus, ServiceInfo, StatusInfo, WorkloadInfo,
    port_text,
};

use crate::output::{CliError, Format, OutputArgs, age, join, line, moment, show, table};
use crate::selector::Selector;

/// Shows services, workloads, or resources of a kind.
///
/// `services` and `workloads` show what there is, asked for or not; a kind as it is written in
/// documents (Service, MeshConfig) shows the documents, and no kind at all shows every document.
///
/// Examples:
///   weft get services -n shop
///   weft get workloads
///   weft get Service web -n shop -o yaml
///   weft get httproutes -l app.kubernetes.io/part-of=shop
///   weft get --effective shop/web -o yaml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct GetArgs {
    /// services, workloads, or a kind of documents
    kind: Option<String>,
    /// Only the one with this name
    name: Option<String>,
    /// Only in this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only those with these labels: KEY=VALUE, KEY!=VALUE, KEY or !KEY, divided by commas
    #[arg(short = 'l', long, conflicts_with = "effective")]
    selector: Option<Selector>,
    /// The TrafficPolicy that is in force for every port of a service, NAMESPACE/NAME or NAME with
    /// -n, or of all: which one won, why, and with -o yaml everything that it comes to
    #[arg(long, value_name = "SERVICE", num_args = 0..=1, default_missing_value = "")]
    effective: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Shows the control plane's own state.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft get`.
pub(crate) async fn get(client: Client, args: GetArgs) -> Result<(), CliError> {
    if let Some(service) = &args.effective {
        return effective(&client, &args, service).await;
    }
    match args.kind.as_deref() {
        Some("services" | "service" | "svc") => {
            let items = fetch(&client, "/v1/services", &args).await?;
            show_items(args.output.format, items, services)
        }
        Some("workloads" | "workload") => {
            let items = fetch(&client, "/v1/workloads", &args).await?;
            show_items(args.output.format, items, workloads)
        }
        kind => {
            let kind = kind.filter(|kind| *kind != "all").unwrap_or_default();
            let path = query("/v1/resources", &[("kind", kind)]);
            let items = fetch(&client, &path, &args).await?;
            show_items(args.output.format, items, resources)
        }
    }
}

async fn effective(client: &Client, args: &GetArgs, service: &str) -> Result<(), CliError> {
    let Items { mut items } = client.get::<Items<EffectiveInfo>>("/v1/effective").await?;
    let (namespace, wanted) = asked_for(args.namespace.as_deref(), Some(service));
    let wanted = wanted.filter(|wanted| !wanted.is_empty());
    items.retain(|one| {
        one.service.split_once('/').is_some_and(|(found, name)| {
            namespace.is_none_or(|namespace| namespace == found)
                && wanted.is_none_or(|wanted| wanted == name)
        })
    });
    if let (Some(wanted), true) = (wanted, items.is_empty()) {
        return Err(missing(namespace, &format!("service {wanted:?}")));
    }
    show_items(args.output.format, items, |items| {
        let rows = items.iter().map(|one| {
            vec![
                format!("{}:{}", one.service, one.port),
                one.policy
                    .clone()
                    .unwrap_or_else(|| "(defaults)".to_owned()),
                one.why.clone(),
                join(&one.beaten),
                join(rate_limits(one)),
            ]
        });
        let columns = ["PORT", "POLICY", "WHY", "NOT IN FORCE", "RATE LIMITS"];
        table(&columns, rows)
    })
}

/// Rules of RateLimitPolicies, `NAME/RULE`.
fn rate_limits(one: &EffectiveInfo) -> Vec<String> {
    let limits = one.rate_limits.iter();
    let named = limits.map(|limit| format!("{}/{}", limit.policy, limit.rule));
    named.collect()
}

/// What is shown, with what it is asked for by.
trait Item: DeserializeOwned {
    fn namespace(&self) -> &str;
    fn name(&self) -> &str;
    fn labels(&self) -> &BTreeMap<String, String>;
}

impl<S: DeserializeOwned> Item for ResourceInfo<S> {
    fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    fn name(&self) -> &str {
        &self.metadata.name
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        &self.metadata.labels
    }
}

impl Item for WorkloadInfo {
    fn namespace(&self) -> &str {
        self.name.namespace()
    }

    fn name(&self) -> &str {
        self.name.name()
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }
}

async fn fetch<T: Item>(client: &Client, path: &str, args: &GetArgs) -> Result<Vec<T>, CliError> {
    let Items { mut items } = client.get::<Items<T>>(path).await?;
    let (namespace, wanted) = asked_for(args.namespace.as_deref(), args.name.as_deref());
    items.retain(|item| {
        namespace.is_none_or(|namespace| namespace == item.namespace())
            && wanted.is_none_or(|wanted| wanted == item.name())
            && args
                .selector
                .as_ref()
                .is_none_or(|selector| selector.matches(item.labels()))
    });
    match wanted {
        Some(wanted) if items.is_empty() => Err(missing(namespace, &format!("{wanted:?}"))),
        Some(_) | None => Ok(items),
    }
}

/// The namespace and name that are asked for: a name may be given as NAMESPACE/NAME, which goes
/// before `-n`.
fn asked_for<'a>(
    namespace: Option<&'a str>,
    name: Option<&'a str>,
) -> (Option<&'a str>, Option<&'a str>) {
    match name.and_then(|name| name.split_once('/')) {
        Some((namespace, name)) => (Some(namespace), Some(name)),
        None => (namespace, name),
    }
}

fn missing(namespace: Option<&str>, what: &str) -> CliError {
    let place = namespace.map_or_else(
        || "any namespace".to_owned(),
        |namespace| format!("namespace {namespace:?}"),
    );
    CliError::Failed(format!("there is no {what} in {place}"))
}

/// As YAML, each item is a document of its own, so that it can be applied.
fn show_items<T: Serialize>(
    format: Format,
    items: Vec<T>,
    as_table: fn(&[T]) -> Table,
) -> Result<(), CliError> {
    if format != Format::Yaml {
        return show(format, &Items { items }, |all| as_table(&all.items));
    }
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            line("---")?;
        }
        show(format, item, |_| Table::new())?;
    }
    Ok(())
}

fn services(items: &[ServiceInfo]) -> Table {
    let rows = items.iter().map(|service| {
        let status = &service.status;
        vec![
            format!("{}/{}", service.metadata.namespace, service.metadata.name),
            status.hostname.clone(),
            join(&status.addresses),
            join(status.ports.iter().map(|p| port_text(p.port, p.protocol))),
            status.endpoints.len().to_string(),
        ]
    });
    let header = ["NAME", "HOSTNAME", "ADDRESSES", "PORTS", "ENDPOINTS"];
    table(&header, rows)
}

fn workloads(items: &[WorkloadInfo]) -> Table {
    let rows = items.iter().map(|workload| {
        let ports = workload.ports.iter().map(|port| {
            let ready = if port.ready { "" } else { "(not ready)" };
            format!("{}{ready}", port_text(port.port, port.protocol))
        });
        vec![
            workload.name.to_string(),
            workload.instance.clone(),
            if workload.connected { "yes" } else { "no" }.to_owned(),
            join(&workload.services),
            join(ports),
            workload.identity.clone(),
        ]
    });
    let header = [
        "NAME",
        "INSTANCE",
        "CONNECTED",
        "SERVICES",
        "PORTS",
        "IDENTITY",
    ];
    table(&header, rows)
}

/// What of a status is not as it should be.
fn trouble(status: &ResourceStatus) -> String {
    let conditions = status.parents.iter().flat_map(|parent| &parent.conditions);
    let conditions = conditions.chain(&status.conditions);
    let bad = conditions.filter(|condition| condition.status == "False");
    let reasons: std::collections::BTreeSet<&str> = bad.map(|bad| &*bad.reason).collect();
    match reasons.is_empty() {
        true => "-".to_owned(),
        false => join(reasons),
    }
}

fn resources(items: &[ResourceInfo]) -> Table {
    let rows = items.iter().map(|resource| {
        let status = &resource.status;
        vec![
            resource.kind.clone(),
            format!("{}/{}", resource.metadata.namespace, resource.metadata.name),
            status.revision.to_string(),
            status.generation.to_string(),
            age(status.changed / 1000),
            status.author.clone(),
            trouble(status),
        ]
    });
    let header = [
        "KIND",
        "NAME",
        "REVISION",
        "GENERATION",
        "CHANGED",
        "AUTHOR",
        "TROUBLE",
    ];
    table(&header, rows)
}

/// Runs `weft status`.
pub(crate) async fn status(client: Client, args: StatusArgs) -> Result<(), CliError> {
    let status: StatusInfo = client.get("/v1/status").await?;
    show(args.output.format, &status, |status| {
        let StatusInfo { status: own, .. } = status;
        let compiled = status.compiled_revision;
        let rows = [
            ("version", own.version.clone()),
            ("address", own.address.clone()),
            ("advertised", own.advertised.clone()),
            ("metrics", own.metrics_address.clone()),
            (
                "admin",
                own.admin_address
                    .clone()
                    .unwrap_or_else(|| "socket only".to_owned()),
            ),
            ("data directory", own.data_dir.clone()),
            ("trust domain", own.trust_domain.clone()),
            ("root digest", own.root_digest.clone()),
            ("started", moment(status.started)),
            (
                "revision",
                format!("{} (sidecars: {compiled})", status.revision),
            ),
            ("resources", status.resources.to_string()),
            ("services", status.services.to_string()),
            ("workloads", status.workloads.to_string()),
            ("sidecars", status.proxies.to_string()),
        ];
        let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
        table(&["CONTROL PLANE", ""], rows)
    })
}
