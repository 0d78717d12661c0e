//! Compiles the document schemas of `proto/` (no `protoc` needed).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/directory.proto");
    let schemas = protox::compile(["proto/directory.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(schemas)?;
    Ok(())
}
