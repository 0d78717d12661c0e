//! `umbel relay`: a relay's core, its exit, and the tasks that refresh its documents.
//!
//! A listening relay publishes its descriptor and, as a gateway, reports its volunteers. One that doesn't listen is a
//! volunteer, and registers.

mod delegate;
mod presence;
mod task;
mod upkeep;
mod volunteer;

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{
    base::RelayId,
    crypto::IdentityKey,
    delegated::Offer,
    directory::Profile,
    exit::Policy,
    io::{
        clock::wall_time,
        delegated::Delegate,
        directory_client::DirectoryClient,
        exit::{Exit, ExitOptions},
        files::Folder,
        resolver::{Resolver, ResolverOptions},
        web::Directories,
    },
    relay::{Reach, Relay, RelayParameters},
    transport::{
        native::{Certificate, EndpointConfig, Ice, Sockets},
        sctp::congestion::Algorithm,
    },
};

use self::{
    presence::Presences,
    task::{Changes, RelayCore, Update},
    upkeep::{Fresh, Upkeep},
    volunteer::Registrations,
};
use super::{
    Failure,
    drive::{Clock, Drive, randomness},
    network,
    options::{Congestion, RelayOptions, data_dir},
    report::Reporter,
    web::PagesPort,
};

/// Runs a relay until SIGINT, SIGTERM or the end of its supervisor.
///
/// # Errors
/// When the configuration, a key file or the port can't be used.
pub(crate) async fn run(options: RelayOptions, reporter: Reporter) -> Result<(), Failure> {
    check(&options)?;
    let mut rng = randomness()?;
    let policy = policy(&options)?;
    let folder = Folder::open(&data_dir(options.data_dir.as_deref(), "relay")?)?;
    let _lock = folder.lock()?;
    let identity = Arc::new(folder.identity(&mut rng)?);
    let onion_keys = folder.onion_keys(wall_time(), &mut rng)?;
    let place = Place::find(&options, &folder, &identity)?;
    let own: Vec<_> = place.addresses.iter().chain(&place.sockets.listening()).map(SocketAddr::ip).collect();
    let policy = policy.map(|policy| policy.refusing_own(own.iter().copied()));
    let resolver = Arc::new(resolver(&options));
    let delegate = delegate::delegate(&options, policy.as_ref(), &own, &resolver).await?.map(Arc::new);
    let profile = Profile {
        identity: identity.id(),
        addresses: place.addresses,
        ice_ufrag: place.ice.ufrag().to_owned(),
        ice_password: place.ice.password().to_owned(),
        fingerprint: place.certificate.fingerprint(),
        onion_key: onion_keys.public(),
        family: family(&options)?,
        operator: String::new(),
        exit: policy.as_ref().map(Policy::summary).unwrap_or_default(),
        offer: Offer::default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let parameters = parameters(&options, policy.is_some(), delegate.is_some());
    let exit = (parameters.exit || parameters.delegate).then(|| {
        let policy = policy.unwrap_or_else(Policy::refuse_all);
        Exit::new(ExitOptions::new(policy), resolver, delegate.clone())
    });
    let is_volunteer = parameters.reach == Reach::Gateways;
    let (updates, receiver) = mpsc::channel(8);
    let (told, changes) = Changes::new();
    let relay = Relay::new(Arc::clone(&identity), onion_keys, parameters);
    let config = EndpointConfig {
        congestion: match options.congestion {
            Some(Congestion::Cubic) => Algorithm::Cubic,
            Some(Congestion::Bbr) => Algorithm::Bbr,
            None => Algorithm::default(),
        },
        ..network::endpoint(place.certificate, (!is_volunteer).then_some(place.ice))
    };
    let drive = Drive::new(Clock::start(), place.sockets, config, RelayCore::new(relay, exit, receiver, told), rng)?;

    let directories = network::directory_config(&options.directory, &options.authority, Some(&folder))?;
    let at = Directories::At(directories.directories.clone());
    let pages = {
        let engines = options.web_engine.as_deref().unwrap_or_default();
        PagesPort::open(options.web, at, &directories.authorities, engines).await?
    };
    let directory = || DirectoryClient::new(directories.clone());
    let (follower, publisher) = (directory()?, directory()?);
    let (interval_sender, interval) = watch::channel(None);
    let presences = (!is_volunteer && options.gateway.unwrap_or(true)).then_some(Presences {
        identity: Arc::clone(&identity),
        directory: directory()?,
        updates: updates.clone(),
        volunteers: changes.volunteers,
        interval: interval.clone(),
    });
    tracing::info!(relay = %identity.id(), exit = !profile.exit.is_empty(), volunteer = is_volunteer, "relay started");
    let fresh = Fresh { folder, updates: updates.clone(), delegate: delegate.clone(), profile };
    let registrations = Registrations {
        identity: Arc::clone(&identity),
        updates: updates.clone(),
        gateways: changes.gateways,
        interval,
        reporter,
    };
    let upkeep = Upkeep { identity, reporter };
    let stated = async {
        if is_volunteer { registrations.run(fresh, publisher).await } else { upkeep.run(fresh, publisher).await }
    };
    let consensus = updates.clone();
    tokio::select! {
        () = drive.run_until(stopped()) => {}
        () = network::follow(follower, randomness()?, |found| {
            let consensus = consensus.clone();
            interval_sender.send_replace(Some(found.parameters().volunteer_interval()));
            async move { consensus.send(Update::Consensus(found)).await.is_ok() }
        }) => {}
        outcome = stated => outcome?,
        () = keep(delegate.as_deref()) => {}
        () = report(presences) => {}
        () = pages.serve() => {}
    }
    Ok(())
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

/// Sockets, addresses and transport credentials of a relay.
struct Place {
    sockets: Sockets,
    /// The addresses at which others reach it; empty for a volunteer.
    addresses: Vec<SocketAddr>,
    ice: Ice,
    certificate: Certificate,
}

impl Place {
    fn find(options: &RelayOptions, folder: &Folder, identity: &IdentityKey) -> Result<Self, Failure> {
        let ice = network::ice_of(&identity.id())?;
        if options.no_listen.unwrap_or(false) {
            // Never presented: each dial creates a fresh certificate.
            let certificate = Certificate::generate()?;
            let sockets = Sockets::bind(&[], true)?;
            return Ok(Self { sockets, addresses: Vec::new(), ice, certificate });
        }
        let listen = options.listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 4443)));
        let sockets = Sockets::bind(&[listen], true)?;
        let (addresses, certificate) = (addresses(options, &sockets)?, network::certificate(folder)?);
        Ok(Self { sockets, addresses, ice, certificate })
    }
}

