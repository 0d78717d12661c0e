//! Installs the programs that the tests use in addition to Rust: applications (curl, wget, git, searx), browsers, Node
//! and build tools.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::run::{Failure, Run, Tally, cache};

/// A Debian package, and a check whether its programs are already present.
struct Package {
    name: &'static str,
    present: fn() -> bool,
}

const PACKAGES: &[Package] = &[
    Package { name: "chromium", present: || on_path("chromium").is_some() },
    Package { name: "firefox-esr", present: || on_path("firefox-esr").is_some() },
    Package { name: "clang", present: || crate::wasm::c_compiler().is_ok() },
    Package { name: "gcc", present: || on_path("cc").is_some() },
    Package { name: "libc6-dev", present: || PathBuf::from("/usr/include/stdio.h").exists() },
    Package { name: "python3", present: || on_path("python3").is_some() },
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
    Package { name: "valgrind", present: || on_path("valgrind").is_some() },
    Package { name: "searx", present: || on_path("searx-run").is_some() },
];

/// Packages that the labs need in addition to the measured program.
const FOR_LABS: &[&str] = &["gcc", "libc6-dev", "python3", "iproute2"];

/// Tor's package; its programs are in a folder that isn't on every path.
const TOR: Package =
    Package { name: "tor", present: || on_path("tor").is_some() || PathBuf::from("/usr/sbin/tor").exists() };

/// The script that prevents Debian's packages from starting services, if it exists and exits with 101.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the missing packages.
pub(crate) fn install() -> Result<Tally, Failure> {
    install_missing(PACKAGES.iter())
}

/// Installs the missing packages of the labs.
pub(crate) fn install_for_labs() -> Result<Tally, Failure> {
    install_missing(PACKAGES.iter().filter(|package| FOR_LABS.contains(&package.name)))
}

/// Installs Tor if it is missing. Prevents its service from starting, and so from joining the public network.
pub(crate) fn install_tor() -> Result<Tally, Failure> {
    if (TOR.present)() {
        return Ok(Tally::ONE);
    }
    if !is_root() {
        return Err(Failure::new(
            "Tor is not installed: install Debian's package tor, run this as root, or omit Tor with --no-tor",
        ));
    }
    let policy = Path::new(SERVICE_POLICY);
    let created = !policy.exists();
    if created {
        let failed = |error: io::Error| Failure::new(format!("can't write {SERVICE_POLICY}: {error}"));
        fs::write(policy, "#!/bin/sh\nexit 101\n").map_err(failed)?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    } else if !forbids_start(policy, "tor") {
        return Err(Failure::new(format!(
            "{SERVICE_POLICY} permits Tor's service to start, which would join the public network: make the script \
             exit with 101, or omit Tor with --no-tor"
        )));
    }
    let outcome = install_missing([TOR].iter());
    if created {
        fs::remove_file(policy).map_err(|error| {
            Failure::new(format!("can't remove {SERVICE_POLICY}; remove it, or no package can start services: {error}"))
        })?;
    }
    outcome
}

/// Whether the script `policy` forbids `service` to start.
fn forbids_start(policy: &Path, service: &str) -> bool {
    // Debian ignores a script that it can't run.
    let status = Command::new(policy).args([service, "start"]).stdin(Stdio::null()).stdout(Stdio::null()).status();
    status.is_ok_and(|status| status.code() == Some(101))
}

fn install_missing<'a>(packages: impl Iterator<Item = &'a Package> + Clone) -> Result<Tally, Failure> {
    let missing: Vec<&str> =
        packages.clone().filter(|package| !(package.present)()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(Tally::ONE);
    }
    if on_path("apt-get").is_none() {
        return Err(Failure::new(format!(
            "found no apt-get on PATH; install these Debian packages or their equivalents: {}",
            missing.join(" ")
        )));
    }
    apt_install(&missing)?;
    match packages.into_iter().find(|package| !(package.present)()) {
        None => Ok(Tally::ONE),
        Some(package) => Err(Failure::new(format!(
            "the package {} is installed, but its check still fails: look for its program on PATH",
            package.name
        ))),
    }
}

/// Installs the Debian packages `names`.
pub(crate) fn apt_install(names: &[&str]) -> Result<Tally, Failure> {
    eprintln!("installing {}", names.join(" "));
    // A failure is ignored, because an outdated package list may be sufficient.
    let _ = apt(&["update", "-qq"]);
    let options = ["install", "-y", "-qq", "--no-install-recommends"];
    apt(&options.iter().chain(names).copied().collect::<Vec<_>>())
}

fn apt(arguments: &[&str]) -> Result<Tally, Failure> {
    let run = if is_root() { Run::new("apt-get") } else { Run::new("sudo").args(["-n", "apt-get"]) };
    run.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").redirect_to_stderr().run()
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    Run::new("id").args(["-u"]).output().as_deref() == Some("0")
}

/// The first file with the name `program` in the folders of `PATH`.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A Python with Requests and PySocks. The first Python on the path may lack Debian's packages.
fn python() -> Option<PathBuf> {
    let has_modules = |python: &PathBuf| Run::new(python).args(["-c", "import requests, socks"]).succeeds();
    [PathBuf::from("/usr/bin/python3")].into_iter().chain(on_path("python3")).find(has_modules)
}

/// Creates, if needed, a folder with only the Python of [`python`], under the name `python3`.
pub(crate) fn python_folder() -> Result<PathBuf, Failure> {
    let python = python().ok_or_else(|| {
        Failure::new("found no Python with Requests and PySocks; install them with cargo xtask packages")
    })?;
    let folder = cache("python")?;
    let link = folder.join("python3");
    if std::fs::read_link(&link).ok().as_ref() != Some(&python) {
        // The symbolic link may lead to another Python, or not exist.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(python, &link)
            .map_err(|error| Failure::new(format!("can't create the symbolic link {}: {error}", link.display())))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_executable_script_that_exits_with_101_forbids_a_start() {
        let folder = std::env::temp_dir().join(format!("umbel-xtask-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let policy = folder.join("policy");
        assert!(!forbids_start(&policy, "tor"), "no script");
        for (script, mode, forbids) in [
            ("exit 101", 0o755, true),
            ("exit 101", 0o644, false),
            ("exit 0", 0o755, false),
            ("test \"$1 $2\" = 'tor start' && exit 101", 0o755, true),
        ] {
            fs::write(&policy, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&policy, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(forbids_start(&policy, "tor"), forbids, "{script}, {mode:o}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
