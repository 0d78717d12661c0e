//! The event loop that joins a protocol core with its transport and with the other tasks of a node.
//!
//! One task owns the core; nothing in it is shared or locked. Each turn takes all inputs (datagrams, commands, the
//! time), drains core and transport, sends, and waits.

use core::{
    future::{Future, poll_fn},
    task::{Context, Poll},
    time::Duration,
};

use rand::{
    SeedableRng as _,
    rngs::{StdRng, SysRng},
};
use tokio::time::{sleep_until, timeout};

use crate::{
    base::Instant,
    transport::{
        Driven, drain,
        native::{Endpoint, EndpointConfig, Sockets},
        next_turn, turn,
    },
};

use super::Failure;

/// A driven machine with input from other tasks.
pub(crate) trait TaskDriven: Driven {
    /// Takes a bounded amount of input from other tasks (applications, exits, the directory client). Returns
    /// `Pending` if there is none, and then wakes the task when input arrives.
    fn poll_outside(&mut self, now: Instant, rng: &mut StdRng, cx: &mut Context<'_>) -> Poll<()>;
}

/// Time limit for closing links when a node ends.
const SHUT_DOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest number of rounds of sending before the loop receives again.
const PULLS: usize = 64;

/// Monotonic time since the loop began, as `base::Instant`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(tokio::time::Instant);

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    /// The current time.
    pub(crate) fn now(self) -> Instant {
        Instant::START.after(self.0.elapsed())
    }

    fn to_tokio(self, instant: Instant) -> tokio::time::Instant {
        self.0.checked_add(instant.since(Instant::START)).unwrap_or(self.0)
    }
}

/// A driven machine, its transport and its sockets.
pub(crate) struct Drive<D> {
    clock: Clock,
    sockets: Sockets,
    endpoint: Endpoint,
    driven: D,
    rng: StdRng,
}

impl<D: TaskDriven> Drive<D> {
    /// Joins `driven` with a transport over `sockets`.
    ///
    /// # Errors
    /// When the transport can't be set up.
    pub(crate) fn new(
        clock: Clock,
        sockets: Sockets,
        config: EndpointConfig,
        driven: D,
        rng: StdRng,
    ) -> Result<Self, Failure> {
        let mut endpoint = Endpoint::new(config, clock.0.into_std())?;
        endpoint.set_ports(&sockets.ports(), sockets.segments());
        Ok(Self { clock, sockets, endpoint, driven, rng })
    }

    /// Runs until the future is dropped.
    pub(crate) async fn run(self) {
        self.run_until(core::future::pending()).await;
    }

    /// Runs until `stop` completes, then up to `SHUT_DOWN_TIMEOUT` longer to close links, so that neighbours need not
    /// wait for their timeout. A drop of the future stops the loop at once.
    pub(crate) async fn run_until(mut self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.turn_while(|_| true) => {}
            () = stop => {}
        }
        self.driven.shut_down(self.clock.now());
        // A neighbour that gets no close within the limit closes the link by timeout.
        let _ = timeout(SHUT_DOWN_TIMEOUT, self.turn_while(|endpoint| endpoint.counts().links > 0)).await;
    }

    async fn turn_while(&mut self, keep_going: impl Fn(&Endpoint) -> bool) {
        loop {
            let now = self.clock.now();
            turn(now, &mut self.driven, &mut self.endpoint, &mut self.rng);
            let mut idle = self.sockets.flush(now, &mut self.endpoint).await;
            // Links pull the next output only after the last has been sent.
            for _ in 0..PULLS {
                if !idle || !self.endpoint.has_link_event() {
                    break;
                }
                drain(now, &mut self.driven, &mut self.endpoint, &mut self.rng);
                idle = self.sockets.flush(now, &mut self.endpoint).await;
            }
            if !keep_going(&self.endpoint) {
                return;
            }
            idle &= !self.endpoint.has_link_event();
            self.wait(idle).await;
        }
    }

    /// Waits for datagrams, commands or the next deadline, and takes all input. Without `idle`, there is more to send, so
    /// the function returns without waiting.
    async fn wait(&mut self, idle: bool) {
        let Self { clock, sockets, endpoint, driven, rng } = self;
        let due = if idle { next_turn(driven, endpoint) } else { Some(Instant::START) };
        let due_by = async {
            match due {
                Some(due) => sleep_until(clock.to_tokio(due)).await,
                None => core::future::pending().await,
            }
        };
        tokio::select! {
            () = sockets.readable() => {}
            () = poll_fn(|cx| driven.poll_outside(clock.now(), rng, cx)) => {}
            () = due_by => {}
        }
        let now = clock.now();
        sockets.receive(|route, datagrams, segment| endpoint.handle_datagrams(now, route, datagrams, segment));
    }
}

/// A random number generator, seeded by the operating system.
///
/// # Errors
/// When the operating system provides no randomness.
pub(crate) fn randomness() -> Result<StdRng, Failure> {
    StdRng::try_from_rng(&mut SysRng).map_err(Failure::failed)
}
