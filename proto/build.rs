//! Compiles the `.proto` files without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "weft/mesh/v1/resources.proto",
        "weft/identity/v1/identity.proto",
        "weft/registry/v1/registry.proto",
        "weft/ratelimit/v1/ratelimit.proto",
        "xds/discovery.proto",
        "xds/node.proto",
        "xds/status.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
