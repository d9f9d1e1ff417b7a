//! The part of Go's template language that the chart is written in: pure.
//!
//! The chart is the one source of what is installed; helm renders it with Go's `text/template`,
//! `weft install` with this. Whatever the chart does not use is an error here, not a guess.

use std::collections::BTreeMap;

use serde_json::Value;

/// A template that cannot be read, or not rendered with these values.
#[derive(Debug, thiserror::Error)]
#[error("chart: {file}: {message}")]
pub struct TemplateError {
    /// The template.
    pub file: String,
    /// What is wrong with it.
    pub message: String,
}

/// The templates of a chart, read.
#[derive(Debug)]
pub(super) struct Templates {
    named: BTreeMap<String, Vec<Node>>,
    files: Vec<(String, Vec<Node>)>,
    assets: BTreeMap<String, String>,
}

/// What stands in a template.
#[derive(Debug)]
enum Node {
    Text(String),
    Print(Expr),
    If {
        condition: Expr,
        then: Vec<Self>,
        otherwise: Vec<Self>,
    },
    With {
        value: Expr,
        then: Vec<Self>,
    },
    Range {
        list: Expr,
        each: Vec<Self>,
    },
}

/// What is computed within `{{ }}`.
#[derive(Debug)]
enum Expr {
    /// `.a.b`; none: the dot itself.
    Path(Vec<String>),
    Literal(Value),
    Call(Function, Vec<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    And,
    Default,
    Eq,
    File,
    Include,
    Nindent,
    Not,
    Or,
    Printf,
    Quote,
    Replace,
    SemverCompare,
    ToYaml,
}

impl Function {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "and" => Self::And,
            "default" => Self::Default,
            "eq" => Self::Eq,
            "include" => Self::Include,
            "nindent" => Self::Nindent,
            "not" => Self::Not,
            "or" => Self::Or,
            "printf" => Self::Printf,
            "quote" => Self::Quote,
            "replace" => Self::Replace,
            "semverCompare" => Self::SemverCompare,
            "toYaml" => Self::ToYaml,
            _ => return None,
        })
    }
}

impl Templates {
    /// Reads `sources` (name and text), of which `.Files.Get` finds `assets`.
    pub(super) fn parse(
        sources: &[(&str, &str)],
        assets: &[(&str, &str)],
    ) -> Result<Self, TemplateError> {
        let mut templates = Self {
            named: BTreeMap::new(),
            files: Vec::new(),
            assets: owned(assets),
        };
        for (file, text) in sources {
            let in_file = |message| TemplateError {
                file: (*file).to_owned(),
                message,
            };
            let pieces = pieces(text).map_err(in_file)?;
            let mut parser = Parser {
                pieces: pieces.into_iter(),
                named: &mut templates.named,
            };
            let (nodes, end) = parser.block().map_err(in_file)?;
            if let Some(end) = end {
                return Err(in_file(format!("{end:?} ends nothing")));
            }
            templates.files.push(((*file).to_owned(), nodes));
        }
        Ok(templates)
    }

    /// Every template's text, in the order they were given.
    pub(super) fn render(&self, values: &Value) -> Result<Vec<(&str, String)>, TemplateError> {
        let rendered = self.files.iter().map(|(file, nodes)| {
            let mut out = String::new();
            let done = self.nodes(nodes, values, &mut out);
            let done = done.map_err(|message| TemplateError {
                file: file.clone(),
                message,
            });
            done.map(|()| (file.as_str(), out))
        });
        rendered.collect()
    }

