//! Builds the corpus of the search tests: the Rust book as a ZIM file for `kiwix-serve`.
//!
//! The file is stored in the cache of `xtask`. It is rebuilt when the installed book changes. `umbel testnet` uses the
//! file too.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    packages,
    run::{Failure, Run, Tally, cache},
};

/// Path of the book in Debian's package `rust-doc`.
const DEBIAN_BOOK: &str = "/usr/share/doc/rust-doc/html/book";

/// Builds the file and prints its path.
pub(crate) fn command() -> Result<(), Failure> {
    println!("{}", zim()?.display());
    Ok(())
}

/// The path of the book's ZIM file. Builds the file if it is missing or was made from another installed book.
pub(crate) fn zim() -> Result<PathBuf, Failure> {
    let failed = |error: io::Error| Failure::new(format!("can't make the ZIM file of the book: {error}"));
    let book = book()?;
    let folder = cache("rust-book")?;
    let (zim, made_from) = (folder.join("rust-book.zim"), folder.join("made-from"));
    // Identifies the installed book: its folder, and the modification time of a page, which differs between versions.
    let source = format!(
        "{} {:?}",
        book.display(),
        fs::metadata(book.join("index.html")).and_then(|metadata| metadata.modified())
    );
    if zim.is_file() && fs::read_to_string(&made_from).is_ok_and(|text| text == source) {
        return Ok(zim);
    }
    let (pages, fresh) = (folder.join("pages"), folder.join("fresh.zim"));
    let _ = (fs::remove_dir_all(&pages), fs::remove_file(&fresh));
    let mut icon = None;
    copy(&book, &pages, &mut icon).map_err(failed)?;
    let icon = icon.ok_or_else(|| Failure::new(format!("{} has no favicon.png", book.display())))?;
    Run::new("zimwriterfs")
        .args(["--welcome=index.html", "--language=eng", "--title=The Rust Programming Language"])
        .args(["--description=The book", "--creator=The Rust Project", "--publisher=Umbel's tests"])
        .args([format!("--illustration={icon}")])
        .args([&pages, &fresh])
        .run()?;
    fs::rename(&fresh, &zim).and_then(|()| fs::write(&made_from, source)).map_err(failed)?;
    let _ = fs::remove_dir_all(&pages);
    Ok(zim)
}

/// The folder of the book's HTML pages, in the toolchain or in Debian's `rust-doc`. Without both, installs rustup's
/// component `rust-docs`, or Debian's package if that fails.
fn book() -> Result<PathBuf, Failure> {
    let toolchain = || {
        let sysroot = Run::new("rustc").args(["--print", "sysroot"]).output()?;
        Some(Path::new(&sysroot).join("share/doc/rust/html/book")).filter(|book| book.is_dir())
    };
    let debian = || Some(PathBuf::from(DEBIAN_BOOK)).filter(|book| book.is_dir());
    if let Some(book) = toolchain().or_else(debian) {
        return Ok(book);
    }
    if Run::new("rustup").args(["component", "add", "rust-docs"]).succeeds()
        && let Some(book) = toolchain()
    {
        return Ok(book);
    }
    packages::apt_install(&["rust-doc"])?;
    debian().ok_or_else(|| Failure::new("the Rust book is neither in the toolchain nor in Debian's rust-doc"))
}

/// Copies the book without older editions and without duplicates of its content: the printable page and the search
/// index. Sets `icon` to the icon's name.
fn copy(from: &Path, to: &Path, icon: &mut Option<String>) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))?;
        if name.ends_with("-edition") || name == "print.html" || name.starts_with("searchindex") {
            continue;
        }
        if path.is_dir() {
            copy(&path, &to.join(name), icon)?;
        } else {
            fs::copy(&path, to.join(&name))?;
            if name.starts_with("favicon") && name.ends_with(".png") {
                *icon = Some(name);
            }
        }
    }
    Ok(())
}

/// Builds the ZIM file as a step of `cargo xtask test`.
pub(crate) fn prepare() -> Result<Tally, Failure> {
    zim().map(|_| Tally::ONE)
}
