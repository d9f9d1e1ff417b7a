//! What a sidecar does in each test.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use weft_proxy::nest::{
    Child, Nest, NestConfig, NestError, NestListeners, Network, Privilege, SocketFactory, User,
    enter, exit_code,
};

use crate::{eventually, outside, processes_with};

/// A test.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) who: Who,
    pub(crate) part: Part,
}

/// Who can run a test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Everyone,
    Root,
    Ordinary,
}

impl Who {
    pub(crate) fn includes(self, user: u32) -> bool {
        self == Self::Everyone || (self == Self::Root) == (user == 0)
    }
}

/// Where a test runs.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    /// In a sidecar.
    Sidecar(fn(Privilege)),
    /// In the parent of one; the argument is the sidecar's user.
    Outside(fn(u32)),
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    sidecar(
        "connections_are_redirected",
        Who::Everyone,
        connections_are_redirected,
    ),
    sidecar(
        "the_program_is_dialled_inside",
        Who::Everyone,
        the_program_is_dialled_inside,
    ),
    sidecar(
        "dns_arrives_and_other_udp_is_refused",
        Who::Everyone,
        dns_arrives,
    ),
    sidecar(
        "an_ordinary_program_has_no_powers",
        Who::Ordinary,
        no_powers,
    ),
    sidecar(
        "root_loses_what_leads_out",
        Who::Root,
        root_loses_what_leads_out,
    ),
    sidecar(
        "root_runs_a_program_as_another_user",
        Who::Root,
        another_user,
    ),
    sidecar(
        "only_root_names_a_user",
        Who::Ordinary,
        only_root_names_a_user,
    ),
    sidecar(
        "hidden_places_are_empty",
        Who::Everyone,
        hidden_places_are_empty,
    ),
    sidecar(
        "a_missing_place_cannot_be_hidden",
        Who::Everyone,
        missing_place,
    ),
    sidecar("names_are_resolved_by_the_sidecar", Who::Everyone, names),
    sidecar("exit_status_passes_through", Who::Everyone, exit_status),
    sidecar("daemons_die_with_the_program", Who::Everyone, daemons_die),
    sidecar("a_dropped_child_dies", Who::Everyone, dropped_child),
    sidecar(
        "a_missing_program_is_an_error",
        Who::Everyone,
        missing_program,
    ),
    sidecar(
        "the_binary_is_its_own_helper",
        Who::Everyone,
        the_binary_is_its_own_helper,
    ),
    sidecar("initdb_runs", Who::Ordinary, initdb_runs),
    outside(
        "sigkill_of_the_sidecar_kills_everything",
        outside::sigkill_of_the_sidecar,
    ),
    outside("signals_arrive_once", outside::signals_arrive_once),
    outside("start_time", outside::start_time),
    Scenario {
        name: "a_masked_proc_gives_nothing_away",
        who: Who::Ordinary,
        part: Part::Outside(outside::masked_proc),
    },
];

const fn sidecar(name: &'static str, who: Who, test: fn(Privilege)) -> Scenario {
    Scenario {
        name,
        who,
        part: Part::Sidecar(test),
    }
}

const fn outside(name: &'static str, test: fn(u32)) -> Scenario {
    Scenario {
        name,
        who: Who::Everyone,
        part: Part::Outside(test),
    }
}

/// The descriptors that this process was started with, and one for counting them.
static STARTED_WITH: OnceLock<usize> = OnceLock::new();

/// The main function of a sidecar.
pub(crate) fn drive(name: &str) {
    let _ = STARTED_WITH.set(fs::read_dir("/proc/self/fd").unwrap().count());
    let host = network_namespace();
    let privilege = enter(Network::Own).unwrap();
    let expected = if rustix::process::geteuid().is_root() {
        Privilege::Root
    } else {
        Privilege::UserNamespace
    };
    assert_eq!(privilege, expected);
    match name {
        "run" => return run(privilege),
        "masked" => return sidecar_opens_nothing(privilege),
        _ => {}
    }
    let scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .unwrap();
    let Part::Sidecar(test) = scenario.part else {
        panic!("{name} does not run in a sidecar");
    };
    test(privilege);
    assert_eq!(
        network_namespace(),
        host,
        "the main thread stays in the host's network"
    );
}

