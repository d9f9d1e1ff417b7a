//! Reading the configuration: defaults, then the file, then the environment, then flags.
//!
//! Each override is applied and checked by itself, so that an error names where the bad value came
//! from: the file with line and column, the variable, or the flag.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::Value;

use super::args::{FlagError, FlagValue, ProxyArgs};
use super::validate::Problem;
use super::{ProxyConfig, Secret};

/// Largest configuration file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Prefix of the environment's variables.
const ENV_PREFIX: &str = "WEFT_";

/// Fields below this one are named by the operator.
const LABELS: &str = "workload.labels";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too large to be one of ours.
    #[error("{path}: larger than {FILE_MAX} bytes, which is the most that is read", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not YAML, or a field in it is unknown or has the wrong type.
    #[error("{path}:{line}:{column}: {field}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1; 0 when unknown.
        line: u64,
        /// Column, from 1; 0 when unknown.
        column: u64,
        /// The path of the field, `.` for the document.
        field: String,
        /// What was found and what is allowed.
        reason: String,
    },
    /// A variable or flag cannot be read as its field's type.
    #[error("{origin}: {field}: {reason}")]
    Override {
        /// The variable or the flag.
        origin: String,
        /// The path of the field.
        field: String,
        /// What was found and what is allowed.
        reason: String,
    },
    /// A flag of the wrong form.
    #[error("{flag}: {reason}")]
    Flag {
        /// The flag.
        flag: String,
        /// What was found and what is allowed.
        reason: String,
    },
    /// `--set` names a field that does not exist.
    #[error("{origin}: unknown field {field:?}, expected one of {}", allowed.join(", "))]
    UnknownField {
        /// The flag.
        origin: String,
        /// What was given.
        field: String,
        /// The fields there are.
        allowed: Vec<String>,
    },
    /// Every field can be read, but together they make no sense.
    #[error("the configuration is not valid:{}", list(problems))]
    Invalid {
        /// All that is wrong.
        problems: Vec<Problem>,
    },
}

/// Reads the configuration from the file that `args` or `WEFT_CONFIG` names, the environment of
/// this process, and `args`.
pub fn load(args: &ProxyArgs) -> Result<ProxyConfig, ConfigError> {
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    load_with(args, env)
}

