//! The Gateway API's own conformance suite, with the profiles of a mesh.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::Cluster;
use crate::support::{Machine, long, need};

/// Every feature of the suite that is a mesh's (GEP-1709): what is not named here is not tested.
const FEATURES: [&str; 17] = [
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRoute",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "GRPCRoute",
];

/// Tests of a mesh in the suite: those in `tests/mesh` of version 1.5.1.
const TESTS: usize = 22;

#[derive(Debug, Deserialize)]
struct Report {
    profiles: Vec<Profile>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    name: String,
    core: Outcome,
    extended: Option<Outcome>,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    result: String,
    statistics: Statistics,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statistics {
    failed: u32,
    skipped: u32,
    passed: u32,
}

/// Every test of the suite that is a mesh's passes, and none is skipped.
#[test]
fn the_mesh_profiles_of_the_gateway_api_pass() {
    if !long() {
        return;
    }
    need!("root", "kubernetes", "buildah", "go");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let report = cluster.file("conformance.yaml");
    let suite = cluster.program("gwapi.test").args([
        "-test.v".to_owned(),
        "-conformance-profiles=MESH-HTTP,MESH-GRPC".to_owned(),
        format!("-supported-features={}", FEATURES.join(",")),
        "-namespace-labels=weft-mesh.io/inject=enabled".to_owned(),
        format!("-report-output={}", report.display()),
        "-organization=weft-mesh".to_owned(),
        "-project=weft".to_owned(),
        "-url=https://weft-mesh.io".to_owned(),
        format!("-version={}", env!("CARGO_PKG_VERSION")),
        "-contact=https://weft-mesh.io".to_owned(),
    ]);
    let finished = cluster.run_for(suite, Duration::from_secs(600)).success();
    let passed = finished.stdout.lines();
    let passed = passed.filter(|line| line.starts_with("    --- PASS: TestConformance/Mesh"));
    assert_eq!(passed.count(), TESTS, "{finished}");
    let text = std::fs::read_to_string(&report).expect("a report");
    let read: Report = serde_saphyr::from_str(&text).expect("a report");
    assert_eq!(read.profiles.len(), 2, "{text}");
    for profile in &read.profiles {
        for outcome in [Some(&profile.core), profile.extended.as_ref()]
            .into_iter()
            .flatten()
        {
            let counted = &outcome.statistics;
            assert_eq!(outcome.result, "success", "{}: {text}", profile.name);
            assert_eq!((counted.failed, counted.skipped), (0, 0), "{text}");
            assert!(counted.passed > 0, "{text}");
        }
    }
    if std::env::var("WEFT_UPDATE").is_ok_and(|value| value == "1") {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let kept = root.join("deploy/guide/gateway-api-conformance.yaml");
        std::fs::write(kept, text).expect("keep the report");
    }
}