/// Where a fresh /proc is refused, the program sees the sidecar's number there, and nothing behind it.
fn sidecar_opens_nothing(privilege: Privilege) {
    let process = format!("/proc/{}", std::process::id());
    let script = format!(
        "[ -d {process} ] || exit 3; cat {process}/environ {process}/maps {process}/mem || \
         ls {process}/fd {process}/root/ {process}/cwd/ || readlink {process}/ns/net || \
         nsenter --net={process}/ns/net true || exit 4"
    );
    let status = Sidecar::start(privilege, shell(&format!("{{ {script}; }} 2>/dev/null"))).wait();
    assert_eq!(status.code(), Some(4), "{status}");
}

/// What `weft run` does with signals and the exit code.
fn run(privilege: Privilege) {
    let script = std::env::var("SCRIPT").unwrap();
    let runtime = runtime();
    let context = runtime.enter();
    // In place before the program starts, so that it is never left alone with a signal to all.
    let mut interrupt = signal(SignalKind::interrupt()).unwrap();
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let mut sidecar = Sidecar::start(privilege, shell(&script));
    drop(context);
    let code = runtime.block_on(async {
        loop {
            tokio::select! {
                status = sidecar.child.wait() => break exit_code(status.unwrap()),
                _ = interrupt.recv() => sidecar.child.signal(libc::SIGINT).unwrap(),
                _ = terminate.recv() => sidecar.child.signal(libc::SIGTERM).unwrap(),
            }
        }
    });
    std::process::exit(code.into());
}

/// A nest with a running program.
struct Sidecar {
    nest: Nest,
    listeners: NestListeners,
    child: Child,
}

impl Sidecar {
    fn start(privilege: Privilege, config: NestConfig) -> Self {
        Self::try_start(privilege, &config).unwrap()
    }

    fn try_start(privilege: Privilege, config: &NestConfig) -> Result<Self, NestError> {
        let mut nest = Nest::open(config, privilege, 2)?;
        let listeners = nest.take_listeners();
        let child = nest.spawn(config)?;
        Ok(Self {
            nest,
            listeners,
            child,
        })
    }

    fn wait(&mut self) -> ExitStatus {
        let limit = Duration::from_secs(30);
        let wait = async { tokio::time::timeout(limit, self.child.wait()).await };
        runtime().block_on(wait).unwrap().unwrap()
    }

