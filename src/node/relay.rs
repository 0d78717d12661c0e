//! `umbel relay`: a relay's core, its exit if it is one, and what keeps both up to date.

mod delegate;

use core::{
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};
use std::{net::SocketAddr, sync::Arc};

use rand::{CryptoRng, rngs::StdRng};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    base::{Instant, LinkEvent, LinkMachine, RelayId, Transmit},
    crypto::IdentityKey,
    delegated::Offer,
    directory::{Consensus, Descriptor, Profile},
    exit::Policy,
    io::{
        clock::wall_time,
        delegated::Delegate,
        directory_client::DirectoryClient,
        exit::{Exit, ExitOptions},
        files::Folder,
        resolver::{Resolver, ResolverOptions},
    },
    relay::{Relay, RelayEvent, RelayParameters},
    transport::native::Sockets,
};

use super::{
    Failure,
    drive::{Clock, Core, Drive, randomness},
    network,
    options::{RelayOptions, data_dir},
    report::{Report, Reporter},
};

/// From one publication of the descriptor to the next; authorities forget a relay after 18 h.
const PUBLISH_EVERY: Duration = Duration::from_secs(60 * 60);
/// After a failed publication, at first and at most.
const PUBLISH_RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// Commands taken in before the core gets to answer.
const COMMANDS_A_TURN: usize = 256;

/// Runs a relay until the process ends.
///
/// # Errors
/// When the configuration, a key file or the port can't be used.
pub(crate) async fn run(options: RelayOptions, reporter: Reporter) -> Result<(), Failure> {
    let mut rng = randomness()?;
    let policy = policy(&options)?;
    let folder = Folder::open(&data_dir(options.data_dir.as_deref(), "relay")?).map_err(Failure::usage)?;
    let _lock = folder.lock().map_err(Failure::usage)?;
    let identity = Arc::new(folder.identity(&mut rng).map_err(Failure::usage)?);
    let onion_keys = folder.onion_keys(wall_time(), &mut rng).map_err(Failure::usage)?;
    let certificate = network::certificate(&folder)?;
    let listen = options.listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 4443)));
    let sockets = Sockets::bind(&[listen], true).map_err(Failure::failed)?;
    let ice = network::ice_of(&identity.id())?;
    let addresses = addresses(&options, &sockets)?;
    let own: Vec<_> = addresses.iter().chain(&sockets.listening()).map(SocketAddr::ip).collect();
    let policy = policy.map(|policy| policy.refusing_own(own.iter().copied()));
    let resolver = Arc::new(resolver(&options));
    let delegate = delegate::delegate(&options, policy.as_ref(), &own, &resolver).await?.map(Arc::new);
    let profile = Profile {
        identity: identity.id(),
        addresses,
        ice_ufrag: ice.ufrag().to_owned(),
        ice_password: ice.password().to_owned(),
        fingerprint: certificate.fingerprint(),
        onion_key: onion_keys.public(),
        family: family(&options)?,
        operator: String::new(),
        exit: policy.as_ref().map(Policy::summary).unwrap_or_default(),
        offer: Offer::default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let parameters =
        RelayParameters { exit: policy.is_some(), delegate: delegate.is_some(), ..RelayParameters::default() };
    let exit = (parameters.exit || parameters.delegate).then(|| {
        let policy = policy.unwrap_or_else(Policy::refuse_all);
        Exit::new(ExitOptions::new(policy), resolver, delegate.clone())
    });
    let (updates, receiver) = mpsc::channel(8);
    let core = RelayCore { relay: Relay::new(Arc::clone(&identity), onion_keys, parameters), exit, updates: receiver };
    let config = network::endpoint(certificate, Some(ice));
    let drive = Drive::new(Clock::start(), sockets, config, core, rng)?;

    let directories = network::directory_config(&options.directory, &options.authority, Some(&folder))?;
    let publisher = DirectoryClient::new(directories.clone()).map_err(Failure::usage)?;
    let follower = DirectoryClient::new(directories).map_err(Failure::usage)?;
    let consensus = updates.clone();
    let upkeep = Upkeep { folder, identity, profile, delegate: delegate.clone(), publisher, updates, reporter };
    tracing::info!(relay = %upkeep.identity.id(), exit = !upkeep.profile.exit.is_empty(), "relay started");
    tokio::select! {
        () = drive.run() => {}
        () = network::follow(follower, randomness()?, |found| {
            let consensus = consensus.clone();
            async move { consensus.send(Update::Consensus(found)).await.is_ok() }
        }) => {}
        outcome = upkeep.run() => outcome?,
        () = keep(delegate.as_deref()) => {}
    }
    Ok(())
}

fn policy(options: &RelayOptions) -> Result<Option<Policy>, Failure> {
    let Some(rules) = options.exit.as_deref().filter(|rules| !rules.is_empty()) else { return Ok(None) };
    let private_targets = options.allow_private_targets.unwrap_or(false);
    Policy::parse(rules, private_targets).map(Some).map_err(|error| Failure::Usage(format!("exit: {error}")))
}

