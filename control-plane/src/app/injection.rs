//! What is done for the cluster that the control plane runs in: pods get their sidecar, and the cluster
//! the mesh's roots.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::AppError;
use super::listeners::{Listeners, listen};
use crate::args::KubernetesArgs;
use crate::identity::Identities;
use crate::injector::serve::{Counters, Webhook, router, serve};
use crate::injector::{ClusterVersion, Settings, Tracing};
use crate::kubernetes::leader::Leader;
use crate::kubernetes::names::CONTROL_PLANE;
use crate::kubernetes::retry::{Pauses, until_answered};
use crate::kubernetes::trust::{self, Trust};
use crate::kubernetes::{Cluster, told};
use crate::supervise::Supervisor;

/// Pauses between questions to an API server that does not say its version.
const ASKED_AGAIN: Pauses = Pauses {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(10),
};

/// The injector's part of a control plane in a cluster.
pub(super) struct Injector {
    cluster: Cluster,
    listener: TcpListener,
    image: String,
    tracing: Tracing,
    cni: bool,
    counters: Counters,
}

impl Injector {
    /// Listens; nobody is answered before [`serve`](Self::serve).
    pub(super) async fn open(cluster: Cluster, args: &KubernetesArgs) -> Result<Self, AppError> {
        Ok(Self {
            cluster,
            listener: listen(args.webhook_listen).await?,
            image: args.proxy_image.clone(),
            tracing: Tracing {
                otlp_endpoint: args.otlp_endpoint.clone(),
                sample_ratio: args.trace_sample_ratio,
            },
            cni: args.cni,
            counters: Counters::default(),
        })
    }

    /// What became of pods that the API server asked about.
    pub(super) fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Answers the API server, and keeps the mesh's roots current in the cluster.
    pub(super) fn serve(
        self,
        tasks: &mut Supervisor,
        listeners: &Listeners,
        leader: Leader,
    ) -> Result<(), AppError> {
        let Cluster { client, settings } = self.cluster;
        let identities = Arc::clone(&listeners.parts.identities);
        let (sender, roots) = watch::channel(pem_of(&identities));
        tasks.spawn("roots", follow_roots(identities, sender));
        let keeping = trust::keep(client.clone(), Trust { roots, leader });
        tasks.spawn("trust in the cluster", keeping);
        let names = vec![format!("{CONTROL_PLANE}.{}.svc", settings.namespace)];
        let tls = listeners.own.webhook_tls(tasks, names)?;
        let (listener, counters, stop) = (self.listener, self.counters, listeners.stop.clone());
        let address = listener.local_addr()?;
        tracing::info!(%address, image = self.image, "the webhook listens");
        let mut injection = Settings::new(&self.image, &settings.namespace);
        injection.cluster_domain = settings.domain;
        injection.tracing = self.tracing;
        injection.cni = self.cni;
        tasks.spawn("webhook", async move {
            injection.cluster = wait_for_version(&client).await;
            let webhook = Webhook::new(injection, counters);
            serve(router(Arc::new(webhook)), listener, tls, stop).await;
        });
        Ok(())
    }
}

/// The cluster's version, which says what kind of sidecar it knows. An older one would drop the fields
/// of a newer kind without a word, so it is not guessed.
async fn wait_for_version(client: &Client) -> ClusterVersion {
    let what = "the cluster's version, without which no pod is injected";
    until_answered(what, ASKED_AGAIN, || async {
        let info = client.apiserver_version().await;
        let info = info.map_err(|error| told(&error))?;
        ClusterVersion::parse(&info.major, &info.minor)
            .ok_or_else(|| format!("found {:?}.{:?}", info.major, info.minor))
    })
    .await
}

/// Tells of roots that change, until the identities end.
async fn follow_roots(identities: Arc<Identities>, sender: watch::Sender<String>) {
    let mut changes = identities.watch_revoked();
    while changes.changed().await.is_ok() {
        let fresh = pem_of(&identities);
        sender.send_if_modified(|roots| {
            let differs = *roots != fresh;
            *roots = fresh;
            differs
        });
    }
}

/// The mesh's roots, PEM.
fn pem_of(identities: &Identities) -> String {
    let roots = identities.bundle().roots.into_iter();
    let roots: Vec<_> = roots.map(|der| pem::Pem::new("CERTIFICATE", der)).collect();
    pem::encode_many(&roots)
}
