//! What is done for the cluster that the control plane runs in: pods get their sidecar, and the cluster
//! the mesh's roots.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, watch};

use super::AppError;
use super::listeners::{Listeners, listen};
use crate::args::KubernetesArgs;
use crate::cluster::Cluster;
use crate::identity::Identities;
use crate::injector::serve::{Counters, Webhook, router, serve};
use crate::injector::{ClusterVersion, Settings};
use crate::kubernetes::leader::Leader;
use crate::kubernetes::names::CONTROL_PLANE;
use crate::kubernetes::retry::{Pauses, until_answered};
use crate::kubernetes::told;
use crate::kubernetes::trust::{self, Trust};
use crate::supervise::Supervisor;

/// Pauses between questions to an API server that does not say its version.
const ASKED_AGAIN: Pauses = Pauses {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(10),
};

/// The settings of the cluster's injector with the cluster's version, which is asked for once. The webhook
/// and whoever looks after pods that exist have the same.
#[derive(Clone)]
pub(super) struct InjectorSettings {
    client: Client,
    settings: Settings,
    whole: Arc<OnceCell<Settings>>,
}

impl InjectorSettings {
    /// Nothing is asked yet.
    pub(super) fn new(cluster: &Cluster) -> Self {
        Self {
            client: cluster.client.clone(),
            settings: cluster.settings.injector.clone(),
            whole: Arc::default(),
        }
    }

    /// Waits until the cluster has said its version.
    pub(super) async fn whole(&self) -> Settings {
        let whole = self.whole.get_or_init(|| async {
            let mut settings = self.settings.clone();
            settings.cluster = wait_for_version(&self.client).await;
            settings
        });
        whole.await.clone()
    }
}

/// The injector's part of a control plane in a cluster.
pub(super) struct Injector {
    cluster: Cluster,
    listener: TcpListener,
    settings: InjectorSettings,
    counters: Counters,
}

impl Injector {
    /// Listens; nobody is answered before [`serve`](Self::serve).
    pub(super) async fn open(cluster: Cluster, args: &KubernetesArgs) -> Result<Self, AppError> {
        Ok(Self {
            settings: InjectorSettings::new(&cluster),
            cluster,
            listener: listen(args.webhook_listen).await?,
            counters: Counters::default(),
        })
    }

    /// What pods are injected with.
    pub(super) fn settings(&self) -> InjectorSettings {
        self.settings.clone()
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
        let Cluster {
            client,
            settings,
            watches,
            ..
        } = self.cluster;
        let identities = Arc::clone(&listeners.parts.identities);
        let (sender, roots) = watch::channel(pem_of(&identities));
        tasks.spawn("roots", follow_roots(identities, sender));
        let trust = Trust {
            roots,
            leader,
            watches,
        };
        let keeping = trust::keep(client, trust);
        tasks.spawn("trust in the cluster", keeping);
        let names = vec![format!("{CONTROL_PLANE}.{}.svc", settings.namespace)];
        let tls = listeners.own.webhook_tls(tasks, names)?;
        let (listener, counters, stop) = (self.listener, self.counters, listeners.stop.clone());
        let address = listener.local_addr()?;
        let image = &settings.injector.image;
        tracing::info!(%address, image, "the webhook listens");
        let injection = self.settings;
        tasks.spawn("webhook", async move {
            let webhook = Webhook::new(injection.whole().await, counters);
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
