//! Experiments that the guide shows: what breakers change, and what budgets keep a cascade from.
//! `WEFT_WRITE_CHARTS=1` writes the chart to `deploy/guide/breaking.svg`.

mod chart;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Bed, Load, Machine, Mesh, Running, Workload, need, scaled, script, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

fn policy(service: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: {service}, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: {service}}}, {spec}}}\n"
    )
}

fn apply(mesh: &Mesh<'_>, documents: &str) {
    let file = mesh.scratch().file("policies.yaml", documents);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock after 1970").as_secs_f64()
}

/// How endpoints are left out, in each run of the experiment.
struct Variant {
    name: &'static str,
    label: &'static str,
    breaker: &'static str,
}

const VARIANTS: [Variant; 3] = [
    Variant {
        name: "none",
        label: "no breaker",
        breaker: "{enabled: false}",
    },
    // Five failures in a row, out for a while, back in full: no slow calls, no single probe.
    Variant {
        name: "ejection",
        label: "outlier ejection",
        breaker: "{consecutiveFailures: 5, minimumCalls: 10000, openTime: 3s, openTimeGrowth: 1, \
                   halfOpen: {probes: 1000, successes: 1}, ramp: 1ms}",
    },
    Variant {
        name: "breaker",
        label: "breaker",
        breaker: "{window: {time: 3s}, slowCallDuration: 300ms, slowCallRate: 0.5, minimumCalls: 5}",
    },
];

/// One answer: when it was due, how long it took, its status.
struct Answer {
    due: f64,
    millis: f64,
    status: u16,
}

/// What was seen of one variant, second by second.
#[derive(Debug)]
struct Seen {
    label: &'static str,
    success: Vec<f64>,
    p99: Vec<f64>,
    load: Vec<f64>,
}

const SECONDS: usize = 34;
const RATE: f64 = 40.0;

fn measure(variant: &Variant, printed: &str, came: &str) -> Seen {
    let answers = printed.lines().map(|line| {
        let mut words = line.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<f64>().ok());
        Answer {
            due: number().expect("a time"),
            millis: number().expect("a duration"),
            status: number().expect("a status") as u16,
        }
    });
    let mut by_second: Vec<Vec<Answer>> = (0..SECONDS).map(|_| Vec::new()).collect();
    for answer in answers {
        if let Some(second) = by_second.get_mut(answer.due as usize) {
            second.push(answer);
        }
    }
    let success = by_second.iter().map(|answers| {
        let good = answers.iter().filter(|answer| answer.status == 200).count();
        100.0 * good as f64 / answers.len().max(1) as f64
    });
    let p99 = by_second.iter().map(|answers| {
        let mut times: Vec<f64> = answers.iter().map(|answer| answer.millis).collect();
        times.sort_by(f64::total_cmp);
        let last = times.len().saturating_sub(1);
        let index = (times.len() as f64 * 0.99) as usize;
        times.get(index.min(last)).copied().unwrap_or_default()
    });
    let mut load = vec![0.0; SECONDS];
    for second in came.lines().filter_map(|line| line.parse::<f64>().ok()) {
        if second >= 0.0
            && let Some(count) = load.get_mut(second as usize)
        {
            *count += 1.0;
        }
    }
    Seen {
        label: variant.label,
        success: success.collect(),
        p99: p99.collect(),
        load,
    }
}

/// Three endpoints of a service of its own, the first of which turns.
fn endpoints(mesh: &Mesh<'_>, name: &str, state: &Path, begin: f64) -> Vec<Running> {
    let started = (0..3).map(|number| {
        let own = format!("{name}-{number}");
        let workload = Workload::new(&own).port("8080").flag("--service", name);
        let begin = if number == 0 { begin } else { 0.0 };
        let program = script("turning.py")
            .args(["8080", own.as_str()])
            .arg(state)
            .arg(begin.to_string());
        mesh.run(&workload, program)
    });
    let started = started.collect();
    wait_for(name, LIMIT, || {
        let shown = mesh.command("get services -o json").success().stdout;
        let there = (0..3).all(|number| shown.contains(&format!("shop/{name}-{number}")));
        there.then_some(())
    });
    started
}

