//! Those who are in the mesh beside an attack: their joins, their pushes and the operator's calls go
//! on, and none fails.

use std::time::{Duration, Instant};

use weft_api::types::{ApplyResult, Source, Sources};
use weft_proto::identity::sign_request::Credential;
use weft_proto::resource::Kind;

use crate::support::{ControlPlane, Discovery, Sidecar};

/// What neighbours wait for at most. It is far above what they should: tests run beside each other
/// on machines with few cores.
const PATIENCE: Duration = Duration::from_secs(5);

/// Rounds before an attack, to compare with: as many as a percentile needs where the long forms of
/// the tests are asked for (`WEFT_TEST_LONG=1`).
fn calm_rounds() -> u16 {
    match std::env::var("WEFT_TEST_LONG").is_ok_and(|value| value == "1") {
        true => 100,
        false => 5,
    }
}

/// Runs an attack with neighbours beside it, and prints how long they waited before and during it.
/// The attack is a task of its own; the neighbours go on until it has ended.
pub(crate) async fn beside<T: Send + 'static>(
    control_plane: &ControlPlane,
    what: &str,
    attack: impl Future<Output = T> + Send + 'static,
) -> T {
    let caller = control_plane.enrol("calm/caller", &[]).await;
    let mut discovery = caller.discover().await;
    discovery.ask(Kind::Service, &["calm/web"], &[]).await;
    // The first change waits for what is made once.
    let mut first = Waited::default();
    first.change(control_plane, &mut discovery, 80).await;
    let (mut before, mut during) = (Waited::default(), Waited::default());
    let calm = calm_rounds();
    for round in 1..=calm {
        before.round(control_plane, &mut discovery, round).await;
    }
    let attack = tokio::spawn(attack);
    let mut round = calm;
    while !attack.is_finished() || round < calm + 5 {
        round += 1;
        during.round(control_plane, &mut discovery, round).await;
    }
    println!("beside {what}:");
    before.print("before");
    during.print("during");
    attack.await.unwrap()
}

#[derive(Default)]
struct Waited {
    admin: Vec<Duration>,
    pushes: Vec<Duration>,
    joins: Vec<Duration>,
}

impl Waited {
    /// A change and a join, and a pause.
    async fn round(
        &mut self,
        control_plane: &ControlPlane,
        discovery: &mut Discovery,
        number: u16,
    ) {
        self.change(control_plane, discovery, 80 + number).await;
        self.join(control_plane, number).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    /// An operator changes a service, and who has asked for it hears of it.
    async fn change(&mut self, control_plane: &ControlPlane, discovery: &mut Discovery, port: u16) {
        let text = format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: \
             calm}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        );
        let name = "calm.yaml".to_owned();
        let sources = Sources {
            sources: vec![Source { name, text }],
        };
        let begun = Instant::now();
        let client = control_plane.client();
        let applied = client.post::<_, ApplyResult>("/v1/apply?author=calm", &sources);
        within("the operator's change", applied).await.unwrap();
        self.admin.push(begun.elapsed());
        let push = within("the push", discovery.next()).await.unwrap();
        self.pushes.push(begun.elapsed());
        discovery.acknowledge(&push, None).await;
    }

    /// A workload joins and registers.
    async fn join(&mut self, control_plane: &ControlPlane, number: u16) {
        let workload = format!("calm/joins-{number}");
        let token = control_plane.token(&workload, &[], &[]).await;
        let mut sidecar = Sidecar::new(control_plane);
        let begun = Instant::now();
        let signed = within("a certificate", sidecar.sign(Credential::JoinToken(token)));
        signed.await.unwrap();
        drop(within("a registration", sidecar.register(&[])).await);
        self.joins.push(begun.elapsed());
    }

    fn print(&mut self, when: &str) {
        let waits = [
            ("join", &mut self.joins),
            ("change", &mut self.admin),
            ("push", &mut self.pushes),
        ];
        for (name, waits) in waits {
            waits.sort_unstable();
            let at = |share: usize| waits[(waits.len() - 1) * share / 100];
            println!(
                "  {name:<8} {when}  n {:>4}  p50 {:>6.1} ms  p99 {:>6.1} ms",
                waits.len(),
                at(50).as_secs_f64() * 1e3,
                at(99).as_secs_f64() * 1e3
            );
        }
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("neighbours: {what} took longer than {PATIENCE:?}"))
}
