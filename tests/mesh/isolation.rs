//! What a program under `weft run` reaches of its sidecar, of the control plane and of other workloads:
//! files, sockets, processes and descriptors (`tests/programs/reach.py`).

use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Finished, Machine, Mesh, Program, Settings, Workload, need};

/// A Python that every user may run.
const PYTHON: &str = "/usr/bin/python3";
const LIMIT: Duration = Duration::from_secs(60);
/// An ordinary user of the tests.
const ORDINARY: &str = "1000";

/// A mesh in which every secret that Weft may have on a machine lies somewhere.
struct Secrets<'a> {
    mesh: Mesh<'a>,
    home: PathBuf,
}

impl<'a> Secrets<'a> {
    fn new(machine: &'a Machine, user: Option<&'a str>) -> Self {
        let settings = Settings {
            user,
            ..Settings::default()
        };
        let mesh = Mesh::with(machine, settings);
        let home = mesh.scratch().dir("home");
        let made = Program::shell(
            "umask 077 && cd \"$0\" && mkdir -p .config/weft .local/state/weft/ca && \
             echo secret > .config/weft/operator.pem && echo secret > .local/state/weft/ca/root.key",
        );
        let made = match user {
            Some(user) => made.user(user),
            None => made,
        };
        let logs = mesh.scratch().dir("made");
        made.arg(&home).run("made", &logs, LIMIT).success();
        Self { mesh, home }
    }

    fn own(&self, name: &str) -> String {
        let dir = self.mesh.scratch().dir("own");
        dir.join(name).display().to_string()
    }

    /// A workload with everything that `weft run` keeps outside the data directory, too.
    fn workload(&self) -> Workload {
        Workload::new("me")
            .flag("--admin-socket", &self.own("sidecar.sock"))
            .flag("--state-dir", &self.own("state"))
    }

    /// Runs a program that tries everything, as `uid` expects to be.
    fn reach(&self, workload: &Workload, uid: &str, outer: Option<Program>) -> Finished {
        let control_plane = self.mesh.control_plane_pid();
        let processes = format!("parent,{control_plane}");
        // Where every user may read it.
        let tries = self
            .mesh
            .scratch()
            .file("reach.py", include_str!("../programs/reach.py"));
        let tries = Program::new(PYTHON)
            .arg("-u")
            .arg(tries)
            .args([uid, &processes, &inherited()])
            .arg(self.mesh.data_dir())
            .args([self.own("sidecar.sock"), self.own("state")])
            .arg(self.home.join(".config/weft/operator.pem"));
        // Where an ordinary user's control plane is by default.
        let tries = match uid {
            ORDINARY => tries.arg(self.home.join(".local/state/weft")),
            _ => tries,
        };
        let run = self
            .mesh
            .run_command(workload, tries)
            .env("HOME", &self.home);
        let run = match outer {
            Some(outer) => run.under(outer),
            None => run,
        };
        let logs = self.mesh.scratch().dir("reach");
        run.run("reach", &logs, LIMIT)
    }
}

/// The descriptors that this process hands down to everybody, as numbers with commas.
fn inherited() -> String {
    let listed = std::fs::read_dir("/proc/self/fd").expect("read the descriptors");
    let numbers = listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let handed_down = |number: &String| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"));
        let info = info.unwrap_or_default();
        let mut flags = info.lines().filter_map(|line| line.strip_prefix("flags:"));
        let flags = flags
            .next()
            .and_then(|flags| i64::from_str_radix(flags.trim(), 8).ok());
        // O_CLOEXEC
        flags.is_some_and(|flags| flags & 0o2_000_000 == 0)
    };
    numbers.filter(handed_down).collect::<Vec<_>>().join(",")
}

/// What the program reached.
fn reached(finished: &Finished) -> Vec<&str> {
    assert!(finished.stdout.ends_with("done\n"), "{finished}");
    let lines = finished.stdout.lines();
    lines
        .filter_map(|line| line.strip_prefix("reached "))
        .collect()
}

fn nothing(finished: &Finished) {
    let reached = reached(finished);
    assert!(reached.is_empty(), "{reached:#?}\n{finished}");
}

