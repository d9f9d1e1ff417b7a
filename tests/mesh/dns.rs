//! Names inside a program's namespace, asked for with dig and the C library.

use std::time::Duration;

use crate::http::nginx;
use crate::support::{
    Bed, Finished, Machine, Mesh, Namespace, Program, Settings, Workload, need, script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);

/// One question and its answer, as `dig` prints it.
struct Answer<'a> {
    question: &'a str,
    text: &'a str,
}

impl Answer<'_> {
    fn status(&self, expected: &str) -> &Self {
        let status = format!("status: {expected},");
        assert!(
            self.text.contains(&status),
            "{}: {}",
            self.question,
            self.text
        );
        self
    }

    /// The records: name, TTL, type and data.
    fn records(&self) -> Vec<Vec<&str>> {
        let lines = self.text.lines().filter(|line| !line.starts_with(';'));
        let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.filter(|words| !words.is_empty()).collect()
    }

    fn data(&self) -> Vec<&str> {
        let records = self.records();
        records
            .iter()
            .filter_map(|record| record.last().copied())
            .collect()
    }
}

/// A script that asks each question in turn.
fn dig(questions: &[&str]) -> String {
    let asked = questions.iter().map(|question| {
        format!("echo '== {question}'; dig +noall +comments +answer +time=8 +tries=1 {question}\n")
    });
    asked.collect()
}

fn answers(stdout: &str) -> Vec<Answer<'_>> {
    let parts = stdout.split("== ").skip(1);
    let answers = parts.filter_map(|part| {
        let (question, text) = part.split_once('\n')?;
        Some(Answer { question, text })
    });
    answers.collect()
}

const QUESTIONS: [&str; 14] = [
    "web.shop.mesh A",
    "web.shop.mesh AAAA",
    "WEB.Shop.Mesh A",
    "web.shop.mesh TXT",
    "+tcp web.shop.mesh A",
    "+noedns web.shop.mesh A",
    "@192.0.2.53 web.shop.mesh A",
    "nobody.shop.mesh A",
    "a.b.c.d.mesh A",
    "example.com A",
    "none.example.com A",
    "big.example.com A",
    "+ignore +noedns big.example.com A",
    "+tcp example.com A",
];

#[test]
fn mesh_names_are_answered_and_outside_names_forwarded() {
    need!("root", "ip", "dig", "python3", "nginx", "unshare");
    let machine = Machine::shared();
    let inside = Namespace::new();
    let settings = Settings {
        inside: Some(&inside),
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let logs = mesh.scratch().dir("dns");
    let mut server = script("dns_server.py")
        .under(inside.enter())
        .start("dns-server", &logs);
    server.wait_until("it serves", LIMIT, |run| run.stdout().contains("serving"));
    let resolv_conf = mesh.scratch().file("resolv.conf", "nameserver 127.0.0.1\n");
    let _web = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
    let me = Workload::new("me").wait_for("web");
    let program = Program::shell(dig(&QUESTIONS) + "echo '== getent'; getent ahostsv4 web");
    let covered = Program::new("unshare")
        .args(["--mount", "sh", "-c"])
        .arg(format!(
            "mount --bind {} /etc/resolv.conf && exec \"$@\"",
            resolv_conf.display()
        ));
    let run = mesh.run_command(&me, program).under(covered.arg("sh"));
    let finished = run.run("me", &logs, LIMIT).success();
    check_names(&finished);
}

fn check_names(finished: &Finished) {
    let answers = answers(&finished.stdout);
    let [
        v4,
        v6,
        upper,
        txt,
        tcp,
        plain,
        elsewhere,
        nobody,
        deep,
        rest @ ..,
    ] = &answers[..]
    else {
        panic!("{finished}");
    };
    let [outside, none, big, truncated, outside_tcp, getent] = rest else {
        panic!("{finished}");
    };
    v4.status("NOERROR");
    let address = v4.data();
    assert!(address[0].starts_with("240.240."), "{}", v4.text);
    assert_eq!(v4.records()[0][1], "5", "the TTL in {}", v4.text);
    assert!(v4.text.contains("EDNS: version: 0"), "{}", v4.text);
    assert!(
        v6.status("NOERROR").data()[0].starts_with("fd"),
        "{}",
        v6.text
    );
    for same in [upper, tcp, plain, elsewhere] {
        assert_eq!(same.status("NOERROR").data(), address, "{}", same.question);
    }
    assert!(!plain.text.contains("EDNS"), "{}", plain.text);
    assert!(txt.status("NOERROR").records().is_empty(), "{}", txt.text);
    nobody.status("NXDOMAIN");
    deep.status("NXDOMAIN");
    assert_eq!(outside.status("NOERROR").data(), ["192.0.2.7"]);
    none.status("NXDOMAIN");
    assert_eq!(big.status("NOERROR").data().len(), 60, "{}", big.text);
    assert!(truncated.text.contains(" tc"), "{}", truncated.text);
    assert_eq!(outside_tcp.status("NOERROR").data(), ["192.0.2.7"]);
    // The search domains make a short name a service of the program's own namespace.
    assert!(getent.text.starts_with(address[0]), "{}", getent.text);
}

/// What nobody has answered is not absent: a mesh name that is asked for first when the control
/// plane is away is SERVFAIL, never NXDOMAIN; what was answered before still is.
#[test]
fn without_its_control_plane_unknown_is_not_absent() {
    need!("dig", "nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
    let flag = mesh.scratch().path().join("asked");
    let before = dig(&["web.shop.mesh A", "nobody.shop.mesh A"]);
    let after = dig(&["web.shop.mesh A", "nobody.shop.mesh A", "later.shop.mesh A"]);
    let flag_text = flag.display();
    let program = Program::shell(format!(
        "{before} touch {flag_text}; while [ -e {flag_text} ]; do sleep 0.05; done; {after}"
    ));
    let me = Workload::new("me").wait_for("web");
    let running = mesh.run(&me, program);
    wait_for("the first answers", LIMIT, || flag.exists().then_some(()));
    mesh.kill_control_plane();
    std::fs::remove_file(&flag).expect("remove the flag");
    let finished = running.finish(LIMIT).success();
    let answers = answers(&finished.stdout);
    let [web, nobody, web_after, nobody_after, later] = &answers[..] else {
        panic!("{finished}");
    };
    assert_eq!(web.data(), web_after.data(), "{finished}");
    assert!(!web.data().is_empty(), "{finished}");
    nobody.status("NXDOMAIN");
    nobody_after.status("NXDOMAIN");
    later.status("SERVFAIL");
}
