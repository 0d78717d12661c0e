//! A relay as a process (`umbel relay`) or inside another program ([`EmbeddedRelay`]): its core, its exit, and the
//! tasks that refresh its documents.
//!
//! A listening relay publishes its descriptor and, as a gateway, reports its volunteers. A relay that doesn't listen is
//! a volunteer, and registers with the directory.

mod delegate;
mod embedded;
mod presence;
mod task;
mod upkeep;
mod volunteer;

use core::time::Duration;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{
    base::RelayId,
    crypto::IdentityKey,
    delegated::Offer,
    directory::{Consensus, Profile},
    directory_http::client::DirectoryClient,
    exit::{Exit, ExitOptions, delegated::Delegate},
    exit_policy::{Nat64Prefix, Policy, Summary},
    io::{
        clock::wall_time,
        files::{Folder, FolderLock},
        resolver::{Nat64Queries, Resolver, ResolverOptions},
    },
    relay::{Reach, Relay, RelayParameters},
    transport::{
        native::{Certificate, EndpointConfig, Ice, Sockets},
        sctp::congestion::Algorithm,
    },
    web::PageDirectories,
};

use self::{
    presence::Presences,
    task::{Changes, DrivenRelay, RelayCommand},
    upkeep::{ExitPorts, ProfileSource, Upkeep},
    volunteer::Registrations,
};
use super::{
    Failure,
    drive::{Clock, Drive, randomness},
    network,
    options::{Congestion, RelayOptions, data_dir},
    report::{Report, Reporter},
    web::PagesPort,
};

pub use embedded::{EmbeddedRelay, RelayConfig, RelayError};

/// Runs a relay until SIGINT, SIGTERM or the end of its supervisor.
///
/// # Errors
/// When the configuration, a key file or the port can't be used.
pub(crate) async fn run(options: RelayOptions, reporter: Reporter) -> Result<(), Failure> {
    let (progress, _) = Progress::new(reporter);
    RelayAssembly::new(&options, progress).await?.run_until(stopped()).await
}

/// The recipients of a relay's progress: the supervisor of its process, and the program that embeds it.
struct Progress {
    reporter: Reporter,
    ready: watch::Sender<bool>,
}

impl Progress {
    /// The receiver gets `true` at the first report.
    fn new(reporter: Reporter) -> (Self, watch::Receiver<bool>) {
        let (sender, ready) = watch::channel(false);
        (Self { reporter, ready: sender }, ready)
    }

    /// Reports that the relay is registered, or that the volunteer is reachable.
    fn send(&self, report: &Report) {
        self.ready.send_replace(true);
        self.reporter.send(report);
    }
}

/// A relay's core and the tasks around it, ready to run.
struct RelayAssembly {
    identity: RelayId,
    drive: Drive<DrivenRelay>,
    commands: mpsc::Sender<RelayCommand>,
    /// Fetches each consensus.
    follower: DirectoryClient,
    /// Receives the time between two volunteer lists, from the consensus.
    interval: watch::Sender<Option<Duration>>,
    profiles: ProfileSource,
    publication: Publication,
    /// Sends the documents of `publication`.
    publisher: DirectoryClient,
    /// The reports of a gateway; `None` for other relays.
    presences: Option<Presences>,
    /// The repeated queries of an exit; `None` for other relays.
    nat64: Option<Nat64Queries>,
    pages: PagesPort,
    _lock: FolderLock,
}

/// The method of publishing the relay at the directory.
enum Publication {
    /// By the descriptor of a listening relay.
    Descriptor(Upkeep),
    /// By the registrations of a volunteer.
    Registrations(Registrations),
}

