//! Commands that ask the control plane of this machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::Value;
use weft_control_plane::api::types::{
    Applied, ApplyAnswer, Changed, InstanceView, ProxyAnswer, RevokeRequest, RollbackRequest,
    Status, TokenAnswer, TokenRequest, TokenView,
};
use weft_control_plane::app::parse_duration;
use weft_control_plane::client::{Client, ClientError};
use weft_control_plane::document;
use weft_control_plane::store::{HistoryEntry, StoredResource};
use weft_core::name::{ServiceName, WorkloadName};

use crate::output::{Output, print, time};
use crate::{FAILED, INVALID};

/// How often `apply --wait` looks.
const WAIT_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Makes resources as files say.
    ///
    /// Examples:
    ///   weft apply -f orders.yaml
    ///   weft apply -f policies/ --wait 10s
    ///   cat orders.yaml | weft apply -f - --dry-run
    #[command(verbatim_doc_comment)]
    Apply(ApplyArgs),
    /// Checks files without a control plane.
    Validate {
        /// A file, a directory, or - for standard input.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Shows services, workloads, or resources of a kind.
    ///
    /// Examples:
    ///   weft get services
    ///   weft get workloads -n shop -o json
    ///   weft get Service orders -n shop -o yaml
    #[command(verbatim_doc_comment)]
    Get {
        /// services, workloads, or a kind of resource; everything that was applied by default.
        kind: Option<String>,
        /// The name.
        name: Option<String>,
        #[command(flatten)]
        scope: Scope,
    },
    /// Deletes a resource.
    Delete {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Its namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Shows who changed what, the newest first.
    History {
        /// Of this kind.
        kind: Option<String>,
        /// Of this name.
        name: Option<String>,
        #[command(flatten)]
        scope: Scope,
    },
    /// Brings every resource back to what it was at a revision.
    Rollback {
        /// The revision, as `weft history` shows it.
        revision: u64,
    },
    /// Shows each connected sidecar: since when, what it holds, what it rejected.
    Proxies {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Join tokens: what a sidecar proves itself with for the first time.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Instances and their certificates.
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Shows the control plane itself.
    Status {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A file, a directory, or - for standard input.
    #[arg(short, long)]
    file: PathBuf,
    /// Says what would change, and changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Waits until every connected sidecar has it, and says which.
    #[arg(long, value_parser = parse_duration)]
    wait: Option<Duration>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Scope {
    /// Of this namespace only.
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a token and prints it, once.
    ///
    /// Example:
    ///   weft token create --workload shop/web --service web --port 8080 --ttl 10m > token
    #[command(verbatim_doc_comment)]
    Create {
        /// NAMESPACE/NAME of the workload that may use it.
        #[arg(long)]
        workload: WorkloadName,
        /// A service that it may serve, NAME or NAMESPACE/NAME.
        #[arg(long)]
        service: Vec<String>,
        /// A port that it may serve.
        #[arg(long)]
        port: Vec<u16>,
        /// For how long it may be redeemed: 1s to 7 days.
        #[arg(long, default_value = "10m", value_parser = parse_duration)]
        ttl: Duration,
    },
    /// Shows tokens that were made; not their text.
    List {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Shows instances.
    List {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Revokes an instance: its streams are cut, peers refuse its certificate.
    Revoke {
        /// The instance, as `weft certs list` shows it.
        instance: String,
    },
}

/// What went wrong, with its exit code.
struct Failure(String, u8);

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mut text = error.to_string();
        let mut code = FAILED;
        if let ClientError::Refused {
            status, problems, ..
        } = &error
        {
            if status.is_client_error() {
                code = INVALID;
            }
            for problem in problems {
                text.push_str(&format!("\n  {problem}"));
            }
        }
        Self(text, code)
    }
}

/// Runs one of the commands.
pub(crate) fn run(command: ClientCommand) -> ExitCode {
    let result = crate::block_on(dispatch(command));
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(Failure(reason, code))) => {
            eprintln!("weft: {reason}");
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("weft: {error}");
            ExitCode::from(FAILED)
        }
    }
}

async fn dispatch(command: ClientCommand) -> Result<(), Failure> {
    if let ClientCommand::Validate { file } = &command {
        return validate(file);
    }
    let client = Client::from_env()?;
    match command {
        ClientCommand::Validate { .. } => Ok(()),
        ClientCommand::Apply(args) => apply(&client, &args).await,
        ClientCommand::Get { kind, name, scope } => get(&client, kind, name, &scope).await,
        ClientCommand::Delete {
            kind,
            name,
            namespace,
        } => {
            let path = format!(
                "/v1/resources/{kind}/{namespace}/{name}?author={}",
                author()
            );
            let answer: ApplyAnswer = client.delete(&path).await?;
            changed(Output::Table, &answer);
            Ok(())
        }
        ClientCommand::History { kind, name, scope } => history(&client, kind, name, &scope).await,
        ClientCommand::Rollback { revision } => {
            let request = RollbackRequest {
                revision,
                author: author(),
            };
            let answer: ApplyAnswer = client.post("/v1/rollback", &request).await?;
            changed(Output::Table, &answer);
            Ok(())
        }
        ClientCommand::Proxies { output } => proxies(&client, output).await,
        ClientCommand::Token(command) => token(&client, command).await,
        ClientCommand::Certs(command) => certs(&client, command).await,
        ClientCommand::Status { output } => {
            let status: Status = client.get("/v1/status").await?;
            print(output, &status, &["FIELD", "VALUE"], || {
                let value = serde_json::to_value(&status).unwrap_or_default();
                let fields = value.as_object().into_iter().flatten();
                fields
                    .map(|(key, value)| vec![key.clone(), text(value)])
                    .collect()
            });
            Ok(())
        }
    }
}

fn validate(file: &Path) -> Result<(), Failure> {
    let mut all = Vec::new();
    let mut count = 0;
    for (source, content) in read(file)? {
        match document::read(&source, &content) {
            Ok(documents) => count += documents.len(),
            Err(problems) => all.extend(problems),
        }
    }
    if all.is_empty() {
        eprintln!("{count} resources are valid");
        return Ok(());
    }
    let lines: Vec<String> = all.iter().map(|problem| format!("\n  {problem}")).collect();
    Err(Failure(
        format!("{} problems{}", all.len(), lines.concat()),
        INVALID,
    ))
}

async fn apply(client: &Client, args: &ApplyArgs) -> Result<(), Failure> {
    let sources = read(&args.file)?;
    // Several files are one change: they are checked each under its own name, then sent as one.
    let mut problems = Vec::new();
    for (source, content) in &sources {
        if let Err(more) = document::read(source, content) {
            problems.extend(more.iter().map(|problem| format!("\n  {problem}")));
        }
    }
    if !problems.is_empty() {
        let text = format!(
            "{} problems; nothing was changed{}",
            problems.len(),
            problems.concat()
        );
        return Err(Failure(text, INVALID));
    }
    let texts: Vec<String> = sources.into_iter().map(|(_, content)| content).collect();
    let path = format!("/v1/apply?dryRun={}&author={}", args.dry_run, author());
    let answer: ApplyAnswer = client.post_text(&path, texts.join("\n---\n")).await?;
    changed(args.output, &answer);
    match args.wait {
        Some(limit) if !args.dry_run => wait(client, answer.revision, limit).await,
        Some(_) | None => Ok(()),
    }
}

async fn wait(client: &Client, revision: u64, limit: Duration) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let now: Applied = client
            .get(&format!("/v1/applied?revision={revision}"))
            .await?;
        if !now.rejected.is_empty() {
            return Err(Failure(
                format!("rejected:\n  {}", now.rejected.join("\n  ")),
                FAILED,
            ));
        }
        if now.waiting.is_empty() {
            let took = began.elapsed();
            eprintln!("applied by {} sidecars in {took:.0?}", now.applied.len());
            return Ok(());
        }
        if began.elapsed() > limit {
            let text = format!(
                "after {limit:?} not yet applied by:\n  {}",
                now.waiting.join("\n  ")
            );
            return Err(Failure(text, FAILED));
        }
        tokio::time::sleep(WAIT_EVERY).await;
    }
}

