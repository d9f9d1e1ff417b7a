//! What the guide promises is there: each metric of its tables is counted by a sidecar, with the labels
//! that they name, each reason is provoked by a test of this directory, and each limit has the value that
//! a sidecar without settings has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Machine, Mesh, Program, Workload, need, script, wait_for, weft_binary};
use crate::{pods, trouble};

const LIMIT: Duration = Duration::from_secs(60);
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The rows of the tables of a page whose first column is a word that begins with one of `prefixes`, by
/// that word; the other columns.
pub(crate) fn table(page: &str, prefixes: &[&str]) -> BTreeMap<String, Vec<String>> {
    let path = format!("{ROOT}/deploy/guide/{page}");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter_map(|row| row.trim_end().trim_end_matches('|').split_once("` |"));
    let rows = rows.filter(|(word, _)| prefixes.iter().any(|prefix| word.starts_with(prefix)));
    let rows = rows.map(|(word, row)| {
        let columns = row.split(" | ").map(|column| column.trim().to_owned());
        (word.to_owned(), columns.collect())
    });
    rows.collect()
}

/// The labels of each metric, as the guide has them.
pub(crate) fn labels() -> BTreeMap<String, BTreeSet<String>> {
    let rows = table("metrics.md", &["weft_", "http_", "process_"]).into_iter();
    let labels = rows.map(|(name, columns)| {
        let labels = columns[0].split(", ").filter(|label| !label.is_empty());
        (name, labels.map(str::to_owned).collect())
    });
    labels.collect()
}

/// Samples whose labels are not those of the guide, and those of which it has no metric.
pub(crate) fn mislabelled(
    scrape: &str,
    labels: &BTreeMap<String, BTreeSet<String>>,
) -> BTreeSet<String> {
    let samples = scrape.lines().filter(|line| !line.starts_with('#'));
    let names = samples.filter_map(|line| {
        let (sample, _value) = line.rsplit_once(' ')?;
        let (name, rest) = sample.split_once('{').unwrap_or((sample, ""));
        // Every other part between quotation marks is a value; none of ours has one within.
        let names = rest.split('"').step_by(2);
        let names = names.map(|name| name.trim_start_matches(',').trim_end_matches('='));
        let names = names.filter(|name| !["}", "", "le"].contains(name));
        let found: BTreeSet<String> = names.map(str::to_owned).collect();
        let ends = ["_bucket", "_sum", "_count"].iter();
        let family = { ends }.find_map(|end| name.strip_suffix(end));
        let expected = labels.get(name).or_else(|| labels.get(family?));
        (expected != Some(&found)).then(|| format!("{name}: {found:?}, the guide has {expected:?}"))
    });
    names.collect()
}

/// All Rust files below a directory but one, joined.
fn sources(directory: &Path, except: &str) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).expect("read a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            text.push_str(&sources(&path, except));
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with(except) {
            text.push_str(&std::fs::read_to_string(&path).expect("read a file"));
        }
    }
    text
}

