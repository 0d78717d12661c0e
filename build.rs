//! Compiles the document schemas of `proto/` (without `protoc`), and embeds the built pages of `web/dist`, if
//! present.

use std::{
    env,
    error::Error,
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

const SCHEMAS: [&str; 2] = ["proto/directory.proto", "proto/delegated.proto"];
/// The folder of the built pages. It exists even without pages, so that cargo detects new pages.
const PAGES: &str = "web/dist";

fn main() -> Result<(), Box<dyn Error>> {
    for schema in SCHEMAS {
        println!("cargo:rerun-if-changed={schema}");
    }
    prost_build::Config::new().compile_fds(protox::compile(SCHEMAS, ["proto"])?)?;
    println!("cargo:rerun-if-changed={PAGES}");
    let root = Path::new(&cargo_variable("CARGO_MANIFEST_DIR")?).join(PAGES);
    // The table has absolute paths. If several checkouts share a target folder, a table must not outlive its checkout.
    println!("cargo:rerun-if-changed={}", root.display());
    fs::write(Path::new(&cargo_variable("OUT_DIR")?).join("pages.rs"), table(&root)?)?;
    Ok(())
}

/// An environment variable that cargo sets for build scripts.
fn cargo_variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

/// The files of the pages as a Rust expression, each with its gzip and brotli forms.
fn table(root: &Path) -> Result<String, Box<dyn Error>> {
    let mut files = Vec::new();
    if root.is_dir() {
        list(root, &mut files)?;
    }
    files.sort();
    let mut text = String::from("&[\n");
    for file in files.iter().filter(|file| !is_compressed(file)) {
        let name = file.strip_prefix(root)?.to_str().ok_or("the name of a page is not UTF-8")?.replace('\\', "/");
        let compressed = |extension: &str| {
            let mut path = file.clone().into_os_string();
            path.push(extension);
            let path = PathBuf::from(path);
            let included = format!("Some(include_bytes!({:?}))", path.display());
            if files.contains(&path) { included } else { "None".to_owned() }
        };
        let (brotli, gzip) = (compressed(".br"), compressed(".gz"));
        let whole = file.display();
        writeln!(text, "File {{ name: {name:?}, whole: include_bytes!({whole:?}), brotli: {brotli}, gzip: {gzip} }},")?;
    }
    text.push(']');
    Ok(text)
}

fn is_compressed(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "br" || extension == "gz")
}

/// Adds all files in `folder` and its subfolders, except hidden files.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            files.push(path);
        }
    }
    Ok(())
}
