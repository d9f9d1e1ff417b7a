//! Whether a pod that is made now would get its sidecar: the injector is asked as the API server asks
//! it, at the place and with the authority of the webhook's configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhook, MutatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::kubernetes::told;

/// How long the injector may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Labels of an object.
pub(super) type Labels = BTreeMap<String, String>;

/// What keeps a pod from getting its sidecar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotInjected {
    /// Nobody is asked about this pod.
    #[error("no webhook of the injector's configuration selects it")]
    NotSelected,
    /// It is not answered, or the wrong way.
    #[error("the injector does not answer as it should: {0}")]
    NotWorking(String),
    /// It would be refused.
    #[error("the injector would refuse it: {0}")]
    Refused(String),
}

/// Where a webhook is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    url: String,
    /// PEM.
    authority: Vec<u8>,
}

/// The webhook that would be asked about a pod.
pub(super) fn target(
    configuration: &MutatingWebhookConfiguration,
    namespace: &Labels,
    pod: &Labels,
) -> Result<Target, NotInjected> {
    let selects = |webhook: &&MutatingWebhook| {
        matches(webhook.namespace_selector.as_ref(), namespace)
            && matches(webhook.object_selector.as_ref(), pod)
    };
    let webhook = configuration.webhooks.iter().flatten().find(selects);
    let webhook = webhook.ok_or(NotInjected::NotSelected)?;
    let client = &webhook.client_config;
    let missing = |what: &str| NotInjected::NotWorking(format!("its configuration has no {what}"));
    let authority = client
        .ca_bundle
        .clone()
        .ok_or_else(|| missing("caBundle"))?;
    Ok(Target {
        url: url(client).ok_or_else(|| missing("address"))?,
        authority: authority.0,
    })
}

fn url(client: &WebhookClientConfig) -> Option<String> {
    if let Some(service) = &client.service {
        let (namespace, name) = (&service.namespace, &service.name);
        let port = service.port.unwrap_or(443);
        let path = service.path.as_deref().unwrap_or("/");
        return Some(format!("https://{name}.{namespace}.svc:{port}{path}"));
    }
    client.url.clone()
}