#[expect(clippy::too_many_lines, reason = "three tables, one after the other")]
async fn get(
    client: &Client,
    kind: Option<String>,
    name: Option<String>,
    scope: &Scope,
) -> Result<(), Failure> {
    let fits = |full: &str| {
        let (namespace, own) = full.split_once('/').unwrap_or(("", full));
        scope
            .namespace
            .as_deref()
            .is_none_or(|wanted| wanted == namespace)
            && name.as_deref().is_none_or(|wanted| wanted == own)
    };
    match kind.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("services") => {
            let mut rows: Vec<Value> = client.get("/v1/services").await?;
            rows.retain(|row| row["name"].as_str().is_some_and(fits));
            print(
                scope.output,
                &rows,
                &["NAME", "HOSTNAME", "ADDRESSES", "PORTS", "ENDPOINTS"],
                || {
                    rows.iter()
                        .map(|row| {
                            let endpoints = row["endpoints"].as_array().map_or(0, Vec::len);
                            let mut cells: Vec<String> = ["name", "hostname", "addresses"]
                                .map(|key| text(&row[key]))
                                .into();
                            cells.push(ports(&row["ports"]));
                            cells.push(endpoints.to_string());
                            cells
                        })
                        .collect()
                },
            );
        }
        Some("workloads") => {
            let mut rows: Vec<Value> = client.get("/v1/workloads").await?;
            rows.retain(|row| row["workload"].as_str().is_some_and(fits));
            print(
                scope.output,
                &rows,
                &["WORKLOAD", "INSTANCE", "SERVICES", "PORTS", "CONNECTED"],
                || {
                    rows.iter()
                        .map(|row| {
                            let mut cells: Vec<String> = ["workload", "instance", "services"]
                                .map(|key| text(&row[key]))
                                .into();
                            cells.push(ports(&row["ports"]));
                            cells.push(text(&row["connected"]));
                            cells
                        })
                        .collect()
                },
            );
        }
        _ => {
            let path = format!("/v1/resources?{}", query(kind, name, scope));
            let found: Vec<StoredResource> = client.get(&path).await?;
            let documents: Vec<&Value> = found.iter().map(|r| &r.document).collect();
            print(
                scope.output,
                &documents,
                &["KIND", "NAME", "REVISION", "CHANGED", "BY"],
                || {
                    found
                        .iter()
                        .map(|resource| {
                            vec![
                                resource.key.kind.clone(),
                                format!("{}/{}", resource.key.namespace, resource.key.name),
                                resource.revision.to_string(),
                                time(resource.changed),
                                resource.author.clone(),
                            ]
                        })
                        .collect()
                },
            );
        }
    }
    Ok(())
}

