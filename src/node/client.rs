//! The client of the crate's API, and `umbel client`, which adds two local ports and the search page.

mod request;
mod search;
mod task;

use core::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::timeout,
};

use crate::{
    base::RelayId,
    client::ClientParameters,
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Isolation},
    delegated::EngineName,
    directory::AuthorityId,
    directory_http::client::{DirectoryClient, DirectoryConfig},
    io::{
        files::Folder,
        listener::{LocalPort, listen},
        stream::Stream,
        tls::Tls,
    },
    page::{
        self, PageReader, SearchPage,
        check::{ProxyCheck, ProxyCheckConnector},
    },
    ports::{
        destinations::ByDestination,
        http_proxy::{self, HttpLimits},
        socks::{self, SocksLimits},
    },
    requests::search::Exits,
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

use super::{
    Failure, descriptors,
    drive::randomness,
    network,
    options::{ClientOptions, data_dir},
    report::{Report, Reporter},
};
use task::{ClientCommand, ClientObservers};

/// Cap on commands that wait for the client's task. The caller of a further command waits until there is room.
const MAX_WAITING_COMMANDS: usize = 256;
/// Time limit of [`Client::bootstrap`] for the first circuit.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(60);

/// The network and the state folder of a [`Client`].
#[derive(Clone, Debug, Default)]
pub struct ClientConfig {
    /// Base URLs of directories, such as `http://192.0.2.1:9360`; at least one. If one fails, the client uses the next.
    pub directories: Vec<String>,
    /// Keys of trusted directory authorities; more than half must have signed a consensus.
    pub authorities: Vec<AuthorityId>,
    /// Folder for guards and consensus, created if it doesn't exist. Use a folder for one client at a time; this is not
    /// checked. Without a folder, each start chooses new guards, which increases the exposure to malicious guards.
    pub data_dir: Option<PathBuf>,
}

/// A client of the overlay: streams, name resolution and requests over three hops.
///
/// A clone is cheap and shares circuits. When the last clone is dropped, the client ends and its streams fail. The
/// [crate's documentation](crate) has an example of a stream.
///
/// ```no_run
/// # async fn example(client: umbel::Client) -> Result<(), umbel::ConnectError> {
/// // Streams that must not be linked to each other use separate handles, and so separate circuits.
/// let (work, home) = (client.isolated(), client.isolated());
/// let stream = work.open("example.org", 443).await?;
/// let addresses = home.resolve("example.net").await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<ClientCommand>,
    isolation: Isolation,
    shared: Arc<ClientShared>,
}

/// State shared by all handles of a client.
#[derive(Debug)]
struct ClientShared {
    task: AbortHandle,
    /// The number of isolations that [`Client::isolated`] has allocated.
    isolations: AtomicU64,
    exits: Exits,
    tls: Tls,
}

impl Drop for ClientShared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Search settings of a client.
#[derive(Clone, Debug, Default)]
struct SearchSettings {
    /// The engine for queries that name no engine.
    engine: Option<EngineName>,
    /// Whether circuits for searches are built before the first search.
    prebuilt: bool,
}

/// The failure of a client's start.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The configuration or a file in the client's folder can't be used.
    #[error(transparent)]
    Configuration(Failure),
    /// The system provided no socket or no randomness.
    #[error(transparent)]
    System(Failure),
    /// No circuit was built within the time limit.
    #[error("no circuit within {} s; check that a directory can be reached and that UDP is allowed", BOOTSTRAP_TIMEOUT.as_secs())]
    Unreachable,
}

impl From<Failure> for BootstrapError {
    fn from(failure: Failure) -> Self {
        match failure {
            failure if failure.status() == 2 => Self::Configuration(failure),
            failure => Self::System(failure),
        }
    }
}

