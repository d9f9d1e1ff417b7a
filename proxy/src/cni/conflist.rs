//! The plugin's entry in a network's configuration: pure.

use serde_json::{Value, json};

use super::PLUGIN;
use super::plugin::ANNOTATIONS;

/// The configuration with the plugin as its last; nothing where it is there already.
pub(super) fn with_plugin(text: &str) -> Result<Option<String>, String> {
    let mut config = read(text)?;
    let plugins = plugins(&mut config)?;
    if plugins.last() == Some(&entry()) {
        return Ok(None);
    }
    plugins.retain(|plugin| plugin["type"] != PLUGIN);
    if plugins.is_empty() {
        return Err("found no plugin to be chained after".to_owned());
    }
    plugins.push(entry());
    Ok(Some(format!("{config:#}\n")))
}

/// The configuration without the plugin; nothing where it is not there.
pub(super) fn without_plugin(text: &str) -> Result<Option<String>, String> {
    let mut config = read(text)?;
    let plugins = plugins(&mut config)?;
    let before = plugins.len();
    plugins.retain(|plugin| plugin["type"] != PLUGIN);
    let is_changed = plugins.len() != before;
    Ok(is_changed.then(|| format!("{config:#}\n")))
}

fn entry() -> Value {
    json!({"type": PLUGIN, "capabilities": {ANNOTATIONS: true}})
}

fn read(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn plugins(config: &mut Value) -> Result<&mut Vec<Value>, String> {
    let plugins = config.get_mut("plugins").and_then(Value::as_array_mut);
    plugins.ok_or_else(|| "found no list `plugins`".to_owned())
}

/// The configuration that a runtime uses: the first by name (libcni).
pub(super) fn first(names: impl Iterator<Item = String>) -> Option<String> {
    let used = |name: &String| {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    names.filter(used).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_is_added_once_and_taken_away() {
        let before =
            r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "mtu": 1}]}"#;
        let with = with_plugin(before).unwrap().unwrap();
        assert_eq!(with_plugin(&with), Ok(None));
        assert_eq!(without_plugin(before), Ok(None));
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
        let first = |names: &[&str]| first(names.iter().map(|name| (*name).to_owned()));
        let names = ["10-b.conflist", "05-a.conflist.new", "nets.d", "20-c.conf"];
        assert_eq!(first(&names).as_deref(), Some("10-b.conflist"));
        assert_eq!(first(&["README"]), None);
    }
}