impl RelayAssembly {
    /// Opens the relay's folder and sockets.
    ///
    /// # Errors
    /// When the configuration, a key file or the port can't be used.
    async fn new(options: &RelayOptions, progress: Progress) -> Result<Self, Failure> {
        check(options)?;
        let mut rng = randomness()?;
        let policy = policy(options)?;
        let folder = Folder::open(&data_dir(options.data_dir.as_deref(), "relay")?)?;
        let lock = folder.lock()?;
        let identity = Arc::new(folder.identity(&mut rng)?);
        let onion_keys = folder.onion_keys(wall_time(), &mut rng)?;
        let listener = RelayListener::open(options, &folder, &identity)?;
        let mut services = Services::new(options, policy, listener.own_addresses()).await?;
        let (delegate, nat64) = (services.delegate.clone(), services.nat64.take());
        let summary = services.policy.as_ref().map(Policy::summary);
        let ports = summary.map(|policy| ExitPorts { policy, resolver: Arc::clone(&services.resolver) });
        let profile = Profile {
            identity: identity.id(),
            addresses: listener.addresses,
            ice_ufrag: listener.ice.ufrag().to_owned(),
            ice_password: listener.ice.password().to_owned(),
            fingerprint: listener.certificate.fingerprint(),
            onion_key: onion_keys.public(),
            family: family(options)?,
            operator: String::new(),
            exit: Summary::default(),
            offer: Offer::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let parameters = parameters(options, services.policy.is_some(), delegate.is_some());
        let is_volunteer = parameters.reach == Reach::Gateways;
        let (commands, receiver) = mpsc::channel(8);
        let (observers, changes) = Changes::new();
        let relay = Relay::new(Arc::clone(&identity), onion_keys, parameters);
        let config = EndpointConfig {
            congestion: congestion(options),
            ..network::endpoint(listener.certificate, (!is_volunteer).then_some(listener.ice))
        };
        let driven = DrivenRelay::new(relay, services.exit(), receiver, observers);
        let drive = Drive::new(Clock::start(), listener.sockets, config, driven, rng)?;

        let directories = network::directory_config(&options.directory, &options.authority, Some(&folder))?;
        let page_directories = PageDirectories::At(directories.directories.clone());
        let engines = options.web_engine.as_deref().unwrap_or_default();
        let pages = PagesPort::open(options.web, page_directories, &directories.authorities, engines).await?;
        let directory = || DirectoryClient::new(directories.clone());
        let (interval_sender, interval) = watch::channel(None);
        let presences = (!is_volunteer && options.gateway.unwrap_or(true)).then_some(Presences {
            identity: Arc::clone(&identity),
            directory: directory()?,
            commands: commands.clone(),
            volunteers: changes.volunteers,
            interval: interval.clone(),
        });
        let id = identity.id();
        tracing::info!(relay = %id, exit = ports.is_some(), volunteer = is_volunteer, "relay started");
        let publication = if is_volunteer {
            let gateways = changes.gateways;
            Publication::Registrations(Registrations {
                identity,
                commands: commands.clone(),
                gateways,
                interval,
                progress,
            })
        } else {
            Publication::Descriptor(Upkeep { identity, progress })
        };
        Ok(Self {
            identity: id,
            drive,
            profiles: ProfileSource { folder, commands: commands.clone(), delegate, ports, profile },
            commands,
            follower: directory()?,
            interval: interval_sender,
            publication,
            publisher: directory()?,
            presences,
            nat64,
            pages,
            _lock: lock,
        })
    }

    /// Runs the relay until `stop` completes, then up to a second longer to close its links.
    ///
    /// # Errors
    /// When the relay's documents can't be signed.
    async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), Failure> {
        let Self { drive, commands, follower, interval, profiles, publication, publisher, .. } = self;
        let (presences, nat64, pages) = (self.presences, self.nat64, self.pages);
        let delegate = profiles.delegate.clone();
        let published = async {
            match publication {
                Publication::Descriptor(upkeep) => upkeep.run(profiles, publisher).await,
                Publication::Registrations(registrations) => registrations.run(profiles, publisher).await,
            }
        };
        tokio::select! {
            () = drive.run_until(stop) => {}
            () = network::follow(follower, randomness()?, |consensus: Arc<Consensus>| {
                let commands = commands.clone();
                interval.send_replace(Some(consensus.parameters().volunteer_interval()));
                async move { commands.send(RelayCommand::Consensus(consensus)).await.is_ok() }
            }) => {}
            outcome = published => outcome?,
            () = refresh(delegate.as_deref()) => {}
            () = report_volunteers(presences) => {}
            () = query_nat64(nat64) => {}
            () = pages.serve() => {}
        }
        Ok(())
    }
}

