//! The small third-party programs in `tests/programs`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::{Finished, Program};

/// The Python interpreter itself (not a shim that looks for one at every start).
pub(crate) fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        std::process::Command::new("python3")
            .args(["-c", "import sys; print(sys.executable)"])
            .output()
            .ok()
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .map(|path| path.trim().to_owned())
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| "python3".to_owned())
    })
}

/// A program of `tests/programs`.
pub(crate) fn script(name: &str) -> Program {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs")
        .join(name);
    Program::new(python()).arg("-u").arg(path)
}

/// A few lines of Python.
pub(crate) fn python_code(code: &str) -> Program {
    Program::new(python()).args(["-u", "-c", code])
}

/// Reads the JSON object that a checking program prints and demands that every check is "ok".
pub(crate) fn report(finished: &Finished) {
    let last = finished.stdout.lines().last().unwrap_or_default();
    let Ok(results) = serde_json::from_str::<BTreeMap<String, String>>(last) else {
        panic!("no JSON object of checks at the end:\n{finished}");
    };
    let failed: BTreeMap<_, _> = results
        .iter()
        .filter(|(_name, result)| *result != "ok")
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} checks failed: {failed:#?}",
        failed.len(),
        results.len()
    );
    assert!(!results.is_empty(), "no check ran:\n{finished}");
}
