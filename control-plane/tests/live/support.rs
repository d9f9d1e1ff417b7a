//! A control plane in this process, and a sidecar that does as it is told.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustix::process::{Pid, Resource as Limited, Rlimit, Signal, getrlimit, prlimit};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use weft_api::client::{Client, ClientError};
use weft_api::types::{ApplyResult, NewToken, RevokeRequest, Source, Sources, TokenRequest};
use weft_proto::identity::identity_client::IdentityClient;
use weft_proto::identity::sign_request::Credential;
use weft_proto::identity::{SignRequest, SignResponse};
use weft_proto::registry::register_request::Message as Said;
use weft_proto::registry::register_response::Message as Answer;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::registry::{
    Goodbye, RegisterRequest, RegisterResponse, RegisteredPort, Registration,
};
use weft_proto::resource::{Kind, Resource};
use weft_proto::rpc;
use weft_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// Nothing here takes longer, unless it is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A control plane with a data directory that outlives it.
pub(crate) struct ControlPlane {
    directory: tempfile::TempDir,
    child: Child,
    pub(crate) grpc: SocketAddr,
    metrics: SocketAddr,
    more: Vec<String>,
    kubeconfig: Option<PathBuf>,
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        let anywhere = "127.0.0.1:0".parse().unwrap();
        Self::on(directory, anywhere, more).await
    }

    /// Kills it and starts another on the same data directory and address.
    pub(crate) async fn restart(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let (grpc, more) = (self.grpc, self.more.clone());
        // What it left says nothing about the next one.
        std::fs::remove_file(self.data_dir().join("addresses.json")).unwrap();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        Self::in_cluster(self.kubeconfig.clone(), directory, grpc, more).await
    }

    /// Kills it and starts another on the same address, whose data directory is made of a backup.
    pub(crate) async fn restored(mut self, backup: &Path) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        weft_control_plane::backup::restore(backup, &data_dir).unwrap();
        let (grpc, more) = (self.grpc, self.more.clone());
        Self::on(directory, grpc, more).await
    }

    /// Kills it; its data directory is left.
    pub(crate) fn stop(mut self) -> tempfile::TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::remove_file(self.data_dir().join("addresses.json")).unwrap();
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }

    /// Starts one on the directory of another that was stopped.
    pub(crate) async fn started_again(directory: tempfile::TempDir, more: &[&str]) -> Self {
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        let anywhere = "127.0.0.1:0".parse().unwrap();
        Self::on(directory, anywhere, more).await
    }

    /// One that follows a cluster.
    pub(crate) async fn start_in_cluster(kubeconfig: &Path) -> Self {
        Self::start_in_cluster_at(kubeconfig, "127.0.0.1:0".parse().unwrap()).await
    }

    /// One that follows a cluster and listens for sidecars at an address.
    pub(crate) async fn start_in_cluster_at(kubeconfig: &Path, listen: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = Some(kubeconfig.to_owned());
        let more = [
            "--kubernetes",
            "--service-range",
            "10.96.0.0/16",
            "--webhook-listen",
            "127.0.0.1:0",
        ];
        let more = more.map(str::to_owned).to_vec();
        Self::in_cluster(kubeconfig, directory, listen, more).await
    }

    async fn in_cluster(
        kubeconfig: Option<PathBuf>,
        directory: tempfile::TempDir,
        listen: SocketAddr,
        more: Vec<String>,
    ) -> Self {
        let mut command = program(&directory.path().join("data"));
        if let Some(kubeconfig) = &kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let mut started = Self::spawned(command, directory, listen, more).await;
        started.kubeconfig = kubeconfig;
        started
    }

    async fn on(directory: tempfile::TempDir, listen: SocketAddr, more: Vec<String>) -> Self {
        let command = program(&directory.path().join("data"));
        Self::spawned(command, directory, listen, more).await
    }

    /// One that cannot write a file larger than `bytes`: as on a disk that is full then.
    pub(crate) async fn start_on_a_small_disk(bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = program(&directory.path().join("data"));
        let mut command = Command::new("sh");
        // Blocks of 512 bytes; a write beyond is an error and no signal.
        let script = format!(
            "trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"",
            bytes / 512
        );
        command.args(["-c", &script]).arg(program.get_program());
        command.args(program.get_args()).stderr(Stdio::piped());
        let anywhere = "127.0.0.1:0".parse().unwrap();
        Self::spawned(command, directory, anywhere, Vec::new()).await
    }

    async fn spawned(
        mut command: Command,
        directory: tempfile::TempDir,
        listen: SocketAddr,
        more: Vec<String>,
    ) -> Self {
        let data_dir = directory.path().join("data");
        let mut child = command
            .args(["--grace", "7s", "--restart-grace", "7s"])
            .args(["--listen", &listen.to_string()])
            .args(&more)
            .spawn()
            .unwrap();
        let addresses = addresses(&mut child, &data_dir).await;
        // Nobody reads it, and a full pipe would stop the program.
        if let Some(mut stderr) = child.stderr.take() {
            std::thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        }
        let parse = |name: &str| addresses[name].as_str().unwrap().parse().unwrap();
        Self {
            directory,
            child,
            grpc: parse("address"),
            metrics: parse("metricsAddress"),
            more,
            kubeconfig: None,
        }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn client(&self) -> Client {
        Client::at(&self.data_dir())
    }

    /// Reads something of the API; of a list its items.
    pub(crate) async fn get(&self, path: &str) -> serde_json::Value {
        let mut answer: serde_json::Value = self.client().get(path).await.unwrap();
        match answer.get_mut("items") {
            Some(items) => items.take(),
            None => answer,
        }
    }

    /// Applies documents, YAML.
    pub(crate) async fn apply(&self, text: &str) -> Result<ApplyResult, ClientError> {
        let sources = Sources {
            sources: vec![Source {
                name: "-".to_owned(),
                text: text.to_owned(),
            }],
        };
        self.client().post("/v1/apply", &sources).await
    }

    pub(crate) async fn revoke(&self, instance: &str) -> Result<RevokeRequest, ClientError> {
        let request = RevokeRequest {
            instance: instance.to_owned(),
        };
        self.client().post("/v1/certs/revoke", &request).await
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        root(&self.data_dir())
    }

    pub(crate) async fn token(&self, workload: &str, services: &[&str], ports: &[u16]) -> String {
        self.token_for(workload, None, services, ports).await
    }

    pub(crate) async fn token_for(
        &self,
        workload: &str,
        account: Option<&str>,
        services: &[&str],
        ports: &[u16],
    ) -> String {
        let request = TokenRequest {
            workload: workload.parse().unwrap(),
            service_account: account.map(str::to_owned),
            services: services.iter().map(|s| s.parse().unwrap()).collect(),
            addresses: Vec::new(),
            ports: ports.to_vec(),
            ttl_seconds: 600,
        };
        let answer: NewToken = self.client().post("/v1/tokens", &request).await.unwrap();
        answer.token
    }

    /// A sidecar of a workload to which an operator has given addresses.
    pub(crate) async fn enrol_at(&self, workload: &str, addresses: &[&str]) -> Sidecar {
        let ranges = addresses.iter().map(|text| (*text).to_owned().try_into());
        let request = TokenRequest {
            workload: workload.parse().unwrap(),
            service_account: None,
            services: vec![workload.parse().unwrap()],
            addresses: ranges.collect::<Result<_, _>>().unwrap(),
            ports: vec![80],
            ttl_seconds: 600,
        };
        let made: NewToken = self.client().post("/v1/tokens", &request).await.unwrap();
        let mut sidecar = Sidecar::new(self);
        let credential = Credential::JoinToken(made.token);
        sidecar.sign(credential).await.unwrap();
        sidecar
    }

    /// A sidecar with a certificate for `workload`, which serves the service of its own name on
    /// `ports`.
    pub(crate) async fn enrol(&self, workload: &str, ports: &[u16]) -> Sidecar {
        let token = self.token(workload, &[workload], ports).await;
        let mut sidecar = Sidecar::new(self);
        sidecar.sign(Credential::JoinToken(token)).await.unwrap();
        sidecar
    }

    /// How often peers were refused for a reason.
    pub(crate) async fn refused(&self, reason: &str) -> u64 {
        let metrics = self.http("/metrics").await;
        let label = format!("weft_control_plane_refused_total{{reason=\"{reason}\"}} ");
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(&label)).unwrap();
        value.parse().unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Limits how many files the process may open from now on; what it was before.
    pub(crate) fn limit_descriptors(&self, limit: u64) -> u64 {
        let new = Rlimit {
            current: Some(limit),
            ..getrlimit(Limited::Nofile)
        };
        let before = prlimit(Some(self.pid()), Limited::Nofile, new).unwrap();
        before.current.unwrap()
    }

    /// What the process has used of the processors.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        // utime and stime, in ticks of 10 ms.
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|f| f.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// What the process holds of the memory, KiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let digits = line.unwrap().trim().trim_end_matches(" kB");
        digits.parse().unwrap()
    }

    /// A connection to the metrics port.
    pub(crate) async fn metrics_connection(&self) -> TcpStream {
        TcpStream::connect(self.metrics).await.unwrap()
    }

    /// `GET path` on the metrics port.
    pub(crate) async fn http(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = TcpStream::connect(self.metrics).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ended_before = self.child.kill();
        let _reaped_before = self.child.wait();
    }
}

