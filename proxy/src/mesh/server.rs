//! What this sidecar enforces for its own application, port by port.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use weft_core::health::CheckBudget;
use weft_core::model::{AppProtocol, Workload};
use weft_core::name::ServiceName;
use weft_core::path::PathNormalization;
use weft_core::peer::VerifiedPeer;
use weft_core::route::RequestHead;
use weft_core::server::ServerPort;
use weft_core::shedding::Shedding;
use weft_core::time;
use weft_proto::resource::Kind;

use super::concurrency::Concurrency;
use super::publish::World;
use super::rate::{Limit, Rated, Rules, rate};

/// Everything that is enforced here.
#[derive(Debug)]
pub(super) struct Server {
    /// What the workload serves; in a pod that is followed.
    own: ArcSwap<Own>,
    slots: Mutex<HashMap<u16, Arc<ServerSlot>>>,
    pub(super) rules: Rules,
    /// Whether the control plane has answered for all of them.
    answered: watch::Sender<bool>,
    /// From then on it is not waited for.
    patience: Instant,
    /// Whether the control plane says what the workload serves.
    follows: bool,
    /// What is asked for and cannot be enforced here, with nothing before it to hold to: KIND/NAME.
    unenforceable: ArcSwapOption<String>,
}

/// What the workload serves.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// The services.
    pub(super) services: Vec<ServiceName>,
    /// What is declared to be spoken on the application's ports.
    pub(super) protocols: BTreeMap<u16, AppProtocol>,
}

impl Own {
    /// As the control plane says of the workload of a pod.
    pub(super) fn of(workload: &Workload) -> Self {
        let ports = workload.ports.iter();
        Self {
            services: workload.services.clone(),
            protocols: ports.map(|port| (port.port, port.protocol)).collect(),
        }
    }
}

/// What holds for one port of the application: found once for a connection, and always the latest.
#[derive(Debug, Default)]
pub struct ServerSlot {
    now: ArcSwapOption<ServerView>,
    /// Whether something is enforced now that only requests can be held to.
    limits_requests: watch::Sender<bool>,
    /// Health checks of callers' sidecars.
    checks: Mutex<CheckBudget>,
}

/// What is enforced on a port.
#[derive(Debug)]
pub struct ServerView {
    /// What the services' policies say: all of it holds.
    pub models: Vec<Arc<ServerPort>>,
    limits: Vec<Limit>,
    /// Which readings of a path the application may have: those that no policy rules out.
    pub path_normalization: PathNormalization,
    /// How many requests at a time are let through, where that is limited.
    pub shedding: Option<Shed>,
}

/// What is refused when the application has enough to do.
#[derive(Debug)]
pub struct Shed {
    /// What the policy says.
    pub model: Arc<Shedding>,
    /// How much is enough.
    pub limit: Arc<Concurrency>,
}

impl Server {
    /// Nothing is known yet of these services, or, where there is `None`, of which they are.
    /// Requests wait `patience` at most from now on.
    pub(super) fn new(own: Option<Own>, patience: Duration) -> Self {
        let follows = own.is_none();
        let serves_none = own.as_ref().is_some_and(|own| own.services.is_empty());
        Self {
            answered: watch::Sender::new(serves_none),
            own: ArcSwap::from_pointee(own.unwrap_or_default()),
            slots: Mutex::default(),
            rules: Rules::default(),
            patience: Instant::now() + patience,
            follows,
            unenforceable: ArcSwapOption::empty(),
        }
    }

    /// What the workload serves.
    pub(super) fn own(&self) -> Guard<Arc<Own>> {
        self.own.load()
    }

    /// What holds for a port. Where the control plane has not answered yet, that is waited for, but
    /// no longer than a while from the start: then the application is served all the same.
    pub(super) async fn port(&self, port: u16) -> Arc<ServerSlot> {
        let known = *self.answered.borrow();
        if !known && Instant::now() < self.patience {
            let mut answered = self.answered.subscribe();
            let answer = timeout_at(self.patience, answered.wait_for(|answered| *answered));
            if answer.await.is_err() {
                tracing::warn!(
                    port,
                    "the control plane has not said what to enforce here: served without"
                );
            }
        }
        self.slot(port)
    }

    /// What is asked for and cannot be enforced, so that nobody is let in.
    pub(super) fn unenforceable(&self) -> Option<Arc<String>> {
        self.unenforceable.load_full()
    }

