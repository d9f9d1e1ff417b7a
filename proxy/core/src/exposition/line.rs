//! One line of a text of metrics.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Format, LABELS_MAX};

/// A line that is not of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// A line of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line<'a> {
    /// `# TYPE NAME TEXT`.
    Type(Comment<'a>),
    /// `# HELP NAME TEXT`, escaped.
    Help(Comment<'a>),
    /// A value.
    Sample(Sample<'a>),
    /// An empty line, another comment, `# UNIT` or `# EOF`.
    Nothing,
}

/// What describes a metric.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comment<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) text: Cow<'a, str>,
}

/// Names and values of labels.
type Labels<'a> = Vec<(&'a str, &'a str)>;

/// A value of a series.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) name: Cow<'a, str>,
    /// Names and values, the latter escaped and without quotation marks.
    pub(super) labels: Labels<'a>,
    value: Cow<'a, str>,
    /// Milliseconds since the epoch.
    timestamp: Option<i64>,
}

impl<'a> Line<'a> {
    pub(super) fn parse(line: &'a str, format: Format) -> Result<Self, Malformed> {
        let line = line.trim_matches(BLANKS);
        match line.strip_prefix('#') {
            Some(comment) => Self::comment(comment, format),
            None if line.is_empty() => Ok(Self::Nothing),
            None => Sample::parse(line, format).map(Self::Sample),
        }
    }

    fn comment(text: &'a str, format: Format) -> Result<Self, Malformed> {
        let (keyword, rest) = word(text.trim_start_matches(BLANKS));
        if keyword != "TYPE" && keyword != "HELP" {
            return Ok(Self::Nothing);
        }
        let (name, text) = word(rest);
        if !is_metric_name(name) {
            return Err(Malformed);
        }
        let name = Cow::Borrowed(name);
        if keyword == "HELP" {
            let text = help(text, format)?;
            return Ok(Self::Help(Comment { name, text }));
        }
        if !types_of(format).contains(&text) {
            return Err(Malformed);
        }
        let text = Cow::Borrowed(text);
        Ok(Self::Type(Comment { name, text }))
    }

    /// The metric that it is about.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Type(comment) | Self::Help(comment) => Some(&comment.name),
            Self::Sample(sample) => Some(&sample.name),
            Self::Nothing => None,
        }
    }

    /// With another name of the metric.
    pub(super) fn map_name(mut self, rename: impl FnOnce(String) -> String) -> Self {
        let name = match &mut self {
            Self::Type(comment) | Self::Help(comment) => &mut comment.name,
            Self::Sample(sample) => &mut sample.name,
            Self::Nothing => return self,
        };
        *name = Cow::Owned(rename(std::mem::take(name).into_owned()));
        self
    }

    /// A line of OpenMetrics as the format 0.0.4 has it, by the types of families: there what
    /// describes a counter names its samples.
    pub(super) fn classic(self, types: &HashMap<&str, &str>) -> Self {
        let kind = self.name().and_then(|name| types.get(name)).copied();
        let suffix = match kind {
            Some("counter") => "_total",
            Some("info") => "_info",
            _ => "",
        };
        match self {
            Self::Type(Comment { name, text }) => {
                let text = match &*text {
                    "info" | "stateset" => "gauge",
                    "unknown" | "gaugehistogram" => "untyped",
                    same => return Self::described(name, same.to_owned(), suffix, Self::Type),
                };
                Self::described(name, text.to_owned(), suffix, Self::Type)
            }
            Self::Help(Comment { name, text }) => {
                Self::described(name, text.into_owned(), suffix, Self::Help)
            }
            line @ (Self::Sample(_) | Self::Nothing) => line,
        }
    }

    fn described(
        name: Cow<'a, str>,
        text: String,
        suffix: &str,
        line: fn(Comment<'a>) -> Self,
    ) -> Self {
        let name = match name.ends_with(suffix) {
            true => name,
            false => Cow::Owned(format!("{name}{suffix}")),
        };
        let text = Cow::Owned(text);
        line(Comment { name, text })
    }

    pub(super) fn write(&self, to: &mut String) {
        let words: &[&str] = match self {
            Self::Type(comment) => &["# TYPE ", &comment.name, " ", &comment.text, "\n"],
            Self::Help(comment) => &["# HELP ", &comment.name, " ", &comment.text, "\n"],
            Self::Sample(sample) => return sample.write(to),
            Self::Nothing => return,
        };
        to.extend(words.iter().copied());
    }
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str, format: Format) -> Result<Self, Malformed> {
        let end = line.find(|c: char| c == '{' || BLANKS.contains(&c));
        let (name, rest) = line.split_at(end.ok_or(Malformed)?);
        if !is_metric_name(name) {
            return Err(Malformed);
        }
        let rest = rest.trim_start_matches(BLANKS);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => parse_labels(rest)?,
            None => (Labels::new(), rest),
        };
        let (found, rest) = word(rest.trim_start_matches(BLANKS));
        let value = value(found).ok_or(Malformed)?;
        // What follows `#` is an exemplar, which the format 0.0.4 does not have.
        let (found, rest) = word(rest);
        let (timestamp, rest) = match found {
            "" => (None, rest),
            found if found.starts_with('#') => (None, ""),
            found => (Some(timestamp(found, format)?), rest),
        };
        if !rest.is_empty() && !rest.starts_with('#') {
            return Err(Malformed);
        }
        Ok(Self {
            name: Cow::Borrowed(name),
            labels,
            value,
            timestamp,
        })
    }

    fn write(&self, to: &mut String) {
        to.push_str(&self.name);
        for (index, (name, value)) in self.labels.iter().enumerate() {
            let before = if index == 0 { "{" } else { "," };
            to.extend([before, name, "=\"", value, "\""]);
        }
        if !self.labels.is_empty() {
            to.push('}');
        }
        to.extend([" ", &self.value]);
        if let Some(timestamp) = self.timestamp {
            to.extend([" ", &timestamp.to_string()]);
        }
        to.push('\n');
    }
}

