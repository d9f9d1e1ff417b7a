//! Limits of what a sidecar announces of its workload. The sidecar refuses a configuration beyond
//! them, and the control plane a registration: parts of it go to every sidecar that calls the
//! workload.

use crate::label;

/// Services of a registration.
pub const SERVICES_MAX: usize = 64;
/// Own addresses of a registration.
pub const ADDRESSES_MAX: usize = 16;
/// Ports of a registration.
pub const PORTS_MAX: usize = 64;
/// Labels of a registration.
pub const LABELS_MAX: usize = 64;
/// Bytes of a zone's name: as long as a label of Kubernetes, which it often comes from.
pub const ZONE_MAX_BYTES: usize = 63;
/// Bytes of a sidecar's version.
pub const VERSION_MAX_BYTES: usize = 64;
/// Bytes of the address of a sidecar's metrics.
pub const METRICS_TARGET_MAX_BYTES: usize = 256;

/// Of what is refused, so many characters are shown.
const FOUND_MAX: usize = 80;

/// A field that is beyond its limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: found {found}; allowed: {allowed}")]
pub struct Exceeded {
    /// The path of the field.
    pub field: String,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
}

/// Checks how many items a list has.
pub fn check_count(field: &str, found: usize, max: usize) -> Result<(), Exceeded> {
    if found <= max {
        return Ok(());
    }
    Err(Exceeded {
        field: field.to_owned(),
        found: format!("{found} items"),
        allowed: format!("{max} at most"),
    })
}

/// Checks how long a text is.
pub fn check_text(field: &str, text: &str, max_bytes: usize) -> Result<(), Exceeded> {
    if text.len() <= max_bytes {
        return Ok(());
    }
    Err(Exceeded {
        field: field.to_owned(),
        found: format!("{} bytes", text.len()),
        allowed: format!("{max_bytes} bytes at most"),
    })
}

/// Checks labels: how many there are, and each key and value.
pub fn check_labels<'a>(
    field: &str,
    labels: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), Exceeded> {
    check_count(field, labels.len(), LABELS_MAX)?;
    for (key, value) in labels {
        if !label::is_key(key) {
            return Err(Exceeded {
                field: field.to_owned(),
                found: shown(key),
                allowed: label::KEY.to_owned(),
            });
        }
        if !label::is_value(value) {
            return Err(Exceeded {
                field: format!("{field}.{key}"),
                found: shown(value),
                allowed: label::VALUE.to_owned(),
            });
        }
    }
    Ok(())
}

fn shown(text: &str) -> String {
    let shown: String = text.chars().take(FOUND_MAX).collect();
    match shown.len() < text.len() {
        true => format!("{shown:?} and more, {} bytes", text.len()),
        false => format!("{shown:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn texts_and_counts_are_bounded() {
        assert_eq!(check_text("zone", &"z".repeat(63), ZONE_MAX_BYTES), Ok(()));
        let error = check_text("zone", &"ä".repeat(32), ZONE_MAX_BYTES).unwrap_err();
        assert_eq!(
            error.to_string(),
            "zone: found 64 bytes; allowed: 63 bytes at most"
        );
        assert_eq!(check_count("ports", 64, PORTS_MAX), Ok(()));
        let error = check_count("ports", 65, PORTS_MAX).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ports: found 65 items; allowed: 64 at most"
        );
    }

    #[test]
    fn labels_are_those_of_kubernetes() {
        let check = |key: &str, value: &str| {
            let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            check_labels("labels", labels.iter()).map_err(|error| error.field)
        };
        let (name, prefix) = ("n".repeat(63), "a.b".repeat(84) + "a");
        assert_eq!(check(&format!("{prefix}/{name}"), &name), Ok(()));
        assert_eq!(check("version", ""), Ok(()));
        for key in ["", &format!("{name}n"), &format!("{prefix}a/n"), "a b"] {
            assert_eq!(check(key, "x"), Err("labels".to_owned()), "{key}");
        }
        for value in [&format!("{name}n"), "a b", "-a", &"x".repeat(1 << 20)] {
            let found = check("version", value);
            assert_eq!(found, Err("labels.version".to_owned()), "{value:.80}");
        }
        let many = (0..65).map(|n| (format!("l{n}"), String::new()));
        let many: BTreeMap<_, _> = many.collect();
        let error = check_labels("labels", many.iter()).unwrap_err();
        assert_eq!(error.found, "65 items");
        let long = BTreeMap::from([("k".to_owned(), "x".repeat(1 << 20))]);
        let error = check_labels("labels", long.iter()).unwrap_err();
        assert!(error.to_string().len() < 400, "{error}");
    }
}