/// The root of the control plane that has this data directory.
fn root(data_dir: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(data_dir.join("ca/root.pem")).unwrap()
}

/// The program, to listen anywhere.
pub(crate) fn program(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-control-plane"));
    command
        .args(["--metrics-listen", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(data_dir)
        .stderr(Stdio::piped());
    command
}

/// What a control plane says of itself once it is ready.
pub(crate) async fn addresses(child: &mut Child, data_dir: &Path) -> serde_json::Value {
    let mut found = serde_json::Value::Null;
    wait_until("it is ready", async || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        let content = std::fs::read(data_dir.join("addresses.json"));
        found = content.map_or(serde_json::Value::Null, |content| {
            serde_json::from_slice(&content).unwrap()
        });
        !found.is_null()
    })
    .await;
    found
}

/// A sidecar: what it has got so far.
pub(crate) struct Sidecar {
    address: SocketAddr,
    root: CertificateDer<'static>,
    key: KeyPair,
    /// The address that it connects from.
    pub(crate) source: Ipv4Addr,
    pub(crate) signed: Option<SignResponse>,
}

impl Sidecar {
    pub(crate) fn new(control_plane: &ControlPlane) -> Self {
        Self::at(&control_plane.data_dir(), control_plane.grpc)
    }

    /// One of the control plane that has this data directory and listens there.
    pub(crate) fn at(data_dir: &Path, address: SocketAddr) -> Self {
        Self {
            address,
            root: root(data_dir),
            key: KeyPair::generate().unwrap(),
            source: Ipv4Addr::LOCALHOST,
            signed: None,
        }
    }

    /// From now on it connects to the control plane that listens there.
    pub(crate) fn goes_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    pub(crate) fn instance(&self) -> &str {
        &self.signed.as_ref().unwrap().instance
    }

    /// Asks for a certificate for its key, and keeps it.
    pub(crate) async fn sign(&mut self, credential: Credential) -> Result<SignResponse, Status> {
        let csr = CertificateParams::default()
            .serialize_request(&self.key)
            .unwrap();
        let signed = self.sign_csr(credential, csr.der().to_vec()).await?;
        self.signed = Some(signed.clone());
        Ok(signed)
    }

    pub(crate) async fn sign_csr(
        &self,
        credential: Credential,
        csr: Vec<u8>,
    ) -> Result<SignResponse, Status> {
        let mut client = IdentityClient::new(self.connect().await.unwrap());
        let request = SignRequest {
            csr,
            credential: Some(credential),
        };
        client.sign(request).await.map(tonic::Response::into_inner)
    }

    /// Connects with its certificate, if it has one.
    pub(crate) async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let config = Arc::new(self.tls_config());
        let (address, source) = (self.address, self.source);
        let connector = tower::service_fn(move |_uri: http::Uri| {
            let config = Arc::clone(&config);
            async move {
                let stream = tls(config, address, source).await?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://control-plane.weft");
        endpoint.connect_with_connector(connector).await
    }

    /// Connects with its certificate, if it has one, and says nothing.
    pub(crate) async fn connect_silently(&self) -> io::Result<TlsStream<TcpStream>> {
        tls(Arc::new(self.tls_config()), self.address, self.source).await
    }

    fn tls_config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.signed {
            None => builder.with_no_client_auth(),
            Some(signed) => {
                let chain = signed.chain.iter().map(|der| der.clone().into()).collect();
                let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key))
                    .unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    pub(crate) async fn discover(&self) -> Discovery {
        self.try_discover().await.unwrap()
    }

    pub(crate) async fn try_discover(&self) -> Result<Discovery, Status> {
        let (requests, outgoing) = mpsc::channel(64);
        let channel = self.connect().await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(outgoing))
            .await?;
        Ok(Discovery {
            requests,
            responses: responses.into_inner(),
        })
    }

    /// How a certificate is refused; `None` where there was no connection to ask on.
    pub(crate) async fn try_sign(&self, credential: Credential, csr: Vec<u8>) -> Option<Status> {
        let mut client = IdentityClient::new(self.connect().await.ok()?);
        let request = SignRequest {
            csr,
            credential: Some(credential),
        };
        client.sign(request).await.err()
    }

    /// A registration of the workload as its certificate allows, serving on `ports`.
    pub(crate) fn registration(&self, ports: &[u16]) -> Registration {
        let signed = self.signed.as_ref().unwrap();
        let ports = ports.iter().map(|port| RegisteredPort {
            port: (*port).into(),
            protocol: weft_proto::mesh::Protocol::Http.into(),
            advertised_address: format!("127.0.0.1:{}", 20_000 + u32::from(*port)),
            ready: true,
        });
        Registration {
            workload: signed.workload.clone(),
            services: signed.services.clone(),
            ports: ports.collect(),
            ..Registration::default()
        }
    }

    /// Registers with own addresses.
    pub(crate) async fn claim(&self, addresses: &[&str]) -> Result<Registering, Status> {
        let mut registering = self.open_registration().await;
        let mut registration = self.registration(&[80]);
        registration.addresses = addresses.iter().map(|text| (*text).to_owned()).collect();
        registering.say(registration).await?;
        Ok(registering)
    }

    pub(crate) async fn open_registration(&self) -> Registering {
        let (requests, outgoing) = mpsc::channel(16);
        Registering {
            client: RegistryClient::new(self.connect().await.unwrap()),
            requests,
            outgoing: Some(outgoing),
            answers: None,
        }
    }

    /// Registers and waits until that is accepted.
    pub(crate) async fn register(&self, ports: &[u16]) -> Registering {
        let mut registering = self.open_registration().await;
        registering.say(self.registration(ports)).await.unwrap();
        registering
    }
}

/// Connects from an address of this machine.
pub(crate) async fn tcp(address: SocketAddr, source: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::V4(source), 0).into())?;
    socket.connect(address).await
}