#[test]
fn each_reason_of_the_guide_is_provoked() {
    let root = Path::new(ROOT);
    let tests = sources(&root.join("tests/mesh"), "promised.rs");
    let proxy = sources(&root.join("proxy/src"), "tests.rs");
    let core = sources(&root.join("proxy/core/src"), "reason.rs");
    let all = table("reasons.md", &[""]);
    assert!(all.len() > 30, "{all:?}");
    let mut problems = Vec::new();
    for word in all.keys() {
        let quoted = [format!("\"{word}"), format!("{word}\""), format!("{word}:")];
        let provoked = quoted.iter().any(|quoted| tests.contains(quoted.as_str()));
        let name: String = word.split('-').map(capitalised).collect();
        let given = format!("Reason::{name}");
        if !proxy.contains(&given) && !core.contains(&given) {
            problems.push(format!("{word}: nothing gives it"));
        }
        if !provoked {
            problems.push(format!("{word}: no test provokes it"));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

fn capitalised(part: &str) -> String {
    let (first, rest) = part.split_at(1);
    first.to_uppercase() + rest
}

/// The largest sample of each family of a scrape.
fn families(scrape: &str) -> BTreeMap<String, f64> {
    let mut families = BTreeMap::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let Some((sample, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = sample.split('{').next().unwrap_or_default();
        let name = name.strip_suffix("_count").unwrap_or(name);
        let value: f64 = value.parse().expect("a number");
        let largest: &mut f64 = families.entry(name.to_owned()).or_insert(value);
        *largest = largest.max(value);
    }
    families
}

/// The admin interface of a workload's sidecar.
fn admin(mesh: &Mesh<'_>, workload: &str) -> String {
    let socket = mesh.scratch().path().join(format!("{workload}.sock"));
    socket.display().to_string()
}

/// What the sidecars of `workloads` tell, all together.
fn scrape(mesh: &Mesh<'_>, workloads: &[&str]) -> String {
    let logs = mesh.scratch().dir("scrapes");
    let all = workloads.iter().map(|workload| {
        let socket = admin(mesh, workload);
        let line = format!("curl --silent --fail --unix-socket {socket} http://localhost/metrics");
        Program::line(&line)
            .run("curl", &logs, LIMIT)
            .success()
            .stdout
    });
    all.collect()
}

const POLICIES: &str = "\
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  loadBalancer: {type: roundRobin}
  hedge: {delay: 50ms}
  healthCheck: {tcp: {}, interval: 1s}
  adaptiveConcurrency: {client: {}, server: {}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  rules: [{requests: 1, per: 24h, matches: [{path: {type: Exact, value: /limited}}]}]
";

#[test]
fn each_metric_of_the_guide_is_counted() {
    need!("root", "python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let telling = |name: &str| {
        let log = mesh.scratch().path().join(format!("{name}.log"));
        Workload::new(name)
            .flag("--access-log", &log.display().to_string())
            .flag("--admin-socket", &admin(&mesh, name))
            // Nobody is there: spans are made, and not taken.
            .flag("--otlp-endpoint", "http://127.0.0.1:9")
            .flag("--sample-ratio", "1")
    };
    let server = |name: &str, hedge: &str| {
        let web = telling(name).flag("--service", "web");
        let web = web.port("8080:http").port("8081:tcp");
        mesh.run(&web, script("promised.py").args(["serve", hedge]))
    };
    let _servers = [server("web-1", "0.5"), server("web-2", "0")];
    mesh.wait_for_service("web");
    let file = mesh.scratch().file("policies.yaml", POLICIES);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
    let (ready, go) = (
        mesh.scratch().path().join("ready"),
        mesh.scratch().path().join("go"),
    );
    let asking = script("promised.py").arg("ask").arg(&ready).arg(&go);
    let _me = mesh.run(&telling("me").wait_for("web"), asking);
    wait_for("everything was asked for", LIMIT, || {
        ready.exists().then_some(())
    });

    let labels = labels();
    assert!(labels.len() > 40, "{labels:?}");
    let unknown = trouble::METRICS.iter().chain(pods::METRICS);
    let unknown: Vec<_> = { unknown }
        .filter(|name| !labels.contains_key(**name))
        .collect();
    assert!(unknown.is_empty(), "not in the guide: {unknown:?}");
    let end = Instant::now() + LIMIT;
    let missing = wait_for("an answer about every metric", 2 * LIMIT, || {
        let scrape = scrape(&mesh, &["me", "web-1", "web-2"]);
        let wrong = mislabelled(&scrape, &labels);
        assert!(wrong.is_empty(), "labels that the guide lacks: {wrong:?}");
        let found = families(&scrape);
        let counts = |name: &&String| found.get(name.as_str()).is_some_and(|value| *value > 0.0);
        // Those of trouble and of pods are provoked in modules of their own.
        let elsewhere =
            |name: &str| trouble::METRICS.contains(&name) || pods::METRICS.contains(&name);
        let usual = labels.keys().filter(|name| !elsewhere(name));
        let missing: Vec<&String> = usual.filter(|name| !counts(name)).collect();
        (missing.is_empty() || Instant::now() > end).then_some(missing)
    });
    assert!(missing.is_empty(), "not counted: {missing:?}");
    std::fs::write(&go, "").expect("say that it is over");
}

/// `section.field` with its value, of a configuration in YAML as the sidecar prints it.
fn fields(printed: &str, sections: &[&str]) -> BTreeMap<String, String> {
    let mut section = "";
    let mut fields = BTreeMap::new();
    for line in printed.lines() {
        match line.strip_prefix("  ") {
            None => section = line.trim_end_matches(':'),
            Some(field) if sections.contains(&section) && !field.starts_with([' ', '-']) => {
                let (name, value) = field.split_once(": ").unwrap_or((field, ""));
                fields.insert(
                    format!("{section}.{name}"),
                    value.trim_matches('\'').to_owned(),
                );
            }
            Some(_) => {}
        }
    }
    fields
}

/// A value in prose as the configuration has it: `64 KiB`, `5 min`, `65,534`.
fn spelled(text: &str) -> String {
    let text = text.replace(" min", "m").replace(" ms", "ms");
    text.chars()
        .filter(|c| ![' ', ',', '`', '|'].contains(c))
        .collect()
}

/// Each limit and each timeout: in the guide with its default, and none besides.
#[test]
fn each_limit_of_the_guide_is_in_force() {
    let logs = tempfile::tempdir().expect("a directory");
    let line = "proxy --check-config --name web --control-plane cp:15010";
    let printed = Program::new(weft_binary())
        .args(line.split(' '))
        .run("check-config", logs.path(), LIMIT)
        .success()
        .stdout;
    let sections = ["limits", "timeouts"];
    let found = fields(&printed, &sections);
    assert!(found.len() > 35, "{found:?}");
    let rows = table("proxy-configuration.md", &["limits.", "timeouts."]);
    let defaults = rows.iter().map(|(field, columns)| {
        let default = columns[0].trim_matches('`');
        (field.clone(), default.to_owned())
    });
    let defaults: BTreeMap<String, String> = defaults.collect();
    assert_eq!(defaults, found, "the guide, and what is in force");

    // Wherever else a page says how much a limit is.
    let mut said = 0;
    for page in std::fs::read_dir(format!("{ROOT}/deploy/guide")).expect("the guide") {
        let path = page.expect("a page").path();
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        for line in text.lines() {
            for (field, value) in &found {
                let Some((_, after)) = line.split_once(&format!("`{field}`")) else {
                    continue;
                };
                let row = line.starts_with("| ") && !line.starts_with("| `");
                let stated: Vec<String> = match after.strip_prefix(" (") {
                    Some(after) => after.split([')', ',']).take(1).map(spelled).collect(),
                    None if row => after.split(" | ").skip(1).take(2).map(spelled).collect(),
                    None => continue,
                };
                said += 1;
                let place = format!("{}: {line}", path.display());
                assert!(stated.contains(value), "{place}: {field} is {value}");
            }
        }
    }
    assert!(said >= 8, "{said}");
}
