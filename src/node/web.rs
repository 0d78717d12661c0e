//! `umbel web`, and the pages that directories and relays serve.

use std::{net::SocketAddr, path::PathBuf};

use axum::Router;
use clap::{Args, Subcommand};
use tokio::net::TcpListener;

use crate::{
    delegated::EngineName,
    directory::AuthorityId,
    engine::Engine,
    exit::delegated::engines::for_pages,
    web::{
        NetworkDescription, PageDirectories, PageEngine, embedded,
        manifest::Manifest,
        router, router_without_pages, serve,
        verify::{Outcome, VerifyError, base_url, verify},
    },
};

use super::Failure;

/// Largest list of engines in `umbel.json`, in bytes. A page accepts 256 KiB (`web/src/umbel/network.ts`) with
/// directories and keys.
const MAX_ENGINES_LEN: usize = 224 << 10;
/// Largest manifest, in bytes.
const MAX_MANIFEST: u64 = 64 << 10;

const NOT_EMBEDDED: &str = "this program was built without the pages for browsers: in the folder of its source, run \
     `cargo xtask web`, then build it again";

/// The answer to visitors of a program without pages.
const NOT_BUILT: &str = "This program was built without the pages for browsers. To add them, its operator runs `cargo xtask web` in \
     the folder of its source, builds the program again, and restarts it.\n";
/// The answer to visitors of a directory that has the pages but does not serve them.
const NOT_SERVED: &str =
    "This directory does not serve the pages for browsers. Its operator can enable them with --web.\n";