impl Client {
    /// Starts a client on the current tokio runtime and waits for its first circuit.
    ///
    /// # Errors
    /// See [`BootstrapError`].
    pub async fn bootstrap(config: ClientConfig) -> Result<Self, BootstrapError> {
        let folder = config.data_dir.as_deref().map(Folder::open).transpose().map_err(Failure::from)?;
        let directories = DirectoryConfig {
            directories: config.directories,
            authorities: config.authorities,
            cache: folder.as_ref().map(Folder::consensus_cache),
        };
        let started = Self::start(directories, folder, None, SearchSettings::default(), Reporter::new(false))?;
        let (client, mut ready) = started;
        let first_circuit = async { ready.wait_for(|ready| *ready).await.is_ok() };
        match timeout(BOOTSTRAP_TIMEOUT, first_circuit).await {
            Ok(true) => Ok(client),
            _ => Err(BootstrapError::Unreachable),
        }
    }

    /// Starts a client; the receiver gets `true` when the first circuit is built.
    fn start(
        directories: DirectoryConfig,
        folder: Option<Folder>,
        middle: Option<RelayId>,
        searches: SearchSettings,
        reporter: Reporter,
    ) -> Result<(Self, watch::Receiver<bool>), Failure> {
        let volunteers = DirectoryClient::new(directories.clone())?;
        let follower = DirectoryClient::new(directories)?;
        let (commands, receiver) = mpsc::channel(MAX_WAITING_COMMANDS);
        let (ready_sender, ready) = watch::channel(false);
        let (offers_sender, offers) = watch::channel(None);
        let exits = Exits::new(offers, searches.engine.clone());
        let observers = ClientObservers { ready: ready_sender, offers: offers_sender, reporter };
        let parameters = ClientParameters { middle, ..ClientParameters::default() };
        let drive = task::drive(folder, receiver, parameters, searches, observers)?;
        let (rng, volunteers_rng) = (randomness()?, randomness()?);
        // Weak, so that only handles own the command channel. The drop of the last handle aborts the task.
        let weak = commands.downgrade();
        let task = tokio::spawn(async move {
            let forward = |command| {
                let commands = weak.upgrade();
                async move {
                    match commands {
                        Some(commands) => commands.send(command).await.is_ok(),
                        None => false,
                    }
                }
            };
            tokio::join!(
                drive.run(),
                network::follow(follower, rng, |consensus| forward(ClientCommand::Consensus(consensus))),
                network::follow(volunteers, volunteers_rng, |list| forward(ClientCommand::Volunteers(list))),
            );
        });
        let isolation = Isolation::of_listener("crate");
        let shared = Arc::new(ClientShared {
            task: task.abort_handle(),
            isolations: AtomicU64::new(0),
            exits,
            tls: Tls::default(),
        });
        let client = Self { commands, isolation, shared };
        Ok((client, ready))
    }

    /// A handle to the same client with a separate isolation. Streams of this handle and its clones share no circuit
    /// with other streams. A handle uses no circuit until its first request.
    #[must_use]
    pub fn isolated(&self) -> Self {
        let number = self.shared.isolations.fetch_add(1, Ordering::Relaxed);
        Self { isolation: Isolation::new("crate", &number.to_be_bytes(), b"isolated"), ..self.clone() }
    }

    /// Opens a stream to `port` at `host`: a name, which the exit resolves, or an address. A drop of the future cancels
    /// the stream.
    ///
    /// # Errors
    /// When `host` is neither a name nor an address, no circuit is available, or the exit could not connect.
    pub async fn open(&self, host: &str, port: u16) -> Result<Stream, ConnectError> {
        let host = Host::parse(host).map_err(|_| ConnectError::from(EndReason::NotFound))?;
        Connector::open(self, Target { host, port }, self.isolation).await
    }

    /// Resolves `name` to its IPv4 and IPv6 addresses, at an exit. The result is empty if `name` is itself an address.
    ///
    /// # Errors
    /// When `name` is invalid, no circuit is available, or the name has no address.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, ConnectError> {
        let host = Host::parse(name).map_err(|_| ConnectError::from(EndReason::NotFound))?;
        let answers = Connector::resolve(self, host, self.isolation).await?;
        let address = |answer| if let ResolvedAnswer::Ip(ip) = answer { Some(ip) } else { None };
        Ok(answers.into_iter().filter_map(address).collect())
    }

    /// Sends the command with a channel for the reply, and waits for the reply.
    async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ConnectError>>) -> ClientCommand,
    ) -> Result<T, ConnectError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ConnectError::Stopped)?;
        answer.await.unwrap_or(Err(ConnectError::Stopped))
    }
}

