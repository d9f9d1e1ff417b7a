//! Interim responses (103, 100) reach callers while the final one is still to come, whatever version of
//! HTTP each side speaks.

use std::time::Duration;

use crate::hedging::put;
use crate::support::{Bed as _, Machine, Mesh, Program, Workload, need, report, script, wait_for};

const LIMIT: Duration = Duration::from_secs(120);
const PORTS: [&str; 2] = ["8095", "8096"];
const DECLARED: [&str; 2] = ["8095:http", "8096:http2"];

fn application(more: &str) -> Program {
    let program = script("early.py").arg("serve").args(PORTS);
    program.args(more.split_whitespace())
}

/// The application waits for the word of its caller that 103 is there.
#[test]
fn interim_responses_come_before_the_final_one_is_there() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &DECLARED, application(""));
    let client = |how: &str| {
        let client = script("early.py").args([how, mesh.host("web").as_str()]);
        report(&mesh.call("me", &["web"], client.args(PORTS), LIMIT));
    };
    client("ask");
    // Each attempt says its own.
    put(&mesh, "retry: {attempts: 2, statuses: [503]}");
    client("again");
}

/// Of attempts side by side, the first one's.
#[test]
fn interim_responses_of_hedged_requests_are_those_of_one_attempt() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let instance = |name: &str, delay: &str| {
        let workload = DECLARED
            .iter()
            .fold(Workload::new(name), |workload, port| workload.port(port))
            .flag("--service", "web")
            .flag("--service", name);
        let running = mesh.run(&workload, application(&format!("{name} {delay}")));
        wait_for(name, LIMIT, || {
            let shown = mesh.command("get services -o json").success().stdout;
            shown.contains(&format!("shop/{name}")).then_some(())
        });
        running
    };
    let _slow = instance("slow", "3");
    let _fast = instance("fast", "0.5");
    put(&mesh, "hedge: {delay: 100ms}");
    let client = script("early.py").args(["hedged", mesh.host("web").as_str()]);
    report(&mesh.call("me", &["web"], client.arg(PORTS[0]), LIMIT));
}
