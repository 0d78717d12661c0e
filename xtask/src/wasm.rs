//! Builds and tests the protocol core for browsers: `wasm32-unknown-unknown`, without the feature `native`, and with
//! `browser`.
//!
//! The target's standard library comes from rustup, or, if rustup can't download it, from Debian's packages. The
//! packages are unpacked into the folder for tools, not installed. They contain a compiler and the library's source. The
//! library is built once from this source. `browser-tls` contains C code (ring), which clang compiles.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::run::{Failure, Run, Tally, cache, root};

pub(crate) const TARGET: &str = "wasm32-unknown-unknown";
/// The environment variable that names the C compiler for the target.
pub(crate) const C_COMPILER: &str = "CC_wasm32_unknown_unknown";

/// Options without optimisation, because the result isn't run.
const UNOPTIMISED: &[&str] =
    &["--config", "profile.dev.opt-level=0", "--config", "profile.dev.package.\"*\".opt-level=0", "--quiet"];

/// Builds the core alone, with the features for a page, and with the page's TLS; a warning is an error.
pub(crate) fn build() -> Result<Tally, Failure> {
    let (compiler, c_compiler) = (compiler()?, c_compiler()?);
    for features in ["", "browser", "browser-tls"] {
        let run = Run::cargo()
            .args(["rustc", "--lib", "--locked", "--no-default-features", "--features", features, "--target", TARGET])
            .args(UNOPTIMISED)
            .env(C_COMPILER, &c_compiler);
        let run = match &compiler {
            Some(compiler) => run.env("RUSTC", compiler),
            None => run,
        };
        run.args(["--", "-D", "warnings"]).run()?;
    }
    Ok(Tally::ONE)
}

/// The module of the core that no page runs.
const NATIVE_ONLY: &str = "directory::authority::";

/// Runs the core's unit tests as WebAssembly in Node: the core as in a page, with the browser's URL parser.
pub(crate) fn test() -> Result<Tally, Failure> {
    let run = Run::cargo()
        .args(["test", "--lib", "--locked", "--no-default-features", "--features", "browser", "--target", TARGET])
        // The run is longer than the build, so the code is optimised.
        .args(["--config", "profile.dev.opt-level=1"])
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER", runner()?);
    let run = match compiler()? {
        Some(compiler) => run.env("RUSTC", compiler),
        None => run,
    };
    run.args(["--", "--skip", NATIVE_ONLY]).run()
}

/// The runner of wasm test programs, in the version of the lock file's `wasm-bindgen`, built once and stored.
fn runner() -> Result<PathBuf, Failure> {
    let lock = root().join("Cargo.lock");
    let lock = fs::read_to_string(&lock).map_err(failed("read", &lock))?;
    let version = lock.split("name = \"wasm-bindgen\"\nversion = \"").nth(1).and_then(|rest| rest.split('"').next());
    let version = version.ok_or_else(|| Failure::new("Cargo.lock has no wasm-bindgen"))?;
    let folder = cache(&format!("wasm-bindgen-{version}"))?;
    let program = folder.join("bin/wasm-bindgen-test-runner");
    if !program.is_file() {
        println!("building wasm-bindgen-test-runner {version}; later runs use the stored program");
        let build = folder.join("build");
        Run::cargo()
            .args(["install", "--quiet", "wasm-bindgen-cli", "--version", version, "--no-default-features"])
            .args(["--bin", "wasm-bindgen-test-runner", "--root"])
            .args([&folder])
            .args(["--target-dir"])
            .args([&build])
            .run()?;
        // The build folder is large, and only the program is needed.
        let _ = fs::remove_dir_all(build);
    }
    Ok(program)
}

/// The C compiler for the target: the one in the environment, or a clang that supports the target (Apple's doesn't).
pub(crate) fn c_compiler() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os(C_COMPILER) {
        return Ok(named.into());
    }
    let supports_target =
        Run::new("clang").args(["--print-targets"]).output().is_some_and(|list| list.contains("wasm32"));
    let missing = "no clang for wasm32, which compiles the C code of the pages' TLS: install clang (Debian: apt install clang; \
                macOS: brew install llvm), or set CC_wasm32_unknown_unknown";
    if supports_target { Ok("clang".into()) } else { Err(Failure::new(missing)) }
}

/// The alternative compiler, if the default one has no standard library for the target.
pub(crate) fn compiler() -> Result<Option<PathBuf>, Failure> {
    // Selects Debian's packages in a test, although the default compiler may suffice.
    let debian_only = std::env::var_os("UMBEL_WASM_DEBIAN").is_some();
    let has_library = || {
        let library = Run::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
        library.is_some_and(|folder| Path::new(&folder).is_dir())
    };
    if !debian_only && (has_library() || Run::new("rustup").args(["target", "add", TARGET]).succeeds() && has_library())
    {
        return Ok(None);
    }
    let reason = if debian_only { "UMBEL_WASM_DEBIAN is set" } else { "rustup can't install it" };
    println!("using Debian's packages for {TARGET}: {reason}");
    debian().map(Some)
}

