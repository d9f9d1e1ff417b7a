//! What happens to a cluster's API, and to who writes there: nothing is lost or written wrongly, and
//! nobody is let in.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_proto::identity::sign_request::Credential;

use weft_control_plane::install;

use crate::kubernetes::{FAULT, POD, PROGRAMMED, Site, condition, refuses_forged};
use crate::support::{ControlPlane, DEADLINE, Sidecar, wait_until};

/// The rights of the chart.
fn rights() -> String {
    let values = install::values(&[], &[]).unwrap();
    let mut objects = install::objects(&values, "weft-system", "weft").unwrap();
    objects.retain(|object| {
        object["kind"]
            .as_str()
            .is_some_and(|kind| kind.contains("Role"))
    });
    install::to_yaml(&objects).unwrap()
}

impl Site {
    /// The kubeconfig of the control plane's own service account.
    fn narrow(&self) -> std::path::PathBuf {
        let account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: weft-control-plane, \
                       namespace: weft-system}\n";
        self.apply(account);
        self.apply(&rights());
        let create = ["create", "token", "weft-control-plane", "-n", "weft-system"];
        let token = self.run(&create, "");
        let admin = self.0.kubeconfig();
        let text = std::fs::read_to_string(&admin).unwrap();
        let at = text.find("users:").unwrap();
        let user = format!("users: [{{name: u, user: {{token: {}}}}}]\n", token.trim());
        let path = admin.with_file_name("narrow.conf");
        std::fs::write(&path, text[..at].to_owned() + &user).unwrap();
        path
    }

    /// A token of the pod of [`POD`] for the mesh.
    pub(crate) fn token_of_pod(&self) -> Credential {
        let bound = ["--bound-object-kind=Pod", "--bound-object-name=web-0"];
        let create = ["create", "token", "web", "-n", "shop", "--audience=weft"];
        let token = self.run(&[&create[..], &bound[..]].concat(), "");
        Credential::ServiceAccountToken(token.trim().to_owned())
    }

    /// A kubeconfig that leads through an address.
    pub(crate) fn through(&self, address: SocketAddr) -> std::path::PathBuf {
        let admin = self.0.kubeconfig();
        let text = std::fs::read_to_string(&admin).unwrap();
        let path = admin.with_file_name("through.conf");
        let text = text.replace(&self.0.address(), &format!("https://{address}"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Waits for a document that proxies have acknowledged.
    async fn programmed(&self, name: &str) {
        let is_programmed =
            |status: &Value| condition(&status["conditions"], PROGRAMMED).0 == "True";
        self.status("fi", name, is_programmed).await;
    }
}

async fn documents(control_plane: &ControlPlane) -> usize {
    let all = control_plane.get("/v1/resources").await;
    all.as_array().unwrap().len()
}

/// Every right of the control plane is taken away and given back.
#[tokio::test(flavor = "multi_thread")]
async fn permission_that_is_withdrawn_takes_nothing_out_of_force() {
    let Some(mut site) = Site::start().await else {
        return;
    };
    let control_plane = ControlPlane::start_in_cluster(&site.narrow()).await;
    site.apply(FAULT);
    site.programmed("slow").await;
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let mut stream = caller.discover().await;
    site.apply(POD);
    let token = site.token_of_pod();
    let mut pod = Sidecar::new(&control_plane);
    let bindings = ["clusterrolebinding,rolebinding", "weft-control-plane"];
    for binding in ["clusterrolebinding", "rolebinding"] {
        let delete = ["delete", binding, bindings[1], "-n", "weft-system"];
        site.run(&delete, "");
    }
    // A watch that stands is not asked again what it may: it has to begin anew.
    site.0.restart().await;
    site.apply(&FAULT.replace("slow", "slower"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(documents(&control_plane).await, 1, "what is known stays");
    assert!(stream.quiet().await, "nothing is taken from sidecars");
    let refused = control_plane.apply(&FAULT.replace("slow", "another")).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("forbidden"), "{refused}");
    refuses_forged(&control_plane).await;
    let reviewed = pod.sign(token.clone()).await.unwrap_err();
    assert_eq!(reviewed.code(), tonic::Code::Unavailable, "{reviewed}");
    let ready = control_plane.http("/readyz").await;
    assert!(ready.contains("200"), "{ready}");
    site.apply(&rights());
    wait_until("it sees the cluster again", async || {
        documents(&control_plane).await == 2
    })
    .await;
    site.programmed("slower").await;
    wait_until("the pod is let in again", async || {
        pod.sign(token.clone()).await.is_ok()
    })
    .await;
}

/// Every byte from and to the API comes late.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_slow_is_waited_for() {
    let Some(site) = Site::start().await else {
        return;
    };
    let server: SocketAddr = site
        .0
        .address()
        .trim_start_matches("https://")
        .parse()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server).await.unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(slowly(from_client, to_server));
            tokio::spawn(slowly(from_server, to_client));
        }
    });
    let control_plane = ControlPlane::start_in_cluster(&site.through(address)).await;
    let began = Instant::now();
    control_plane.apply(FAULT).await.unwrap();
    assert!(began.elapsed() > LATE, "it is slow");
    site.programmed("slow").await;
    site.apply(&FAULT.replace("slow", "slower"));
    site.programmed("slower").await;
    assert_eq!(documents(&control_plane).await, 2);
}

