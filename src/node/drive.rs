//! The loop that joins a protocol core with its transport and with whoever waits outside.
//!
//! One task owns the core; nothing in it is shared or locked. Each turn takes in all that has come (datagrams, what the
//! outside wants, the time), lets core and transport talk until both are drained, sends, and waits.

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
    base::{Instant, LinkMachine},
    transport::{
        Transport as _,
        native::{Endpoint, EndpointConfig, Sockets},
        settle,
    },
};

use super::Failure;

/// A protocol core with its edges: what the loop needs beyond links.
pub(crate) trait Core: LinkMachine {
    /// Takes in what has come from outside (applications, exits, the directory), a bounded amount. Pending when there
    /// is nothing, and then the task is woken when there is.
    fn poll_outside(&mut self, now: Instant, rng: &mut StdRng, cx: &mut Context<'_>) -> Poll<()>;

    /// Hands what the core has to tell to whoever waits for it outside; says whether there was anything.
    fn deliver(&mut self) -> bool;

    /// Closes its links, for the node ends.
    fn shut_down(&mut self) {}
}

/// What closing links may take when a node ends.
const SHUT_DOWN_LIMIT: Duration = Duration::from_secs(1);
/// Times that links pull more before it is time to receive.
const PULLS: usize = 64;

/// Monotonic time since the loop began, as the core counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(tokio::time::Instant);

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    /// The time.
    pub(crate) fn now(self) -> Instant {
        Instant::START.after(self.0.elapsed())
    }

    fn to_tokio(self, instant: Instant) -> tokio::time::Instant {
        self.0.checked_add(instant.since(Instant::START)).unwrap_or(self.0)
    }
}

/// A core, its transport and its sockets.
pub(crate) struct Drive<C> {
    clock: Clock,
    sockets: Sockets,
    endpoint: Endpoint,
    core: C,
    rng: StdRng,
}

impl<C: Core> Drive<C> {
    /// Joins `core` with a transport over `sockets`.
    ///
    /// # Errors
    /// When the transport can't be set up.
    pub(crate) fn new(
        clock: Clock,
        sockets: Sockets,
        config: EndpointConfig,
        core: C,
        rng: StdRng,
    ) -> Result<Self, Failure> {
        let mut endpoint = Endpoint::new(config, clock.0.into_std())
            .map_err(|error| Failure::Failed(format!("transport: {error}")))?;
        endpoint.set_ports(&sockets.ports(), sockets.segments());
        Ok(Self { clock, sockets, endpoint, core, rng })
    }

    /// Runs for ever; dropping the future stops the node.
    pub(crate) async fn run(self) {
        self.run_until(core::future::pending()).await;
    }

    /// Runs until `stop` comes, and then for a moment longer in which links are closed, so that neighbours need not wait for
    /// silence to see that the node is gone. Dropping the future stops it at once.
    pub(crate) async fn run_until(mut self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.turn_while(|_| true) => {}
            () = stop => {}
        }
        self.core.shut_down();
        // Whoever doesn't take the last of it in time finds out by itself.
        let _ = timeout(SHUT_DOWN_LIMIT, self.turn_while(|endpoint| endpoint.counts().links > 0)).await;
    }

    async fn turn_while(&mut self, goes_on: impl Fn(&Endpoint) -> bool) {
        loop {
            let now = self.clock.now();
            self.do_what_is_due(now);
            self.settle(now);
            let mut idle = self.sockets.flush(now, &mut self.endpoint).await;
            // Links pull what they send next only when the last has left.
            for _ in 0..PULLS {
                if !idle || !self.endpoint.has_link_event() {
                    break;
                }
                self.settle(now);
                idle = self.sockets.flush(now, &mut self.endpoint).await;
            }
            if !goes_on(&self.endpoint) {
                return;
            }
            idle &= !self.endpoint.has_link_event();
            self.wait(idle).await;
        }
    }

    fn do_what_is_due(&mut self, now: Instant) {
        if self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            self.endpoint.handle_timeout(now);
        }
        if self.core.poll_timeout().is_some_and(|due| due <= now) {
            self.core.handle_timeout(now, &mut self.rng);
        }
    }

    /// Lets core, transport and outside talk until none has anything more to say.
    fn settle(&mut self, now: Instant) {
        loop {
            settle(now, &mut self.core, &mut self.endpoint, &mut self.rng);
            if !self.core.deliver() {
                return;
            }
        }
    }

    /// Waits for datagrams, for the outside, or until something is due, and takes in all there is. Unless `idle`, there is more to
    /// send, and it only looks.
    async fn wait(&mut self, idle: bool) {
        let Self { clock, sockets, endpoint, core, rng } = self;
        let due = [endpoint.poll_timeout(), core.poll_timeout()].into_iter().flatten().min();
        let due = if idle { due } else { Some(Instant::START) };
        let due_by = async {
            match due {
                Some(due) => sleep_until(clock.to_tokio(due)).await,
                None => core::future::pending().await,
            }
        };
        tokio::select! {
            () = sockets.readable() => {}
            () = poll_fn(|cx| core.poll_outside(clock.now(), rng, cx)) => {}
            () = due_by => {}
        }
        let now = clock.now();
        sockets.receive(|route, datagrams, stride| endpoint.handle_datagrams(now, route, datagrams, stride));
    }
}

/// A generator for a node's randomness, seeded by the operating system.
///
/// # Errors
/// When the operating system gives none.
pub(crate) fn randomness() -> Result<StdRng, Failure> {
    StdRng::try_from_rng(&mut SysRng)
        .map_err(|error| Failure::Failed(format!("the operating system gives no randomness: {error}")))
}
