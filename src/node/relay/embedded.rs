//! A relay inside another program: its settings, its handle, and its errors.

use std::{net::SocketAddr, path::PathBuf};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    base::RelayId,
    directory::AuthorityId,
    node::{Failure, options::RelayOptions, report::Reporter},
    relay::RelayStatistics,
};

use super::{Progress, RelayAssembly, task::RelayCommand};

/// The network, the keys and the addresses of an [`EmbeddedRelay`].
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Base URLs of directories, such as `http://192.0.2.1:9360`; at least one.
    pub directories: Vec<String>,
    /// Keys of trusted directory authorities; more than half must have signed a consensus.
    pub authorities: Vec<AuthorityId>,
    /// Folder for keys and consensus, created if it doesn't exist. The keys are the relay's identity, so keep the
    /// folder between starts. Only one relay at a time can use a folder.
    pub data_dir: PathBuf,
    /// UDP address to listen on; port 0 for any free port. `None` for a volunteer, which needs no reachable port: a
    /// volunteer keeps channels to public relays, and circuits reach the volunteer over these channels.
    pub listen: Option<SocketAddr>,
    /// Addresses at which others reach a listening relay, at most one IPv4 and one IPv6. If empty, others reach the
    /// relay at the listening address, which then must not be unspecified (`0.0.0.0`, `::`). Always empty for a
    /// volunteer.
    pub addresses: Vec<SocketAddr>,
}

/// A relay that runs as tasks of the program that embeds it, and forwards circuits of others.
///
/// The relay is a guard or middle, never an exit, so it opens no streams to targets. (`umbel relay` runs exits.) It
/// uses a UDP socket for the listening address, two for dials in each address family, and requests to the directory.
/// All its links together buffer at most 256 MiB of received and 256 MiB of unacknowledged data.
///
/// A drop of the handle stops the relay. [`Self::stop`] also waits until the relay has closed its links.
///
/// ```no_run
/// # async fn example(authority: umbel::AuthorityId) -> Result<(), umbel::RelayError> {
/// use umbel::{EmbeddedRelay, RelayConfig};
///
/// let mut relay = EmbeddedRelay::start(RelayConfig {
///     directories: vec!["http://192.0.2.1:9360".to_owned()],
///     authorities: vec![authority],
///     data_dir: "relay".into(),
///     listen: None,
///     addresses: Vec::new(),
/// })
/// .await?;
/// relay.ready().await?;
/// println!("{} circuits", relay.statistics().await?.circuits);
/// relay.stop().await
/// # }
/// ```
#[derive(Debug)]
pub struct EmbeddedRelay {
    identity: RelayId,
    commands: mpsc::Sender<RelayCommand>,
    ready: watch::Receiver<bool>,
    /// A drop of this sender stops the relay.
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Failure>>,
}

/// The failure of an embedded relay.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The configuration or a file in the relay's folder can't be used.
    #[error(transparent)]
    Configuration(Box<dyn core::error::Error + Send + Sync>),
    /// The system provided no socket or no randomness.
    #[error(transparent)]
    System(Box<dyn core::error::Error + Send + Sync>),
    /// The relay has ended.
    #[error("the relay has ended")]
    Ended,
}

impl From<Failure> for RelayError {
    fn from(failure: Failure) -> Self {
        if failure.status() == 2 { Self::Configuration(failure.into()) } else { Self::System(failure.into()) }
    }
}

impl EmbeddedRelay {
    /// Starts a relay on the current tokio runtime, and returns when its sockets are open.
    ///
    /// # Errors
    /// When the configuration, a file in the folder or the listening address can't be used.
    pub async fn start(config: RelayConfig) -> Result<Self, RelayError> {
        let options = options(config)?;
        let (progress, ready) = Progress::new(Reporter::new(false));
        let assembly = RelayAssembly::new(&options, progress).await?;
        let (identity, commands) = (assembly.identity, assembly.commands.clone());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(assembly.run_until(async {
            // Completes with an error at the drop of the sender. No value is ever sent.
            let _ = stopped.await;
        }));
        Ok(Self { identity, commands, ready, stop, task })
    }

    /// The relay's identity, by which the consensus or the volunteer list names it.
    #[must_use]
    pub const fn identity(&self) -> RelayId {
        self.identity
    }

    /// Waits until the directory has accepted the descriptor of a listening relay, or until a volunteer is reachable
    /// over a gateway. Without a directory or a gateway, the wait does not end; the log (`tracing`) has the reasons.
    ///
    /// The directory dials a listening relay, and then lists the relay in the next consensus.
    ///
    /// # Errors
    /// [`RelayError::Ended`].
    pub async fn ready(&mut self) -> Result<(), RelayError> {
        self.ready.wait_for(|ready| *ready).await.map(drop).map_err(|_| RelayError::Ended)
    }

    /// The relay's load: open channels and circuits, and cells forwarded since the start.
    ///
    /// # Errors
    /// [`RelayError::Ended`].
    pub async fn statistics(&self) -> Result<RelayStatistics, RelayError> {
        let (reply, statistics) = oneshot::channel();
        self.commands.send(RelayCommand::Statistics(reply)).await.map_err(|_| RelayError::Ended)?;
        statistics.await.map_err(|_| RelayError::Ended)
    }

    /// Stops the relay and waits, at most for a second, until its links are closed. The relay's circuits end.
    ///
    /// # Errors
    /// The failure of a relay that ended before the call.
    pub async fn stop(self) -> Result<(), RelayError> {
        drop(self.stop);
        match self.task.await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(RelayError::Ended),
        }
    }
}

fn options(config: RelayConfig) -> Result<RelayOptions, RelayError> {
    let wrong = |text: &str| Err(RelayError::Configuration(text.into()));
    if config.directories.is_empty() || config.authorities.is_empty() {
        return wrong("directories and authorities: name at least one of each");
    }
    if config.listen.is_none() && !config.addresses.is_empty() {
        return wrong("addresses: a volunteer has none; set listen as well, or leave both empty");
    }
    Ok(RelayOptions {
        data_dir: Some(config.data_dir),
        listen: config.listen,
        address: (!config.addresses.is_empty()).then_some(config.addresses),
        no_listen: Some(config.listen.is_none()),
        directory: Some(config.directories),
        authority: Some(config.authorities.iter().map(AuthorityId::to_string).collect()),
        ..RelayOptions::default()
    })
}