    /// The next redirected connection.
    fn accept(&self) -> TcpStream {
        let mut accepted = None;
        eventually("a redirected connection", || {
            accepted = self
                .listeners
                .outbound
                .iter()
                .find_map(|listener| listener.accept().ok());
            accepted.is_some()
        });
        let (stream, peer) = accepted.unwrap();
        assert!(!peer.ip().is_loopback(), "{peer}");
        stream.set_nonblocking(false).unwrap();
        stream
    }
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

fn program(arguments: &[&str]) -> NestConfig {
    let mut command: Vec<OsString> = vec!["/proc/self/exe".into(), "inside".into()];
    command.extend(arguments.iter().map(OsString::from));
    NestConfig::new(command)
}

fn shell(script: &str) -> NestConfig {
    NestConfig::new(vec!["sh".into(), "-c".into(), script.into()])
}

fn network_namespace() -> OsString {
    fs::read_link("/proc/thread-self/ns/net").unwrap().into()
}

fn connections_are_redirected(privilege: Privilege) {
    let addresses = [
        "240.240.0.5:80",
        "[2001:db8::5]:443",
        "192.168.77.1:5432",
        "100.127.255.3:1",
    ];
    let arguments = [&["connect"], addresses.as_slice()].concat();
    let mut sidecar = Sidecar::start(privilege, program(&arguments));
    assert_eq!(
        sidecar.listeners.outbound.len(),
        4,
        "two families for each of two workers"
    );
    for expected in addresses {
        let mut stream = sidecar.accept();
        let original: SocketAddr = match stream.local_addr().unwrap() {
            SocketAddr::V4(_) => ip_original_dst(&stream).unwrap().into(),
            SocketAddr::V6(_) => ipv6_original_dst(&stream).unwrap().into(),
        };
        assert_eq!(original.to_string(), expected);
        write!(stream, "{original}").unwrap();
    }
    assert!(sidecar.wait().success());
}

fn taken(factory: &SocketFactory, v6: bool) -> std::io::Result<socket2::Socket> {
    runtime().block_on(factory.take(v6))
}

fn the_program_is_dialled_inside(privilege: Privilege) {
    for any in ["0.0.0.0:80", "[::]:80"] {
        let any: SocketAddr = any.parse().unwrap();
        let config = program(&["serve", &any.to_string()]);
        let own: IpAddr = config.addresses.like(any.ip());
        let mut sidecar = Sidecar::start(privilege, config);
        let factory = sidecar.nest.sockets();
        let target = SocketAddr::new(own, 80).into();
        let mut connected = None;
        eventually("the program to listen on port 80", || {
            let socket = taken(&factory, any.is_ipv6()).unwrap();
            socket.set_nonblocking(false).unwrap();
            connected = socket.connect(&target).is_ok().then_some(socket);
            connected.is_some()
        });
        let mut stream = TcpStream::from(connected.unwrap());
        let mut peer = String::new();
        stream.read_to_string(&mut peer).unwrap();
        assert_eq!(peer.parse::<SocketAddr>().unwrap().ip(), own);
        assert!(sidecar.wait().success());
        drop(sidecar);
        assert_eq!(
            taken(&factory, false).unwrap_err().kind(),
            ErrorKind::NotConnected
        );
    }
}

fn dns_arrives(privilege: Privilege) {
    let servers = ["127.0.0.53:53", "8.8.8.8:53", "[2001:4860:4860::8888]:53"];
    let arguments = [&["dns"], servers.as_slice()].concat();
    let mut sidecar = Sidecar::start(privilege, program(&arguments));
    for server in servers {
        let v6 = usize::from(server.starts_with('['));
        let mut query = [0; 64];
        let mut received = None;
        eventually("a query", || {
            received = sidecar.listeners.dns_udp[v6].recv_from(&mut query).ok();
            received.is_some()
        });
        let (length, from) = received.unwrap();
        sidecar.listeners.dns_udp[v6]
            .send_to(&query[..length], from)
            .unwrap();
        let mut accepted = None;
        eventually("a query over TCP", || {
            accepted = sidecar.listeners.dns_tcp[v6].accept().ok();
            accepted.is_some()
        });
        accepted.unwrap().0.write_all(b"tcp").unwrap();
    }
    assert!(sidecar.wait().success());
    let arguments = [
        "refused",
        "8.8.8.8:123",
        "192.168.77.1:443",
        "[2001:db8::1]:443",
    ];
    let mut sidecar = Sidecar::start(privilege, program(&arguments));
    assert!(sidecar.wait().success());
}

/// Runs a program that tells what it sees, and returns the value after `key`.
struct Told {
    text: String,
}

impl Told {
    fn by(privilege: Privilege, configure: impl FnOnce(&mut NestConfig), paths: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        outside::open_to_all(directory.path());
        let file = directory.path().join("told");
        let arguments = [&["tell", file.to_str().unwrap()], paths].concat();
        let mut config = program(&arguments);
        configure(&mut config);
        let mut sidecar = Sidecar::start(privilege, config);
        let status = sidecar.wait();
        assert!(status.success(), "{status}");
        Self {
            text: fs::read_to_string(file).unwrap(),
        }
    }

    fn value(&self, key: &str) -> &str {
        let line = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('\t'));
        line.map(|value| value.trim_start_matches(':').trim())
            .unwrap()
    }

    fn status(&self, key: &str) -> &str {
        self.value(&format!("{key}:"))
    }

    fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.status(set), 16).unwrap()
    }
}

