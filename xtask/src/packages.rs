//! The programs that the tests use and that are no part of Rust: real clients, browsers, Node.

use std::path::PathBuf;

use crate::run::{Failure, Run, Tally};

/// A Debian package, and how to tell that what it gives is already there.
struct Package {
    name: &'static str,
    present: fn() -> bool,
}

const PACKAGES: &[Package] = &[
    Package { name: "chromium", present: || on_path("chromium").is_some() },
    Package { name: "firefox-esr", present: || on_path("firefox-esr").is_some() },
    Package { name: "nodejs", present: || on_path("node").is_some() },
    Package { name: "npm", present: || on_path("npm").is_some() },
    Package { name: "curl", present: || on_path("curl").is_some() },
    Package { name: "wget", present: || on_path("wget").is_some() },
    Package { name: "git", present: || on_path("git").is_some() },
    Package { name: "python3-requests", present: || python().is_some() },
    Package { name: "python3-socks", present: || python().is_some() },
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
    println!("installing {}", missing.join(" "));
    // A list that can't be refreshed may still hold what is needed.
    let _ = apt(&["update", "-qq"]);
    let options = ["install", "-y", "-qq", "--no-install-recommends"];
    apt(&options.into_iter().chain(missing).collect::<Vec<_>>())?;
    match PACKAGES.iter().find(|package| !(package.present)()) {
        None => Ok(Tally::ONE),
        Some(package) => Err(Failure::new(format!("{} is installed but can't be found", package.name))),
    }
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

/// A Python that has Requests and PySocks; the tests are told of it as `UMBEL_TEST_PYTHON`.
pub(crate) fn python() -> Option<&'static str> {
    // The first on the path may be one that Debian's packages don't reach.
    let able = |python: &&str| Run::new(*python).args(["-c", "import requests, socks"]).succeeds();
    ["python3", "/usr/bin/python3"].into_iter().find(able)
}