/// The compiler of Debian's packages, with a standard library for the target.
fn debian() -> Result<PathBuf, Failure> {
    let candidate = || {
        let policy = Run::new("apt-cache").args(["policy", "rustc-web"]).output()?;
        let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
        (version != "(none)").then(|| version.to_owned())
    };
    let version = candidate().or_else(|| {
        Run::new("apt-get").args(["update", "-qq"]).output();
        candidate()
    });
    let version = version.ok_or_else(|| {
        Failure::new(format!(
            "found no standard library for {TARGET}, and apt-cache lists no package rustc-web: run `rustup target add \
             {TARGET}`"
        ))
    })?;
    let folder = cache(&format!("rust-wasm-{}", version.replace(['/', ':'], "_")))?;
    let complete = folder.join("complete");
    if !complete.is_file() {
        unpack(&folder, &version)?;
        build_library(&folder)?;
        write(&complete, "")?;
    }
    Ok(folder.join("rustc"))
}

/// Downloads the packages of `version` and unpacks them as a toolchain, with a script `rustc` that starts the compiler.
fn unpack(folder: &Path, version: &str) -> Result<(), Failure> {
    let (debs, tree) = (folder.join("debs"), folder.join("tree"));
    for path in [&debs, &tree] {
        // Removes files of an interrupted attempt.
        let _ = fs::remove_dir_all(path);
        fs::create_dir_all(path).map_err(failed("create", path))?;
    }
    let library = depends("libstd-rust-web-dev", "libstd-rust-web-")?;
    let llvm = depends(&library, "libllvm")?;
    let packages =
        [&library, "rustc-web", "libstd-rust-web-dev", "rust-web-src"].map(|name| format!("{name}={version}"));
    Run::new("apt-get").args(["download", "-qq"]).args(&packages).args([&llvm]).directory(&debs).run()?;
    let files = fs::read_dir(&debs).map_err(failed("read", &debs))?;
    for file in files.filter_map(Result::ok).map(|entry| entry.path()) {
        let source = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rust-web-src"));
        if source {
            // Without the compiler's own source, which is most of the package.
            let script = "dpkg --fsys-tarfile \"$1\" | tar -x -C \"$2\" --wildcards \
                          './usr/src/rustc-*/library/*' './usr/lib/rustlib/src/*'";
            Run::new("bash").args(["-o", "pipefail", "-c", script, "unpack"]).args([&file, &tree]).run()?;
        } else {
            Run::new("dpkg").args(["-x"]).args([&file, &tree]).run()?;
        }
    }
    // The linker of the default toolchain, at the path that the unpacked toolchain uses.
    if let Some(target_libdir) = Run::new("rustc").args(["--print", "target-libdir"]).output()
        && let Some(linkers) = Path::new(&target_libdir).parent().map(|host| host.join("bin"))
        && let Some(host) = linkers.parent().and_then(Path::file_name)
    {
        let link = tree.join("usr/lib/rustlib").join(host).join("bin");
        let _ = std::os::unix::fs::symlink(linkers, link);
    }
    let usr = tree.join("usr");
    let script = folder.join("rustc");
    write(
        &script,
        &format!(
            "#!/bin/sh\nlibraries=$(echo '{0}'/lib/*-linux-gnu)\n\
             LD_LIBRARY_PATH=$libraries${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} exec '{0}/bin/rustc' \"$@\"\n",
            usr.display()
        ),
    )?;
    Run::new("chmod").args(["+x"]).args([&script]).run().map(drop)
}

/// The dependency of `package` whose name begins with `prefix`.
fn depends(package: &str, prefix: &str) -> Result<String, Failure> {
    let list = Run::new("apt-cache").args(["depends", package]).output().unwrap_or_default();
    let name =
        list.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).find(|name| name.starts_with(prefix));
    name.map(str::to_owned).ok_or_else(|| Failure::new(format!("{package} has no dependency {prefix}…")))
}

/// Builds the target's standard library with an empty crate, and copies it to the compiler's library folder.
fn build_library(folder: &Path) -> Result<(), Failure> {
    let seed = folder.join("seed");
    fs::create_dir_all(seed.join("src")).map_err(failed("create", &seed))?;
    let manifest = "[package]\nname = \"seed\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n";
    write(&seed.join("Cargo.toml"), manifest)?;
    write(&seed.join("src/lib.rs"), "")?;
    let target = seed.join("target");
    Run::cargo()
        .args(["-Zbuild-std=std,panic_abort", "build", "--quiet", "--release", "--target", TARGET, "--target-dir"])
        .args([&target])
        .env("RUSTC", folder.join("rustc"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .directory(&seed)
        .run()?;
    let destination = folder.join("tree/usr/lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&destination).map_err(failed("create", &destination))?;
    let deps = target.join(TARGET).join("release/deps");
    let built = fs::read_dir(&deps).map_err(failed("read", &deps))?;
    for file in built.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = file.file_name().unwrap_or_default();
        if file.extension().is_some_and(|kind| kind == "rlib") && !name.to_string_lossy().starts_with("libseed") {
            fs::copy(&file, destination.join(name)).map_err(failed("copy", &file))?;
        }
    }
    for path in [folder.join("debs"), seed, folder.join("tree/usr/src")] {
        let _ = fs::remove_dir_all(path);
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(failed("write", path))
}

/// Converts the error of an operation on `path` into a failure; `verb` names the operation.
fn failed(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let attempted = format!("can't {verb} {}", path.display());
    move |error| Failure::new(format!("{attempted}: {error}"))
}
