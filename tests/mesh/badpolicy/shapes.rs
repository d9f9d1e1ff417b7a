//! What is no document of any kind.

use super::documents::{Bad, GATEWAY, OURS, TO_WEB, bad, document, policy, rule};

pub(super) fn shapes() -> Vec<Bad> {
    let good = rule(TO_WEB);
    let many = "---\nkind: Service\n".repeat(1001);
    vec![
        bad(
            "malformed",
            good.replace("kind: HTTPRoute", "kind: [HTTPRoute"),
            ["(input)", "line 4", "well-formed YAML"],
        ),
        bad(
            "a field twice",
            rule("{name: a, name: b}"),
            ["(input)", "duplicate mapping key: name", "each field once"],
        ),
        bad(
            "a text",
            "hello\n",
            ["(document)", "\"hello\"", "NAME: VALUE"],
        ),
        bad(
            "a list",
            "[a, b]\n",
            ["(document)", "a list", "apiVersion, kind"],
        ),
        bad("nothing", "", ["(input)", "0 documents", "1 to 1000"]),
        bad("too many", many, ["(input)", "1001 documents", "1 to 1000"]),
        bad(
            "too large",
            format!("{good}# {}\n", "x".repeat(5 << 20)),
            ["bad.yaml", "4 MiB", "4 MiB at most"],
        ),
        bad(
            "an unknown kind",
            good.replace("HTTPRoute", "HttpRoute"),
            ["kind:", "\"HttpRoute\"", "HTTPRoute, GRPCRoute"],
        ),
        bad(
            "an unknown version",
            good.replace(GATEWAY, "gateway.networking.k8s.io/v7"),
            ["apiVersion:", "v7", "gateway.networking.k8s.io/v1"],
        ),
        bad(
            "a version of another kind",
            policy("retry: {attempts: 1}").replace(OURS, GATEWAY),
            ["apiVersion:", GATEWAY, OURS],
        ),
        bad(
            "no spec",
            good.split("spec:").next().expect("what is before it"),
            ["spec:", "nothing", "required"],
        ),
        bad(
            "a spec of another shape",
            document(GATEWAY, "HTTPRoute", "7"),
            ["spec:", "`7`", "NAME: VALUE"],
        ),
        bad(
            "no name",
            good.replace("name: bad, ", ""),
            ["metadata.name", "nothing", "required"],
        ),
        bad(
            "a name that is none",
            good.replace("name: bad", "name: Bad_1"),
            ["metadata.name", "\"Bad_1\"", "1 to 253 of a-z"],
        ),
        bad(
            "a name that is too long",
            good.replace("name: bad", &format!("name: {}", "x".repeat(254))),
            ["metadata.name", "xxx", "1 to 253 of a-z"],
        ),
        bad(
            "the same twice",
            good.repeat(2),
            ["metadata.name", "a second time", "each resource once"],
        ),
        bad(
            "an unknown field of the document",
            good.replace("spec:", "specs: 1\nspec:"),
            [
                "specs",
                "an unknown field",
                "apiVersion, kind, metadata, spec",
            ],
        ),
    ]
}
