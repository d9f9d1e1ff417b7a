//! One sidecar: one connection with a registration, a discovery stream and a stream of observations, and
//! what it holds from one connection to the next.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::watch;
use weft_proto::identity::sign_request::Credential;
use weft_proto::identity::{CurrentCertificate, SignRequest, SignResponse};
use weft_proto::registry::register_request::Message as Said;
use weft_proto::registry::{
    ObserveEnd, Observed, RegisterRequest, RegisterResponse, RegisteredPort, Registration,
};
use weft_proto::resource::Kind;
use weft_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use crate::enrolment::{LATER, SIGN, request};
use crate::fleet::Board;
use crate::grpc::{Call, Failed, Line, Meter};
use crate::world::{NAMESPACE, NOBODY, TARGET_PORT, World};

const REGISTER: &str = "/weft.registry.v1.Registry/Register";
const OBSERVE: &str = "/weft.registry.v1.Registry/Observe";
const DISCOVER: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Endpoints apart from services, where the control plane has them: opened before services are asked for.
const SLICE: &str = "EndpointSlice";
/// Before the next attempt to connect: as the sidecar waits, doubled up to the cap, with jitter.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(3);
/// The first of the ports that sidecars say they listen on.
const FIRST_ADVERTISED: usize = 10_000;

/// What a sidecar holds: by kind, name to version.
pub(crate) type Held = HashMap<String, HashMap<String, String>>;

/// One sidecar.
pub(crate) struct Sidecar {
    pub(crate) number: usize,
    pub(crate) world: World,
    pub(crate) port: u16,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) board: Rc<Board>,
    pub(crate) meter: Meter,
    /// Whether its workload accepts connections, from now on.
    pub(crate) ready: watch::Receiver<bool>,
    /// Goes up whenever all shall connect.
    pub(crate) round: watch::Receiver<u64>,
    /// Goes up whenever all shall ask for a new certificate.
    pub(crate) renewal: watch::Receiver<u64>,
    /// From one connection to the next.
    pub(crate) held: Held,
}