/// As [`load`], with the environment given. Variables with an empty value count as not set.
pub fn load_with(
    args: &ProxyArgs,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<ProxyConfig, ConfigError> {
    let env: Vec<(String, String)> = env.into_iter().collect();
    let from_env = env
        .iter()
        .find(|(name, value)| name == "WEFT_CONFIG" && !value.is_empty());
    let file = args
        .config
        .clone()
        .or_else(|| from_env.map(|(_, path)| PathBuf::from(path)));
    let text = file.as_deref().map(read_file).transpose()?;
    load_text(file.as_deref().zip(text.as_deref()), args, env)
}

/// As [`load_with`], with the file's path and text given, where there is one.
pub fn load_text(
    file: Option<(&Path, &str)>,
    args: &ProxyArgs,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<ProxyConfig, ConfigError> {
    let mut env: Vec<(String, String)> = env
        .into_iter()
        .filter(|(name, value)| name.starts_with(ENV_PREFIX) && !value.is_empty())
        .collect();
    env.sort();
    let base = match file {
        Some((path, text)) => parse(path, text)?,
        None => ProxyConfig::default(),
    };
    let mut layers = Layers::new(base);
    let fields = fields();
    for (name, text) in env {
        // Other variables with our prefix belong to other commands.
        if let Some(field) = fields.iter().find(|field| variable(field) == name) {
            layers.set_text(&name, field, &text)?;
        }
    }
    let overrides = args
        .overrides()
        .map_err(|FlagError { flag, reason }| ConfigError::Flag { flag, reason })?;
    for flag in overrides {
        let label = flag.field.starts_with(LABELS) && flag.field.len() > LABELS.len() + 1;
        if !label && !fields.contains(&flag.field) {
            return Err(ConfigError::UnknownField {
                origin: flag.flag,
                field: flag.field,
                allowed: fields,
            });
        }
        match flag.value {
            FlagValue::Text(text) => layers.set_text(&flag.flag, &flag.field, &text)?,
            FlagValue::Shaped(value) => layers.set(&flag.flag, &flag.field, value)?,
        }
    }
    let problems = layers.config.problems();
    if problems.is_empty() {
        Ok(layers.config)
    } else {
        Err(ConfigError::Invalid { problems })
    }
}

impl ProxyConfig {
    /// The whole configuration as YAML, secrets hidden: what `--check-config` prints.
    pub fn to_yaml(&self) -> String {
        // Every field serializes to a scalar, a sequence or a map with text keys.
        serde_saphyr::to_string(self).unwrap_or_else(|error| format!("# {error}\n"))
    }
}

/// The configuration so far, and the same as a tree in which fields are replaced by their path.
struct Layers {
    config: ProxyConfig,
    tree: Value,
}

/// Where the only secret is: a tree does not hold it, so it is carried over by itself.
const TOKEN: &str = "control_plane.token";

impl Layers {
    fn new(config: ProxyConfig) -> Self {
        let tree = tree(&config);
        Self { config, tree }
    }

    /// Sets `field` to what `text` means there: itself, or else what it is as YAML.
    fn set_text(&mut self, origin: &str, field: &str, text: &str) -> Result<(), ConfigError> {
        let Err(as_text) = self.set(origin, field, Value::from(text)) else {
            return Ok(());
        };
        match serde_saphyr::from_str::<Value>(text) {
            Ok(value) if !value.is_string() => self.set(origin, field, value),
            Ok(_) | Err(_) => Err(as_text),
        }
    }

    fn set(&mut self, origin: &str, field: &str, value: Value) -> Result<(), ConfigError> {
        let mut tree = self.tree.clone();
        replace(&mut tree, field, value);
        let parsed: Result<ProxyConfig, _> = serde_path_to_error::deserialize(&tree);
        let mut config = parsed.map_err(|error| ConfigError::Override {
            origin: origin.to_owned(),
            field: named(error.path().to_string()),
            reason: error.into_inner().to_string(),
        })?;
        if field != TOKEN {
            config
                .control_plane
                .token
                .clone_from(&self.config.control_plane.token);
        }
        self.config = config;
        self.tree = tree;
        Ok(())
    }
}

/// Every field that an override may name: `a.b.c`, down to scalars and lists.
pub(super) fn fields() -> Vec<String> {
    fn walk(prefix: &str, value: &Value, fields: &mut Vec<String>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (name, value) in map {
                    let path = if prefix.is_empty() {
                        name.clone()
                    } else {
                        format!("{prefix}.{name}")
                    };
                    walk(&path, value, fields);
                }
            }
            Value::Object(_)
            | Value::Array(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_) => fields.push(prefix.to_owned()),
        }
    }
    let mut fields = Vec::new();
    walk("", &tree(&ProxyConfig::default()), &mut fields);
    fields
}

/// The variable that overrides `field`.
pub(super) fn variable(field: &str) -> String {
    format!("{ENV_PREFIX}{}", field.replace('.', "_").to_uppercase())
}

fn tree(config: &ProxyConfig) -> Value {
    // Every field serializes to a scalar, a sequence or a map with text keys.
    serde_json::to_value(config).unwrap_or_default()
}

fn replace(tree: &mut Value, field: &str, value: Value) {
    let label = field
        .strip_prefix(LABELS)
        .and_then(|rest| rest.strip_prefix('.'));
    let parts: Vec<&str> = match label {
        // A label's name may contain dots itself.
        Some(label) => LABELS.split('.').chain([label]).collect(),
        None => field.split('.').collect(),
    };
    let mut place = tree;
    for part in parts {
        place = &mut place[part];
    }
    *place = value;
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(read)?;
    file.take(FILE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(read)?;
    if text.len() as u64 > FILE_MAX {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<ProxyConfig, ConfigError> {
    let mut field = None;
    let options = serde_saphyr::options! { with_snippet: false };
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |document| {
        // A file with nothing but comments leaves everything at its default.
        serde_path_to_error::deserialize::<_, Option<ProxyConfig>>(document).map_err(|error| {
            field = Some(error.path().to_string());
            error.into_inner()
        })
    });
    parsed.map(Option::unwrap_or_default).map_err(|error| {
        let at = error.location();
        ConfigError::File {
            path: path.to_owned(),
            line: at.map_or(0, |at| at.line()),
            column: at.map_or(0, |at| at.column()),
            field: named(field.unwrap_or_default()),
            reason: without_location(&error.without_snippet().to_string()),
        }
    })
}

/// The path of a field in a message: a key without a name is said to be the document's.
fn named(path: String) -> String {
    match path.is_empty() {
        true => ".".to_owned(),
        false => path,
    }
}

/// The reader appends the place, which is already at the beginning of our message.
fn without_location(message: &str) -> String {
    let end = message.find(" at line ").unwrap_or(message.len());
    message[..end].trim().to_owned()
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect()
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}
