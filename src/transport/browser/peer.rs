//! One `RTCPeerConnection` with its lanes.

use core::net::SocketAddr;
use std::{cell::Cell, rc::Rc};

use js_sys::{Array, ArrayBuffer, Uint8Array};
use wasm_bindgen::{JsCast as _, JsValue, closure::Closure};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{
    Event, MessageEvent, RtcCertificate, RtcConfiguration, RtcDataChannel, RtcDataChannelInit, RtcDataChannelState,
    RtcDataChannelType, RtcIceConnectionState, RtcPeerConnection, RtcPeerConnectionState, RtcSdpType,
    RtcSessionDescriptionInit,
};

use super::{BrowserCaps, Inbox, Note};
use crate::{
    base::{DialTarget, LANES, Lane, LinkClose, LinkId, SLOT_LEN, Slots},
    transport::sdp,
};

/// Most bytes of a message (`proto/01-transport.md` §5).
const MAX_MESSAGE_LEN: usize = 65_536;

/// State of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerStatus {
    /// Not open yet.
    Opening,
    /// All lanes are open.
    Open,
    /// The peer has ended, for this reason.
    Gone(LinkClose),
}

/// State shared between a peer and its callbacks.
struct PeerState {
    inbox: Rc<Inbox>,
    link: LinkId,
    /// Whether a [`Note::Changed`] is queued.
    changed: Cell<bool>,
    /// Received bytes that the driver has not taken.
    waiting: Cell<usize>,
    max_waiting: usize,
}

/// A dialled peer connection. Dropping it closes it at once.
pub(super) struct PeerConnection {
    connection: RtcPeerConnection,
    lanes: Vec<RtcDataChannel>,
    shared: Rc<PeerState>,
    /// Callbacks, kept for as long as the browser may call them.
    _changed: Closure<dyn FnMut(Event)>,
    _messages: Vec<Closure<dyn FnMut(MessageEvent)>>,
}

impl PeerConnection {
    /// Starts to dial `target` at `address`; `None` if the browser refuses.
    pub(super) fn dial(
        link: LinkId,
        target: &DialTarget,
        address: SocketAddr,
        certificate: Option<&RtcCertificate>,
        caps: &BrowserCaps,
        inbox: &Rc<Inbox>,
    ) -> Option<Self> {
        let configuration = RtcConfiguration::new();
        configuration.set_ice_servers(&Array::new());
        if let Some(certificate) = certificate {
            configuration.set_certificates(&Array::of1(certificate));
        }
        let connection = RtcPeerConnection::new_with_configuration(&configuration).ok()?;
        let shared = Rc::new(PeerState {
            inbox: Rc::clone(inbox),
            link,
            changed: Cell::new(false),
            waiting: Cell::new(0),
            max_waiting: caps.waiting,
        });
        let changed = Closure::new({
            let shared = Rc::clone(&shared);
            move |_: Event| shared.note_change()
        });
        let on_change = Some(changed.as_ref().unchecked_ref());
        connection.set_onconnectionstatechange(on_change);
        connection.set_oniceconnectionstatechange(on_change);
        // Half of an equal share. Without room in total, at least one lane is above its threshold and has an event
        // later.
        let low = u32::try_from(caps.send_threshold.checked_div(usize::from(LANES).saturating_mul(2))?).ok()?;
        let (mut lanes, mut messages) = (Vec::new(), Vec::new());
        for lane in (0..LANES).filter_map(Lane::new) {
            let options = RtcDataChannelInit::new();
            options.set_negotiated(true);
            options.set_id(u16::from(lane.value()));
            let channel = connection.create_data_channel_with_data_channel_dict("", &options);
            channel.set_binary_type(RtcDataChannelType::Arraybuffer);
            channel.set_buffered_amount_low_threshold(low);
            let on_message = Closure::new({
                let shared = Rc::clone(&shared);
                move |event: MessageEvent| shared.note_message(lane, &event)
            });
            channel.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
            channel.set_onopen(on_change);
            channel.set_onclose(on_change);
            channel.set_onbufferedamountlow(on_change);
            lanes.push(channel);
            messages.push(on_message);
        }
        spawn_local({
            let (connection, target, shared) = (connection.clone(), target.clone(), Rc::clone(&shared));
            async move {
                let note = match negotiate(&connection, &target, address).await {
                    Ok(Some(fingerprint)) => Note::Offered(fingerprint),
                    Ok(None) | Err(_) => Note::Refused,
                };
                shared.inbox.push(shared.link, note);
            }
        });
        Some(Self { connection, lanes, shared, _changed: changed, _messages: messages })
    }