/// Rejects mutually exclusive options.
fn check(options: &RelayOptions) -> Result<(), Failure> {
    if !options.no_listen.unwrap_or(false) {
        return Ok(());
    }
    let refused =
        |key: &str, why: &str| Err(Failure::usage(format!("{key}: not allowed with no_listen, because {why}")));
    if options.listen.is_some() || options.address.is_some() {
        return refused("listen and address", "a volunteer has no public address");
    }
    if options.exit.as_ref().is_some_and(|rules| !rules.is_empty()) {
        return refused("exit", "a volunteer opens no streams to targets; it may perform requests (delegate)");
    }
    Ok(())
}

fn parameters(options: &RelayOptions, exit: bool, delegate: bool) -> RelayParameters {
    let reach = if options.no_listen.unwrap_or(false) { Reach::Gateways } else { Reach::Direct };
    let mut parameters = RelayParameters { exit, delegate, reach, ..RelayParameters::default() };
    if !options.gateway.unwrap_or(true) {
        parameters.channel.volunteers = 0;
    }
    parameters
}

fn congestion(options: &RelayOptions) -> Algorithm {
    match options.congestion {
        Some(Congestion::Cubic) => Algorithm::Cubic,
        Some(Congestion::Bbr) => Algorithm::Bbr,
        None => Algorithm::default(),
    }
}

/// Sockets, addresses and transport credentials of a relay.
struct RelayListener {
    sockets: Sockets,
    /// The addresses at which others reach the relay; empty for a volunteer.
    addresses: Vec<SocketAddr>,
    ice: Ice,
    certificate: Certificate,
}

impl RelayListener {
    /// Opens the sockets that `options` require.
    fn open(options: &RelayOptions, folder: &Folder, identity: &IdentityKey) -> Result<Self, Failure> {
        let ice = network::ice_of(&identity.id())?;
        if options.no_listen.unwrap_or(false) {
            // Never presented, because each dial creates a fresh certificate.
            let certificate = Certificate::generate()?;
            let sockets = Sockets::bind(&[], true)?;
            return Ok(Self { sockets, addresses: Vec::new(), ice, certificate });
        }
        let listen = options.listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 4443)));
        let sockets = Sockets::bind(&[listen], true)?;
        let (addresses, certificate) = (addresses(options, &sockets)?, network::certificate(folder)?);
        Ok(Self { sockets, addresses, ice, certificate })
    }

    /// The relay's own addresses, which its exit refuses as targets.
    fn own_addresses(&self) -> Vec<IpAddr> {
        self.addresses.iter().chain(&self.sockets.listening()).map(SocketAddr::ip).collect()
    }
}

/// The addresses of an exit and its network, on which no rule of its policies alone decides.
struct ExitNetwork {
    own_addresses: Vec<IpAddr>,
    nat64: Vec<Nat64Prefix>,
}

impl ExitNetwork {
    /// The policy without the exit's own addresses, and without those that reach a refused address over NAT64.
    fn restrict(&self, policy: Policy) -> Policy {
        policy.refusing_own(self.own_addresses.iter().copied()).with_nat64(self.nat64.iter().copied())
    }
}

/// The services of an exit.
struct Services {
    /// The policy for streams; `None` if the relay opens no streams to targets.
    policy: Option<Policy>,
    resolver: Arc<Resolver>,
    /// The queries for the NAT64 prefixes of the network; `None` unless the relay is an exit to public targets only.
    nat64: Option<Nat64Queries>,
    /// The service for delegated requests.
    delegate: Option<Arc<Delegate>>,
}