/// Runs what follows where every namespace is refused, as AppArmor and container engines do it: in a
/// user namespace in which no further one is allowed, without capabilities.
fn refused() -> Program {
    Program::line("unshare --user --map-root-user sh -c")
        .arg(
            "echo 0 > /proc/sys/user/max_user_namespaces && \
             exec setpriv --bounding-set=-all --inh-caps=-all -- \"$@\"",
        )
        .arg("sh")
}

/// In the same uid as the sidecar, the control plane and the operator.
#[test]
fn the_program_of_an_ordinary_user_reaches_nothing_of_weft() {
    need!("/usr/bin/python3", "root");
    let machine = Machine::shared();
    let secrets = Secrets::new(&machine, Some(ORDINARY));
    nothing(&secrets.reach(&secrets.workload(), ORDINARY, None));
}

#[test]
fn without_capture_the_program_of_an_ordinary_user_reaches_nothing_of_weft() {
    need!("/usr/bin/python3", "root");
    let machine = Machine::shared();
    let secrets = Secrets::new(&machine, Some(ORDINARY));
    let bare = secrets.workload().flag("--capture", "none");
    nothing(&secrets.reach(&bare, ORDINARY, None));
}

/// As root, and as another user, whom `--user` names.
#[test]
fn without_capture_the_program_of_root_reaches_nothing_of_weft() {
    need!("/usr/bin/python3", "root");
    let machine = Machine::shared();
    let secrets = Secrets::new(&machine, None);
    let bare = secrets.workload().flag("--capture", "none");
    nothing(&secrets.reach(&bare, "0", None));
    nothing(&secrets.reach(&bare.flag("--user", "nobody"), "65534", None));
}

/// Where namespaces are refused, `weft run` says so and starts nothing.
#[test]
fn where_namespaces_are_refused_nothing_runs_unprotected() {
    need!("/usr/bin/python3", "unshare", "setpriv");
    let machine = Machine::shared();
    let secrets = Secrets::new(&machine, None);
    for (capture, advice) in [("netns", "--capture none"), ("none", "--no-isolation")] {
        let workload = secrets.workload().flag("--capture", capture);
        let finished = secrets.reach(&workload, "0", Some(refused()));
        assert_eq!(
            (finished.code(), finished.stdout.as_str()),
            (1, ""),
            "{finished}"
        );
        for part in ["this system refuses to make a user namespace", advice] {
            assert!(finished.stderr.contains(part), "{part}: {finished}");
        }
    }
    let workload = secrets.workload().switch("--no-isolation");
    let finished = secrets.reach(&workload, "0", None);
    assert_eq!(finished.code(), 2, "{finished}");
}

/// With `--no-isolation` the program reads the files of its user, as the guide and a warning say, but
/// nobody's memory.
#[test]
fn without_isolation_a_warning_names_what_is_open() {
    need!("/usr/bin/python3", "unshare", "setpriv");
    let machine = Machine::shared();
    let secrets = Secrets::new(&machine, None);
    let bare = secrets
        .workload()
        .flag("--capture", "none")
        .switch("--no-isolation");
    let finished = secrets.reach(&bare, "0", Some(refused()));
    let reached = reached(&finished);
    let (files, others): (Vec<&str>, Vec<&str>) = reached
        .iter()
        .partition(|what| what.starts_with("file ") || what.starts_with("socket "));
    assert!(others.is_empty(), "{others:#?}");
    let data = secrets.mesh.data_dir();
    let key = format!("file {}", data.join("ca/root.key").display());
    assert!(files.contains(&key.as_str()), "{files:#?}");
    let warning = finished
        .stderr
        .lines()
        .find(|line| line.contains("warning: --no-isolation"))
        .unwrap_or_else(|| panic!("no warning: {finished}"));
    let operator = secrets.home.join(".config/weft/operator.pem");
    let named = [&data, &operator].map(|path| path.display().to_string());
    for part in named
        .iter()
        .map(String::as_str)
        .chain(["the sidecar's own user"])
    {
        assert!(warning.contains(part), "{part}: {warning}");
    }
}

/// A user of its own is enough where files are closed to it.
#[test]
fn without_isolation_another_user_reaches_nothing_of_weft() {
    need!("/usr/bin/python3", "root");
    let machine = Machine::shared();
    let secrets = Secrets::new(&machine, None);
    let bare = secrets
        .workload()
        .flag("--capture", "none")
        .flag("--user", "nobody")
        .switch("--no-isolation");
    nothing(&secrets.reach(&bare, "65534", None));
}