/// Whether a selector matches labels (`LabelSelectorAsSelector` of apimachinery). An operator that is
/// not known matches nothing.
fn matches(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else {
        return true;
    };
    let equal = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    equal
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|one| {
            let found = labels.get(&one.key);
            let among = found.is_some_and(|found| one.values.iter().flatten().any(|v| v == found));
            match &*one.operator {
                "In" => among,
                "NotIn" => !among,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// Asks about a pod as if it were made now.
pub(super) async fn ask(target: &Target, pod: &Pod) -> Result<(), NotInjected> {
    let answered = timeout(ANSWER_MAX, post(target, pod)).await;
    let late = |_elapsed| {
        let text = format!("no answer in {ANSWER_MAX:?}");
        Err(NotInjected::NotWorking(text))
    };
    judge(&answered.unwrap_or_else(late)?)
}

/// What an answer says.
fn judge(review: &Value) -> Result<(), NotInjected> {
    let response = &review["response"];
    if response["allowed"] == json!(false) {
        let why = response["status"]["message"].as_str().unwrap_or_default();
        return Err(NotInjected::Refused(why.to_owned()));
    }
    // Bytes in JSON are base64 or, as API servers take them too, an array of numbers.
    let patch = &response["patch"];
    let is_patched = patch.as_str().is_some_and(|text| !text.is_empty())
        || patch.as_array().is_some_and(|bytes| !bytes.is_empty());
    if response["allowed"] != json!(true) || !is_patched {
        let text = "it does not add a sidecar".to_owned();
        return Err(NotInjected::NotWorking(text));
    }
    Ok(())
}

async fn post(target: &Target, pod: &Pod) -> Result<Value, NotInjected> {
    let (client, request) = question(target, pod).map_err(NotInjected::NotWorking)?;
    let answer = match client.request_text(request).await {
        Ok(answer) => answer,
        // It is about this pod, as one that is too large.
        Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
            return Err(NotInjected::Refused(status.message));
        }
        Err(error) => return Err(NotInjected::NotWorking(told(&error))),
    };
    serde_json::from_str(&answer).map_err(|error| NotInjected::NotWorking(error.to_string()))
}

fn question(target: &Target, pod: &Pod) -> Result<(Client, http::Request<Vec<u8>>), String> {
    let bad = || format!("its address is {:?}", target.url);
    let uri: http::Uri = target.url.parse().map_err(|_invalid| bad())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let place = uri.authority().map(http::uri::Authority::as_str);
    let place = format!("https://{}", place.ok_or_else(bad)?);
    let place = place.parse().map_err(|_invalid| bad())?;
    let request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(review(pod).to_string().into_bytes());
    let request = request.map_err(|error| error.to_string())?;
    let authority = pem::parse_many(&target.authority).map_err(|error| error.to_string())?;
    let mut config = kube::Config::new(place);
    config.root_cert = Some(authority.into_iter().map(pem::Pem::into_contents).collect());
    config.default_retry = false;
    config.connect_timeout = Some(ANSWER_MAX);
    config.read_timeout = Some(ANSWER_MAX);
    let client = Client::try_from(config).map_err(|error| told(&error))?;
    Ok((client, request))
}

/// What an API server asks when a pod is made, as a question that has no effect.
fn review(pod: &Pod) -> Value {
    let metadata = &pod.metadata;
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": metadata.uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": metadata.namespace,
            "operation": "CREATE",
            "userInfo": {},
            "dryRun": true,
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": metadata.name,
                    "namespace": metadata.namespace,
                    "labels": metadata.labels,
                    "annotations": metadata.annotations,
                },
                "spec": pod.spec,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        let all = all.iter();
        all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// The chart's.
    fn configuration() -> MutatingWebhookConfiguration {
        let values = crate::install::values(&[], &[]).unwrap();
        let objects = crate::install::objects(&values, "weft-system", "weft").unwrap();
        let kind = |object: &&Value| object["kind"] == "MutatingWebhookConfiguration";
        let mut found = objects.iter().find(kind).unwrap().clone();
        for webhook in found["webhooks"].as_array_mut().unwrap() {
            webhook["clientConfig"]["caBundle"] = json!("bmV3");
        }
        serde_json::from_value(found).unwrap()
    }

    #[test]
    fn the_webhook_that_is_asked_is_the_one_of_the_chart() {
        let asking = ("weft-mesh.io/inject", "enabled");
        let named = |name| ("kubernetes.io/metadata.name", name);
        let expected = Target {
            url: "https://weft-control-plane.weft-system.svc:15017/inject".to_owned(),
            authority: b"new".to_vec(),
        };
        for (namespace, pod, is_asked) in [
            (labels(&[named("shop"), asking]), labels(&[]), true),
            (labels(&[named("shop")]), labels(&[asking]), true),
            (labels(&[named("shop")]), labels(&[]), false),
            (labels(&[named("kube-system"), asking]), labels(&[]), false),
            (
                labels(&[named("shop"), asking]),
                labels(&[("weft-mesh.io/inject", "disabled")]),
                false,
            ),
        ] {
            let found = target(&configuration(), &namespace, &pod);
            let expected = match is_asked {
                true => Ok(expected.clone()),
                false => Err(NotInjected::NotSelected),
            };
            assert_eq!(found, expected, "{namespace:?} {pod:?}");
        }
        let mut bare = configuration();
        for webhook in bare.webhooks.iter_mut().flatten() {
            webhook.client_config.ca_bundle = None;
        }
        let namespace = labels(&[named("shop"), asking]);
        let found = target(&bare, &namespace, &labels(&[]));
        assert!(
            matches!(found, Err(NotInjected::NotWorking(_))),
            "{found:?}"
        );
        bare.webhooks = None;
        let found = target(&bare, &namespace, &labels(&[]));
        assert_eq!(found, Err(NotInjected::NotSelected));
    }

    #[test]
    fn an_answer_without_a_patch_is_none() {
        for (response, is_good) in [
            (json!({"allowed": true, "patch": "W10="}), true),
            (json!({"allowed": true, "patch": [91, 93]}), true),
            (json!({"allowed": true, "patch": []}), false),
            (json!({"allowed": true}), false),
            (json!({"allowed": "yes", "patch": "W10="}), false),
            (json!({"allowed": false}), false),
            (json!(null), false),
        ] {
            let judged = judge(&json!({"response": response}));
            assert_eq!(judged.is_ok(), is_good, "{response}");
        }
    }
}
