//! How a conflict is shown: both versions, as the difference between them.

use serde_json::Value;
use weft_api::types::ConflictInfo;

use crate::output::age;

/// Conflicts that are shown in full.
const SHOWN: usize = 5;
/// Lines of a version that are compared; longer ones are told by their revision only.
const LINES_MAX: usize = 2000;

/// Describes conflicts, for people.
pub(crate) fn describe(conflicts: &[ConflictInfo]) -> String {
    let mut text = String::new();
    for conflict in conflicts.iter().take(SHOWN) {
        text.push_str(&describe_one(conflict));
    }
    if conflicts.len() > SHOWN {
        text.push_str(&format!("… and {} more\n", conflicts.len() - SHOWN));
    }
    text.push_str(
        "see `weft get -o yaml` for what exists; `weft apply --force` applies regardless",
    );
    text
}

fn describe_one(conflict: &ConflictInfo) -> String {
    let ConflictInfo {
        key,
        expected,
        found,
        given,
    } = conflict;
    let expected = match expected {
        Some(revision) => format!("yours is of revision {revision}"),
        None => "yours is of when it did not exist".to_owned(),
    };
    let Some(found) = found else {
        return format!("{key}: {expected}; it does not exist any more\n");
    };
    let mut text = format!(
        "{key}: {expected}; it is at revision {}, by {}, {} ago\n",
        found.revision,
        found.author,
        age(found.changed / 1000)
    );
    let Some(given) = given else {
        return text;
    };
    let (theirs, ours) = (yaml(&found.document), yaml(given));
    let (theirs, ours): (Vec<&str>, Vec<&str>) = (theirs.lines().collect(), ours.lines().collect());
    if theirs.len().max(ours.len()) > LINES_MAX {
        return text;
    }
    text.push_str(&format!(
        "  --- what exists (revision {})\n  +++ yours\n",
        found.revision
    ));
    for (mark, line) in difference(&theirs, &ours) {
        text.push_str(&format!("  {mark}{line}\n"));
    }
    text
}

fn yaml(document: &Value) -> String {
    serde_saphyr::to_string(document).unwrap_or_else(|_| document.to_string())
}

/// Lines of both: `-` only of the first, `+` only of the second (longest common subsequence).
fn difference<'a>(first: &[&'a str], second: &[&'a str]) -> Vec<(char, &'a str)> {
    let width = second.len() + 1;
    // common[i * width + j]: lines in common of first[i..] and second[j..].
    let mut common = vec![0_u16; (first.len() + 1) * width];
    for i in (0..first.len()).rev() {
        for j in (0..second.len()).rev() {
            common[i * width + j] = if first[i] == second[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < first.len() || j < second.len() {
        if i < first.len() && j < second.len() && first[i] == second[j] {
            lines.push((' ', first[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == second.len()
            || (i < first.len() && common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            lines.push(('-', first[i]));
            i += 1;
        } else {
            lines.push(('+', second[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_of_lines() {
        let cases: [(&str, &str, &str); 5] = [
            ("", "", ""),
            ("a b", "a b", " a| b"),
            ("a b c", "a x c", " a|-b|+x| c"),
            ("a", "", "-a"),
            ("b", "a b", "+a| b"),
        ];
        for (first, second, expected) in cases {
            let split = |text: &'static str| text.split_whitespace().collect::<Vec<_>>();
            let found = difference(&split(first), &split(second));
            let found: Vec<String> = found.iter().map(|(m, l)| format!("{m}{l}")).collect();
            assert_eq!(found.join("|"), expected, "{first} / {second}");
        }
    }
}