    /// The limits of all ports that have one.
    pub(super) fn limits(&self) -> Vec<(u16, Arc<Concurrency>)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let limits = slots.iter().filter_map(|(port, slot)| {
            let view = slot.load();
            let shed = view.as_ref()?.shedding.as_ref()?;
            Some((*port, Arc::clone(&shed.limit)))
        });
        limits.collect()
    }

    fn slot(&self, port: u16) -> Arc<ServerSlot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(port).or_default())
    }

    /// Takes what the control plane says, of the services that are served here, and in a pod, once it
    /// is known, which those are. `workload` is the name of the workload's own resource.
    pub(super) fn publish(
        &self,
        own: Option<Own>,
        workload: &str,
        world: &World,
        now: time::Instant,
    ) {
        let is_known = own.is_some() || !self.follows;
        if let Some(own) = own {
            self.own.store(Arc::new(own));
        }
        let services = self.own.load();
        let services = &services.services;
        let known = |name: &ServiceName| {
            world.server.contains_key(name) || world.server_absent.contains(&name.to_string())
        };
        let all_known = is_known && services.iter().all(known);
        let refused = self.refused(services, workload, &world.refused);
        let is_refused = refused.is_some();
        if is_refused || all_known {
            // Between a rejected answer and all others it stays as it was: what is mended may name
            // services of which nothing is known yet.
            self.unenforceable.store(refused.map(Arc::new));
        }
        let own = || services.iter().filter_map(|name| world.server.get(name));
        let limits = own().flat_map(|policy| {
            let limits = policy.ports.values().flat_map(|port| &port.rate_limits);
            limits.map(|limit| (limit, policy.instances))
        });
        self.rules.publish(limits, now);
        let mut ports: BTreeMap<u16, Vec<Arc<ServerPort>>> = BTreeMap::new();
        for policy in own() {
            for (port, model) in &policy.ports {
                ports.entry(*port).or_default().push(Arc::clone(model));
            }
        }
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for port in ports.keys() {
            let _made = slots.entry(*port).or_default();
        }
        for (port, slot) in &*slots {
            slot.publish(ports.remove(port), &self.rules);
        }
        drop(slots);
        if is_refused || all_known {
            self.answered.send_replace(true);
        }
    }

    /// The first that is known by a rejected answer only: a policy of a service that is served here,
    /// or, where it is followed, what the workload serves.
    fn refused(
        &self,
        services: &[ServiceName],
        workload: &str,
        refused: &HashSet<(Kind, String)>,
    ) -> Option<String> {
        if refused.is_empty() {
            return None;
        }
        let own = self.follows.then(|| (Kind::Workload, workload.to_owned()));
        let policies = services.iter();
        let policies = policies.map(|service| (Kind::ServerPolicy, service.to_string()));
        let mut asked = own.into_iter().chain(policies);
        let (kind, name) = asked.find(|key| refused.contains(key))?;
        Some(format!("{}/{name}", kind.as_str()))
    }
}

impl ServerView {
    /// What was learned before stays.
    fn new(models: Vec<Arc<ServerPort>>, rules: &Rules, before: Option<&Self>) -> Self {
        let before = before.and_then(|before| before.shedding.as_ref());
        // The application is one, whichever of its services is called: so is the limit.
        let model = models.iter().find_map(|model| model.shedding.clone());
        let limits = models.iter().flat_map(|model| &model.rate_limits);
        let paths = models.iter().map(|model| model.path_normalization);
        Self {
            path_normalization: paths.fold(PathNormalization::default(), PathNormalization::and),
            limits: limits.filter_map(|limit| rules.of(limit)).collect(),
            shedding: model.map(|model| Shed {
                limit: Concurrency::follow(before.map(|shed| &shed.limit), &model.limit),
                model,
            }),
            models,
        }
    }

    /// Whether something is enforced that only requests can be held to.
    pub fn limits_requests(&self) -> bool {
        !self.limits.is_empty() || self.shedding.is_some()
    }

    /// What limits on the rate say to a request; `None` where none is for it. `caller` is who the
    /// mesh verified.
    pub fn rate(&self, head: &RequestHead<'_>, caller: Option<&VerifiedPeer>) -> Option<Rated> {
        if self.limits.is_empty() {
            return None;
        }
        let caller = caller.map(|caller| caller.identity().as_str());
        let server = self.path_normalization;
        rate(&self.limits, head, server, caller, crate::clock::now())
    }
}

impl ServerSlot {
    /// What is enforced now; nothing on most ports.
    pub fn load(&self) -> Guard<Option<Arc<ServerView>>> {
        self.now.load()
    }

    /// Until something is enforced that only requests can be held to.
    pub async fn limits_requests(&self) {
        let mut limits = self.limits_requests.subscribe();
        // The sender is ours: it cannot be gone while this waits.
        let _sender_lives = limits.wait_for(|limits| *limits).await;
    }

    /// Takes a health check of a peer; false where it has none left for now.
    pub fn take_check(&self, peer: &VerifiedPeer, now: time::Instant) -> bool {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.take(peer, now)
    }

