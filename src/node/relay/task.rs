//! The task that owns a relay's core and its exit.

use core::task::{Context, Poll};
use std::sync::Arc;

use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    base::{Instant, LinkMachine, RelayId},
    crypto::OnionSecret,
    directory::{Consensus, Counted, Registration},
    exit::Exit,
    node::drive::TaskDriven,
    relay::{Relay, RelayEvent, RelayStatistics},
    transport::Driven,
};

/// Maximum commands of streams that the task takes before it drains the core.
const COMMANDS_PER_TURN: usize = 256;

/// Commands to a relay's task.
pub(super) enum RelayCommand {
    Consensus(Arc<Consensus>),
    OnionKey(OnionSecret),
    /// At a volunteer: the directory's answer to the registration.
    Registered(Registration),
    /// At a gateway: the volunteers for which the directory counts the report.
    Counted(Counted),
    /// Returns the relay's statistics.
    Statistics(oneshot::Sender<RelayStatistics>),
}

/// The sending side of [`Changes`].
pub(super) struct RelayObservers {
    volunteers: watch::Sender<Vec<RelayId>>,
    gateways: watch::Sender<Vec<RelayId>>,
}

/// Neighbours that the relay reports to directories, updated by the core.
pub(super) struct Changes {
    /// At a gateway: the volunteers with a channel.
    pub(super) volunteers: watch::Receiver<Vec<RelayId>>,
    /// At a volunteer: the gateways whose channels are open.
    pub(super) gateways: watch::Receiver<Vec<RelayId>>,
}

impl Changes {
    pub(super) fn new() -> (RelayObservers, Self) {
        let (volunteers_sender, volunteers) = watch::channel(Vec::new());
        let (gateways_sender, gateways) = watch::channel(Vec::new());
        (RelayObservers { volunteers: volunteers_sender, gateways: gateways_sender }, Self { volunteers, gateways })
    }
}

/// The relay's machine with its exit.
pub(super) struct DrivenRelay {
    relay: Relay,
    exit: Option<Exit>,
    commands: mpsc::Receiver<RelayCommand>,
    observers: RelayObservers,
}

impl DrivenRelay {
    pub(super) const fn new(
        relay: Relay,
        exit: Option<Exit>,
        commands: mpsc::Receiver<RelayCommand>,
        observers: RelayObservers,
    ) -> Self {
        Self { relay, exit, commands, observers }
    }

    fn handle_relay_command(&mut self, now: Instant, command: RelayCommand) {
        match command {
            RelayCommand::Consensus(consensus) => self.relay.set_consensus(consensus),
            RelayCommand::OnionKey(next) => self.relay.rotate_onion_key(next),
            RelayCommand::Registered(registration) => self.relay.handle_registration(now, &registration),
            RelayCommand::Counted(counted) => self.relay.handle_counted(now, &counted),
            // The requester may have stopped waiting.
            RelayCommand::Statistics(reply) => _ = reply.send(self.relay.statistics()),
        }
    }
}

impl TaskDriven for DrivenRelay {
    fn poll_outside(&mut self, now: Instant, _: &mut StdRng, cx: &mut Context<'_>) -> Poll<()> {
        let mut progress = Poll::Pending;
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            self.handle_relay_command(now, command);
            progress = Poll::Ready(());
        }
        if let Some(exit) = &mut self.exit {
            for _ in 0..COMMANDS_PER_TURN {
                let Poll::Ready((key, command)) = exit.poll_command(cx) else { break };
                exit.handle_command(&mut self.relay, key, command);
                progress = Poll::Ready(());
            }
        }
        progress
    }
}

impl Driven for DrivenRelay {
    fn machine(&mut self) -> &mut impl LinkMachine {
        &mut self.relay
    }

    fn shut_down(&mut self, _: Instant) {
        self.relay.shut_down();
    }

    fn deliver(&mut self, _: Instant) -> bool {
        let mut delivered = false;
        while let Some(event) = self.relay.poll_event() {
            delivered = true;
            match event {
                RelayEvent::Stream(stream, event) => {
                    if let Some(exit) = &mut self.exit {
                        exit.handle_event(&self.relay, stream, event);
                    }
                }
                RelayEvent::VolunteersChanged => _ = self.observers.volunteers.send_replace(self.relay.volunteers()),
                RelayEvent::GatewaysChanged => _ = self.observers.gateways.send_replace(self.relay.gateways()),
            }
        }
        if let Some(exit) = &mut self.exit {
            exit.flush();
        }
        delivered
    }
}