impl Sidecar {
    /// Connects when it is told to, as often as it takes; a connection that ends stays so until all
    /// connect again. Ends with the sender of rounds.
    pub(crate) async fn run(mut self) {
        while self.round.changed().await.is_ok() {
            let round = *self.round.borrow();
            let mut again = AGAIN;
            loop {
                let Err(failed) = self.connected(round).await;
                if self.board.is_settled(round, self.number) {
                    self.board.lost(&failed);
                    break;
                }
                self.board.refused(&failed);
                tokio::time::sleep(again.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                again = (again * 2).min(AGAIN_MAX);
            }
        }
    }

    /// One connection to its end.
    async fn connected(&mut self, round: u64) -> Result<std::convert::Infallible, Failed> {
        let line = Line::connect(self.port, Arc::clone(&self.tls), Rc::clone(&self.meter)).await?;
        let first = RegisterRequest {
            message: Some(Said::Registration(self.registration())),
        };
        let mut registering = line.call(REGISTER, &first, false).await?;
        registering.next::<RegisterResponse>().await?;
        let mut observing = line.call(OBSERVE, &Observed::default(), false).await?;
        let mut asked = self.asked().into_iter();
        let first = asked.next().unwrap_or_default();
        let mut discovery = line.call(DISCOVER, &first, false).await?;
        for request in asked {
            discovery.say(&request)?;
        }
        self.ready.mark_unchanged();
        self.renewal.mark_unchanged();
        loop {
            tokio::select! {
                pushed = discovery.next::<DeltaDiscoveryResponse>() => {
                    let (push, bytes) = pushed?;
                    self.take(push, bytes, &mut discovery, round)?;
                }
                answered = registering.next::<RegisterResponse>() => drop(answered?),
                ended = observing.next::<ObserveEnd>() => drop(ended?),
                changed = self.renewal.changed() => {
                    if changed.is_ok() {
                        let renewing = renew(line.clone(), Rc::clone(&self.board), round, self.number);
                        tokio::task::spawn_local(renewing);
                    }
                }
                changed = self.ready.changed() => {
                    if changed.is_ok() {
                        let message = Some(Said::Registration(self.registration()));
                        registering.say(&RegisterRequest { message })?;
                    }
                }
            }
        }
    }

    /// Holds what was pushed, acknowledges it, and notes it on the board.
    fn take(
        &mut self,
        push: DeltaDiscoveryResponse,
        bytes: usize,
        discovery: &mut Call,
        round: u64,
    ) -> Result<(), Failed> {
        discovery.say(&DeltaDiscoveryRequest {
            type_url: push.type_url.clone(),
            response_nonce: push.nonce,
            ..DeltaDiscoveryRequest::default()
        })?;
        self.board.pushed(bytes, push.resources.len());
        let held = self.held.entry(push.type_url).or_default();
        for resource in push.resources {
            if let Some(service) = World::number_of(&resource.name) {
                self.board.heard(service, self.number);
            }
            held.insert(resource.name, resource.version);
        }
        for name in push.removed_resources {
            if name == NOBODY {
                self.board.settle(round, self.number);
            } else if let Some(service) = World::number_of(&name) {
                self.board.heard(service, self.number);
            }
            held.remove(&name);
        }
        Ok(())
    }

    fn registration(&self) -> Registration {
        let advertised = FIRST_ADVERTISED + self.number;
        Registration {
            workload: World::workload(self.number),
            services: vec![World::service(self.world.served_by(self.number))],
            ports: vec![RegisteredPort {
                port: TARGET_PORT.into(),
                protocol: weft_proto::mesh::Protocol::Http.into(),
                advertised_address: format!("127.0.0.1:{advertised}"),
                ready: *self.ready.borrow(),
            }],
            ..Registration::default()
        }
    }

    /// The first requests of a stream, as a sidecar makes them; last the service that nobody is.
    fn asked(&self) -> Vec<DeltaDiscoveryRequest> {
        let mut kinds = Kind::ALL.to_vec();
        kinds.sort_by_key(|kind| *kind == Kind::Service);
        let request = |kind: &Kind| {
            let url = kind.type_url();
            let names = if *kind == Kind::Service {
                let called = self.world.called_by(self.number);
                let called = called.into_iter().map(World::service);
                called.chain([NOBODY.to_owned()]).collect()
            } else if *kind == Kind::Namespace {
                vec![NAMESPACE.to_owned()]
            } else if *kind == Kind::ServerPolicy {
                vec![World::service(self.world.served_by(self.number))]
            } else if kind.on_demand() || url.ends_with(SLICE) {
                Vec::new()
            } else {
                vec!["*".to_owned()]
            };
            // The trust bundle comes on every stream.
            let held = self.held.get(url).filter(|_| *kind != Kind::TrustBundle);
            let held = held.cloned().unwrap_or_default();
            DeltaDiscoveryRequest {
                type_url: url.to_owned(),
                resource_names_subscribe: names,
                initial_resource_versions: held,
                ..DeltaDiscoveryRequest::default()
            }
        };
        kinds.iter().map(request).collect()
    }
}

/// Asks for a new certificate until there is one; the connection goes on with the one it has.
async fn renew(line: Line, board: Rc<Board>, round: u64, number: usize) {
    // A key is made each time, as a sidecar does it.
    let Ok((_key, csr)) = request() else {
        return;
    };
    let asked = SignRequest {
        csr,
        credential: Some(Credential::CurrentCertificate(CurrentCertificate {})),
    };
    loop {
        let signing = async {
            let mut call = line.call(SIGN, &asked, true).await?;
            call.next::<SignResponse>().await
        };
        match signing.await {
            Ok(_signed) => return board.settle(round, number),
            Err(failed) if failed.code.is_some() && failed.is_passing() => {
                board.refused(&failed);
                tokio::time::sleep(LATER).await;
            }
            Err(failed) => return board.refused(&failed),
        }
    }
}
