//! A real API server and its etcd for tests, on ports of their own on the loopback address.
//!
//! The programs are found through `KUBEBUILDER_ASSETS`, as in the rest of the ecosystem. Without it a
//! test that asks for an API server says so and ends; with `WEFT_TEST_NO_SKIP=1` it fails. This file
//! is also part of the live tests (`#[path]`), so it uses nothing of this crate.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::copy_bidirectional;
use tokio::sync::watch;

/// How long the API server may take until it is ready.
const START_MAX: Duration = Duration::from_secs(120);

/// An API server with an etcd of its own; both end with it.
#[derive(Debug)]
pub(crate) struct ApiServer {
    dir: tempfile::TempDir,
    assets: PathBuf,
    /// The port of the API server, of etcd, and of etcd's peers.
    ports: [u16; 3],
    etcd: Option<Process>,
    server: Option<Process>,
    /// Keys of service accounts: the first signs, all are believed.
    keys: Vec<&'static str>,
}

/// Where the programs are, or nothing and a line that says so.
///
/// # Panics
/// When they are missing and skips are forbidden.
pub(crate) fn assets() -> Option<PathBuf> {
    let found = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let found = found.filter(|dir| dir.join("kube-apiserver").is_file());
    if found.is_none() {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let no_skip = std::env::var("WEFT_TEST_NO_SKIP").is_ok_and(|value| value == "1");
        assert!(
            !no_skip,
            "{test} needs kube-apiserver in KUBEBUILDER_ASSETS, and WEFT_TEST_NO_SKIP=1 forbids to skip it"
        );
        // Not with `eprintln!`: the test runner swallows what a passing test prints that way.
        let line = format!("SKIPPED: {test}: no kube-apiserver in KUBEBUILDER_ASSETS\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    found
}

impl ApiServer {
    /// Starts both and waits until the API server is ready and has the control plane's namespace; nothing where the programs are missing.
    pub(crate) async fn start() -> Option<Self> {
        let assets = assets()?;
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self {
            ports: free_ports(),
            dir,
            assets,
            etcd: None,
            server: None,
            keys: vec!["api"],
        };
        server.make_certificates();
        server.start_etcd();
        server.start_server();
        server.ready().await;
        let (made, said) = server.kubectl(&["create", "namespace", "weft-system"], "");
        assert!(made, "{said}");
        Some(server)
    }

    /// The kubeconfig of a user who may do everything.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.conf")
    }

    /// The kubeconfig of whoever has a token.
    #[allow(dead_code, reason = "the live tests' only")]
    pub(crate) fn kubeconfig_of(&self, token: &str) -> PathBuf {
        let admin = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let (before, _user) = admin.split_once("users:").unwrap();
        let config = format!("{before}users: [{{name: u, user: {{token: {token}}}}}]\n");
        let file = self.dir.path().join("token.conf");
        std::fs::write(&file, config).unwrap();
        file
    }

    /// A client of a user who may do everything.
    pub(crate) async fn client(&self) -> Client {
        Client::try_from(self.config().await).unwrap()
    }

    /// A client of a user who may do what somebody has bound to this name.
    #[allow(dead_code, reason = "the unit tests' only")]
    pub(crate) async fn client_of(&self, user: &str) -> Client {
        let mut config = self.config().await;
        config.auth_info.impersonate = Some(user.to_owned());
        Client::try_from(config).unwrap()
    }

    async fn config(&self) -> Config {
        let config = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(config, &options).await;
        config.unwrap()
    }

    /// Runs `kubectl` with its standard input; what it printed, and whether it succeeded.
    pub(crate) fn kubectl(&self, args: &[&str], input: &str) -> (bool, String) {
        let mut child = Command::new(self.assets.join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.dir.path().join("kubectl"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writing = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// Kills the API server and starts it again on the same port, with what etcd has.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.start_server();
        self.ready().await;
    }

    /// Restarts it with other keys of service accounts, of `api` and `next`: the first signs, all are
    /// believed.
    pub(crate) async fn restart_with_keys(&mut self, keys: &[&'static str]) {
        self.keys = keys.to_vec();
        self.restart().await;
    }

    /// Kills the API server; etcd goes on.
    pub(crate) fn kill(&mut self) {
        self.server = None;
    }

    /// The API server stands still: it takes connections and answers nothing.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// The end of [`pause`](Self::pause).
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Has etcd forget what was before now (`410 Gone`).
    pub(crate) fn compact(&self) {
        let ask = |path: &str, body: &str| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[1])).unwrap();
            let length = body.len();
            let head = format!("POST {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(head.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains(" 200 OK"), "{answer}");
            answer
        };
        let answer = ask("/v3/kv/range", r#"{"key":"AA=="}"#);
        let (_, rest) = answer.split_once(r#""revision":""#).unwrap();
        let (revision, _) = rest.split_once('"').unwrap();
        let body = format!(r#"{{"revision":"{revision}","physical":true}}"#);
        let _compacted = ask("/v3/kv/compaction", &body);
    }

    /// Where it is.
    pub(crate) fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports[0])
    }

    fn signal(&self, signal: Signal) {
        let process = self.server.as_ref().unwrap();
        kill_process(Pid::from_child(&process.0), signal).unwrap();
    }

    fn start_etcd(&mut self) {
        let [_, client, peer] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new(beside(&self.assets, "etcd"));
        command
            .args(["--unsafe-no-fsync", "--log-level=warn", "--data-dir=etcd"])
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")]);
        self.etcd = Some(Process::start(command, self.dir.path(), "etcd.log"));
    }

    fn start_server(&mut self) {
        let mut command = Command::new(self.assets.join("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports[1]))
            .arg(format!("--secure-port={}", self.ports[0]))
            .args([
                "--bind-address=127.0.0.1",
                "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/108",
                "--allow-privileged",
                "--authorization-mode=RBAC",
                "--client-ca-file=ca.crt",
                "--tls-cert-file=api.crt",
                "--tls-private-key-file=api.key",
                "--service-account-issuer=https://kubernetes.default.svc",
            ])
            .arg(format!(
                "--service-account-signing-key-file={}.key",
                self.keys[0]
            ));
        for key in &self.keys {
            command.arg(format!("--service-account-key-file={key}.crt"));
        }
        self.server = Some(Process::start(command, self.dir.path(), "api.log"));
    }

    async fn ready(&mut self) {
        let client = self.client().await;
        let began = Instant::now();
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            let asked = client.request_text(request);
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), asked).await {
                return;
            }
            let ended = |process: &mut Option<Process>| {
                let process = process.as_mut().unwrap();
                process.0.try_wait().unwrap().is_some()
            };
            if began.elapsed() > START_MAX || ended(&mut self.server) || ended(&mut self.etcd) {
                let log = |name| std::fs::read_to_string(self.dir.path().join(name)).unwrap();
                panic!("no API server:\n{}\n{}", log("etcd.log"), log("api.log"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn make_certificates(&self) {
        let name = |common: &str, organization: Option<&str>| {
            let mut name = DistinguishedName::new();
            name.push(DnType::CommonName, common);
            if let Some(organization) = organization {
                name.push(DnType::OrganizationName, organization);
            }
            name
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = name("ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |file: &str, text: &str| {
            std::fs::write(self.dir.path().join(file), text).unwrap();
        };
        write("ca.crt", &ca.pem());
        for (file, subject, usage) in [
            (
                "api",
                name("api", None),
                ExtendedKeyUsagePurpose::ServerAuth,
            ),
            (
                "next",
                name("next", None),
                ExtendedKeyUsagePurpose::ServerAuth,
            ),
            (
                "admin",
                name("admin", Some("system:masters")),
                ExtendedKeyUsagePurpose::ClientAuth,
            ),
        ] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let address = Ipv4Addr::LOCALHOST.into();
            params.subject_alt_names.push(SanType::IpAddress(address));
            params.distinguished_name = subject;
            params.extended_key_usages = vec![usage];
            let leaf = params.signed_by(&key, &ca).unwrap();
            write(&format!("{file}.crt"), &leaf.pem());
            write(&format!("{file}.key"), &key.serialize_pem());
        }
        let dir = self.dir.path().display();
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"{}\", certificate-authority: {dir}/ca.crt}}}}]\n\
             users: [{{name: u, user: {{client-certificate: {dir}/admin.crt, client-key: {dir}/admin.key}}}}]\n",
            self.address(),
        );
        write("admin.conf", &config);
    }
}

/// Stands between a client and the API server, and can be closed: what is connected then is cut, and
/// nobody is connected until it is opened.
#[derive(Debug)]
pub(crate) struct Gate {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
}

impl Gate {
    /// An open one; it ends with the test.
    pub(crate) async fn before(server: &ApiServer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = server.address().replace("https://", "");
        let (sender, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (server, mut is_open) = (server.clone(), is_open.clone());
                tokio::spawn(async move {
                    if !*is_open.borrow() {
                        return;
                    }
                    let Ok(mut server) = tokio::net::TcpStream::connect(server).await else {
                        return;
                    };
                    let closed = is_open.wait_for(|open| !open);
                    tokio::select! {
                        _ended = copy_bidirectional(&mut client, &mut server) => {}
                        _closed = closed => {}
                    }
                });
            }
        });
        Self {
            address,
            is_open: sender,
        }
    }

    pub(crate) fn close(&self) {
        self.is_open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.is_open.send_replace(true);
    }

    /// Where it listens.
    #[allow(dead_code, reason = "the live tests' only")]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client of the server that it is before, who may do everything.
    #[allow(dead_code, reason = "the live tests have no use for it")]
    pub(crate) async fn client(&self, server: &ApiServer) -> Client {
        let config = Kubeconfig::read_from(server.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(config, &options).await;
        let mut config = config.unwrap();
        config.cluster_url = format!("https://{}", self.address).parse().unwrap();
        Client::try_from(config).unwrap()
    }
}

/// A process that ends with its value, and with this process however that ends.
#[derive(Debug)]
struct Process(Child);

impl Process {
    /// Starts it from a thread that lives as long as the process: the kernel tells the child of the
    /// end of the thread that made it, and a test's thread ends before those of other tests.
    fn start(command: Command, dir: &Path, log: &str) -> Self {
        let log = File::create(dir.join(log)).unwrap();
        let mut guarded = Command::new("setpriv");
        guarded
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            send.send(guarded.spawn().unwrap()).unwrap();
            loop {
                std::thread::park();
            }
        });
        Self(receive.recv().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _ended_already = self.0.wait();
    }
}

/// A program beside the others, or on the path.
fn beside(assets: &Path, program: &str) -> PathBuf {
    let beside = assets.join(program);
    match beside.is_file() {
        true => beside,
        false => PathBuf::from(program),
    }
}

/// Ports that nobody listens on now.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

#[cfg(test)]
mod tests {
    use super::ApiServer;

    #[tokio::test]
    async fn an_api_server_outlives_a_restart() {
        let Some(mut server) = ApiServer::start().await else {
            return;
        };
        let (made, said) = server.kubectl(&["create", "namespace", "shop"], "");
        assert!(made, "{said}");
        server.restart_with_keys(&["next", "api"]).await;
        let (there, said) = server.kubectl(&["get", "namespace", "shop"], "");
        assert!(there, "{said}");
        server.pause();
        server.resume();
        server.client().await.apiserver_version().await.unwrap();
    }
}
