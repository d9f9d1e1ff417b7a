//! The CNI plugin `weft-cni`, chained after the node's main plugin, and the program that keeps it on a
//! node.
//!
//! The plugin redirects the traffic of a pod that is in the mesh, with the rules of `weft-proxy intercept`,
//! so that no container of the pod needs `NET_ADMIN`. Which pod that is says an annotation that the
//! injector writes and the container runtime passes on: nobody is asked. All other pods' results are
//! passed on as they came.

mod conflist;
mod looks;
mod netns;
mod node;
mod plugin;
mod pods;
mod ready;
mod records;
mod repair;

pub use node::{NodeArgs, NodeError, run as run_node};
pub use plugin::{is_plugin, main as plugin_main};
pub use ready::{NotReady, ReadyArgs, run as run_ready};

use clap::Parser;

use crate::intercept::InterceptArgs;

/// The name of the plugin's program and its type in a network's configuration.
pub const PLUGIN: &str = "weft-cni";
/// The annotation with the arguments of `weft-proxy intercept`, a JSON array
/// (`control-plane/src/kubernetes/names.rs`).
pub const ANNOTATION: &str = "weft-mesh.io/interception";
/// The variable of the containers of such a pod with the same, for the node's program.
pub const VARIABLE: &str = "WEFT_CNI_INTERCEPTION";
/// Longest value of both, bytes: lists of 100 ports and of 100 ranges fit.
const ARGUMENTS_MAX_BYTES: usize = 16 * 1024;

/// The arguments of `weft-proxy intercept` that the injector writes. All others are as without any: whoever
/// may write the annotation, or run a program, chooses no listener and no user.
#[derive(Debug, Parser)]
#[command(name = "weft-proxy intercept")]
struct Line {
    #[arg(long)]
    no_dns: bool,
    #[arg(long, value_delimiter = ',')]
    exclude_outbound_ports: Vec<u16>,
    #[arg(long, value_delimiter = ',')]
    exclude_outbound_ranges: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    exclude_inbound_ports: Vec<u16>,
}

/// Reads what the annotation, or the variable, says.
fn arguments(text: &str) -> Result<InterceptArgs, String> {
    let bytes = text.len();
    if bytes > ARGUMENTS_MAX_BYTES {
        return Err(format!(
            "found {bytes} bytes; allowed: {ARGUMENTS_MAX_BYTES}"
        ));
    }
    let words: Vec<String> = serde_json::from_str(text)
        .map_err(|error| format!("found {error}; allowed: a JSON array of strings"))?;
    let line = ["intercept".to_owned()].into_iter().chain(words);
    let parsed = Line::try_parse_from(line).map_err(|error| {
        let text = error.render().to_string();
        text.lines().next().unwrap_or_default().to_owned()
    })?;
    Ok(InterceptArgs {
        no_dns: parsed.no_dns,
        exclude_outbound_ports: parsed.exclude_outbound_ports,
        exclude_outbound_ranges: parsed.exclude_outbound_ranges,
        exclude_inbound_ports: parsed.exclude_inbound_ports,
        ..InterceptArgs::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_of_intercept() {
        let read = arguments(r#"["--exclude-inbound-ports", "15020,22", "--no-dns"]"#).unwrap();
        assert_eq!(
            (read.exclude_inbound_ports, read.no_dns),
            (vec![15020, 22], true)
        );
        assert_eq!((read.inbound_port, read.outbound_port), (15006, 15001));
        let long = format!("[\"{}\"]", "x".repeat(ARGUMENTS_MAX_BYTES));
        for bad in [
            "",
            "{}",
            "[1]",
            r#"["--remove"]"#,
            r#"["--nonsense"]"#,
            r#"["--uid", "0"]"#,
            r#"["--inbound-port", "7777"]"#,
            r#"["--outbound-port=7777"]"#,
            r#"["--dns-port", "7777"]"#,
            r#"["--exclude-uids", "1000"]"#,
            r#"["--help"]"#,
            &long,
        ] {
            assert!(arguments(bad).is_err(), "{bad}");
        }
    }
}
