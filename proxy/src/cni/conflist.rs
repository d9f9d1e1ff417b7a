//! The plugin's entry in a network's configuration: pure.

use serde_json::{Value, json};

use super::PLUGIN;
use super::plugin::{ANNOTATIONS, STATE_DIR};

/// The configuration with the plugin as its last; nothing where it is there already. `state_dir` is where
/// the plugin records what it redirects.
pub(super) fn with_plugin(text: &str, state_dir: &str) -> Result<Option<String>, String> {
    let mut config = read(text)?;
    let plugins = plugins(&mut config)?;
    let entry = json!({"type": PLUGIN, "capabilities": {ANNOTATIONS: true}, STATE_DIR: state_dir});
    if plugins.last() == Some(&entry) {
        return Ok(None);
    }
    plugins.retain(|plugin| plugin["type"] != PLUGIN);
    if plugins.is_empty() {
        return Err("found no plugin to be chained after".to_owned());
    }
    plugins.push(entry);
    Ok(Some(format!("{config:#}\n")))
}

/// The configuration without the plugin; nothing where it is not there. What does not name it is anybody's,
/// and may be no list of plugins.
pub(super) fn without_plugin(text: &str) -> Result<Option<String>, String> {
    if !text.contains(PLUGIN) {
        return Ok(None);
    }
    let mut config = read(text)?;
    let plugins = plugins(&mut config)?;
    let before = plugins.len();
    plugins.retain(|plugin| plugin["type"] != PLUGIN);
    let is_changed = plugins.len() != before;
    Ok(is_changed.then(|| format!("{config:#}\n")))
}

fn read(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn plugins(config: &mut Value) -> Result<&mut Vec<Value>, String> {
    let plugins = config.get_mut("plugins").and_then(Value::as_array_mut);
    plugins.ok_or_else(|| "found no list `plugins`".to_owned())
}

/// The configurations that a runtime reads, in its order, of which it uses the first (libcni).
pub(super) fn read_by_runtimes(names: impl Iterator<Item = String>) -> Vec<String> {
    let read = |name: &String| {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    let mut names: Vec<String> = names.filter(read).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_is_added_once_and_taken_away() {
        let before =
            r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "mtu": 1}]}"#;
        let with_plugin = |text: &str| with_plugin(text, "/run/weft-cni");
        let with = with_plugin(before).unwrap().unwrap();
        assert_eq!(with_plugin(&with), Ok(None));
        let elsewhere = with.replace("/run/weft-cni", "/var/run/weft-cni");
        assert_eq!(with_plugin(&elsewhere), Ok(Some(with.clone())));
        assert_eq!(without_plugin(before), Ok(None));
        assert_eq!(without_plugin("of others"), Ok(None));
        assert!(without_plugin("weft-cni").is_err());
        let without = without_plugin(&with).unwrap().unwrap();
        assert_eq!(read(&without), read(before));
        // Another program has put its own behind it, or has another version of it.
        let moved = with.replace("\"bridge\"", "\"weft-cni\"").replace(
            "\"plugins\": [",
            "\"plugins\": [{\"type\": \"bridge\"}, {\"type\": \"weft-cni\", \"old\": 1},",
        );
        let moved = moved.replacen("]", ", {\"type\": \"portmap\"}]", 1);
        let mended: Value = serde_json::from_str(&with_plugin(&moved).unwrap().unwrap()).unwrap();
        let types = mended["plugins"].as_array().unwrap().iter();
        let types: Vec<_> = types
            .map(|plugin| plugin["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["bridge", "portmap", "weft-cni"]);
        for bad in ["", "[]", "{}", r#"{"plugins": {}}"#, r#"{"plugins": []}"#] {
            assert!(with_plugin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_by_name_is_used() {
        let names = [
            "10-b.conflist",
            "05-a.conflist.new",
            "nets.d",
            "20-c.conf",
            "README",
        ];
        let found = read_by_runtimes(names.into_iter().map(str::to_owned));
        assert_eq!(found, ["10-b.conflist", "20-c.conf"]);
    }
}