async fn tls(
    config: Arc<ClientConfig>,
    address: SocketAddr,
    source: Ipv4Addr,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = tcp(address, source).await?;
    let name = ServerName::try_from("control-plane.weft").unwrap();
    TlsConnector::from(config).connect(name, tcp).await
}

/// A registration stream; it is opened by what is said first, because that decides about it.
pub(crate) struct Registering {
    client: RegistryClient<Channel>,
    requests: mpsc::Sender<RegisterRequest>,
    outgoing: Option<mpsc::Receiver<RegisterRequest>>,
    answers: Option<Streaming<RegisterResponse>>,
}

impl Registering {
    /// Says something and waits for the answer.
    pub(crate) async fn say(&mut self, registration: Registration) -> Result<Answer, Status> {
        self.send(Said::Registration(registration)).await;
        self.answer().await
    }

    /// What is said next on the open stream, however long that takes.
    pub(crate) async fn standing(&mut self) -> Result<Option<RegisterResponse>, Status> {
        let answers = self.answers.as_mut();
        answers.expect("it was opened").message().await
    }

    pub(crate) async fn leave(mut self) -> Result<Answer, Status> {
        self.send(Said::Goodbye(Goodbye {})).await;
        self.answer().await
    }

    pub(crate) async fn answer(&mut self) -> Result<Answer, Status> {
        let answer = async {
            if let Some(outgoing) = self.outgoing.take() {
                let opened = self.client.register(ReceiverStream::new(outgoing)).await;
                self.answers = Some(opened?.into_inner());
            }
            let answers = self.answers.as_mut();
            answers.expect("it was opened").message().await
        };
        let answer = tokio::time::timeout(DEADLINE, answer).await;
        let answer = answer.expect("no answer to a registration")?;
        let ended = || Status::cancelled("the stream ended");
        answer.and_then(|a| a.message).ok_or_else(ended)
    }

