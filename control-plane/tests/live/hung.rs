//! An API server that takes connections and answers nothing: every question to it ends, nobody is let
//! in, and everything goes on when it does.

use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::kubernetes::{FAULT, POD, Site, refuses_forged};
use crate::support::{ControlPlane, DEADLINE, Sidecar, addresses, program, wait_until};

/// How long a question may take that the API server does not answer: each has a limit of 10 s or less.
const BOUND: Duration = Duration::from_secs(20);

/// A control plane that does not get ready, with a log.
struct Starting(Child);

impl Starting {
    fn new(site: &Site, dir: &Path) -> Self {
        let mut command = program(&dir.join("data"));
        command
            .env("KUBECONFIG", site.0.kubeconfig())
            .arg("--kubernetes")
            .args(["--listen", "127.0.0.1:0", "--webhook-listen", "127.0.0.1:0"])
            .stderr(File::create(dir.join("log")).unwrap());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ended_before = self.0.kill();
        let _reaped_before = self.0.wait();
    }
}

/// Whether it leads: who does keeps the books.
async fn leads(control_plane: &ControlPlane) -> bool {
    let metrics = control_plane.http("/metrics").await;
    metrics.contains("weft_control_plane_global_limits{state=\"kept\"} 1\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_stands_still_lets_nobody_in_and_is_waited_for() {
    let Some(site) = Site::start().await else {
        return;
    };
    site.apply(POD);
    let control_plane = site.control_plane().await;
    control_plane.apply(FAULT).await.unwrap();
    let token = site.token_of_pod();
    let mut pod = Sidecar::new(&control_plane);
    pod.sign(token.clone()).await.unwrap();
    let mut stream = pod.discover().await;
    wait_until("it leads", async || leads(&control_plane).await).await;
    let dir = tempfile::tempdir().unwrap();
    let another = FAULT.replace("slow", "another");

    site.0.pause();
    let mut starting = Starting::new(&site, dir.path());
    let began = Instant::now();
    let identity = async {
        let refused = Sidecar::new(&control_plane).sign(token.clone()).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
        assert!(refused.message().contains("no answer within"), "{refused}");
        assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
        refuses_forged(&control_plane).await;
    };
    let apply = async {
        let refused = control_plane.apply(&another).await.unwrap_err().to_string();
        assert!(refused.contains("the cluster's API"), "{refused}");
        assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    };
    let leading = async {
        let is_told = async || {
            let ready = control_plane.http("/readyz").await;
            ready.contains("200 OK") && ready.contains("stale: leases not followed for ")
        };
        wait_until("it leads no longer", async || !leads(&control_plane).await).await;
        wait_until("it says so", is_told).await;
    };
    let start = async {
        wait_until("the start says what it waits for", async || {
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
            log.contains("ranges of Services: no answer within")
        })
        .await;
    };
    tokio::join!(identity, apply, leading, start);
    assert!(starting.0.try_wait().unwrap().is_none(), "it waits");
    assert!(!dir.path().join("data/addresses.json").exists());
    assert!(stream.quiet().await, "what stands goes on");

    site.0.resume();
    addresses(&mut starting.0, &dir.path().join("data")).await;
    wait_until("it applies", async || {
        control_plane.apply(&another).await.is_ok()
    })
    .await;
    wait_until("it lets in", async || pod.sign(token.clone()).await.is_ok()).await;
    wait_until("it follows", async || {
        let ready = control_plane.http("/readyz").await;
        ready.contains("200 OK") && !ready.contains("stale: ")
    })
    .await;
    drop(starting);
    let began = Instant::now();
    while !leads(&control_plane).await {
        // The other may have led, and its lease ends by itself.
        assert!(began.elapsed() < 3 * DEADLINE, "nobody leads");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(stream.quiet().await, "what stands has gone on");
}
