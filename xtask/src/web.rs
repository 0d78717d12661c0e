//! `cargo xtask web`: the pages for browsers, from the wasm library on.
//!
//! The library is built for speed, as two modules, its bindings written by the crate that `wasm-bindgen` has for that, then
//! `wasm-opt` (npm's `binaryen`) goes over it, and Vite makes the pages with it. The same sources, lock files and compilers give
//! the same bytes, wherever the checkout lies.

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
    /// Its files' name.
    name: &'static str,
    feature: &'static str,
    /// What a visitor loads of it at the most, in bytes, compressed by gzip.
    most: usize,
}

/// What every page loads, and what one loads that fetches by https.
const MODULES: [Module; 2] = [
    Module { name: "umbel", feature: "browser", most: 400 * 1024 },
    Module { name: "umbel_https", feature: "browser-tls", most: 440 * 1024 },
];

/// Builds all of it.
pub(crate) fn build() -> Result<Tally, Failure> {
    let web = root().join("web");
    install(&web)?;
    library(&web)?;
    Run::new("npm").args(["run", "--silent", "build"]).directory(&web).run()
}

/// Builds all of it, and checks types and what the pages' parts must do.
pub(crate) fn check() -> Result<Tally, Failure> {
    build()?;
    // The tests' summary is counted, and colours would be in the way.
    Run::new("npm").args(["run", "--silent", "check"]).env("NO_COLOR", "1").directory(&root().join("web")).run()
}

/// The packages of the lock file, if they aren't there.
pub(crate) fn install(web: &Path) -> Result<(), Failure> {
    // npm notes what it installed; the note is as old as the lock file it came from.
    let written = |path: &str| fs::metadata(web.join(path)).and_then(|file| file.modified()).ok();
    let installed = written("node_modules/.package-lock.json");
    if installed.is_none() || installed < written("package-lock.json") {
        Run::new("npm").args(["ci", "--no-audit", "--no-fund"]).directory(web).run()?;
    }
    Ok(())
}

/// The wasm library with its bindings, in `web/wasm`.
fn library(web: &Path) -> Result<(), Failure> {
    let place = web.join("wasm");
    let _ = fs::remove_dir_all(&place);
    MODULES.iter().try_for_each(|module| {
        let built = compile(module)?;
        // Everything that is slow to build is in a feature of this tool's that only this needs.
        Run::cargo()
            .args(["run", "--quiet", "--locked", "--package", "xtask", "--features", "web", "--", "bind", module.name])
            .args([&built, &place])
            .run()?;
        let file = place.join(format!("{}_bg.wasm", module.name));
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
        weigh(module, &file)
    })
}

/// A module as rustc makes it.
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
    // With the compiler's own measure of what is worth being repeated where it is called, a twelfth more would be loaded, and no page
    // was faster for it.
    let mut flags = vec!["-Ctarget-feature=+simd128".to_owned(), "-Cllvm-args=--inline-threshold=150".to_owned()];
    let mut c_flags = Vec::new();
    // Where things lie on this machine is nobody's business, and would make each machine's bytes its own.
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let places = [(Some(root()), "/umbel"), (Some(target.clone()), "/target"), (home, "/cargo")];
    for (from, to) in places {
        if let Some(from) = from {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
            c_flags.push(format!("'-ffile-prefix-map={}={to}'", from.display()));
        }
    }
    run.env(wasm::C_COMPILER, wasm::c_compiler()?)
        .env("CFLAGS_wasm32_unknown_unknown", c_flags.join(" "))
        // What stands in quotes is one flag.
        .env("CC_SHELL_ESCAPED_FLAGS", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .run()?;
    Ok(target.join(wasm::TARGET).join("web/umbel.wasm"))
}

/// Fails if the module is more than a visitor should load.
fn weigh(Module { name, most, .. }: &Module, file: &Path) -> Result<(), Failure> {
    let bytes = fs::read(file).map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    let compressed = gzip(&bytes)?;
    println!("{name}: {} bytes, {compressed} compressed", bytes.len());
    if compressed > *most {
        return Err(Failure::new(format!("{name} is {compressed} bytes compressed; at most {most} are wanted")));
    }
    Ok(())
}

/// How long `bytes` are once gzip is done with them.
fn gzip(bytes: &[u8]) -> Result<usize, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("gzip: {error}"));
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
    Ok(output.stdout.len())
}

/// `xtask bind NAME MODULE FOLDER`: the bindings of a wasm library, in files of that name.
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
    outcome.map_err(|error| Failure::new(format!("bindings: {error:#}")))
}

/// Without the feature `web` there is none.
#[cfg(not(feature = "web"))]
pub(crate) fn bind(_: &str, _: &str, _: &str) -> Result<(), Failure> {
    Err(Failure::new("built without the feature web"))
}