/// Options of `umbel web`.
#[derive(Args, Clone, Debug)]
pub(crate) struct WebOptions {
    #[command(subcommand)]
    command: WebCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum WebCommand {
    /// Compare the pages that a server serves with the pages of this program, or with a manifest
    #[command(after_help = "Example:\n  umbel web verify https://umbel.example/\n  umbel web verify --manifest \
        umbel-web.sha256 --authority KEY https://umbel.example/\n\nExit status: 0 all files are identical, 1 there are \
        differences (each is printed), 3 the server can't be reached. The server could still serve other files to other visitors.")]
    Verify {
        /// URL of the pages
        #[arg(value_name = "URL")]
        url: String,
        /// Manifest of a release, as `umbel web manifest` prints it [default: the manifest of the pages in this
        /// program]
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
        /// Authority key that the network of the pages must have, and no others; may be repeated
        #[arg(long, value_name = "KEY")]
        authority: Vec<String>,
    },
    /// Print the SHA-256 hashes of the pages in this program
    #[command(after_help = "Example, for a release, and to check a folder of pages:\n  umbel web manifest > \
        umbel-web.sha256\n  cd web/dist && sha256sum --check umbel-web.sha256")]
    Manifest,
}

/// Runs `umbel web`.
///
/// # Errors
/// When there are no pages to compare with, the server can't be reached, or the pages differ.
pub(crate) async fn run(options: WebOptions) -> Result<(), Failure> {
    match options.command {
        WebCommand::Manifest => {
            print!("{}", own_manifest()?);
            Ok(())
        }
        WebCommand::Verify { url, manifest, authority } => {
            let manifest = match manifest {
                Some(path) => read_manifest(&path)?,
                None => own_manifest()?,
            };
            check(&url, &manifest, &authority).await
        }
    }
}

async fn check(url: &str, manifest: &Manifest, authorities: &[String]) -> Result<(), Failure> {
    for key in authorities {
        if let Err(error) = key.parse::<AuthorityId>() {
            return Err(Failure::usage(format!("authority: \"{key}\" is {error}")));
        }
    }
    let base = base_url(url, manifest).map_err(Failure::usage)?;
    let Outcome { differences, network } = verify(&base, manifest, authorities).await.map_err(|error| match error {
        VerifyError::Unreachable(_) => Failure::Unreachable(error.into()),
        error => Failure::usage(error),
    })?;
    for difference in &differences {
        println!("{difference}");
    }
    print_network(network.as_ref());
    if differences.is_empty() {
        println!(
            "All {} files are identical. The server could still serve other files to other visitors.",
            manifest.len()
        );
        return Ok(());
    }
    Err(Failure::failed(match differences.len() {
        1 => "the server's pages have 1 difference".to_owned(),
        count => format!("the server's pages have {count} differences"),
    }))
}

/// Prints the network that the pages join, which the manifest doesn't cover.
fn print_network(network: Option<&NetworkDescription>) {
    let Some(network) = network else {
        println!("The server describes no network (umbel.json is missing or invalid).");
        return;
    };
    // The text comes from an untrusted server and is printed to a terminal.
    let clean = |text: &String| text.chars().filter(|letter| !letter.is_control()).take(200).collect::<String>();
    for directory in network.directories.iter().take(8) {
        println!("directory  {}", clean(directory));
    }
    for authority in network.authorities.iter().take(8) {
        println!("authority  {}", clean(authority));
    }
    for engine in network.engines.iter().take(32) {
        println!("engine     {} {}", clean(&engine.name), clean(&engine_address(engine)));
    }
}

/// The address that volunteers query for `engine`. The name of an engine doesn't determine the address.
fn engine_address(engine: &PageEngine) -> String {
    let name = EngineName::parse(&engine.name);
    match name.map(|name| Engine::describe_for_page(engine.description.as_bytes(), Some(name))) {
        Some(Ok(described)) => format!("at {}, which volunteers may query", described.origins().join(", ")),
        Some(Err(_)) | None => "can't be queried: its name or description is invalid".to_owned(),
    }
}

fn own_manifest() -> Result<Manifest, Failure> {
    if embedded().is_empty() { Err(Failure::usage(NOT_EMBEDDED)) } else { Ok(Manifest::of(embedded())) }
}

fn read_manifest(path: &std::path::Path) -> Result<Manifest, Failure> {
    use std::io::Read as _;

    let subject = path.display().to_string();
    let file = std::fs::File::open(path).map_err(Failure::invalid(&*subject))?;
    let mut text = String::new();
    file.take(MAX_MANIFEST).read_to_string(&mut text).map_err(Failure::invalid(&*subject))?;
    Manifest::parse(&text).map_err(Failure::invalid(subject))
}

/// The router for the pages in this program, for the network of `directories` and `authorities`. Volunteers may query
/// `engines`, which the operator configured.
///
/// # Errors
/// When there are no pages, or a page can't query an engine.
pub(crate) async fn pages(
    directories: PageDirectories,
    authorities: &[AuthorityId],
    engines: &[String],
) -> Result<Router, Failure> {
    if embedded().is_empty() {
        return Err(Failure::usage(format!("web: {NOT_EMBEDDED}")));
    }
    let engines = page_engines(engines).await?;
    Ok(router(embedded(), directories, authorities, engines))
}

/// The engines that the operator configured, in the form for pages.
async fn page_engines(entries: &[String]) -> Result<Vec<PageEngine>, Failure> {
    let described = for_pages(entries).await.map_err(Failure::invalid("web-engine"))?;
    let engine = |(engine, description): (Engine, String)| PageEngine {
        name: engine.name().to_string(),
        title: engine.title().to_owned(),
        description,
    };
    let engines: Vec<PageEngine> = described.into_iter().map(engine).collect();
    let length = serde_json::to_string(&engines).map_err(Failure::usage)?.len();
    if length > MAX_ENGINES_LEN {
        let message = format!(
            "web-engine: the descriptions have {length} bytes in total, and the maximum is {MAX_ENGINES_LEN}: configure \
             fewer engines, or shorten the descriptions"
        );
        return Err(Failure::usage(message));
    }
    Ok(engines)
}

/// The failure of a configuration with engines for pages, but without the pages.
fn engines_without_pages() -> Failure {
    Failure::usage("web-engine: not allowed without --web, because only the pages for browsers use the engines")
}

/// The router of a directory of `authority` for the paths of the pages. It serves the pages if `serve` is set,
/// otherwise instructions for the operator.
///
/// # Errors
/// When `serve` is set and there are no pages, when a page can't query an engine, or when engines are configured
/// without pages.
pub(crate) async fn directory_pages(
    serve: bool,
    authority: AuthorityId,
    engines: &[String],
) -> Result<Router, Failure> {
    match (serve, has_pages()) {
        (true, _) => pages(PageDirectories::Here, &[authority], engines).await,
        (false, _) if !engines.is_empty() => Err(engines_without_pages()),
        (false, true) => Ok(router_without_pages(NOT_SERVED)),
        (false, false) => Ok(router_without_pages(NOT_BUILT)),
    }
}

/// Whether this program contains pages.
pub(crate) fn has_pages() -> bool {
    !embedded().is_empty()
}

/// The listener for the pages and their router, if a port is configured.
pub(crate) struct PagesPort(Option<(TcpListener, Router)>);

impl PagesPort {
    /// Opens the port at `address`, if there is one.
    ///
    /// # Errors
    /// When there are no pages, or the port can't be opened.
    pub(crate) async fn open(
        address: Option<SocketAddr>,
        directories: PageDirectories,
        authorities: &[AuthorityId],
        engines: &[String],
    ) -> Result<Self, Failure> {
        let Some(address) = address else {
            return if engines.is_empty() { Ok(Self(None)) } else { Err(engines_without_pages()) };
        };
        let router = pages(directories, authorities, engines).await?;
        let action = format!("can't listen on {address} for the pages; choose another address with --web ADDR");
        let listener = TcpListener::bind(address).await.map_err(Failure::system(action))?;
        tracing::info!("serving the pages for browsers");
        Ok(Self(Some((listener, router))))
    }

