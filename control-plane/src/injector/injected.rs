//! Pods that say they have the sidecar: what they have is compared with what the injector makes.
//!
//! Whoever may create a pod may write any container into it. One that takes the place of the sidecar
//! harms nobody else: the control plane gives a certificate only for the pod's own token
//! (TokenReview), hence the pod's own service account. What is refused here is a sidecar that would
//! not protect its own pod, or that has more rights than the injector's.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::containers::VOLUMES;
use crate::kubernetes::names::{INTERCEPT_CONTAINER, PROXY_CONTAINER, PROXY_UID};

/// Capabilities that the init container may have.
const INTERCEPT_CAPABILITIES: [&str; 2] = ["NET_ADMIN", "NET_RAW"];
/// What to do about any of it.
const ALLOWED: &str = "allowed: the pod as the injector makes it, or without the mesh's containers";

/// What distinguishes a pod with the sidecar's container from those that the injector makes.
pub(super) fn differences(spec: &PodSpec) -> Vec<String> {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let place = |name: &str| init.iter().position(|container| container.name == name);
    let ordinary = spec.containers.iter();
    let ordinary = { ordinary }.find(|container| container.name == PROXY_CONTAINER);
    let native = place(PROXY_CONTAINER);
    let mut found = Vec::new();
    if spec.host_network == Some(true) {
        found.push("hostNetwork: true, and the node's own traffic would be redirected".to_owned());
    }
    if let Some(proxy) = native.map(|at| &init[at]).or(ordinary) {
        found.extend(rights(proxy, Some(PROXY_UID), &[]));
    }
    if native.is_some_and(|at| init[at].restart_policy.as_deref() != Some("Always")) {
        let what =
            "is an init container without restartPolicy: Always, which ends before the application";
        found.push(format!("container {PROXY_CONTAINER}: {what}"));
    }
    match place(INTERCEPT_CONTAINER) {
        Some(at) => {
            let is_first = native.is_none_or(|native| at < native);
            if !is_first {
                found.push(format!(
                    "container {INTERCEPT_CONTAINER}: starts after {PROXY_CONTAINER}"
                ));
            }
            let command = init[at].args.iter().flatten().next();
            // The latter waits for a CNI plugin, and lets nothing start that is not redirected.
            let intercepts = |command: &String| matches!(&**command, "intercept" | "verify");
            if !command.is_some_and(intercepts) {
                found.push(format!(
                    "container {INTERCEPT_CONTAINER}: does not run `intercept`"
                ));
            }
            found.extend(rights(&init[at], None, &INTERCEPT_CAPABILITIES));
        }
        None => found.push(format!(
            "init container {INTERCEPT_CONTAINER}: is missing, and nothing is redirected"
        )),
    }
    let has = |name: &str| {
        spec.volumes
            .iter()
            .flatten()
            .any(|volume| volume.name == name)
    };
    let missing = VOLUMES.into_iter().filter(|name| !has(name));
    found.extend(missing.map(|name| format!("volume {name}: is missing")));
    let said = found.into_iter();
    said.map(|found| format!("it has the sidecar's container, but {found}; {ALLOWED}"))
        .collect()
}

/// What a container may that the injector's may not.
fn rights(container: &Container, user: Option<i64>, capabilities: &[&str]) -> Vec<String> {
    let name = &container.name;
    let mut found = Vec::new();
    let Some(context) = &container.security_context else {
        return vec![format!("container {name}: has no securityContext")];
    };
    if user.is_some() && context.run_as_user != user {
        let user = user.unwrap_or_default();
        found.push(format!(
            "container {name}: does not run as user {user}, and its own connections would be redirected"
        ));
    }
    if context.privileged == Some(true) || context.allow_privilege_escalation != Some(false) {
        found.push(format!("container {name}: is privileged or may become it"));
    }
    let added = context
        .capabilities
        .iter()
        .flat_map(|all| all.add.iter().flatten());
    for capability in added.filter(|one| !capabilities.contains(&one.as_str())) {
        found.push(format!("container {name}: has the capability {capability}"));
    }
    found
}
