//! The sidecar's configuration: what is accepted is accepted again, and the same, as it is printed; what is
//! refused is refused with a reason that names a field.
//!
//! The text up to a line `---set` is the file, each line behind it is what follows `--set`, or with `env `
//! before it a variable of the environment.

use std::path::Path;

use weft_proxy::config::{ConfigError, ProxyArgs, ProxyConfig, load_text};

/// What is larger is not read.
const FILE_MAX: usize = 64 * 1024;

fn load(text: &str, overrides: &[&str]) -> Result<ProxyConfig, ConfigError> {
    let (env, set): (Vec<&str>, Vec<&str>) =
        overrides.iter().partition(|line| line.starts_with("env "));
    let args = ProxyArgs {
        set: set.into_iter().map(str::to_owned).collect(),
        ..ProxyArgs::default()
    };
    let pairs = env.into_iter().filter_map(|line| {
        let (name, value) = line.strip_prefix("env ")?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    load_text(Some((Path::new("weft.yaml"), text)), &args, pairs)
}

fn check_error(error: &ConfigError) {
    let text = error.to_string();
    assert!(!text.trim().is_empty());
    match error {
        ConfigError::File { field, reason, .. } | ConfigError::Override { field, reason, .. } => {
            assert!(!field.is_empty() && !reason.is_empty(), "{text}");
        }
        ConfigError::Invalid { problems } => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(
                    !problem.field.is_empty() && !problem.reason.is_empty(),
                    "{text}"
                );
            }
        }
        ConfigError::Flag { .. } | ConfigError::UnknownField { .. } => {}
        ConfigError::Read { .. } | ConfigError::TooLarge { .. } => panic!("no file is read"),
    }
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if text.len() > FILE_MAX {
        return;
    }
    let (file, overrides) = text.split_once("---set\n").unwrap_or((text, ""));
    let overrides: Vec<&str> = overrides.lines().take(16).collect();
    let config = match load(file, &overrides) {
        Ok(config) => config,
        Err(error) => return check_error(&error),
    };
    assert!(config.problems().is_empty());
    assert!(config.worker_count() >= 1);
    let name = config.workload_name();
    assert!(name.is_ok(), "{name:?} has been checked");
    let mut expected = config.clone();
    let printed = expected.to_yaml();
    // What is printed has no secret in it.
    if let Some(token) = &mut expected.control_plane.token {
        *token = "(hidden)".into();
    }
    let again = load(&printed, &[]);
    let again = again.unwrap_or_else(|error| panic!("{printed} is printed and refused: {error}"));
    assert_eq!(again, expected, "{printed}");
    assert_eq!(again.to_yaml(), printed);
}
