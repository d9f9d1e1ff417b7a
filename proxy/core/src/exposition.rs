//! Metrics of a sidecar and of its application as one answer, in Prometheus' text format 0.0.4.
//!
//! The application's text is not believed: a line that is not of the format is left out, because one
//! of them makes a scraper reject the whole answer, and so is a line that would pass for one of the
//! sidecar's own series. Sources: the exposition formats of Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>) and OpenMetrics 1.0.

use std::collections::{HashMap, HashSet};

mod line;

use line::{Line, Sample};

/// The media type of a merged answer.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What an application is asked for.
pub const ACCEPT: &str = "text/plain;version=0.0.4, */*;q=0.1";

/// Longest line of an application that is taken, bytes.
pub const LINE_MAX_BYTES: usize = 16 * 1024;
/// Most labels of an application's sample.
pub const LABELS_MAX: usize = 64;

/// The beginning of names that only the sidecar's own metrics have.
const OWN_PREFIX: &str = "weft_";
/// The beginning of names of the sidecar's metrics that an application may have, too.
const PROCESS_PREFIX: &str = "process_";
/// Beginnings of names that both may have: OpenTelemetry's conventions name them. The sidecar's have
/// the labels [`OWN_LABELS`].
const SHARED_PREFIXES: [&str; 2] = ["http_server_", "http_client_"];
/// Labels that the sidecar's series of [`SHARED_PREFIXES`] have and an application's may not have.
const OWN_LABELS: [&str; 2] = ["service", "peer"];

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that a `content-type` names; `None` where it is no text format of metrics.
    pub fn of(content_type: Option<&str>) -> Option<Self> {
        let Some(content_type) = content_type else {
            return Some(Self::Prometheus);
        };
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("text/plain") {
            Some(Self::Prometheus)
        } else if essence.eq_ignore_ascii_case("application/openmetrics-text") {
            Some(Self::OpenMetrics)
        } else {
            None
        }
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// In the format of [`CONTENT_TYPE`].
    pub text: String,
    /// Lines of the application that were left out.
    pub dropped: u64,
}

/// The sidecar's metrics (OpenMetrics) and, after them, the application's.
///
/// The sidecar's `process_…` become `weft_process_…`: the application may have its own.
pub fn merge(own: &str, application: Option<(Format, &[u8])>) -> Merged {
    let length = own.len() + application.map_or(0, |(_, body)| body.len());
    let mut writer = Writer {
        text: String::with_capacity(length + length / 8),
        described: HashSet::new(),
    };
    for line in converted(Format::OpenMetrics, own.as_bytes()).flatten() {
        writer.write(
            line.map_name(|name| match name.starts_with(PROCESS_PREFIX) {
                true => format!("{OWN_PREFIX}{name}"),
                false => name,
            }),
        );
    }
    let mut dropped = 0;
    if let Some((format, body)) = application {
        for line in converted(format, body) {
            match line.filter(|line| !is_reserved(line)) {
                Some(line) => writer.write(line),
                None => dropped += 1,
            }
        }
    }
    let text = writer.text;
    Merged { text, dropped }
}

/// The lines of a text as the format 0.0.4 has them; `None` for one that cannot be one.
fn converted(format: Format, text: &[u8]) -> impl Iterator<Item = Option<Line<'_>>> {
    let types = match format {
        Format::Prometheus => HashMap::new(),
        Format::OpenMetrics => types(text),
    };
    lines(text).filter_map(move |line| {
        let Some(line) = line else {
            return Some(None);
        };
        match Line::parse(line, format) {
            Ok(Line::Nothing) => None,
            Ok(line) if format == Format::OpenMetrics => Some(Some(line.classic(&types))),
            Ok(line) => Some(Some(line)),
            Err(line::Malformed) => Some(None),
        }
    })
}

/// The types that a text says its families have.
fn types(text: &[u8]) -> HashMap<&str, &str> {
    lines(text).flatten().filter_map(line::type_of).collect()
}

/// The lines of a text; `None` for one that is too long or not in UTF-8.
fn lines(text: &[u8]) -> impl Iterator<Item = Option<&str>> {
    text.split(|byte| *byte == b'\n').map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        (line.len() <= LINE_MAX_BYTES)
            .then_some(line)
            .and_then(|line| std::str::from_utf8(line).ok())
    })
}

/// Whether a line of an application would pass for one of the sidecar's.
fn is_reserved(line: &Line<'_>) -> bool {
    let Some(name) = line.name() else {
        return false;
    };
    if name.starts_with(OWN_PREFIX) {
        return true;
    }
    let Line::Sample(Sample { labels, .. }) = line else {
        return false;
    };
    let is_shared = SHARED_PREFIXES
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let has = |own: &str| labels.iter().any(|(name, _)| *name == own);
    is_shared && OWN_LABELS.into_iter().all(has)
}

/// Writes lines, and what describes a metric once.
struct Writer {
    text: String,
    /// Metrics with a `# TYPE` and with a `# HELP`.
    described: HashSet<(bool, String)>,
}

impl Writer {
    fn write(&mut self, line: Line<'_>) {
        let seen = match &line {
            Line::Type(comment) => Some((true, comment.name.to_string())),
            Line::Help(comment) => Some((false, comment.name.to_string())),
            Line::Sample(_) | Line::Nothing => None,
        };
        if seen.is_none_or(|seen| self.described.insert(seen)) {
            line.write(&mut self.text);
        }
    }
}

#[cfg(test)]
mod tests;
