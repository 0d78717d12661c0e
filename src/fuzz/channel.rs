//! Fuzz target: channels of a relay and of a client with a hostile peer.

use std::sync::Arc;

use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{Choices, FuzzClock, FuzzTarget};
use crate::{
    base::{CircuitId, Lane, LinkClose, LinkEvent, LinkId, MESSAGE_CELLS, RelayId, Transmit},
    channel::{ChannelEvent, ChannelParameters, Channels, LocalRole, fixture},
    crypto::IdentityKey,
    wire::{CELL_LEN, Cell},
};

pub(super) const TARGETS: &[FuzzTarget] = &[FuzzTarget { name: "channel", run: channel, seeds }];

const LINK: LinkId = LinkId(1);

fn role(relay: bool) -> LocalRole {
    if relay { LocalRole::Relay(Arc::new(IdentityKey::from_bytes(&[7; 32]))) } else { LocalRole::Client }
}

/// The event of the link, which this end has dialled or accepted.
fn opened(dialled: bool) -> LinkEvent {
    let dialled = dialled.then_some(RelayId::from_bytes([8; 32]));
    LinkEvent::Opened { link: LINK, opened: fixture::opened(dialled, 1, 2) }
}

/// Messages of the peer are accepted or close the channel; sent messages stay within their maximum length.
fn channel(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (mut clock, mut rng) = (FuzzClock::new(), ChaCha8Rng::seed_from_u64(1));
    let start = choices.u8();
    let (relay, dialled) = (start & 1 == 0, start & 2 == 0);
    let mut channels = Channels::new(role(relay), ChannelParameters::default());
    channels.handle_link(clock.0, opened(dialled), &mut rng);
    while !choices.is_empty() {
        let now = clock.advance(choices.u8());
        match choices.u8() % 8 {
            0 => channels.handle_timeout(now),
            1 => {
                let bytes = usize::from(choices.u16());
                channels.handle_link(now, LinkEvent::Room { link: LINK, bytes }, &mut rng);
            }
            2 => channels.handle_link(now, LinkEvent::Closed { link: LINK, reason: LinkClose::Broken }, &mut rng),
            _ => {
                let lane = Lane::new(choices.u8() % 4).unwrap();
                let message = choices.bytes().into();
                channels.handle_link(now, LinkEvent::Message { link: LINK, lane, message }, &mut rng);
            }
        }
        while let Some(event) = channels.poll_event() {
            if let ChannelEvent::Cell { channel, cell } = event {
                let circuit = cell.circuit().expect("padding is never forwarded");
                // Each admitted circuit is destroyed, so that the channel has cells to send.
                if channels.admit_circuit(channel, circuit) {
                    let _ = channels.send(channel, Cell::destroy(circuit));
                }
            }
        }
        while let Some(transmit) = channels.poll_transmit(now) {
            if let Transmit::Message { message, .. } = transmit {
                assert!(message.len() <= MESSAGE_CELLS * CELL_LEN);
            }
        }
    }
}

/// Inputs with the handshake messages of an honest peer, then cells.
fn seeds() -> Vec<Vec<u8>> {
    let handshake = |relay: bool, dialled: bool| {
        let (now, mut rng) = (FuzzClock::new().0, ChaCha8Rng::seed_from_u64(2));
        let mut channels = Channels::new(role(relay), ChannelParameters::default());
        channels.handle_link(now, opened(dialled), &mut rng);
        channels.handle_link(now, LinkEvent::Room { link: LINK, bytes: 65_535 }, &mut rng);
        let sent = core::iter::from_fn(|| channels.poll_transmit(now));
        let messages = sent.filter_map(|transmit| match transmit {
            Transmit::Message { message, .. } => Some(message),
            _ => None,
        });
        messages.collect::<Vec<_>>()
    };
    let add_message = |input: &mut Vec<u8>, message: &[u8]| {
        input.extend([0, 3, 1]);
        input.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        input.extend(message);
    };
    let cell = *Cell::destroy(CircuitId::new(0x8000_0001).unwrap()).encode();
    let mut inputs = Vec::new();
    for start in 0..4 {
        for (relay, dialled) in [(false, true), (true, false), (true, true)] {
            let mut input = vec![start, 0, 1, 0xff, 0xff];
            handshake(relay, dialled).iter().for_each(|message| add_message(&mut input, &message.to_vec()));
            add_message(&mut input, &cell);
            add_message(&mut input, &[cell, cell].concat());
            inputs.push(input);
        }
    }
    inputs
}
