//! Values as people write them: durations, sizes, names, and a secret that is never printed.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use weft_core::name::{NameError, ServiceName, check_label};

/// Durations with a unit, as in `300ms`, `10s`, `5m` or `1h`.
pub(super) mod duration {
    use std::time::Duration;

    use jiff::fmt::friendly::{Designator, SpanParser, SpanPrinter};
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    static PARSER: SpanParser = SpanParser::new();
    static PRINTER: SpanPrinter = SpanPrinter::new().designator(Designator::Compact);

    pub(in crate::config) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&PRINTER.unsigned_duration_to_string(duration))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        PARSER.parse_unsigned_duration(text.trim()).map_err(|_| {
            D::Error::custom(format_args!(
                "{text:?} is not a duration: expected a number with a unit, as in 300ms, 10s, 5m or 1h"
            ))
        })
    }
}

/// What is spoken on a port.
pub(super) mod protocol {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};
    use weft_core::model::AppProtocol;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(in crate::config) fn serialize<S: Serializer>(
        protocol: &AppProtocol,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(protocol.as_str())
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<AppProtocol, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == AppProtocol::Detect.as_str() {
            return Ok(AppProtocol::Detect);
        }
        AppProtocol::parse(&text).ok_or_else(|| {
            D::Error::custom(format_args!(
                "unknown protocol {text:?}, expected one of {}, detect",
                AppProtocol::ALLOWED
            ))
        })
    }
}

/// A number of bytes, written with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Units of sizes, the largest first; decimal ones are understood, but not written.
const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// How many of [`UNITS`] are binary.
const BINARY_UNITS: usize = 3;

impl ByteSize {
    /// So many times 1024 bytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// So many times 1,048,576 bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// In bytes; what does not fit is the largest there is.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// In bytes, for windows of HTTP/2; what does not fit is the largest there is (RFC 9113
    /// section 6.9.1: 2^31 - 1).
    pub fn window(self) -> u32 {
        const WINDOW_MAX: u64 = (1 << 31) - 1;
        u32::try_from(self.0.min(WINDOW_MAX)).unwrap_or(u32::MAX >> 1)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, size): &&(&str, u64)| self.0 >= *size && self.0.is_multiple_of(*size);
        match UNITS[..BINARY_UNITS].iter().find(exact) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let factor = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit));
        factor
            .and_then(|(_, size)| number.parse::<u64>().ok()?.checked_mul(*size))
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "{text:?} is not a size: expected a number with a unit, as in 512B, 64KiB, 1MiB or 1GB"
                )
            })
    }
}

/// A service as a configuration names it: `NAME` in the workload's own namespace, or
/// `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef {
    namespace: Option<String>,
    name: String,
}

impl ServiceRef {
    /// The service's name without its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service that is meant by a workload of `namespace`, which has to be a DNS label.
    pub fn resolve(&self, namespace: &str) -> Result<ServiceName, NameError> {
        ServiceName::new(self.namespace.as_deref().unwrap_or(namespace), &self.name)
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

impl FromStr for ServiceRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if let Some(namespace) = namespace {
            check_label(namespace)?;
        }
        check_label(name)?;
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLog {
    /// Nowhere.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// The end of a file, which is created where it is missing.
    File(PathBuf),
}

impl fmt::Display for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for AccessLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            // YAML 1.1 readers make `false` of a bare `off`.
            "off" | "false" => Ok(Self::Off),
            "stdout" => Ok(Self::Stdout),
            // A bare word is more likely a slip than a file in the working directory.
            path if path.contains('/') => Ok(Self::File(PathBuf::from(path))),
            other => Err(format!(
                "unknown access log {other:?}, expected off, stdout or a path that contains a /"
            )),
        }
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

serde_as_text!(ByteSize, ServiceRef, AccessLog);

/// A text that neither `Debug` nor `Serialize` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What is shown in place of a [`Secret`].
pub(super) const HIDDEN: &str = "(hidden)";

impl Secret {
    /// Takes `text` as it is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}