    fn nodes(&self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), String> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(expr) => out.push_str(&printed(&self.value(expr, dot)?)?),
                Node::If {
                    condition,
                    then,
                    otherwise,
                } => {
                    let chosen = match is_true(&self.value(condition, dot)?) {
                        true => then,
                        false => otherwise,
                    };
                    self.nodes(chosen, dot, out)?;
                }
                Node::With { value, then } => {
                    let value = self.value(value, dot)?;
                    if is_true(&value) {
                        self.nodes(then, &value, out)?;
                    }
                }
                Node::Range { list, each } => {
                    let list = self.value(list, dot)?;
                    let list = list
                        .as_array()
                        .ok_or("range goes over something that is not a list")?;
                    for item in list {
                        self.nodes(each, item, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn value(&self, expr: &Expr, dot: &Value) -> Result<Value, String> {
        match expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Path(keys) => {
                let mut value = dot;
                for key in keys {
                    value = value
                        .get(key)
                        .ok_or_else(|| format!(".{}: there is no {key:?}", keys.join(".")))?;
                }
                Ok(value.clone())
            }
            Expr::Call(function, arguments) => {
                let arguments: Result<Vec<Value>, String> = arguments
                    .iter()
                    .map(|argument| self.value(argument, dot))
                    .collect();
                self.call(*function, &arguments?)
            }
        }
    }

    fn call(&self, function: Function, arguments: &[Value]) -> Result<Value, String> {
        let wrong = || format!("{function:?} does not take {arguments:?}");
        Ok(match (function, arguments) {
            (Function::And, [a, b]) => if is_true(a) { b } else { a }.clone(),
            (Function::Or, [a, b]) => if is_true(a) { a } else { b }.clone(),
            (Function::Not, [a]) => Value::Bool(!is_true(a)),
            (Function::Eq, [a, b]) => Value::Bool(a == b),
            (Function::Default, [otherwise, value]) => match is_true(value) {
                true => value.clone(),
                false => otherwise.clone(),
            },
            (Function::Quote, [value]) => Value::String(Value::String(printed(value)?).to_string()),
            (Function::Replace, [Value::String(from), Value::String(to), Value::String(text)]) => {
                Value::String(text.replace(from, to))
            }
            (Function::SemverCompare, [Value::String(least), Value::String(version)]) => {
                let least = least
                    .strip_prefix(">=")
                    .and_then(|least| least.strip_suffix("-0"));
                let least = least.and_then(major_minor).ok_or_else(wrong)?;
                Value::Bool(major_minor(version).ok_or_else(wrong)? >= least)
            }
            (Function::ToYaml, [value]) => {
                let text = serde_saphyr::to_string(value).map_err(|error| error.to_string())?;
                Value::String(text.trim_end().to_owned())
            }
            (Function::Nindent, [spaces, Value::String(text)]) => {
                let spaces = spaces.as_u64().and_then(|spaces| spaces.try_into().ok());
                let indent = " ".repeat(spaces.ok_or_else(wrong)?);
                let lines = text.split('\n').map(|line| format!("\n{indent}{line}"));
                Value::String(lines.collect())
            }
            (Function::Printf, [Value::String(format), value])
                if format.matches('%').count() == 1 && format.contains("%s") =>
            {
                Value::String(format.replacen("%s", &printed(value)?, 1))
            }
            (Function::Include, [Value::String(name), dot]) => {
                let nodes = self.named.get(name).ok_or_else(wrong)?;
                let mut out = String::new();
                self.nodes(nodes, dot, &mut out)?;
                Value::String(out)
            }
            (Function::File, [Value::String(name)]) => {
                Value::String(self.assets.get(name).ok_or_else(wrong)?.clone())
            }
            (
                Function::And
                | Function::Or
                | Function::Not
                | Function::Eq
                | Function::Default
                | Function::Quote
                | Function::Replace
                | Function::SemverCompare
                | Function::ToYaml
                | Function::Nindent
                | Function::Printf
                | Function::Include
                | Function::File,
                _,
            ) => return Err(wrong()),
        })
    }
}

fn owned(assets: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = assets
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    owned.collect()
}

/// Go's idea of empty: `false`, 0, and what has no elements.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// MAJOR and MINOR of a version as `1.30` or `v1.30.2`.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A value within text. Go's form of lists and maps is not YAML, so that they are refused.
fn printed(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(format!("{value} is printed as it is; toYaml prints it"))
        }
    }
}

