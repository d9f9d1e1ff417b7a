//! Sidecars and control planes of neighbouring minor versions understand each other: what a released
//! version had on the wire is still there, under the same numbers.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, FileDescriptorProto};

const DEFINITIONS: [&str; 5] = [
    "weft/mesh/v1/resources.proto",
    "weft/identity/v1/identity.proto",
    "weft/registry/v1/registry.proto",
    "weft/ratelimit/v1/ratelimit.proto",
    "weft/replica/v1/replica.proto",
];

/// Set, it has the test add what the version of now has to the record of its minor version.
const UPDATE: &str = "WEFT_UPDATE";

/// Every field, method and value of an enumeration of a file, a line each.
fn lines(file: &FileDescriptorProto, all: &mut BTreeSet<String>) {
    for message in &file.message_type {
        message_lines(
            &format!("{}.{}", file.package(), message.name()),
            message,
            all,
        );
    }
    for of in &file.enum_type {
        let values = of.value.iter();
        let name = format!("{}.{}", file.package(), of.name());
        all.extend(values.map(|value| format!("{name} = {} {}", value.number(), value.name())));
    }
    for service in &file.service {
        all.extend(service.method.iter().map(|method| {
            let stream = |is: bool| if is { "stream " } else { "" };
            format!(
                "{}.{}/{} ({}{}) -> {}{}",
                file.package(),
                service.name(),
                method.name(),
                stream(method.client_streaming()),
                method.input_type(),
                stream(method.server_streaming()),
                method.output_type()
            )
        }));
    }
}

fn message_lines(name: &str, message: &DescriptorProto, all: &mut BTreeSet<String>) {
    for field in &message.field {
        let repeated = if field.label() == Label::Repeated {
            "repeated "
        } else {
            ""
        };
        // Names of messages, and of scalars without what all of them begin with.
        let scalar = field.r#type().as_str_name().replace("TYPE_", "");
        let of = match field.type_name() {
            "" => scalar.to_lowercase(),
            named => named.to_owned(),
        };
        all.insert(format!(
            "{name} = {} {repeated}{of} {}",
            field.number(),
            field.name()
        ));
    }
    for nested in &message.nested_type {
        message_lines(&format!("{name}.{}", nested.name()), nested, all);
    }
    for of in &message.enum_type {
        let values = of.value.iter();
        let name = format!("{name}.{}", of.name());
        all.extend(values.map(|value| format!("{name} = {} {}", value.number(), value.name())));
    }
}

/// A field may be added; one that a released version has keeps its number, type and name. To take one
/// away, stop using it, and take it out of the records when no version in use knows it any more.
#[test]
fn the_wire_has_what_released_versions_have() -> Result<(), Box<dyn Error>> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(DEFINITIONS.map(|file| home.join(file)), [home])?;
    let mut now = BTreeSet::new();
    for file in &descriptors.file {
        lines(file, &mut now);
    }
    let released = home.join("released");
    let mut version = env!("CARGO_PKG_VERSION").splitn(3, '.');
    let (major, minor) = (version.next().unwrap_or_default(), version.next());
    let own = released.join(format!("{major}.{}.txt", minor.unwrap_or_default()));
    if std::env::var_os(UPDATE).is_some() {
        let before = fs::read_to_string(&own).unwrap_or_default();
        let mut all: BTreeSet<&str> = now.iter().map(String::as_str).collect();
        all.extend(before.lines());
        let text: String = all.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&own, text)?;
    }
    assert!(own.exists(), "{}: write it with {UPDATE}=1", own.display());
    for entry in fs::read_dir(&released)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let missing: Vec<&str> = text.lines().filter(|line| !now.contains(*line)).collect();
        assert!(
            missing.is_empty(),
            "{} has, and the definitions have not any more: {missing:#?}",
            path.display()
        );
    }
    Ok(())
}