/// The family and the type of a `# TYPE`.
pub(super) fn type_of(line: &str) -> Option<(&str, &str)> {
    let comment = line.trim_matches(BLANKS).strip_prefix('#')?;
    let (keyword, rest) = word(comment.trim_start_matches(BLANKS));
    (keyword == "TYPE").then(|| word(rest))
}

const BLANKS: [char; 2] = [' ', '\t'];

/// The first word, and what follows it and its blanks.
fn word(text: &str) -> (&str, &str) {
    match text.find(BLANKS) {
        Some(end) => {
            let (word, rest) = text.split_at(end);
            (word, rest.trim_start_matches(BLANKS))
        }
        None => (text, ""),
    }
}

const fn types_of(format: Format) -> &'static [&'static str] {
    match format {
        Format::Prometheus => &["counter", "gauge", "histogram", "summary", "untyped"],
        Format::OpenMetrics => &[
            "counter",
            "gauge",
            "histogram",
            "summary",
            "unknown",
            "info",
            "stateset",
            "gaugehistogram",
        ],
    }
}

fn is_metric_name(name: &str) -> bool {
    is_name(name, |c| c == '_' || c == ':')
}

fn is_name(name: &str, also: impl Fn(char) -> bool) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || also(c))
}

/// The labels of a sample, and what follows the brace that ends them. Names that begin with `__` are
/// the scraper's own; `__name__` would be another metric's.
fn parse_labels(text: &str) -> Result<(Labels<'_>, &str), Malformed> {
    let mut labels = Labels::new();
    let mut rest = text.trim_start_matches(BLANKS);
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, after) = rest.split_once('=').ok_or(Malformed)?;
        let name = name.trim_end_matches(BLANKS);
        let is_new = labels.iter().all(|(other, _)| *other != name);
        let is_allowed = is_name(name, |c| c == '_') && !name.starts_with("__");
        if !is_allowed || !is_new || labels.len() == LABELS_MAX {
            return Err(Malformed);
        }
        let after = after.trim_start_matches(BLANKS);
        let quoted = after.strip_prefix('"').ok_or(Malformed)?;
        let (value, after) = until_quotation_mark(quoted)?;
        labels.push((name, value));
        rest = after.trim_start_matches(BLANKS);
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start_matches(BLANKS);
        } else if !rest.starts_with('}') {
            return Err(Malformed);
        }
    }
}

/// An escaped value up to the mark that ends it, and what follows that.
fn until_quotation_mark(text: &str) -> Result<(&str, &str), Malformed> {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((&text[..at], &text[at + 1..])),
            '\\' if matches!(chars.next(), Some((_, '\\' | '"' | 'n'))) => {}
            '\\' => return Err(Malformed),
            _ => {}
        }
    }
    Err(Malformed)
}

/// The text of a help as the format 0.0.4 escapes it: without quotation marks, which OpenMetrics
/// escapes.
fn help(text: &str, format: Format) -> Result<Cow<'_, str>, Malformed> {
    if !text.contains('\\') {
        return Ok(Cow::Borrowed(text));
    }
    let mut escaped = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let next = if c == '\\' { chars.next() } else { None };
        match (c, next) {
            ('\\', Some(next @ ('\\' | 'n'))) => escaped.extend(['\\', next]),
            ('\\', Some('"')) if format == Format::OpenMetrics => escaped.push('"'),
            ('\\', _) => return Err(Malformed),
            (c, _) => escaped.push(c),
        }
    }
    Ok(Cow::Owned(escaped))
}

/// A number as every parser reads it.
fn value(text: &str) -> Option<Cow<'_, str>> {
    let number: f64 = text.parse().ok()?;
    if number.is_nan() {
        return Some(Cow::Borrowed("NaN"));
    }
    if number.is_infinite() {
        return Some(Cow::Borrowed(if number > 0.0 { "+Inf" } else { "-Inf" }));
    }
    Some(Cow::Borrowed(text))
}

/// Milliseconds since the epoch; OpenMetrics has seconds.
fn timestamp(text: &str, format: Format) -> Result<i64, Malformed> {
    match format {
        Format::Prometheus => text.parse().map_err(|_not_a_number| Malformed),
        Format::OpenMetrics => {
            let seconds: f64 = text.parse().map_err(|_not_a_number| Malformed)?;
            let millis = (seconds * 1000.0).round();
            // Casts of floats saturate: what is refused here would be another time.
            let fits = millis.is_finite() && millis.abs() < i64::MAX as f64;
            fits.then_some(millis as i64).ok_or(Malformed)
        }
    }
}