    async fn send(&self, message: Said) {
        let message = Some(message);
        let _ended = self.requests.send(RegisterRequest { message }).await;
    }
}

/// An open discovery stream.
pub(crate) struct Discovery {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Discovery {
    pub(crate) async fn ask(&self, kind: Kind, names: &[&str], held: &[(&str, &str)]) {
        let held = held.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        self.send(DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
            initial_resource_versions: held.collect::<HashMap<_, _>>(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    /// Says that slices are wanted of the services that will be asked for.
    pub(crate) async fn open_slices(&self) {
        self.ask(Kind::EndpointSlice, &[], &[]).await;
    }

    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// Sends where the stream stands; whether it does.
    pub(crate) async fn try_send(&self, request: DeltaDiscoveryRequest) -> bool {
        self.requests.send(request).await.is_ok()
    }

    pub(crate) async fn acknowledge(&self, push: &DeltaDiscoveryResponse, error: Option<&str>) {
        self.send(DeltaDiscoveryRequest {
            type_url: push.type_url.clone(),
            response_nonce: push.nonce.clone(),
            error_detail: error.map(|message| rpc::Status {
                code: 3,
                message: message.to_owned(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    /// The next response, not acknowledged.
    pub(crate) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = tokio::time::timeout(DEADLINE, self.responses.message()).await;
        let next = next.expect("no response from discovery")?;
        next.ok_or_else(|| Status::cancelled("the stream ended"))
    }

    /// What is said next, however long that takes.
    pub(crate) async fn standing(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        self.responses.message().await
    }

    /// Nothing comes for a while.
    pub(crate) async fn quiet(&mut self) -> bool {
        let next = tokio::time::timeout(Duration::from_millis(400), self.responses.message());
        next.await.is_err()
    }

    /// The next response, acknowledged, as `+name(endpoint …) -name`.
    pub(crate) async fn taken(&mut self) -> String {
        let push = self.next().await.unwrap();
        self.acknowledge(&push, None).await;
        rendered(&push)
    }

    /// Takes responses until one renders as `expected`.
    pub(crate) async fn until(&mut self, expected: &str) {
        let mut seen = Vec::new();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while tokio::time::Instant::now() < deadline {
            let next = tokio::time::timeout_at(deadline, self.taken()).await;
            let next = next.unwrap_or_else(|_| panic!("not {expected:?}, but {seen:?}"));
            if next == expected {
                return;
            }
            seen.push(next);
        }
    }
}

fn rendered(push: &DeltaDiscoveryResponse) -> String {
    let resources = push.resources.iter().map(|envelope| {
        let resource = Resource::decode(envelope.resource.as_ref().unwrap()).unwrap();
        match resource {
            Resource::EndpointSlice(slice) => {
                let endpoints = slice.endpoints.iter().flat_map(|e| &e.ports);
                let endpoints: Vec<_> = endpoints
                    .map(|p| format!("{}@{}", p.service_port, p.address.port()))
                    .collect();
                format!("+{}({})", envelope.name, endpoints.join(" "))
            }
            Resource::TrustBundle(bundle) => {
                format!("+{}({})", envelope.name, bundle.revoked_instances.len())
            }
            Resource::Service(_)
            | Resource::Workload(_)
            | Resource::MeshConfig(_)
            | Resource::Namespace(_)
            | Resource::ServerPolicy(_) => {
                format!("+{}", envelope.name)
            }
        }
    });
    let removed = push.removed_resources.iter().map(|name| format!("-{name}"));
    resources.chain(removed).collect::<Vec<_>>().join(" ")
}

/// Waits for a condition.
pub(crate) async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