fn resolver(options: &RelayOptions) -> Resolver {
    let servers = options.resolver.iter().flatten().map(|server| SocketAddr::new(*server, 53)).collect();
    let private_addresses = options.allow_private_targets.unwrap_or(false);
    Resolver::new(&ResolverOptions { servers, private_addresses, ..ResolverOptions::default() })
}

/// Looks after what is done for clients, if anything is, for ever.
async fn keep(delegate: Option<&Delegate>) {
    match delegate {
        Some(delegate) => delegate.keep().await,
        None => core::future::pending().await,
    }
}

fn addresses(options: &RelayOptions, sockets: &Sockets) -> Result<Vec<SocketAddr>, Failure> {
    let published = options.address.clone().unwrap_or_else(|| sockets.listening());
    if published.is_empty() || published.iter().any(|address| address.ip().is_unspecified()) {
        return Err(Failure::Usage(
            "a relay must say under which address others reach it: add --address IP:PORT".to_owned(),
        ));
    }
    Ok(published)
}

fn family(options: &RelayOptions) -> Result<Vec<RelayId>, Failure> {
    let read = |text: &String| {
        RelayId::from_base32(text).ok_or_else(|| Failure::Usage(format!("family: \"{text}\" is no relay's identity")))
    };
    options.family.iter().flatten().map(read).collect()
}

/// What changes in a relay's course.
enum Update {
    Consensus(Arc<Consensus>),
    OnionKey(crate::crypto::OnionSecret),
}

/// Waits until more is done for clients than before.
async fn offer_grown(delegate: Option<&Delegate>) {
    match delegate {
        Some(delegate) => delegate.offer_grown().await,
        None => core::future::pending().await,
    }
}

/// Keeps the descriptor published and the onion key young.
struct Upkeep {
    folder: Folder,
    identity: Arc<IdentityKey>,
    /// Of the descriptor; its offer is filled in each time.
    profile: Profile,
    delegate: Option<Arc<Delegate>>,
    publisher: DirectoryClient,
    updates: mpsc::Sender<Update>,
    reporter: Reporter,
}

impl Upkeep {
    async fn run(mut self) -> Result<(), Failure> {
        let mut rng = randomness()?;
        let mut registered = false;
        let mut retry = PUBLISH_RETRY.0;
        loop {
            match self.folder.rotate_onion_key(wall_time(), &mut rng) {
                Ok(Some(next)) => {
                    self.profile.onion_key = next.public();
                    let _ = self.updates.send(Update::OnionKey(next)).await;
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "the onion key is not rotated"),
            }
            self.profile.offer = self.delegate.as_deref().map(Delegate::offer).unwrap_or_default();
            let descriptor = Descriptor { profile: self.profile.clone(), published: wall_time() };
            let signed = descriptor.sign(&self.identity).map_err(Failure::usage)?;
            let wait = match self.publisher.publish(&signed).await {
                Ok(()) => {
                    if !registered {
                        registered = true;
                        tracing::info!("registered with the directory");
                        self.reporter.tell(&Report::Registered);
                    }
                    retry = PUBLISH_RETRY.0;
                    PUBLISH_EVERY
                }
                Err(error) => {
                    tracing::warn!(%error, "the descriptor was not taken; will try again");
                    let wait = retry;
                    retry = retry.saturating_mul(2).min(PUBLISH_RETRY.1);
                    wait
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = offer_grown(self.delegate.as_deref()) => {}
            }
        }
    }
}

/// The relay's core with its exit.
struct RelayCore {
    relay: Relay,
    exit: Option<Exit>,
    updates: mpsc::Receiver<Update>,
}

impl RelayCore {
    fn update(&mut self, update: Update) {
        match update {
            Update::Consensus(consensus) => self.relay.set_consensus(consensus),
            Update::OnionKey(next) => self.relay.rotate_onion_key(next),
        }
    }
}

impl LinkMachine for RelayCore {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        self.relay.handle_link(now, event, rng);
    }

    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.relay.handle_timeout(now, rng);
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        self.relay.poll_transmit(now, rng)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.relay.poll_timeout()
    }
}

impl Core for RelayCore {
    fn poll_outside(&mut self, now: Instant, _: &mut StdRng, cx: &mut Context<'_>) -> Poll<()> {
        let mut taken = Poll::Pending;
        while let Poll::Ready(Some(update)) = self.updates.poll_recv(cx) {
            self.update(update);
            taken = Poll::Ready(());
        }
        if let Some(exit) = &mut self.exit {
            for _ in 0..COMMANDS_A_TURN {
                let Poll::Ready(command) = pin!(exit.command()).poll(cx) else { break };
                exit.apply(now, &mut self.relay, command);
                taken = Poll::Ready(());
            }
        }
        taken
    }

    fn deliver(&mut self) -> bool {
        let mut told = false;
        while let Some(event) = self.relay.poll_event() {
            told = true;
            let RelayEvent::Exit(stream, request) = event else { continue };
            if let Some(exit) = &mut self.exit {
                exit.handle(&mut self.relay, stream, request);
            }
        }
        if let Some(exit) = &mut self.exit {
            exit.flush();
        }
        told
    }
}
