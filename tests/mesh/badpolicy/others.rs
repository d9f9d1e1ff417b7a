//! Documents of the other kinds that are refused.

use super::documents::{Bad, OURS, bad, config, document, fault, grant};

pub(super) fn the_rest() -> Vec<Bad> {
    let from = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: lab}";
    let to = "{group: '', kind: Service}";
    vec![
        bad(
            "neither delay nor abort",
            fault("{}"),
            ["spec", "neither", "delay, abort or both"],
        ),
        bad(
            "a share of more than all",
            fault("{abort: {status: 503, percentage: 101}}"),
            ["spec.abort.percentage", "101", "0 to 100"],
        ),
        bad(
            "a share of less than nothing",
            fault("{delay: {time: 1s, percentage: -1}}"),
            ["spec.delay.percentage", "-1", "0 to 100"],
        ),
        bad(
            "a status that is none",
            fault("{abort: {status: 99}}"),
            ["spec.abort.status", "99", "200 to 599"],
        ),
        bad(
            "a code that is none",
            fault("{abort: {status: 503, grpcCode: 17}}"),
            ["spec.abort.grpcCode", "17", "0 to 16"],
        ),
        bad(
            "no time",
            fault("{delay: {time: 0s}}"),
            ["spec.delay.time", "0", "above 0, up to a day"],
        ),
        bad(
            "a delay of a month",
            fault("{delay: {time: 800h}}"),
            ["spec.delay.time", "2880000s", "up to a day"],
        ),
        bad(
            "unknown field",
            fault("{abort: {code: 503}}"),
            [
                "spec.abort.code",
                "an unknown field",
                "status, grpcCode, percentage",
            ],
        ),
        bad(
            "another MeshConfig",
            document(OURS, "MeshConfig", "{}"),
            ["metadata", "shop/bad", "weft-system/mesh"],
        ),
        bad(
            "an unknown choice",
            config("{unknownDestinations: maybe}"),
            ["spec.unknownDestinations", "maybe", "passthrough"],
        ),
        bad(
            "a range that is none",
            config("{workloadRanges: [10.0.0.0/99]}"),
            ["spec.workloadRanges[0]", "10.0.0.0/99", "ADDRESS/PREFIX"],
        ),
        bad(
            "a namespace that is none",
            config("{namespaces: {Shop: {unknownDestinations: refuse}}}"),
            ["spec.namespaces", "Shop", "1 to 63 of a-z"],
        ),
        bad(
            "unknown field",
            config("{unknownDestination: refuse}"),
            [
                "spec.unknownDestination",
                "an unknown field",
                "unknownDestinations",
            ],
        ),
        bad(
            "from nobody",
            grant(&format!("{{from: [], to: [{to}]}}")),
            ["spec.from", "none", "1 to 16"],
        ),
        bad(
            "the same twice",
            grant(&format!("{{from: [{from}, {from}], to: [{to}]}}")),
            ["spec.from[1]", "again", "each once"],
        ),
        bad(
            "from another kind",
            grant(&format!(
                "{{from: [{}], to: [{to}]}}",
                from.replace("HTTPRoute", "Gateway")
            )),
            ["spec.from[0]", "Gateway", "HTTPRoute"],
        ),
        bad(
            "to another kind",
            grant(&format!(
                "{{from: [{from}], to: [{{group: '', kind: Secret}}]}}"
            )),
            ["spec.to[0]", "Secret", "kind Service"],
        ),
        bad(
            "unknown field",
            grant(&format!("{{from: [{from}], tos: [{to}]}}")),
            ["spec.tos", "an unknown field", "from, to"],
        ),
    ]
}