#[test]
fn an_endpoint_turns_slow_then_dead_then_well() {
    need!("python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let state = mesh.scratch().dir("state");
    // Everything is up by then, on a slow machine too.
    let begin = now() + 25.0;
    let mut running = Vec::new();
    for variant in &VARIANTS {
        running.extend(endpoints(&mesh, variant.name, &state, begin));
    }
    let by_turns = VARIANTS.iter().map(|variant| {
        let rest = "loadBalancer: {type: roundRobin}, retry: {attempts: 0}";
        let breaker = variant.breaker;
        policy(variant.name, &format!("{rest}, circuitBreaker: {breaker}"))
    });
    apply(&mesh, &by_turns.collect::<String>());
    assert!(
        now() < begin - 3.0,
        "too slow a machine for this experiment"
    );
    let callers: Vec<Running> = VARIANTS
        .iter()
        .map(|variant| {
            let url = format!("http://{}.shop.mesh:8080/", variant.name);
            let program = script("timeline.py")
                .arg(url)
                .arg(RATE.to_string())
                .arg(begin.to_string())
                .arg(SECONDS.to_string());
            let caller = format!("caller-{}", variant.name);
            mesh.run(&Workload::new(&caller), program)
        })
        .collect();
    let seen: Vec<Seen> = VARIANTS
        .iter()
        .zip(callers)
        .map(|(variant, caller)| {
            let printed = caller.finish(LIMIT).success().stdout;
            let came = state.join(format!("{}-0", variant.name));
            let came = std::fs::read_to_string(came).expect("what came");
            measure(variant, &printed, &came)
        })
        .collect();
    report(&seen);
    judge(&seen);
}

const SLOW: std::ops::Range<usize> = 8..16;
const DEAD: std::ops::Range<usize> = 17..24;

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn report(seen: &[Seen]) {
    for one in seen {
        eprintln!(
            "{}: success {:.1} % in all, {:.1} % while dead; p99 while slow {:.0} ms; \
             {:.1} requests/s to it while slow, {:.1} while dead",
            one.label,
            mean(&one.success),
            mean(&one.success[DEAD]),
            mean(&one.p99[SLOW]),
            mean(&one.load[SLOW]),
            mean(&one.load[DEAD]),
        );
    }
    if std::env::var_os("WEFT_WRITE_CHARTS").is_some() {
        let panels = [
            chart::Panel {
                title: "successful requests, %",
                lines: seen
                    .iter()
                    .map(|one| (one.label, one.success.clone()))
                    .collect(),
            },
            chart::Panel {
                title: "p99 of what callers wait, ms",
                lines: seen
                    .iter()
                    .map(|one| (one.label, one.p99.clone()))
                    .collect(),
            },
            chart::Panel {
                title: "requests per second that reach the turning endpoint",
                lines: seen
                    .iter()
                    .map(|one| (one.label, one.load.clone()))
                    .collect(),
            },
        ];
        let phases = [(6, "slow"), (16, "dead"), (24, "well")];
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/guide/breaking.svg");
        std::fs::write(&file, chart::svg(&panels, &phases)).expect("write the chart");
        eprintln!("written: {}", file.display());
    }
}

fn judge(seen: &[Seen]) {
    let [none, ejection, breaker] = seen else {
        panic!("three variants");
    };
    // A third of the requests goes to the endpoint that is dead.
    assert!(mean(&none.success[DEAD]) < 80.0, "{none:?}");
    assert!(
        mean(&ejection.success[DEAD]) > mean(&none.success[DEAD]) + 10.0,
        "{ejection:?}"
    );
    assert!(mean(&breaker.success[DEAD]) > 95.0, "{breaker:?}");
    // Slow is no failure: only the breaker that watches for slow calls helps.
    assert!(mean(&ejection.p99[SLOW]) > 800.0, "{ejection:?}");
    assert!(
        mean(&breaker.p99[SLOW]) < mean(&ejection.p99[SLOW]),
        "{breaker:?}"
    );
    assert!(
        mean(&breaker.load[SLOW]) < mean(&none.load[SLOW]) / 3.0,
        "{breaker:?}"
    );
    // All come back to it when it is well.
    for one in seen {
        assert!(
            one.success[SECONDS - 3..].iter().all(|rate| *rate > 99.0),
            "{one:?}"
        );
    }
    assert!(mean(&none.load[SECONDS - 2..]) > RATE / 6.0, "{none:?}");
}

#[test]
fn a_cascade_stays_within_the_budgets() {
    need!("python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let state = mesh.scratch().dir("state");
    let mut running = Vec::new();
    for number in (1..=5).rev() {
        let next = match number {
            5 => "fail".to_owned(),
            number => format!("http://s{}.shop.mesh:8080/", number + 1),
        };
        let file = state.join(format!("s{number}"));
        let program = script("chain.py").args(["8080", next.as_str()]).arg(file);
        running.push(mesh.serve(&format!("s{number}"), &["8080"], program));
    }
    let reached = |number: usize| -> u64 {
        let text = std::fs::read_to_string(state.join(format!("s{number}")));
        text.ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let (rate, seconds) = (60.0, 8.0);
    let call = |rate: f64, seconds: f64| {
        let begin = now() + 3.0;
        let program = script("timeline.py")
            .arg("http://s1.shop.mesh:8080/")
            .args([rate, begin, seconds].map(|number| number.to_string()));
        let caller = Workload::new("caller").wait_for("s1");
        let printed = mesh.run_to_end(&caller, program, LIMIT).success().stdout;
        printed.lines().count() as u64
    };
    let before: Vec<u64> = (1..=5).map(reached).collect();
    let requests = call(rate, seconds);
    let attempts: Vec<u64> = (1..=5).map(|n| reached(n) - before[n - 1]).collect();
    // The bound of the budgets, from hop to hop: 0.2 of the requests and 10 a second, over twenty
    // seconds begun. The caller has a sidecar too.
    let mut bound = requests as f64;
    for _hop in 1..=5 {
        bound += bound * 0.2 + 2.0 * 100.0;
    }
    let last = attempts[4];
    let unbounded = requests * 3u64.pow(5);
    eprintln!(
        "{requests} requests, attempts at each of five: {attempts:?}; \
         the budgets allow {bound:.0} at the last, without them {unbounded} are possible"
    );
    assert!((last as f64) <= bound, "{attempts:?} beyond {bound}");
    assert!(last >= requests, "{attempts:?}");

    // Without a budget worth the name, a few requests multiply.
    let lavish = "retry: {attempts: 2, backoff: {base: 1ms, max: 1ms}, \
                  budget: {ratio: 10, minimumPerSecond: 10000}}, circuitBreaker: {enabled: false}";
    let all: String = (1..=5).map(|n| policy(&format!("s{n}"), lavish)).collect();
    apply(&mesh, &all);
    let before = reached(5);
    let few = call(4.0, 2.0);
    let multiplied = reached(5) - before;
    eprintln!("without budgets: {few} requests became {multiplied} at the last");
    assert!(multiplied > few * 100, "{few} became {multiplied}");
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let size = line.and_then(|line| line.split_whitespace().next());
    size.and_then(|size| size.parse().ok()).unwrap_or(0)
}

/// In full, with `WEFT_TEST_LONG=1`: 10,000 changes at 100 a second.
#[test]
fn thousands_of_changes_under_load() {
    need!("python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let web = script("backend.py").args(["8080", "web"]);
    let _web = mesh.serve("web", &["8080"], web);
    let state = mesh.scratch().dir("load");
    let url = "http://web.shop.mesh:8080/";
    let program = Load::program(
        "http",
        url,
        &state,
        &["--connections", "4", "--rate", "100"],
    );
    let caller = mesh.run(&Workload::new("load").wait_for("web"), program);
    let (control_plane, sidecar) = (mesh.control_plane_pid(), caller.pid());
    let load = Load::watch(caller, state);
    let socket = mesh.data_dir().join("admin.sock");
    let change = |count: u32| {
        let program = script("changes.py")
            .arg(&socket)
            .args([count.to_string(), "100".to_owned()]);
        let logs = mesh.scratch().dir("logs");
        let changed = program.run("changes", &logs, Duration::from_secs(600));
        changed.success().stdout
    };
    // Warm: what is allocated once is there; in full, the store's cache and its history are full too.
    change(scaled(300, 10_000));
    let before = [control_plane, sidecar].map(resident_kib);
    let count = scaled(1000, 10_000);
    let said = change(count);
    // "10000 changes in 100.0 s": a hundred a second, or it is another experiment.
    let words: Vec<&str> = said.split_whitespace().collect();
    let took: f64 = words[3].parse().expect("seconds");
    assert!(took < f64::from(count) / 100.0 * 1.2, "too slow: {said}");
    let after = [control_plane, sidecar].map(resident_kib);
    let totals = load.stop_without_failure();
    eprintln!(
        "{}; {} requests meanwhile, 0 failed; resident before and after, control plane and \
         sidecar, KiB: {before:?} {after:?}",
        said.trim(),
        totals.requests
    );
    for (before, after) in before.into_iter().zip(after) {
        assert!(after < before + 12 * 1024, "{before} KiB became {after}");
    }
}