async fn history(
    client: &Client,
    kind: Option<String>,
    name: Option<String>,
    scope: &Scope,
) -> Result<(), Failure> {
    let path = format!("/v1/history?{}", query(kind, name, scope));
    let found: Vec<HistoryEntry> = client.get(&path).await?;
    print(
        scope.output,
        &found,
        &["REVISION", "TIME", "BY", "RESOURCE", "CHANGE", "DIGEST"],
        || {
            found
                .iter()
                .map(|entry| {
                    let change = if entry.document.is_some() {
                        "put"
                    } else {
                        "delete"
                    };
                    vec![
                        entry.revision.to_string(),
                        time(entry.time),
                        entry.author.clone(),
                        entry.key.to_string(),
                        change.to_owned(),
                        entry.digest.chars().take(12).collect(),
                    ]
                })
                .collect()
        },
    );
    Ok(())
}

async fn proxies(client: &Client, output: Output) -> Result<(), Failure> {
    let found: Vec<ProxyAnswer> = client.get("/v1/proxies").await?;
    let columns = [
        "WORKLOAD", "INSTANCE", "VERSION", "SINCE", "HOLDS", "APPLIED", "REJECTED",
    ];
    print(output, &found, &columns, || {
        found
            .iter()
            .map(|proxy| {
                let workload = proxy.workload.as_ref();
                let rejected: Vec<String> = proxy
                    .rejected
                    .iter()
                    .map(|(resource, reason)| format!("{resource}: {reason}"))
                    .collect();
                vec![
                    workload.map_or_else(|| "-".to_owned(), ToString::to_string),
                    proxy.instance.clone(),
                    proxy.version.clone(),
                    time(proxy.connected_since),
                    proxy.holds.to_string(),
                    proxy.applied_revision.to_string(),
                    rejected.join("; "),
                ]
            })
            .collect()
    });
    Ok(())
}

