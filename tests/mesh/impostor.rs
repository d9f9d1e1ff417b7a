//! Somebody else at the control plane's address, with certificates that the mesh's own authority has
//! signed: sidecars believe none of them, tell them nothing, and go on with what they have.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use serde_json::Value;

use crate::http::nginx;
use crate::support::{
    Asker, Bed, Load, Machine, Mesh, Place, Program, Running, Settings, Workload, need, sum,
    telling, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const GET: &str = "GET / HTTP/1.1\r\nHost: web.shop.mesh\r\nConnection: close\r\n\r\n";
/// What a sidecar logs of a certificate that its authority has signed for a workload.
const REFUSED: &str = "is no control plane's";

/// Certificates and the key of the first.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Shown {
    /// What a workload's sidecar keeps in its state directory.
    fn of_workload(mesh: &Mesh<'_>, state: &Path) -> Self {
        let saved: Value = wait_for("the workload's certificate", LIMIT, || {
            let text = std::fs::read(state.join("identity.json")).ok()?;
            serde_json::from_slice(&text).ok()
        });
        let der = |base64: &Value| STANDARD.decode(base64.as_str().expect("base64"));
        let chain = saved["chain"].as_array().into_iter().flatten();
        let chain = chain.map(|base64| CertificateDer::from(der(base64).expect("DER")));
        let key = PrivatePkcs8KeyDer::from(der(&saved["key"]).expect("DER"));
        let mut chain: Vec<_> = chain.collect();
        // First contact looks for the root.
        chain.push(root(mesh));
        Self {
            chain,
            key: key.into(),
        }
    }

    /// A workload's leaf with the control plane's own names, which no token is to be had for.
    fn with_the_name(mesh: &Mesh<'_>) -> Self {
        let ca = mesh.data_dir().join("ca");
        let read = |name: &str| std::fs::read_to_string(ca.join(name)).expect("read a file");
        let intermediate = read("intermediate.pem");
        let key = KeyPair::from_pem(&read("intermediate.key")).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(&intermediate, key).expect("an authority");
        let mut params =
            CertificateParams::new(["control-plane.weft".to_owned()]).expect("a DNS name");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "control-plane");
        let name = "spiffe://weft.local/ns/weft-system/sa/control-plane".try_into();
        let name = rcgen::SanType::URI(name.expect("a URI"));
        params.subject_alt_names.push(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let own = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&own, &issuer).expect("a leaf");
        let intermediate = CertificateDer::from_pem_slice(intermediate.as_bytes()).expect("PEM");
        Self {
            chain: vec![leaf.der().clone(), intermediate, root(mesh)],
            key: PrivatePkcs8KeyDer::from(own.serialize_der()).into(),
        }
    }
}

fn root(mesh: &Mesh<'_>) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(mesh.data_dir().join("ca/root.pem")).expect("a root")
}

/// Listens in the place of a control plane.
struct Impostor {
    port: u16,
    heard: Arc<Heard>,
    accepting: Option<JoinHandle<()>>,
}

/// What clients have answered to the certificates that they were shown.
#[derive(Default)]
struct Heard {
    over: AtomicBool,
    /// How each handshake failed.
    refusals: Mutex<Vec<String>>,
    /// What was said in connections whose handshake went well.
    said: Mutex<Vec<Vec<u8>>>,
}

impl Impostor {
    fn at(port: u16, shown: Shown) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(shown.chain, shown.key)
            .expect("certificates with their key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let listener = wait_for("the control plane's address", LIMIT, || {
            TcpListener::bind(("127.0.0.1", port)).ok()
        });
        let heard = Arc::new(Heard::default());
        let hearing = Arc::clone(&heard);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if hearing.over.load(Ordering::Relaxed) {
                    return;
                }
                let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
                let hearing = Arc::clone(&hearing);
                std::thread::spawn(move || hearing.listen(connection, stream));
            }
        });
        Self {
            port,
            heard,
            accepting: Some(accepting),
        }
    }

    fn refusals(&self) -> Vec<String> {
        let refusals = self.heard.refusals.lock();
        refusals.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves; nobody may have believed it.
    fn leave(self) {
        let said = self.heard.said.lock();
        let said = said.unwrap_or_else(PoisonError::into_inner).clone();
        let said: Vec<_> = said
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes))
            .collect();
        assert!(said.is_empty(), "it was believed and told: {said:#?}");
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.heard.over.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _panicked = accepting.join();
        }
    }
}

