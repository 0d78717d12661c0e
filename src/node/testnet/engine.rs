//! The search engine of a testnet's exits: Kiwix over the user's ZIM file or the Rust book, or an engine over Umbel's
//! own documentation. The second engine needs no installation.

mod documentation;
mod kiwix;

use std::path::{Path, PathBuf};

use self::{documentation::Documentation, kiwix::Kiwix};
use crate::{io::files::write_atomically, node::Failure};

/// Path of the Rust book in the user's cache, as `cargo xtask book` writes it.
const BOOK: &str = "umbel-tools/rust-book/rust-book.zim";

/// The running engine. Dropping the value stops the engine.
pub(super) enum TestnetEngine {
    Kiwix(Box<Kiwix>),
    Documentation(Documentation),
}

impl TestnetEngine {
    /// Starts the engine over `zim`. Without `zim`: over the Rust book if Kiwix can serve it, otherwise over Umbel's
    /// own documentation.
    ///
    /// # Errors
    /// When Kiwix can't serve `zim`, or the engine over the documentation can't start.
    pub(super) async fn start(zim: Option<&Path>) -> Result<Self, Failure> {
        if let Some(zim) = zim {
            return Kiwix::start(zim).await.map(|kiwix| Self::Kiwix(Box::new(kiwix)));
        }
        if let Some(book) = book()
            && let Ok(kiwix) = Kiwix::start(&book).await
        {
            return Ok(Self::Kiwix(Box::new(kiwix)));
        }
        Documentation::start().await.map(Self::Documentation).map_err(Failure::system("can't start the search engine"))
    }

    /// Writes the engine's OpenSearch description into `folder`, for the exits.
    pub(super) fn describe(&self, folder: &Path) -> Result<PathBuf, Failure> {
        let (name, text) = match self {
            Self::Kiwix(kiwix) => ("kiwix.xml", kiwix.description()),
            Self::Documentation(documentation) => ("umbel.xml", documentation.description()),
        };
        let file = folder.join(name);
        write_atomically(&file, text.as_bytes())?;
        Ok(file)
    }

    /// A description of the engine for the user.
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Kiwix(kiwix) => kiwix.to_text(),
            Self::Documentation(documentation) => documentation.to_text(),
        }
    }

    /// Search terms for an example. They have results in the Rust book or in Umbel's documentation, but not in every
    /// user's ZIM file.
    pub(super) const fn example(&self) -> &'static str {
        match self {
            Self::Kiwix(_) => "ownership and borrowing",
            Self::Documentation(_) => "guard sample",
        }
    }
}

/// The path of the Rust book, if it exists.
fn book() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Some(cache.or_else(home)?.join(BOOK)).filter(|book| book.is_file())
}