/// A stretch of text, or the inside of `{{ }}`.
#[derive(Debug)]
enum Piece<'a> {
    Text(&'a str),
    Action(&'a str),
}

/// Divides a template; `{{-` and `-}}` have taken the white space beside them.
fn pieces(mut text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    while let Some(start) = text.find("{{") {
        let before = &text[..start];
        let rest = &text[start + 2..];
        let end = match rest.trim_start_matches('-').trim_start().starts_with("/*") {
            true => rest.find("*/").and_then(|comment| {
                let end = rest[comment..].find("}}");
                end.map(|end| comment + end)
            }),
            false => rest.find("}}"),
        };
        let end = end.ok_or("{{ without }}")?;
        let (inside, after) = (&rest[..end], &rest[end + 2..]);
        let (before, inside) = match inside.strip_prefix('-') {
            Some(inside) => (before.trim_end(), inside),
            None => (before, inside),
        };
        let (after, inside) = match inside.strip_suffix('-') {
            Some(inside) => (after.trim_start(), inside),
            None => (after, inside),
        };
        pieces.push(Piece::Text(before));
        let inside = inside.trim();
        if !inside.starts_with("/*") {
            pieces.push(Piece::Action(inside));
        }
        text = after;
    }
    pieces.push(Piece::Text(text));
    Ok(pieces)
}

/// What ends a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Else,
    End,
}

struct Parser<'a> {
    pieces: std::vec::IntoIter<Piece<'a>>,
    named: &'a mut BTreeMap<String, Vec<Node>>,
}

impl Parser<'_> {
    /// Nodes up to what ends them; `None`: the template's end.
    fn block(&mut self) -> Result<(Vec<Node>, Option<End>), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text("") => continue,
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let (word, rest) = action.split_once(' ').unwrap_or((action, ""));
            match word {
                "else" if rest.is_empty() => return Ok((nodes, Some(End::Else))),
                "end" => return Ok((nodes, Some(End::End))),
                "if" => {
                    let condition = expression(rest)?;
                    let (then, end) = self.block()?;
                    let otherwise = match end {
                        Some(End::Else) => self.rest_of(action)?,
                        Some(End::End) => Vec::new(),
                        None => return Err(format!("{{{{ {action} }}}} without end")),
                    };
                    nodes.push(Node::If {
                        condition,
                        then,
                        otherwise,
                    });
                }
                "with" => nodes.push(Node::With {
                    value: expression(rest)?,
                    then: self.rest_of(action)?,
                }),
                "range" => nodes.push(Node::Range {
                    list: expression(rest)?,
                    each: self.rest_of(action)?,
                }),
                "define" => {
                    let body = self.rest_of(action)?;
                    let Expr::Literal(Value::String(name)) = expression(rest)? else {
                        return Err(format!("{{{{ {action} }}}} names nothing"));
                    };
                    self.named.insert(name, body);
                }
                _ => nodes.push(Node::Print(expression(action)?)),
            }
        }
        Ok((nodes, None))
    }

    /// Nodes up to `end`.
    fn rest_of(&mut self, action: &str) -> Result<Vec<Node>, String> {
        match self.block()? {
            (nodes, Some(End::End)) => Ok(nodes),
            (_, Some(End::Else) | None) => Err(format!("{{{{ {action} }}}} without end")),
        }
    }
}

/// Reads a pipeline: each value is the last argument of what follows the next `|`.
fn expression(text: &str) -> Result<Expr, String> {
    let mut piped = None;
    for call in divided(text, '|')? {
        let words = divided(call.trim(), ' ')?;
        let mut words = words.into_iter().filter(|word| !word.is_empty());
        let first = words.next().ok_or_else(|| format!("{text:?}: empty"))?;
        let mut arguments: Vec<Expr> = words.map(operand).collect::<Result<_, _>>()?;
        let function = match first {
            ".Files.Get" => Some(Function::File),
            name => Function::of(name),
        };
        arguments.extend(piped.take());
        piped = Some(match function {
            Some(function) => Expr::Call(function, arguments),
            None if arguments.is_empty() => operand(first)?,
            None => return Err(format!("{text:?}: there is no function {first:?}")),
        });
    }
    piped.ok_or_else(|| format!("{text:?}: empty"))
}

