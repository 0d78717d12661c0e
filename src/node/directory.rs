//! `umbel directory`: an authority, its HTTP API, and the dials that verify relays.

use core::{
    task::{Context, Poll},
    time::Duration,
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use rand::{CryptoRng, rngs::StdRng};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use crate::{
    base::{DialError, DialTarget, Instant, LinkEvent, LinkMachine, RelayId, Transmit},
    channel::{ChannelEvent, ChannelOpenError, ChannelParameters, Channels, LocalRole},
    directory::{Authority, AuthorityConfig, Parameters, ProofError},
    directory_http::{
        server::{DirectoryServer, Prover, TrustedProxies, run_authority},
        store::FileStore,
    },
    io::{clock::wall_time, files::Folder},
    transport::{
        Driven,
        native::{Certificate, Sockets},
    },
};

use super::{
    Failure,
    drive::{Clock, Drive, TaskDriven, randomness},
    network,
    options::{DirectoryOptions, data_dir},
    report::{Report, Reporter},
    web,
};

/// Runs a directory until the process ends.
///
/// # Errors
/// When the configuration, a key file, the store or the port can't be used.
pub(crate) async fn run(options: DirectoryOptions, reporter: Reporter) -> Result<(), Failure> {
    let mut rng = randomness()?;
    let folder = Folder::open(&data_dir(options.data_dir.as_deref(), "directory")?)?;
    let _lock = folder.lock()?;
    let key = folder.authority(&mut rng)?;
    let authority = Authority::new(key, config(&options)?);
    let proxies = TrustedProxies::parse(options.trusted_proxy.iter().flatten()).map_err(Failure::usage)?;
    for length in proxies.wide_prefix_lengths() {
        tracing::warn!(
            length,
            "trusted_proxy: a prefix contains more than one address, and each machine in it can claim any address in \
             X-Forwarded-For, and so avoid the limits of its network; name the addresses of the proxies alone"
        );
    }
    let store = FileStore::open(&folder.path().join("directory.redb"))?;
    let listen = options.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9360)));
    let action = format!("can't listen on {listen}; choose another address with --listen ADDR");
    let listener = TcpListener::bind(listen).await.map_err(Failure::system(action))?;
    let api = listener.local_addr().map_err(Failure::system("can't read the listening address"))?;

    let certificate = Certificate::generate()?;
    let (proofs, receiver) = mpsc::channel(64);
    let driven = DrivenProver::new(receiver);
    let sockets = Sockets::bind(&[], true)?;
    let drive = Drive::new(Clock::start(), sockets, network::endpoint(certificate, None), driven, rng)?;

    let (server, submissions) = DirectoryServer::new();
    let engines = options.web_engine.as_deref().unwrap_or_default();
    let pages = web::directory_pages(options.web.unwrap_or(false), authority.id(), engines).await?;
    let server = server.with_web(pages).with_proxies(proxies);
    let serving = server.clone().serve(listener);
    let key = authority.id().to_string();
    tracing::info!(authority = key, "directory started");
    reporter.send(&Report::Directory { api, authority: key });
    let prover = ByDialling { proofs };
    tokio::select! {
        () = drive.run() => {}
        served = serving => { served.map_err(Failure::system("the HTTP server ended"))?; }
        ended = run_authority(authority, (server, submissions), store, prover, wall_time, randomness()?) => {
            ended.map_err(Failure::failed)?;
        }
    }
    Ok(())
}

fn config(options: &DirectoryOptions) -> Result<AuthorityConfig, Failure> {
    let defaults = AuthorityConfig::default();
    let private = options.private_network.unwrap_or(false);
    let interval = options.interval.map_or(defaults.interval, Duration::from_secs);
    if interval < Duration::from_secs(1) {
        return Err(Failure::usage("interval: the minimum is 1 second"));
    }
    let similar = u64::from(private);
    let mut parameters = Parameters::default().with("path.similar-addresses", similar).map_err(Failure::failed)?;
    if let Some(interval) = options.volunteer_interval {
        parameters = parameters.with("volunteer.interval-seconds", interval).map_err(Failure::failed)?;
    }
    Ok(AuthorityConfig {
        first_consensus_relays: options.await_relays.unwrap_or(defaults.first_consensus_relays),
        interval,
        private_addresses: private,
        clock_is_right: options.clock_is_right.unwrap_or(false),
        // In a private network dials are cheap. All its relays start together, so no relay has a long uptime.
        proof_interval: if private { Duration::from_secs(20) } else { defaults.proof_interval },
        stable_after: if private { Duration::ZERO } else { defaults.stable_after },
        parameters,
        ..defaults
    })
}