    /// Serves the pages, if a port is configured. Never completes.
    pub(crate) async fn serve(self) {
        match self.0 {
            Some((listener, router)) => serve(listener, router).await,
            None => core::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::delegated::engines::EngineError;

    #[tokio::test]
    async fn the_error_for_an_unreadable_manifest_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sha256");
        for text in [None, Some("no manifest\n")] {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let command = WebCommand::Verify {
                url: "https://umbel.example/".to_owned(),
                manifest: Some(path.clone()),
                authority: Vec::new(),
            };
            let failure = run(WebOptions { command }).await.unwrap_err();
            assert!(failure.status() == 2 && failure.to_string().contains("web.sha256"), "{failure}");
        }
    }

    #[tokio::test]
    async fn engines_for_pages_are_files_of_engines_that_pages_can_query() {
        let shipped = format!("{}/deploy/engines/wikipedia.xml", env!("CARGO_MANIFEST_DIR"));
        let described = for_pages(&[shipped.clone(), format!("other={shipped}")]).await.unwrap();
        let names: Vec<_> = described.iter().map(|(engine, _)| engine.name().as_str()).collect();
        assert_eq!(names, ["wikipedia", "other"]);
        assert!(described.iter().all(|(_, description)| description.contains("OpenSearchDescription")));
        assert!(matches!(for_pages(&[&shipped, &shipped]).await, Err(EngineError::DuplicateName(_))));
        let url = "https://engine.example/description.xml";
        assert!(matches!(for_pages(&[url]).await, Err(EngineError::NoFile(_))));
        assert!(matches!(for_pages(&["/no/such/file"]).await, Err(EngineError::File(..))));
        let authority = crate::crypto::IdentityKey::from_bytes(&[7; 32]).id().into();
        let failure = directory_pages(false, authority, &[shipped]).await.unwrap_err();
        assert!(failure.status() == 2 && failure.to_string().contains("--web"), "{failure}");
    }

    #[test]
    fn the_address_of_an_engine_for_volunteers_is_shown() {
        let description = include_str!("../../deploy/engines/wikipedia.xml").to_owned();
        let engine = PageEngine { name: "other".to_owned(), title: String::new(), description };
        let shown = engine_address(&engine);
        assert!(shown.contains("https://en.wikipedia.org") && shown.contains("may query"), "{shown}");
        let invalid = PageEngine { description: "<a/>".to_owned(), ..engine };
        assert!(engine_address(&invalid).starts_with("can't be queried"));
    }

    #[tokio::test]
    async fn the_total_length_of_engines_for_pages_is_limited() {
        let shipped = include_str!("../../deploy/engines/wikipedia.xml");
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<String> = (0..4)
            .map(|number| {
                let path = folder.path().join(format!("{number}.xml"));
                std::fs::write(&path, format!("{shipped}<!--{}-->", "x".repeat(60 << 10))).unwrap();
                format!("e-{number}={}", path.display())
            })
            .collect();
        assert_eq!(page_engines(&entries[..3]).await.unwrap().len(), 3);
        let failure = page_engines(&entries).await.unwrap_err();
        assert!(failure.status() == 2 && failure.to_string().starts_with("web-engine: "), "{failure}");
    }

    #[tokio::test]
    async fn an_invalid_url_or_key_is_a_usage_error_without_a_request() {
        let manifest = Manifest::parse(&format!("{}  badge.js\n", "0".repeat(64))).unwrap();
        assert!(matches!(check("umbel.example", &manifest, &[]).await, Err(Failure::Usage(_))));
        let key = ["no key".to_owned()];
        assert!(matches!(check("https://umbel.example/", &manifest, &key).await, Err(Failure::Usage(_))));
    }

    #[tokio::test]
    async fn unreachable_and_differing_servers_have_distinct_exit_statuses() {
        let manifest = Manifest::parse(&format!("{}  badge.js\n", "0".repeat(64))).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let serving = tokio::spawn(serve(listener, router(&[], PageDirectories::Here, &[], Vec::new())));
        assert_eq!(check(&url, &manifest, &[]).await.unwrap_err().status(), 1);
        serving.abort();
        let _ = serving.await;
        assert_eq!(check(&url, &manifest, &[]).await.unwrap_err().status(), 3);
    }
}