/// The identity is unchanged, nothing is left to escalate with, and only itself is to be seen.
fn no_powers(privilege: Privilege) {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let told = Told::by(
        privilege,
        |config| config.env.push(("ADDED".into(), "yes".into())),
        &["/proc/1/environ", "/proc/1/fd", "/proc/self/fd"],
    );
    assert_eq!(told.status("Uid"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
    assert_eq!(told.status("Gid"), format!("{gid}\t{gid}\t{gid}\t{gid}"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(told.capabilities(set), 0, "{set}");
    }
    assert_eq!(told.status("SigBlk"), "0000000000000000");
    assert_eq!(told.status("Pids"), "1 2");
    assert_eq!(told.status("Added"), "yes");
    assert_eq!(told.value("/proc/1/environ"), "PermissionDenied");
    assert_eq!(told.value("/proc/1/fd"), "PermissionDenied");
    let expected = format!("{} entries", STARTED_WITH.get().unwrap());
    assert_eq!(
        told.value("/proc/self/fd"),
        expected,
        "none of the sidecar's own"
    );
}

fn root_loses_what_leads_out(privilege: Privilege) {
    let told = Told::by(privilege, |_| {}, &["/proc/1/environ"]);
    assert_eq!(told.status("Pids"), "1 2");
    // Bits: DAC_READ_SEARCH 2, NET_ADMIN 12, SYS_MODULE 16, SYS_RAWIO 17, SYS_PTRACE 19,
    // SYS_ADMIN 21, MKNOD 27, BPF 39.
    let dangerous = [2, 12, 16, 17, 19, 21, 27, 39]
        .iter()
        .fold(0, |set, bit| set | 1_u64 << bit);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(told.capabilities(set) & dangerous, 0, "{set}");
        assert_ne!(told.capabilities(set), 0, "{set}");
    }
    assert_eq!(told.capabilities("CapAmb"), 0);
    assert_eq!(told.value("/proc/1/environ"), "PermissionDenied");
}

fn another_user(privilege: Privilege) {
    let user = User {
        uid: 1000,
        gid: 1001,
        groups: vec![1002, 1003],
    };
    let told = Told::by(
        privilege,
        |config| config.user = Some(user),
        &["/proc/1/environ"],
    );
    assert_eq!(told.status("Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(told.status("Gid"), "1001\t1001\t1001\t1001");
    assert_eq!(told.status("Groups"), "1002 1003");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(told.capabilities(set), 0, "{set}");
    }
    assert_eq!(told.value("/proc/1/environ"), "PermissionDenied");
}

fn only_root_names_a_user(privilege: Privilege) {
    let mut config = shell("true");
    config.user = Some(User {
        uid: 7,
        gid: 7,
        groups: Vec::new(),
    });
    let error = Sidecar::try_start(privilege, &config).err().unwrap();
    assert!(matches!(error, NestError::User { uid: 7 }), "{error}");
}

fn hidden_places_are_empty(privilege: Privilege) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir_all(path("data/below")).unwrap();
    fs::write(path("data/key"), "secret").unwrap();
    fs::write(path("token"), "secret").unwrap();
    fs::write(path("open"), "open").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("admin.sock")).unwrap();
    std::env::set_current_dir(path("data/below")).unwrap();
    let names = ["data", "data/key", "token", "open", "admin.sock"].map(path);
    let names = names.each_ref().map(|name| name.to_str().unwrap());
    let [data, key, token, open, admin] = names;
    let hide = |config: &mut NestConfig| {
        config.hide = [data, token, admin].map(Into::into).to_vec();
    };
    let told = Told::by(privilege, hide, &names);
    assert_eq!(told.value(data), "0 entries");
    assert_eq!(told.value(key), "NotFound");
    assert_eq!(told.value(token), "");
    assert_eq!(told.value(open), "open");
    assert_eq!(told.value(admin), "");
    assert_eq!(
        told.status("Cwd"),
        "/",
        "a hidden working directory is left"
    );
    assert_eq!(
        fs::read_to_string(key).unwrap(),
        "secret",
        "the host sees it as before"
    );

    // Whatever the program tries, also as root of a user namespace of its own.
    let tries = format!(
        "umount {data}; umount -l {data}; mount --bind {data}/.. /mnt; cat {key} /mnt/data/key"
    );
    let config = |script: &str| {
        let mut config = shell(&format!("{{ {script}; }} 2>&1 | grep -q secret"));
        config.hide = vec![data.into()];
        config
    };
    let nested = format!("unshare -Urm sh -c '{tries}'; unshare -Urmp --fork sh -c '{tries}'");
    for script in [
        tries.as_str(),
        &nested,
        &format!("cat {open} && echo secret"),
    ] {
        let finds = Sidecar::start(privilege, config(script)).wait().success();
        assert_eq!(finds, script.contains("echo secret"), "{script}");
    }
}

fn missing_place(privilege: Privilege) {
    let mut config = shell("true");
    config.hide = vec!["/nowhere/at/all".into()];
    match Sidecar::try_start(privilege, &config).err() {
        Some(NestError::Hide { path, source }) => {
            assert_eq!(path, Path::new("/nowhere/at/all"));
            assert_eq!(source.kind(), ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
}

fn names(privilege: Privilege) {
    let domains = |config: &mut NestConfig| {
        config.search_domains = vec!["shop.mesh".to_owned(), "mesh".to_owned()];
    };
    let paths = ["/etc/resolv.conf", "/etc/nsswitch.conf"];
    let before = paths.map(|path| fs::read_to_string(path).unwrap());
    let told = Told::by(privilege, domains, &paths);
    let resolv = told.value("/etc/resolv.conf");
    assert!(
        resolv.ends_with("|nameserver 127.0.0.53|search shop.mesh mesh|options ndots:1|"),
        "{resolv}"
    );
    let nsswitch = told.value("/etc/nsswitch.conf");
    assert!(nsswitch.starts_with("hosts: files dns|"), "{nsswitch}");
    assert!(nsswitch.contains("passwd:"), "{nsswitch}");
    let after = paths.map(|path| fs::read_to_string(path).unwrap());
    assert_eq!(before, after, "the host's own are as they were");
}

fn exit_status(privilege: Privilege) {
    let check = |script: &str, code: Option<i32>, killed_by: Option<i32>| {
        let status = Sidecar::start(privilege, shell(script)).wait();
        assert_eq!(
            (status.code(), status.signal()),
            (code, killed_by),
            "{script}"
        );
    };
    check("true", Some(0), None);
    check("exit 7", Some(7), None);
    check("kill -TERM $$", None, Some(libc::SIGTERM));
    check("kill -KILL $$", None, Some(libc::SIGKILL));
    // Nobody inside can end the nest's first process.
    check(
        "kill -KILL 1; kill -TERM 1; kill -INT 1; exit 3",
        Some(3),
        None,
    );
    // Orphans are reaped: no zombie is left when the program looks.
    check(
        "(sleep 0.01 & exec true); sleep 0.2; exit $(cat /proc/[0-9]*/stat | grep -c ' Z ')",
        Some(0),
        None,
    );
}

fn daemons_die(privilege: Privilege) {
    let mark = format!("7002.{}", std::process::id());
    let ready = tempfile::tempdir().unwrap();
    let flag = ready.path().join("ready");
    // One obeys, one does not; both have left the session and the program.
    let script = format!(
        "setsid sleep {mark} & setsid sh -c 'trap \"\" TERM; : > {flag}; sleep {mark}; sleep {mark}' & \
         while ! [ -e {flag} ]; do sleep 0.01; done; exit 4",
        flag = flag.display()
    );
    let start = Instant::now();
    let status = Sidecar::start(privilege, shell(&script)).wait();
    assert_eq!(status.code(), Some(4));
    assert!(
        processes_with(&mark).is_empty(),
        "gone before the end is announced"
    );
    println!("note: stubborn daemons gone in {:?}", start.elapsed());
}

fn dropped_child(privilege: Privilege) {
    let mark = format!("7003.{}", std::process::id());
    let sidecar = Sidecar::start(
        privilege,
        shell(&format!("setsid sleep {mark} & sleep {mark}; exit 0")),
    );
    eventually("both sleeps", || processes_with(&mark).len() == 2);
    drop(sidecar.child);
    eventually("no sleep", || processes_with(&mark).is_empty());
}

fn missing_program(privilege: Privilege) {
    let check = |name: &str, kind: ErrorKind| {
        let config = NestConfig::new(vec![name.into()]);
        match Sidecar::try_start(privilege, &config).err() {
            Some(NestError::Exec { program, source }) => {
                assert_eq!(program, name);
                assert_eq!(source.kind(), kind, "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    };
    check("no-such-program", ErrorKind::NotFound);
    check("/etc/passwd", ErrorKind::PermissionDenied);
    check("/etc", ErrorKind::PermissionDenied);
    assert!(matches!(
        Sidecar::try_start(privilege, &NestConfig::new(Vec::new())).err(),
        Some(NestError::Exec { .. })
    ));
}

/// `weft-proxy` starts itself as the nest's first process.
fn the_binary_is_its_own_helper(privilege: Privilege) {
    let mut config = shell("exit 9");
    config.exe = env!("CARGO_BIN_EXE_weft-proxy").into();
    assert_eq!(Sidecar::start(privilege, config).wait().code(), Some(9));
}

/// PostgreSQL's set-up looks closely at who runs it.
fn initdb_runs(privilege: Privilege) {
    let found = Command::new("initdb").arg("--version").output();
    if !found.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED, because PostgreSQL's initdb is not installed: initdb_runs");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let script = format!("initdb --no-sync -D {} > /dev/null", data.display());
    assert!(Sidecar::start(privilege, shell(&script)).wait().success());
    assert!(data.join("PG_VERSION").exists());
}