impl Heard {
    fn listen(&self, mut connection: ServerConnection, mut stream: TcpStream) {
        let timeout = Some(Duration::from_secs(5));
        stream.set_read_timeout(timeout).expect("a timeout");
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut stream) {
                let refusals = self.refusals.lock();
                let mut refusals = refusals.unwrap_or_else(PoisonError::into_inner);
                return refusals.push(error.to_string());
            }
        }
        let mut tls = Stream::new(&mut connection, &mut stream);
        // Settings, so that a client of HTTP/2 goes on.
        let _closed = tls.write_all(b"\0\0\0\x04\0\0\0\0\0");
        let (mut said, end) = (Vec::new(), Instant::now() + Duration::from_secs(1));
        let mut buffer = [0; 4096];
        while Instant::now() < end
            && let Ok(length @ 1..) = tls.read(&mut buffer)
        {
            said.extend(&buffer[..length]);
        }
        let all = self.said.lock();
        all.unwrap_or_else(PoisonError::into_inner).push(said);
    }
}

/// A route that marks its responses.
pub(crate) fn route(value: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{filters: [{{type: \
         ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-route, value: {value}}}]}}}}], \
         backendRefs: [{{name: web, port: 8080}}]}}]}}\n"
    )
}

pub(crate) fn put_in_force(mesh: &Mesh<'_>, document: &str) {
    let file = mesh.scratch().file("route.yaml", document);
    let apply = format!("apply --wait 20s -f {}", file.display());
    mesh.command(&apply).success();
}

pub(crate) fn connected(place: &Place<'_>) -> bool {
    sum(&place.metrics(), "weft_control_plane_connected", &[]) > 0.0
}

/// Waits until a sidecar says why it is not connected: in its log, from this byte on, and in its
/// metrics.
fn says_why(place: &Place<'_>, logged: usize, failed: f64) {
    let what = format!("{} says why it is not connected", place.name);
    wait_for(&what, LIMIT, || {
        let log = place.mesh.log(place.name);
        let since = log.get(logged..).unwrap_or_default();
        let mut lines = since.lines();
        let said = lines.any(|line| {
            line.contains("not connected to the control plane") && line.contains(REFUSED)
        });
        let counted = failures(place) > failed && !connected(place);
        (said && counted).then_some(())
    });
}

/// How often a sidecar was not connected.
fn failures(place: &Place<'_>) -> f64 {
    let parts = ["result=\"failure\""];
    sum(
        &place.metrics(),
        "weft_control_plane_connections_total",
        &parts,
    )
}