async fn token(client: &Client, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create {
            workload,
            service,
            port,
            ttl,
        } => {
            let services = service.iter().map(|text| match text.contains('/') {
                true => text.parse(),
                false => ServiceName::new(workload.namespace(), text),
            });
            let services: Result<Vec<_>, _> = services.collect();
            let request = TokenRequest {
                services: services
                    .map_err(|error| Failure(format!("--service: {error}"), INVALID))?,
                workload,
                service_account: None,
                ports: port,
                ttl_seconds: ttl.as_secs(),
            };
            let answer: TokenAnswer = client.post("/v1/tokens", &request).await?;
            #[expect(clippy::print_stdout, reason = "this is what was asked for")]
            {
                println!("{}", answer.token);
            }
        }
        TokenCommand::List { output } => {
            let found: Vec<TokenView> = client.get("/v1/tokens").await?;
            print(
                output,
                &found,
                &["ID", "WORKLOAD", "EXPIRES", "REDEEMED BY"],
                || {
                    found
                        .iter()
                        .map(|token| {
                            vec![
                                token.id.clone(),
                                token.workload.to_string(),
                                time(token.expires * 1000),
                                token.redeemed_by.clone().unwrap_or_default(),
                            ]
                        })
                        .collect()
                },
            );
        }
    }
    Ok(())
}

async fn certs(client: &Client, command: CertsCommand) -> Result<(), Failure> {
    match command {
        CertsCommand::List { output } => {
            let found: Vec<InstanceView> = client.get("/v1/certs").await?;
            print(
                output,
                &found,
                &["INSTANCE", "WORKLOAD", "ATTESTED", "UNTIL", "REVOKED"],
                || {
                    found
                        .iter()
                        .map(|instance| {
                            vec![
                                instance.instance.clone(),
                                instance.workload.to_string(),
                                time(instance.attested * 1000),
                                time(instance.not_after * 1000),
                                instance
                                    .revoked
                                    .map(|at| time(at * 1000))
                                    .unwrap_or_default(),
                            ]
                        })
                        .collect()
                },
            );
        }
        CertsCommand::Revoke { instance } => {
            let request = RevokeRequest { instance };
            client.post::<_, ()>("/v1/certs/revoke", &request).await?;
            eprintln!("{} is revoked", request.instance);
        }
    }
    Ok(())
}

fn changed(output: Output, answer: &ApplyAnswer) {
    print(output, answer, &["RESOURCE", "CHANGE", "REVISION"], || {
        let row = |change: &Changed| {
            let action = serde_json::to_value(change.action).unwrap_or_default();
            vec![
                change.key.to_string(),
                text(&action),
                answer.revision.to_string(),
            ]
        };
        answer.resources.iter().map(row).collect()
    });
}

/// Every source with its name: a file, the YAML and JSON files of a directory, standard input.
fn read(file: &Path) -> Result<Vec<(String, String)>, Failure> {
    let failed = |path: &Path, error: std::io::Error| {
        Failure(format!("{}: {error}", path.display()), INVALID)
    };
    if file == Path::new("-") {
        let mut content = String::new();
        let limit = document::INPUT_MAX_BYTES as u64 + 1;
        let mut input = std::io::stdin().lock().take(limit);
        input
            .read_to_string(&mut content)
            .map_err(|error| failed(file, error))?;
        return Ok(vec![("-".to_owned(), content)]);
    }
    let mut paths = vec![file.to_owned()];
    if file.is_dir() {
        let entries = std::fs::read_dir(file).map_err(|error| failed(file, error))?;
        paths = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        paths.retain(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("yaml" | "yml" | "json"))
        });
        paths.sort();
    }
    let read = |path: PathBuf| {
        let content = std::fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
        Ok((path.display().to_string(), content))
    };
    paths.into_iter().map(read).collect()
}

fn query(kind: Option<String>, name: Option<String>, scope: &Scope) -> String {
    let parts = [
        ("kind", kind),
        ("name", name),
        ("namespace", scope.namespace.clone()),
    ];
    let given = parts
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", value?)));
    given.collect::<Vec<_>>().join("&")
}

fn author() -> String {
    let name = std::env::var("USER").unwrap_or_default();
    let plain = name.chars().filter(char::is_ascii_alphanumeric);
    let name: String = plain.take(32).collect();
    if name.is_empty() {
        format!("uid{}", rustix::process::getuid().as_raw())
    } else {
        name
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn ports(value: &Value) -> String {
    let ports = value.as_array().into_iter().flatten().map(|port| {
        let ready = match port["ready"].as_bool() {
            Some(false) => " (not ready)",
            Some(true) | None => "",
        };
        format!("{}:{}{ready}", port["port"], text(&port["protocol"]))
    });
    ports.collect::<Vec<_>>().join(",")
}
