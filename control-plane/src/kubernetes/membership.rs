//! Whether a pod is in the mesh.

use k8s_openapi::api::core::v1::PodSpec;

use super::names::PROXY_CONTAINER;

/// Whether one of a pod's containers is the sidecar. The list of containers cannot be changed once a
/// pod is made, so a pod is in the mesh for life or not at all.
pub fn has_sidecar(spec: &PodSpec) -> bool {
    let init = spec.init_containers.iter().flatten();
    let mut containers = init.chain(&spec.containers);
    containers.any(|container| container.name == PROXY_CONTAINER)
}