/// Waits for SIGINT or SIGTERM. (SIGHUP ends the process at once, unless its parent set it to be ignored.)
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

/// Reports volunteers for ever, if the relay is a gateway.
async fn report(presences: Option<Presences>) {
    match presences {
        Some(presences) => presences.run().await,
        None => core::future::pending().await,
    }
}

fn policy(options: &RelayOptions) -> Result<Option<Policy>, Failure> {
    let Some(rules) = options.exit.as_deref().filter(|rules| !rules.is_empty()) else { return Ok(None) };
    let private_targets = options.allow_private_targets.unwrap_or(false);
    Policy::parse(rules, private_targets).map(Some).map_err(Failure::invalid("exit"))
}

fn resolver(options: &RelayOptions) -> Resolver {
    let servers = options.resolver.iter().flatten().map(|server| SocketAddr::new(*server, 53)).collect();
    let private_addresses = options.allow_private_targets.unwrap_or(false);
    Resolver::new(&ResolverOptions { servers, private_addresses, ..ResolverOptions::default() })
}

/// Runs the upkeep of delegated services for ever, if the relay offers any.
async fn keep(delegate: Option<&Delegate>) {
    match delegate {
        Some(delegate) => delegate.keep().await,
        None => core::future::pending().await,
    }
}

fn addresses(options: &RelayOptions, sockets: &Sockets) -> Result<Vec<SocketAddr>, Failure> {
    let published = options.address.clone().unwrap_or_else(|| sockets.listening());
    if published.is_empty() || published.iter().any(|address| address.ip().is_unspecified()) {
        return Err(Failure::usage(
            "address: none is given, and the listening address is not one that others can reach; add --address IP:PORT",
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
