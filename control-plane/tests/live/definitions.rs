//! Definitions of the Gateway API that lack what is read here.

use std::time::{Duration, Instant};

use gateway_api::experimental::httproutes::HttpRoute;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};
use weft_control_plane::check;

use crate::kubernetes::{ROUTE, Site};
use crate::support::{DEADLINE, wait_until};

/// The definition of HTTPRoute as an older bundle of the standard channel has it, or whole.
fn definition(is_whole: bool) -> String {
    let mut crd = serde_json::to_value(HttpRoute::crd()).unwrap();
    let (version, channel) = match is_whole {
        true => ("v1.5.1", "experimental"),
        false => ("v1.1.0", "standard"),
    };
    crd["metadata"]["annotations"] = json!({
        "api-approved.kubernetes.io": "unapproved, a test",
        "gateway.networking.k8s.io/bundle-version": version,
        "gateway.networking.k8s.io/channel": channel,
    });
    if !is_whole {
        let rule = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/rules\
                    /items/properties";
        let rule = crd.pointer_mut(rule).unwrap().as_object_mut().unwrap();
        rule.remove("retry").unwrap();
    }
    crd.to_string()
}

/// The message of the first parent's condition `Accepted`.
fn accepted(status: &Value) -> String {
    let conditions = status["parents"][0]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|one| one["type"] == "Accepted");
    let found = found.and_then(|one| one["message"].as_str());
    found.unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_the_clusters_definitions_drop_are_said_on_routes_and_in_the_check() {
    const DROPS: &str = "the API server drops spec.rules[].retry;";
    let Some(site) = Site::start().await else {
        return;
    };
    let apply = ["apply", "--server-side", "-f", "-"];
    site.run(&apply, &definition(false));
    let established = ["wait", "--for=condition=Established", "crd", "--all"];
    site.run(&established, "");
    let control_plane = site.control_plane().await;
    site.apply(ROUTE);
    let drops = |status: &Value| accepted(status).contains(DROPS);
    site.status("httproute", "web", drops).await;
    wait_until("kinds that are absent are named", async || {
        let ready = control_plane.http("/readyz").await;
        let said =
            "absent: the cluster does not serve grpcroutes, referencegrants, tcproutes, tlsroutes";
        ready.contains("200 OK") && ready.contains(said)
    })
    .await;
    let facts = check::collect(&site.0.client().await, "weft-system").await;
    let findings = check::run(&facts, false);
    let found = findings.iter().find(|one| one.id == "gateway-api").unwrap();
    let said = "HTTPRoute (v1.1.0, standard channel) drops spec.rules[].retry";
    assert!(found.found.contains(said), "{found:?}");
    assert_eq!(found.status, check::Status::Warning);

    site.run(&apply, &definition(true));
    let began = Instant::now();
    let get = ["get", "httproute", "web", "-n", "shop", "-o", "json"];
    loop {
        let route: Value = serde_json::from_str(&site.run(&get, "")).unwrap();
        if !drops(&route["status"]) {
            break;
        }
        // It is looked every 30 s.
        assert!(began.elapsed() < 5 * DEADLINE, "{route:#}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