impl Services {
    async fn new(options: &RelayOptions, policy: Option<Policy>, own_addresses: Vec<IpAddr>) -> Result<Self, Failure> {
        let network = ExitNetwork { own_addresses, nat64: nat64(options)? };
        let is_exit = policy.is_some() || options.delegate.is_some();
        // With private targets, as in a testnet, the operator names the prefixes.
        let queries_nat64 = is_exit && !options.allow_private_targets.unwrap_or(false);
        let resolver = Arc::new(resolver(options, queries_nat64 && network.nat64.is_empty()));
        let nat64 = if queries_nat64 { Some(Nat64Queries::start(Arc::clone(&resolver)).await) } else { None };
        let policy = policy.map(|policy| network.restrict(policy));
        let delegate = delegate::delegate(options, policy.as_ref(), &network, &resolver).await?.map(Arc::new);
        Ok(Self { policy, resolver, nat64, delegate })
    }

    /// The exit that performs these services, if there are any.
    fn exit(self) -> Option<Exit> {
        if self.policy.is_none() && self.delegate.is_none() {
            return None;
        }
        let policy = self.policy.unwrap_or_else(Policy::refuse_all);
        Some(Exit::new(ExitOptions::new(policy), self.resolver, self.delegate))
    }
}

/// Waits for SIGINT or SIGTERM. SIGHUP ends the process immediately, unless the process was started with SIGHUP
/// ignored.
async fn stopped() {
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "can't handle signals; channels will not be closed when this relay ends");
            return core::future::pending().await;
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("received a signal to end; closing all channels");
}

/// Reports volunteers if the relay is a gateway; otherwise never completes.
async fn report_volunteers(presences: Option<Presences>) {
    match presences {
        Some(presences) => presences.run().await,
        None => core::future::pending().await,
    }
}

/// Repeats the queries for NAT64 prefixes if there are any; otherwise never completes.
async fn query_nat64(queries: Option<Nat64Queries>) {
    match queries {
        Some(queries) => queries.run().await,
        None => core::future::pending().await,
    }
}

fn policy(options: &RelayOptions) -> Result<Option<Policy>, Failure> {
    let Some(rules) = options.exit.as_deref().filter(|rules| !rules.is_empty()) else { return Ok(None) };
    let private_targets = options.allow_private_targets.unwrap_or(false);
    Policy::parse(rules, private_targets).map(Some).map_err(Failure::invalid("exit"))
}

fn nat64(options: &RelayOptions) -> Result<Vec<Nat64Prefix>, Failure> {
    let prefixes = options.nat64.iter().flatten().map(|text| text.parse());
    prefixes.collect::<Result<_, _>>().map_err(Failure::invalid("nat64"))
}

fn resolver(options: &RelayOptions, await_nat64: bool) -> Resolver {
    let servers = options.resolver.iter().flatten().map(|server| SocketAddr::new(*server, 53)).collect();
    let private_addresses = options.allow_private_targets.unwrap_or(false);
    Resolver::new(&ResolverOptions { servers, private_addresses, await_nat64, ..ResolverOptions::default() })
}

/// Refreshes the delegated services if the relay offers any; otherwise never completes.
async fn refresh(delegate: Option<&Delegate>) {
    match delegate {
        Some(delegate) => delegate.run().await,
        None => core::future::pending().await,
    }
}

fn addresses(options: &RelayOptions, sockets: &Sockets) -> Result<Vec<SocketAddr>, Failure> {
    let published = options.address.clone().unwrap_or_else(|| sockets.listening());
    if published.is_empty() || published.iter().any(|address| address.ip().is_unspecified()) {
        return Err(Failure::usage(
            "address is missing, and the listening address is not one that others can reach; add --address IP:PORT",
        ));
    }
    Ok(published)
}

fn family(options: &RelayOptions) -> Result<Vec<RelayId>, Failure> {
    let read = |text: &String| {
        RelayId::from_base32(text)
            .ok_or_else(|| Failure::usage(format!("family: \"{text}\" is not a relay's identity")))
    };
    options.family.iter().flatten().map(read).collect()
}