impl Connector for Client {
    async fn open(&self, target: Target, isolation: Isolation) -> Result<Stream, ConnectError> {
        self.call(|reply| ClientCommand::Open { target, isolation, reply }).await
    }

    async fn resolve(&self, host: Host, isolation: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        self.call(|reply| ClientCommand::Resolve { host, isolation, reply }).await
    }

    async fn delegate(&self, request: DelegatedRequest) -> Result<Delegated, ConnectError> {
        self.call(|reply| ClientCommand::Delegate { request, reply }).await
    }
}

/// Runs a client with its local ports until the process ends.
///
/// # Errors
/// When the configuration, a file or a port can't be used.
pub(crate) async fn run(options: ClientOptions, reporter: Reporter) -> Result<(), Failure> {
    let allow_remote = options.allow_remote.unwrap_or(false);
    let socks_address = options.socks.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9350)));
    let http_address = options.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9351)));
    let socks = listen(LocalPort::Socks, socks_address, allow_remote).await?;
    let http = listen(LocalPort::Http, http_address, allow_remote).await?;
    let page_address = options.page.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9352)));
    let page = listen(LocalPort::Page, page_address, allow_remote).await?;
    let port = |listener: &TcpListener| listener.local_addr().map_err(Failure::system("can't read a port's address"));
    let ports = Report::Ready { socks: port(&socks)?, http: port(&http)?, page: port(&page)? };
    let engine = options.engine.as_deref().map(parse_engine).transpose()?;
    let middle = options.middle.as_deref().map(parse_relay).transpose()?;

    let folder = Folder::open(&data_dir(options.data_dir.as_deref(), "client")?)?;
    let _lock = folder.lock()?;
    let directories = network::directory_config(&options.directory, &options.authority, Some(&folder))?;
    let searches = SearchSettings { engine, prebuilt: true };
    let (client, mut ready) = Client::start(directories, Some(folder), middle, searches, reporter)?;
    let check = ProxyCheck::new(&mut randomness()?);
    let requester = client.requester();
    let search_page = SearchPage {
        searcher: client.searcher(),
        reader: PageReader::new(requester.clone()),
        requester,
        check,
        socks: port(&socks)?,
    };
    // The proxy check of the search page sends its request through the SOCKS5 or the HTTP port.
    let client =
        ByDestination::new(ProxyCheckConnector::new(client, check), options.isolate_destination.unwrap_or(false));
    tracing::info!("client started; waiting for the first circuit");
    let announce = async {
        if ready.wait_for(|ready| *ready).await.is_ok() {
            tracing::info!("ready: the first circuit is built");
            reporter.send(&ports);
        }
        core::future::pending::<()>().await;
    };
    let max_connections = descriptors::connections_per_port();
    let ports = async {
        tokio::join!(
            announce,
            socks::serve(socks, client.clone(), SocksLimits { max_connections, ..SocksLimits::default() }),
            http_proxy::serve(http, client, HttpLimits { max_connections, ..HttpLimits::default() }),
        );
    };
    let page_outcome = tokio::select! {
        () = ports => Ok(()),
        outcome = page::serve(page, search_page, max_connections.min(page::MAX_CONNECTIONS)) => outcome,
    };
    page_outcome.map_err(Failure::system("can't read the address of the search page's port"))
}

fn parse_relay(text: &str) -> Result<RelayId, Failure> {
    RelayId::from_base32(text).ok_or_else(|| Failure::usage(format!("middle: \"{text}\" is not a relay's identity")))
}

fn parse_engine(name: &str) -> Result<EngineName, Failure> {
    EngineName::parse(name)
        .ok_or_else(|| Failure::usage(format!("engine: {name:?} is not a name; use 1 to 32 of a-z, 0-9 and -")))
}
