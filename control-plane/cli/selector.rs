//! Label selectors, as kubectl's `-l` has them for equality.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Selects by labels: all requirements hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    /// `KEY=VALUE` or `KEY==VALUE`.
    Equals(String, String),
    /// `KEY!=VALUE`: another value, or none.
    Differs(String, String),
    /// `KEY`.
    Exists(String),
    /// `!KEY`.
    Absent(String),
}

impl Selector {
    /// Whether labels are selected.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Equals(key, value) => labels.get(key) == Some(value),
            Requirement::Differs(key, value) => labels.get(key) != Some(value),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
        })
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let requirements = text.split(',').map(|part| requirement(part.trim()));
        requirements.collect::<Result<_, _>>().map(Self)
    }
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let (key, requirement) = if let Some((key, value)) = text.split_once("!=") {
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        (key.clone(), Requirement::Differs(key, value))
    } else if let Some((key, value)) = text.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        (key.clone(), Requirement::Equals(key, value))
    } else if let Some(key) = text.strip_prefix('!') {
        let key = key.trim().to_owned();
        (key.clone(), Requirement::Absent(key))
    } else {
        (text.to_owned(), Requirement::Exists(text.to_owned()))
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    let fits = |text: &str| text.bytes().all(is_name);
    let value_fits = match &requirement {
        Requirement::Equals(_, value) | Requirement::Differs(_, value) => fits(value),
        Requirement::Exists(_) | Requirement::Absent(_) => true,
    };
    if key.is_empty() || !fits(&key) || !value_fits {
        return Err(format!(
            "found {text:?}; allowed: KEY=VALUE, KEY!=VALUE, KEY or !KEY, divided by commas"
        ));
    }
    Ok(requirement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_selected() {
        let pairs = [
            ("app.kubernetes.io/name", "web"),
            ("tier", "a"),
            ("bare", ""),
        ];
        let labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels = BTreeMap::from(labels);
        for (text, expected) in [
            ("app.kubernetes.io/name=web", true),
            ("app.kubernetes.io/name==web, tier=a", true),
            ("tier=a,tier=b", false),
            ("tier!=b", true),
            ("other!=b", true),
            ("tier!=a", false),
            ("bare", true),
            ("bare=", true),
            ("other", false),
            ("!other", true),
            ("!tier", false),
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.matches(&labels), expected, "{text}");
        }
        for bad in ["", "=a", "tier=a,", "tier in (a, b)", "!", "a=b=c", "a b"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
