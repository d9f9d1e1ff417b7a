//! What is kept in `corpus/` passes: what was found once stays mended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use weft_fuzz::TARGETS;

#[test]
fn what_was_found_stays_mended() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut failed = Vec::new();
    for target in TARGETS {
        let folder = corpus.join(target.name);
        let files =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
                failed.push(path);
            }
            count += 1;
        }
        assert!(count > 0, "{folder:?} is empty");
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn nothing_is_an_input() {
    for target in TARGETS {
        (target.run)(b"");
    }
}
