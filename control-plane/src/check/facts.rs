//! What is known of a cluster. `Err` says why something is not.

use std::collections::BTreeMap;

/// Everything that the checks look at.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Of this program.
    pub version: String,
    /// The control plane's namespace.
    pub namespace: String,
    /// Seconds since the Unix epoch, by this machine's clock.
    pub now: i64,
    /// The API server.
    pub server: Result<ServerFact, String>,
    /// What the user may not do of what installing takes, as `create Deployment`.
    pub denied: Result<Vec<String>, String>,
    /// Custom resource definitions of the mesh and of the Gateway API.
    pub crds: Result<Vec<Crd>, String>,
    /// The custom resource definitions that this version installs.
    pub wanted_crds: Result<Vec<String>, String>,
    /// What is installed.
    pub installed: Installed,
    /// Every namespace.
    pub namespaces: Result<Vec<NamespaceFact>, String>,
    /// Pods that are in the mesh or should be.
    pub pods: Result<Vec<PodFact>, String>,
    /// What becomes of a pod that asks for a sidecar; `None`: there is no webhook.
    pub trial: Result<Option<TrialFact>, String>,
    /// What of the documents this version would not enforce.
    pub unenforced: Result<Vec<String>, String>,
    /// Clocks of the nodes.
    pub node_clocks: Result<Vec<NodeClock>, String>,
    /// Certificates of sidecars that are ready: the first ones, where there are many.
    pub certificates: Result<Vec<CertificateFact>, String>,
    /// Pods whose traffic is not redirected to their sidecars any more.
    pub lapsed: Result<Vec<LapsedFact>, String>,
    /// The control plane's replicas.
    pub replicas: Result<Vec<ReplicaFact>, String>,
    /// The whole life of a sidecar's certificate.
    pub leaf_seconds: i64,
}

/// A pod that was created for show (`dryRun`).
#[derive(Debug, Clone)]
pub struct TrialFact {
    /// Where.
    pub namespace: String,
    /// What became of it.
    pub trial: Trial,
}

/// What became of a pod that asked for a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// It got one.
    Injected,
    /// It got none.
    Untouched,
    /// The API server refused it, in these words.
    Refused(String),
    /// It could not be tried, for this reason: nothing is known.
    NotTried(String),
}

/// A node's clock.
#[derive(Debug, Clone)]
pub struct NodeClock {
    /// The node's name.
    pub node: String,
    /// Its clock minus the API server's, seconds.
    pub skew: i64,
}

/// A pod whose interception is lost.
#[derive(Debug, Clone)]
pub struct LapsedFact {
    /// NAMESPACE/NAME.
    pub pod: String,
    /// What its sidecar says, or which Event does.
    pub why: String,
}

/// The certificate of a pod's sidecar.
#[derive(Debug, Clone)]
pub struct CertificateFact {
    /// NAMESPACE/NAME.
    pub pod: String,
    /// Seconds until it ends, or why that is not known.
    pub left: Result<i64, String>,
}

/// A replica of the control plane.
#[derive(Debug, Clone)]
pub struct ReplicaFact {
    /// Its pod.
    pub pod: String,
    /// What of it should be looked at, a line for each, or why that is not known.
    pub said: Result<Vec<String>, String>,
}

/// The API server.
#[derive(Debug, Clone)]
pub struct ServerFact {
    /// MAJOR and MINOR.
    pub version: (u32, u32),
    /// Its clock minus this machine's, seconds; `None` where it does not say.
    pub skew: Option<i64>,
}

/// A custom resource definition.
#[derive(Debug, Clone)]
pub struct Crd {
    /// `httproutes.gateway.networking.k8s.io`.
    pub name: String,
    /// Versions that are served.
    pub served: Vec<String>,
    /// Whether the API serves it.
    pub established: bool,
    /// Of which version of the Gateway API it is, as its annotations say.
    pub bundle: Option<String>,
    /// Of which of its channels: `standard` or `experimental`.
    pub channel: Option<String>,
    /// Fields that are read here and that it does not have; one of the Gateway API's.
    pub lacks: Vec<String>,
}

/// What of the mesh is in the cluster.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The control plane; `None`: there is none.
    pub deployment: Result<Option<Deployment>, String>,
    /// Webhooks of our configuration; `None`: there is no configuration.
    pub webhooks: Result<Option<Vec<Webhook>>, String>,
    /// Ready endpoints of the control plane's Service.
    pub endpoints: Result<usize, String>,
    /// Nodes that the network plugin's DaemonSet wants to be on, and on how many it is ready; `None`:
    /// there is none.
    pub cni: Result<Option<(i32, i32)>, String>,
}

/// The control plane's Deployment.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Replicas that are asked for.
    pub wanted: i32,
    /// Replicas that are available.
    pub available: i32,
    /// The version that its labels name.
    pub version: Option<String>,
    /// Arguments of its container.
    pub args: Vec<String>,
}

/// One webhook of the configuration.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// PEM of what the API server believes; empty where nothing is written.
    pub authority: String,
    /// NAMESPACE/NAME of the Service that is called.
    pub service: String,
}

/// A namespace.
#[derive(Debug, Clone)]
pub struct NamespaceFact {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// PEM of the mesh's roots in it, if they are.
    pub roots: Option<String>,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct PodFact {
    /// NAMESPACE/NAME.
    pub name: String,
    /// `metadata.uid`: another pod of this name is another pod.
    pub uid: String,
    /// Its sidecar.
    pub sidecar: Sidecar,
}

/// How a pod stands to the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sidecar {
    /// It has a sidecar, injected by this version.
    Injected {
        /// As its annotation says.
        version: Option<String>,
        /// Whether its sidecar is ready.
        ready: bool,
    },
    /// It should have one and has none.
    Missing,
    /// It would be refused if it were created today, and why.
    Refused(String),
}