    /// The current state.
    pub(super) fn status(&self) -> PeerStatus {
        match self.connection.ice_connection_state() {
            RtcIceConnectionState::Disconnected | RtcIceConnectionState::Failed => {
                return PeerStatus::Gone(LinkClose::TimedOut);
            }
            RtcIceConnectionState::Closed => return PeerStatus::Gone(LinkClose::ByPeer),
            _ => {}
        }
        match self.connection.connection_state() {
            RtcPeerConnectionState::Failed => return PeerStatus::Gone(LinkClose::Broken),
            RtcPeerConnectionState::Closed => return PeerStatus::Gone(LinkClose::ByPeer),
            _ => {}
        }
        let mut status = PeerStatus::Open;
        for lane in &self.lanes {
            match lane.ready_state() {
                RtcDataChannelState::Open => {}
                RtcDataChannelState::Connecting => status = PeerStatus::Opening,
                _ => return PeerStatus::Gone(LinkClose::ByPeer),
            }
        }
        status
    }

    /// Bytes queued and not yet sent.
    pub(super) fn buffered(&self) -> usize {
        let buffered = self.lanes.iter().map(|lane| usize::try_from(lane.buffered_amount()).unwrap_or(usize::MAX));
        buffered.fold(0, usize::saturating_add)
    }

    /// Sends a message; `false` if the browser rejects it.
    pub(super) fn send(&self, lane: Lane, message: &Slots) -> bool {
        let lane = self.lanes.get(usize::from(lane.value()));
        lane.is_some_and(|lane| lane.send_with_u8_array(&message.to_vec()).is_ok())
    }

    /// Requests an event once all queued data has been sent.
    pub(super) fn notify_when_sent(&self) {
        self.lanes.iter().for_each(|lane| lane.set_buffered_amount_low_threshold(0));
    }

    /// Marks the queued [`Note::Changed`] as handled.
    pub(super) fn clear_change(&self) {
        self.shared.changed.set(false);
    }

    /// Subtracts a message that the driver has taken from the waiting bytes.
    pub(super) fn handle_taken(&self, message: &Slots) {
        self.shared.waiting.set(self.shared.waiting.get().saturating_sub(cost(message.len())));
    }
}

impl Drop for PeerConnection {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.set_onmessage(None);
            lane.set_onopen(None);
            lane.set_onclose(None);
            lane.set_onbufferedamountlow(None);
        }
        self.connection.set_onconnectionstatechange(None);
        self.connection.set_oniceconnectionstatechange(None);
        self.connection.close();
    }
}

/// Memory charged for a waiting message, in bytes: its slots, at least one.
fn cost(length: usize) -> usize {
    length.div_ceil(SLOT_LEN).max(1).saturating_mul(SLOT_LEN)
}

impl PeerState {
    fn note_change(&self) {
        if !self.changed.replace(true) {
            self.inbox.push(self.link, Note::Changed);
        }
    }

    fn note_message(&self, lane: Lane, event: &MessageEvent) {
        let note = match event.data().dyn_into::<ArrayBuffer>() {
            Ok(data) => {
                let length = usize::try_from(data.byte_length()).unwrap_or(usize::MAX);
                let waiting = self.waiting.get().saturating_add(cost(length));
                if length > MAX_MESSAGE_LEN || waiting > self.max_waiting {
                    Note::Foreign
                } else {
                    self.waiting.set(waiting);
                    Note::Message(lane, Uint8Array::new(&data).to_vec().into())
                }
            }
            Err(_) => Note::Foreign,
        };
        self.inbox.push(self.link, note);
    }
}

/// Sets the offer, and an answer in the place of the relay. Returns SHA-256 of the certificate of this end; `None` if
/// the offer can't be parsed or the answer can't be written.
async fn negotiate(
    connection: &RtcPeerConnection,
    target: &DialTarget,
    address: SocketAddr,
) -> Result<Option<[u8; 32]>, JsValue> {
    let offer: RtcSessionDescriptionInit = JsFuture::from(connection.create_offer()).await?.unchecked_into();
    let Some(parsed) = offer.get_sdp().as_deref().and_then(sdp::SdpOffer::parse) else { return Ok(None) };
    JsFuture::from(connection.set_local_description(&offer)).await?;
    let Some(text) = sdp::answer(target, address, &parsed.mid) else { return Ok(None) };
    let answer = RtcSessionDescriptionInit::new(RtcSdpType::Answer);
    answer.set_sdp(&text);
    JsFuture::from(connection.set_remote_description(&answer)).await?;
    Ok(Some(parsed.fingerprint))
}
