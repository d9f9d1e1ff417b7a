//! The generated code that is committed is that of the definitions.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

const DEFINITIONS: [&str; 8] = [
    "weft/mesh/v1/resources.proto",
    "weft/identity/v1/identity.proto",
    "weft/registry/v1/registry.proto",
    "weft/ratelimit/v1/ratelimit.proto",
    "weft/replica/v1/replica.proto",
    "xds/discovery.proto",
    "xds/node.proto",
    "xds/status.proto",
];

/// Set, it has the test write the code instead of comparing it.
const UPDATE: &str = "WEFT_UPDATE";

#[test]
fn the_committed_code_is_that_of_the_definitions() -> Result<(), Box<dyn Error>> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir()?;
    let descriptors = protox::compile(DEFINITIONS.map(|file| home.join(file)), [home])?;
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .codec_path("crate::codec::ProstCodec")
        .compile_fds(descriptors)?;
    let committed = home.join("src/generated");
    if std::env::var_os(UPDATE).is_some() {
        for name in files(&committed)?.keys() {
            fs::remove_file(committed.join(name))?;
        }
        for (name, code) in files(out.path())? {
            fs::write(committed.join(name), code)?;
        }
    }
    let (expected, found) = (files(out.path())?, files(&committed)?);
    let names = expected.keys().chain(found.keys());
    let differ = names.filter(|name| expected.get(*name) != found.get(*name));
    let differ: Vec<_> = differ.collect();
    assert!(
        differ.is_empty(),
        "{differ:?} in {} differ from what the definitions give: run \
         `{UPDATE}=1 cargo test --workspace --test generated`, and commit what it writes",
        committed.display()
    );
    Ok(())
}

/// Files of a directory by name.
fn files(directory: &Path) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, fs::read_to_string(entry.path())?);
    }
    Ok(files)
}