/// A path or a literal.
fn operand(word: &str) -> Result<Expr, String> {
    if let Some(path) = word.strip_prefix('.') {
        let keys: Vec<String> = path
            .split('.')
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect();
        return Ok(Expr::Path(keys));
    }
    if word.starts_with(|c: char| c == '"' || c.is_ascii_digit()) {
        let literal = serde_json::from_str(word).map_err(|error| format!("{word}: {error}"))?;
        return Ok(Expr::Literal(literal));
    }
    Err(format!("{word:?} is not understood"))
}

/// Divides at a character that stands in no string.
fn divided(text: &str, at: char) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut quoted) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        if c == '"' {
            quoted = !quoted;
        } else if c == at && !quoted {
            parts.push(&text[start..index]);
            start = index + c.len_utf8();
        }
    }
    if quoted {
        return Err(format!("{text:?}: a string that does not end"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(text: &str) -> Result<String, String> {
        let values = json!({
            "v": "v1.30.0",
            "a": {"b": "x", "n": 3, "no": "", "list": [1, 2], "map": {"k": "true"}, "yes": true},
        });
        let sources = [
            ("named", "{{- define \"t\" -}}\n<{{ .a.b }}>\n{{- end }}"),
            ("f", text),
        ];
        let templates = Templates::parse(&sources, &[("c.yaml", "c: {{ }}")]);
        let templates = templates.map_err(|error| error.to_string())?;
        let rendered = templates
            .render(&values)
            .map_err(|error| error.to_string())?;
        Ok(rendered[1].1.clone())
    }

    #[test]
    fn renders_what_go_would() {
        for (text, expected) in [
            ("p {{ .a.b }} q", "p x q"),
            ("p\n  {{- .a.n }}\n", "p3\n"),
            ("p {{ .a.n -}}\n q", "p 3q"),
            ("{{- /* no {{ }} */ -}} p", "p"),
            ("{{ .a.b | quote }}", "\"x\""),
            ("{{ .a.no | default .a.b | quote }}", "\"x\""),
            ("{{ if .a.no }}1{{ else }}2{{ end }}", "2"),
            ("{{ if eq .a.b \"x\" }}1{{ end }}", "1"),
            ("{{ if and .a.yes .a.no }}1{{ end }}", ""),
            ("{{ if or .a.no .a.yes }}1{{ end }}", "1"),
            ("{{ if not .a.no }}1{{ end }}", "1"),
            ("{{ if semverCompare \">=1.30-0\" .v }}1{{ end }}", "1"),
            ("{{ if semverCompare \">=1.31-0\" .v }}1{{ end }}", ""),
            (
                "{{ with .a.list }}{{ range . }}{{ . }},{{ end }}{{ end }}",
                "1,2,",
            ),
            ("{{ with .a.no }}1{{ end }}", ""),
            ("m:{{ toYaml .a.map | nindent 2 }}", "m:\n  k: \"true\""),
            ("{{ include \"t\" . | nindent 1 }}", "\n <x>"),
            ("{{ printf \"--l=%s\" .a.b | quote }}", "\"--l=x\""),
            ("{{ .Files.Get \"c.yaml\" }}", "c: {{ }}"),
            (
                "{{ .Files.Get \"c.yaml\" | replace \"c:\" \"d:\\n\" }}",
                "d:\n {{ }}",
            ),
        ] {
            assert_eq!(render(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (text, said) in [
            ("{{ .a.c }}", "there is no \"c\""),
            ("{{ .a.map }}", "toYaml prints it"),
            ("{{ upper .a.b }}", "no function \"upper\""),
            ("{{ if .a.b }}", "without end"),
            ("{{ end }}", "ends nothing"),
            ("{{ range .a.map }}{{ end }}", "not a list"),
            ("{{ .a.b", "{{ without }}"),
            ("{{ $x }}", "not understood"),
            ("{{ include \"u\" . }}", "does not take"),
            ("{{ semverCompare \"<1.30\" .v }}", "does not take"),
            ("{{ \"a }}", "does not end"),
        ] {
            let error = render(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
