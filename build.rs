//! Compiles the document schemas of `proto/` (no `protoc` needed).

const SCHEMAS: [&str; 2] = ["proto/directory.proto", "proto/delegated.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for schema in SCHEMAS {
        println!("cargo:rerun-if-changed={schema}");
    }
    prost_build::Config::new().compile_fds(protox::compile(SCHEMAS, ["proto"])?)?;
    Ok(())
}
