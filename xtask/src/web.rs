//! `cargo xtask web`: builds the pages for browsers, including the wasm library.
//!
//! The library is built for speed, as two modules. `wasm-bindgen`'s library crate generates its bindings, `wasm-opt`
//! (npm's `binaryen`) optimises it, and Vite builds the pages with it. The same sources, lock files and compilers
//! produce the same bytes, independent of the checkout's path.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    run::{Failure, Run, Tally, root, target_folder},
    wasm,
};

/// One WebAssembly module of the library.
struct Module {
    /// Base name of the module's files.
    name: &'static str,
    feature: &'static str,
    /// Maximum length of the module, in bytes, compressed by gzip.
    max_download: usize,
}

/// The module that every page loads, and the module that a page loads for HTTPS.
const MODULES: [Module; 2] = [
    Module { name: "umbel", feature: "browser", max_download: 496 * 1024 },
    Module { name: "umbel_https", feature: "browser-tls", max_download: 440 * 1024 },
];

/// Builds library and pages.
pub(crate) fn build() -> Result<Tally, Failure> {
    let web = root().join("web");
    install(&web)?;
    library(&web)?;
    Run::new("npm").args(["run", "--silent", "build"]).directory(&web).run()
}

/// Builds library and pages, checks types, and runs the tests of the pages.
pub(crate) fn check() -> Result<Tally, Failure> {
    build()?;
    // The tests' summary is parsed, and colour codes would prevent it.
    Run::new("npm").args(["run", "--silent", "check"]).env("NO_COLOR", "1").directory(&root().join("web")).run()
}

/// Installs the packages of the lock file, if they are missing or outdated.
pub(crate) fn install(web: &Path) -> Result<(), Failure> {
    // npm writes a list of installed packages, which has the modification time of the lock file.
    let modified = |path: &str| fs::metadata(web.join(path)).and_then(|file| file.modified()).ok();
    let installed = modified("node_modules/.package-lock.json");
    if installed.is_none() || installed < modified("package-lock.json") {
        Run::new("npm").args(["ci", "--no-audit", "--no-fund"]).directory(web).run()?;
    }
    Ok(())
}

/// Builds the wasm library with its bindings, into `web/wasm`.
fn library(web: &Path) -> Result<(), Failure> {
    let folder = web.join("wasm");
    let _ = fs::remove_dir_all(&folder);
    MODULES.iter().try_for_each(|module| {
        let built = compile(module)?;
        check_sorting(module, &built)?;
        // The slow dependencies are in a feature of this tool that only this step needs.
        Run::cargo()
            .args(["run", "--quiet", "--locked", "--package", "xtask", "--features", "web", "--", "bind", module.name])
            .args([&built, &folder])
            .run()?;
        let file = folder.join(format!("{}_bg.wasm", module.name));
        Run::new(web.join("node_modules/.bin/wasm-opt"))
            .args([
                "-O3",
                "--converge",
                "--enable-simd",
                "--enable-bulk-memory",
                "--enable-sign-ext",
                "--enable-mutable-globals",
            ])
            .args(["--enable-nontrapping-float-to-int", "--enable-reference-types", "--enable-multivalue"])
            .args(["--strip-debug", "--strip-producers", "--strip-target-features", "-o"])
            .args([&file, &file])
            .run()?;
        check_size(module, &file)
    })
}

/// Compiles a module with rustc.
fn compile(module: &Module) -> Result<PathBuf, Failure> {
    let features = format!("{},tracing/release_max_level_off", module.feature);
    let run = Run::cargo()
        .args(["rustc", "--locked", "--quiet", "--lib", "--crate-type", "cdylib", "--profile", "web"])
        .args(["--no-default-features", "--features", &features, "--target", wasm::TARGET]);
    let run = match wasm::compiler()? {
        Some(compiler) => run.env("RUSTC", compiler),
        None => run,
    };
    let target = target_folder()?;
    // An inline threshold of 150 makes the download 6 % larger, the compiler's default (225) another twelfth.
    let mut flags = vec!["-Ctarget-feature=+simd128".to_owned(), "-Cllvm-args=--inline-threshold=100".to_owned()];
    let mut c_flags = Vec::new();
    // Local paths would make the bytes differ between machines, and disclose the paths.
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let prefixes = [(Some(root()), "/umbel"), (Some(target.clone()), "/target"), (home, "/cargo")];
    for (from, to) in prefixes {
        if let Some(from) = from {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
            c_flags.push(format!("'-ffile-prefix-map={}={to}'", from.display()));
        }
    }
    run.env(wasm::C_COMPILER, wasm::c_compiler()?)
        .env("CFLAGS_wasm32_unknown_unknown", c_flags.join(" "))
        // Quotes delimit each flag.
        .env("CC_SHELL_ESCAPED_FLAGS", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .run()?;
    Ok(target.join(wasm::TARGET).join("web/umbel.wasm"))
}

/// Fails if the module that every page loads contains a sort of the standard library, which takes about 5 KiB of the
/// download for each type of element. `collect` into a map or set contains one.
fn check_sorting(Module { name, .. }: &Module, built: &Path) -> Result<(), Failure> {
    let bytes = fs::read(built).map_err(|error| Failure::new(format!("can't read {}: {error}", built.display())))?;
    if *name == "umbel" && contains(&bytes, b"4core5slice4sort6stable") {
        return Err(Failure::new(format!(
            "{name} contains a sort; find its caller in {}, and insert the elements one by one",
            built.display()
        )));
    }
    Ok(())
}

/// Whether `bytes` contain `pattern`.
fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|window| window == pattern)
}

/// Fails if the module exceeds its size limit.
fn check_size(Module { name, max_download, .. }: &Module, file: &Path) -> Result<(), Failure> {
    let bytes = fs::read(file).map_err(|error| Failure::new(format!("can't read {}: {error}", file.display())))?;
    let compressed = gzip(&bytes)?;
    println!("{name}: {} bytes, {compressed} compressed", bytes.len());
    if compressed > *max_download {
        return Err(Failure::new(format!("{name} has {compressed} bytes compressed; the maximum is {max_download}")));
    }
    Ok(())
}

/// The length of `bytes` after gzip.
fn gzip(bytes: &[u8]) -> Result<usize, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("can't run gzip: {error}"));
    let mut child = Command::new("gzip")
        .args(["-9", "--no-name", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (input, bytes) = (child.stdin.take(), bytes.to_vec());
    let writer = std::thread::spawn(move || input.map(|mut input| input.write_all(&bytes)));
    let output = child.wait_with_output().map_err(failed)?;
    let _ = writer.join();
    if !output.status.success() {
        return Err(Failure::new(format!("gzip: {}", output.status)));
    }
    Ok(output.stdout.len())
}

/// `xtask bind NAME MODULE FOLDER`: generates the bindings of a wasm library, in files with this base name.
#[cfg(feature = "web")]
pub(crate) fn bind(name: &str, module: &str, folder: &str) -> Result<(), Failure> {
    let mut bindings = wasm_bindgen_cli_support::Bindgen::new();
    let outcome = bindings.input_path(module).web(true).and_then(|bindings| {
        bindings
            .out_name(name)
            .typescript(true)
            .omit_default_module_path(false)
            .remove_name_section(true)
            .remove_producers_section(true)
            .generate(folder)
    });
    outcome.map_err(|error| Failure::new(format!("can't generate the bindings: {error:#}")))
}

/// Fails, because the feature `web` is off.
#[cfg(not(feature = "web"))]
pub(crate) fn bind(_: &str, _: &str, _: &str) -> Result<(), Failure> {
    Err(Failure::new("built without the feature web"))
}