#[test]
fn a_workload_in_the_place_of_the_control_plane_is_not_believed() {
    need!("nginx", "python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let place = |name| Place { mesh: &mesh, name };
    let _web = mesh.run(&telling(&mesh, "web").port("8080"), nginx(mesh.dir(), 8080));
    mesh.wait_for_service("web");
    let me = Asker::start(&mesh, &telling(&mesh, "me").wait_for("web"), "me");
    let load = load(&mesh, &Workload::new("load").wait_for("web"));
    let state = mesh.scratch().dir("evil-state");
    let evil = Workload::new("evil").flag("--state-dir", &state.display().to_string());
    let evil = mesh.run(&evil, Program::line("sleep 600"));
    let own = Shown::of_workload(&mesh, &state);
    drop(evil);
    put_in_force(&mesh, &route("first"));
    let asked = || {
        let response = me.ask(("web.shop.mesh", 8080), GET);
        assert_eq!(response.status(), 200, "{response:?}");
        response.field("x-route").to_owned()
    };
    assert_eq!(asked(), "first");
    mesh.kill_control_plane();

    for shown in [own, Shown::with_the_name(&mesh)] {
        let before = ["web", "me"].map(|name| (mesh.log(name).len(), failures(&place(name))));
        let impostor = Impostor::at(mesh.port(), shown);
        for (name, (logged, failed)) in ["web", "me"].into_iter().zip(before) {
            says_why(&place(name), logged, failed);
        }
        let refusals = impostor.refusals();
        let alerts = refusals.iter().filter(|text| text.contains("alert"));
        assert!(alerts.count() >= 2, "{refusals:#?}");
        assert_eq!(asked(), "first");
        impostor.leave();
    }

    mesh.start_control_plane();
    for name in ["web", "me"] {
        wait_for("the sidecar comes back", LIMIT, || {
            connected(&place(name)).then_some(())
        });
    }
    put_in_force(&mesh, &route("second"));
    assert_eq!(asked(), "second");
    load.stop_without_failure();
}

/// A load on the service `web`, as a workload that is described.
pub(crate) fn load(mesh: &Mesh<'_>, workload: &Workload) -> Load {
    let state = mesh.scratch().dir("load");
    let target = format!("http://{}:8080/", mesh.host("web"));
    let flags = ["--connections", "4", "--rate", "60"];
    let program = Load::program("http", &target, &state, &flags);
    Load::watch(mesh.run(workload, program), state)
}

/// A sidecar without a certificate that it can renew shows a secret: its join token, or its instance
/// key. The control plane alone is told it.
#[test]
fn secrets_are_not_told_to_a_workload_in_the_place_of_the_control_plane() {
    need!("curl");
    let machine = Machine::shared();
    let settings = Settings {
        // The shortest life.
        flags: &["--leaf-ttl", "10s"],
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let old = telling(&mesh, "old");
    let _old = mesh.run(&old, Program::line("sleep 600"));
    let old = Place {
        mesh: &mesh,
        name: "old",
    };
    wait_for("it is connected", LIMIT, || {
        let there = old.file("sock").exists() && connected(&old);
        there.then_some(())
    });
    let create = "token create --workload shop/new --ttl 10m";
    let token = mesh.command(create).success().stdout;
    let token = mesh.scratch().file("new.token", token.trim());
    mesh.kill_control_plane();
    let shown = Shown::with_the_name(&mesh);
    let logged = mesh.log("old").len();
    let impostor = Impostor::at(mesh.port(), shown);

    // There is no connection to renew on with the certificate: what is left is the instance key.
    wait_for("its certificate is not renewed", LIMIT, || {
        let log = mesh.log("old");
        let mut since = log.get(logged..).unwrap_or_default().lines();
        let said = |line: &str| line.contains("certificate not renewed") && line.contains(REFUSED);
        since.any(said).then_some(())
    });
    let new = || {
        let workload = Workload::new("new")
            .flag("--join", &format!("127.0.0.1:{}", mesh.port()))
            .flag("--token-file", &token.display().to_string());
        mesh.run(&workload, Program::new("true"))
    };
    let mut joining: Running = new();
    joining.wait_until("it says why it does not join", LIMIT, |run| {
        run.stderr().contains(REFUSED)
    });
    drop(joining);
    impostor.leave();

    mesh.start_control_plane();
    // The token is as good as before, and the certificate, which has ended meanwhile, is renewed.
    new().finish(LIMIT).success();
    wait_for("it comes back", LIMIT, || connected(&old).then_some(()));
}

/// The namespace of the control plane's own identity takes no workload and no service.
#[test]
fn nobody_joins_in_the_namespace_of_the_control_plane() {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let run = |workload: Workload| mesh.run_to_end(&workload, Program::new("true"), LIMIT);
    let refused = [
        run(Workload::of("weft-system", "control-plane")),
        run(Workload::new("web").flag("--service", "weft-system/api")),
        mesh.command("token create --workload weft-system/control-plane --ttl 1m"),
        mesh.command("token create --workload shop/web --service weft-system/api --ttl 1m"),
    ];
    for finished in refused {
        assert!(finished.code() > 0, "{finished}");
        let reason = "in the namespace weft-system, which is";
        assert!(finished.stderr.contains(reason), "{finished}");
    }
    let listed = mesh.command("certs list -o json").success().stdout;
    assert!(!listed.contains("weft-system"), "{listed}");
}
