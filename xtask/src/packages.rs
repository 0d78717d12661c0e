//! The programs that the tests use and that are no part of Rust: real clients, browsers, Node, search engines.

use std::path::PathBuf;

use crate::run::{Failure, Run, Tally, cache};

/// A Debian package, and how to tell that what it gives is already there.
struct Package {
    name: &'static str,
    present: fn() -> bool,
}

const PACKAGES: &[Package] = &[
    Package { name: "chromium", present: || on_path("chromium").is_some() },
    Package { name: "firefox-esr", present: || on_path("firefox-esr").is_some() },
    Package { name: "clang", present: || crate::wasm::c_compiler().is_ok() },
    Package { name: "nodejs", present: || on_path("node").is_some() },
    Package { name: "npm", present: || on_path("npm").is_some() },
    Package { name: "curl", present: || on_path("curl").is_some() },
    Package { name: "wget", present: || on_path("wget").is_some() },
    Package { name: "iproute2", present: || on_path("ip").is_some() },
    Package { name: "nftables", present: || on_path("nft").is_some() || PathBuf::from("/usr/sbin/nft").exists() },
    Package { name: "openssl", present: || on_path("openssl").is_some() },
    Package { name: "git", present: || on_path("git").is_some() },
    Package { name: "python3-requests", present: || python().is_some() },
    Package { name: "python3-socks", present: || python().is_some() },
    Package { name: "kiwix-tools", present: || on_path("kiwix-serve").is_some() },
    Package { name: "zim-tools", present: || on_path("zimwriterfs").is_some() },
    Package { name: "searx", present: || on_path("searx-run").is_some() },
];

/// Installs the packages that are missing.
pub(crate) fn install() -> Result<Tally, Failure> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|package| !(package.present)()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(Tally::ONE);
    }
    if on_path("apt-get").is_none() {
        return Err(Failure::new(format!("the tests need these Debian packages or their like: {}", missing.join(" "))));
    }
    apt_install(&missing)?;
    match PACKAGES.iter().find(|package| !(package.present)()) {
        None => Ok(Tally::ONE),
        Some(package) => Err(Failure::new(format!("{} is installed but can't be found", package.name))),
    }
}

/// Installs the Debian packages `names`.
pub(crate) fn apt_install(names: &[&str]) -> Result<Tally, Failure> {
    println!("installing {}", names.join(" "));
    // A list that can't be refreshed may still hold what is needed.
    let _ = apt(&["update", "-qq"]);
    let options = ["install", "-y", "-qq", "--no-install-recommends"];
    apt(&options.iter().chain(names).copied().collect::<Vec<_>>())
}

fn apt(arguments: &[&str]) -> Result<Tally, Failure> {
    let root = Run::new("id").args(["-u"]).output().as_deref() == Some("0");
    let run = if root { Run::new("apt-get") } else { Run::new("sudo").args(["-n", "apt-get"]) };
    run.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").run()
}

/// Where the shell would find `program`.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A Python that has Requests and PySocks. The first on the path may be one that Debian's packages don't reach.
fn python() -> Option<PathBuf> {
    let able = |python: &PathBuf| Run::new(python).args(["-c", "import requests, socks"]).succeeds();
    [PathBuf::from("/usr/bin/python3")].into_iter().chain(on_path("python3")).find(able)
}

/// A folder with nothing but that Python, under the name `python3`.
pub(crate) fn python_folder() -> Result<PathBuf, Failure> {
    let python = python().ok_or_else(|| Failure::new("no Python with Requests and PySocks: --only packages"))?;
    let folder = cache("python")?;
    let link = folder.join("python3");
    if std::fs::read_link(&link).ok().as_ref() != Some(&python) {
        // Another, or none.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(python, link).map_err(|error| Failure::new(error.to_string()))?;
    }
    Ok(folder)
}