/// A relay to dial, and the recipient of the outcome.
struct ProofRequest {
    target: DialTarget,
    outcome: oneshot::Sender<Result<(), ProofError>>,
}

/// A [`Prover`] that sends dial requests to the task that owns the links.
struct ByDialling {
    proofs: mpsc::Sender<ProofRequest>,
}

impl Prover for ByDialling {
    async fn prove(&self, target: DialTarget) -> Result<(), ProofError> {
        let failed = ProofError::Dial(DialError::Unable);
        let (outcome, receiver) = oneshot::channel();
        self.proofs.send(ProofRequest { target, outcome }).await.map_err(|_| failed)?;
        receiver.await.unwrap_or(Err(failed))
    }
}

/// Dials relays, one link at a time to each, and closes the link when the relay is authenticated.
struct DrivenProver {
    channels: Channels,
    proofs: mpsc::Receiver<ProofRequest>,
    /// The requests for each relay; the first is in flight, the others wait.
    in_flight: BTreeMap<RelayId, VecDeque<ProofRequest>>,
}

impl DrivenProver {
    fn new(proofs: mpsc::Receiver<ProofRequest>) -> Self {
        let channels = Channels::new(LocalRole::Client, ChannelParameters::default());
        Self { channels, proofs, in_flight: BTreeMap::new() }
    }

    fn add(&mut self, now: Instant, proof: ProofRequest) {
        let waiting = self.in_flight.entry(proof.target.relay).or_default();
        if waiting.is_empty() {
            self.channels.connect(now, &proof.target);
        }
        waiting.push_back(proof);
    }

    fn finish(&mut self, now: Instant, relay: RelayId, outcome: Result<(), ProofError>) {
        let Some(waiting) = self.in_flight.get_mut(&relay) else { return };
        if let Some(proof) = waiting.pop_front() {
            // The requester may have stopped waiting.
            let _ = proof.outcome.send(outcome);
        }
        if let Some(next) = waiting.front() {
            self.channels.connect(now, &next.target);
        } else {
            self.in_flight.remove(&relay);
        }
    }

    fn handle_channel_events(&mut self, now: Instant) {
        while let Some(event) = self.channels.poll_event() {
            match event {
                ChannelEvent::Open { channel, peer, .. } => {
                    self.channels.close(channel);
                    if let Some(relay) = peer {
                        self.finish(now, relay, Ok(()));
                    }
                }
                ChannelEvent::DialFailed { relay, error } => {
                    let error = match error {
                        ChannelOpenError::Dial(error) => ProofError::Dial(error),
                        ChannelOpenError::Handshake(_) => ProofError::Identity,
                        ChannelOpenError::Closed => ProofError::Dial(DialError::Refused),
                    };
                    self.finish(now, relay, Err(error));
                }
                // These channels carry no circuits.
                ChannelEvent::Cell { .. } | ChannelEvent::QueueLow { .. } | ChannelEvent::Closed { .. } => {}
            }
        }
    }
}

impl LinkMachine for DrivenProver {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        self.channels.handle_link(now, event, rng);
    }

    fn handle_timeout(&mut self, now: Instant, _: &mut dyn CryptoRng) {
        self.channels.handle_timeout(now);
    }

    fn handle_batch_end(&mut self, now: Instant, _: &mut dyn CryptoRng) {
        self.handle_channel_events(now);
    }

    fn poll_transmit(&mut self, now: Instant, _: &mut dyn CryptoRng) -> Option<Transmit> {
        self.channels.poll_transmit(now)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.channels.poll_timeout()
    }
}

impl TaskDriven for DrivenProver {
    fn poll_outside(&mut self, now: Instant, _: &mut StdRng, cx: &mut Context<'_>) -> Poll<()> {
        let mut progress = Poll::Pending;
        while let Poll::Ready(Some(proof)) = self.proofs.poll_recv(cx) {
            self.add(now, proof);
            progress = Poll::Ready(());
        }
        progress
    }
}

impl Driven for DrivenProver {
    fn machine(&mut self) -> &mut impl LinkMachine {
        self
    }

    fn deliver(&mut self, _: Instant) -> bool {
        false
    }
}