    fn publish(&self, models: Option<Vec<Arc<ServerPort>>>, rules: &Rules) {
        let before = self.now.load();
        let same = match (&*before, &models) {
            (None, None) => true,
            (Some(before), Some(models)) => before.models == *models,
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !same {
            let before = before.as_deref();
            let view = models.map(|models| Arc::new(ServerView::new(models, rules, before)));
            let limits = view.as_ref().is_some_and(|view| view.limits_requests());
            self.now.store(view);
            self.limits_requests.send_replace(limits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::server::ServerPolicy;

    const NOW: time::Instant = time::Instant::from_nanos(0);

    fn policies(ports: &[u16]) -> World {
        let service: ServiceName = "shop/web".parse().unwrap();
        let ports = ports.iter().map(|port| (*port, Arc::default()));
        let policy = ServerPolicy {
            service: service.clone(),
            instances: 1,
            ports: ports.collect(),
        };
        World {
            server: [(service, policy)].into(),
            ..World::default()
        }
    }

    fn server(patience: Duration) -> Server {
        let own = Own {
            services: vec!["shop/web".parse().unwrap()],
            protocols: BTreeMap::new(),
        };
        Server::new(Some(own), patience)
    }

    #[tokio::test]
    async fn a_slot_shows_the_latest() {
        let server = server(Duration::from_secs(60));
        server.publish(None, "shop/web-0", &policies(&[80]), NOW);
        let (held, other) = (server.port(80).await, server.port(81).await);
        assert!(held.load().is_some() && other.load().is_none());
        server.publish(None, "shop/web-0", &policies(&[81]), NOW);
        assert!(held.load().is_none() && other.load().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_and_not_for_ever() {
        let waiting = server(Duration::from_secs(2));
        let began = Instant::now();
        let _served_without = waiting.port(80).await;
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        let _served_without = waiting.port(80).await;
        assert_eq!(began.elapsed(), Duration::from_secs(2));

        // That there is nothing is an answer too.
        let waiting = server(Duration::from_secs(2));
        let nothing = World {
            server_absent: ["shop/web".to_owned()].into(),
            ..World::default()
        };
        waiting.publish(None, "shop/web-0", &nothing, NOW);
        let began = Instant::now();
        assert!(waiting.port(80).await.load().is_none());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_pod_serves_is_followed() {
        let server = Server::new(None, Duration::from_secs(60));
        let web = Own {
            services: vec!["shop/web".parse().unwrap()],
            protocols: [(80, AppProtocol::Http)].into(),
        };
        // Of a policy that comes before it is known for whom, nothing holds.
        server.publish(None, "shop/web-0", &policies(&[80]), NOW);
        assert!(server.slot(80).load().is_none());
        assert!(!*server.answered.borrow());
        server.publish(Some(web), "shop/web-0", &policies(&[80]), NOW);
        assert!(server.port(80).await.load().is_some());
        assert_eq!(server.own().protocols[&80], AppProtocol::Http);
        // The Service goes.
        server.publish(Some(Own::default()), "shop/web-0", &policies(&[80]), NOW);
        assert!(server.port(80).await.load().is_none());
        assert!(server.own().services.is_empty());
    }

    /// What cannot be enforced lets nobody in, and is no longer waited for, until there is an answer
    /// that can be.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_enforced_is_known() {
        let began = Instant::now();
        let web = || Own {
            services: vec!["shop/web".parse().unwrap()],
            protocols: BTreeMap::new(),
        };
        for (kind, name, follows, own, expected) in [
            (Kind::ServerPolicy, "shop/web", false, None, true),
            (Kind::ServerPolicy, "shop/other", false, None, false),
            (Kind::Workload, "shop/web-0", false, None, false),
            (Kind::Workload, "shop/web-0", true, None, true),
            (Kind::ServerPolicy, "shop/web", true, Some(web()), true),
        ] {
            let server = match follows {
                true => Server::new(None, Duration::from_secs(2)),
                false => server(Duration::from_secs(2)),
            };
            let world = World {
                refused: [(kind, name.to_owned())].into(),
                ..World::default()
            };
            server.publish(own, "shop/web-0", &world, NOW);
            let found = server.unenforceable();
            let named = format!("{}/{name}", kind.as_str());
            assert_eq!(found.as_deref(), expected.then_some(&named));
            if expected {
                let _slot = server.port(80).await;
                assert_eq!(began.elapsed(), Duration::ZERO);
            }
            // It is mended, and what is served, or what holds for that, is not known yet.
            server.publish(None, "shop/web-0", &World::default(), NOW);
            assert_eq!(server.unenforceable(), found);
            let own = follows.then(web);
            server.publish(own, "shop/web-0", &policies(&[80]), NOW);
            assert_eq!(server.unenforceable(), None);
        }
    }
}