/// How late the bytes of the slow API are.
const LATE: Duration = Duration::from_millis(300);

async fn slowly(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut bytes).await {
        tokio::time::sleep(LATE).await;
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// The leader is killed while it writes, and its successor's lease is stolen.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_leads_writes_what_another_has_left() {
    const MANY: usize = 60;
    let Some(site) = Site::start().await else {
        return;
    };
    let get = [
        "get",
        "lease",
        "weft-control-plane",
        "-n",
        "weft-system",
        "-o",
    ];
    let holder = || {
        site.0.kubectl(
            &[&get[..], &["jsonpath={.spec.holderIdentity}"]].concat(),
            "",
        )
    };
    let first = site.control_plane().await;
    wait_until("it leads", async || holder().0 && !holder().1.is_empty()).await;
    let leads = holder().1;
    let second = site.control_plane().await;
    let all: Vec<String> = (0..MANY)
        .map(|n| FAULT.replace("slow", &format!("slow-{n}")))
        .collect();
    site.apply(&all.join("---\n"));
    let programmed = || {
        let path = "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"weft-mesh.io/Programmed\")].status}{\"\\n\"}{end}";
        let said = site.run(&["get", "fi", "-n", "shop", "-o", path], "");
        said.lines().filter(|line| *line == "True").count()
    };
    wait_until("it has begun to write", async || programmed() > 3).await;
    drop(first.stop());
    let written = programmed();
    assert!(written < MANY, "all of {written} were written already");
    let began = Instant::now();
    while programmed() < MANY {
        assert!(began.elapsed() < 2 * DEADLINE, "{} of {MANY}", programmed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_ne!(holder().1, leads);
    assert_eq!(documents(&second).await, MANY);
    // Stolen by hand: whoever believed to lead stops, and goes on when the thief does not.
    let thief = r#"--patch={"spec": {"holderIdentity": "thief"}}"#;
    let patch = [
        "patch",
        "lease",
        "weft-control-plane",
        "-n",
        "weft-system",
        thief,
    ];
    site.run(&[&patch[..], &["--type=merge"]].concat(), "");
    site.apply(FAULT);
    site.programmed("slow").await;
    let began = Instant::now();
    while holder().1 == "thief" {
        assert!(
            began.elapsed() < 2 * DEADLINE,
            "nobody takes the lease again"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    site.apply(&FAULT.replace("slow", "slower"));
    site.programmed("slower").await;
}

/// The keys of service accounts are exchanged, as Kubernetes' own guide has it: a new one signs while
/// both are believed, and then the old one is believed no more.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_service_accounts_are_rotated() {
    let Some(mut site) = Site::start().await else {
        return;
    };
    site.apply(POD);
    let control_plane = site.control_plane().await;
    let mut pod = Sidecar::new(&control_plane);
    let old = site.token_of_pod();
    pod.sign(old.clone()).await.unwrap();
    let mut stream = pod.discover().await;
    site.0.restart_with_keys(&["next", "api"]).await;
    let new = site.token_of_pod();
    let mut signed = async |credential: &Credential| pod.sign(credential.clone()).await;
    for credential in [&old, &new] {
        let began = Instant::now();
        while let Err(error) = signed(credential).await {
            assert!(began.elapsed() < DEADLINE, "{error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    site.0.restart_with_keys(&["next"]).await;
    let began = Instant::now();
    while let Err(error) = signed(&new).await {
        assert!(began.elapsed() < DEADLINE, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let refused = signed(&old).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");
    assert!(stream.quiet().await, "what stands goes on");
}
