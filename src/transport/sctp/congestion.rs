//! Congestion control of an association: the bytes that may be in flight, and their sending rate.
//!
//! The input of a [`Controller`] is each packet sent, each lost packet and each acknowledgement. Its output is a
//! congestion window and a pacing rate. A controller handles bytes and times only. The sender performs loss detection
//! and retransmission, and computes delivery-rate samples (draft-ietf-ccwg-bbr §4.1). All counters are 64-bit byte
//! counts since the association began.

use core::time::Duration;

use crate::base::Instant;

mod bbr;
mod cubic;

pub use bbr::Bbr;
pub use cubic::Cubic;

/// Sizes in a controller's computations.
#[derive(Clone, Copy, Debug)]
pub struct ControllerSizes {
    /// Largest payload of a packet, in bytes: the unit of the window.
    pub segment: u64,
    /// Smallest congestion window while the path's round trip is under [`Self::short_path`], in bytes.
    pub min_short_path_window: u64,
    /// Round trip below which packets are not paced: timers are too coarse for such a round trip.
    pub short_path: Duration,
    /// Upper bound of the congestion window, in bytes.
    pub max_window: u64,
}

/// A sent packet with data.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Time of sending.
    pub now: Instant,
    /// Payload of the packet in bytes.
    pub bytes: u64,
    /// Bytes in flight before the packet.
    pub prior_in_flight: u64,
    /// Whether the packet is a retransmission.
    pub retransmission: bool,
}

/// The content of one acknowledgement, after loss detection.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// Time of arrival of the acknowledgement.
    pub now: Instant,
    /// Bytes newly acknowledged.
    pub acked: u64,
    /// Bytes that count as lost because of the acknowledgement, or of a timeout.
    pub lost: u64,
    /// Bytes in flight before the acknowledgement.
    pub prior_in_flight: u64,
    /// Bytes in flight after the acknowledgement.
    pub in_flight: u64,
    /// Bytes delivered so far, including [`Self::acked`].
    pub delivered: u64,
    /// Bytes counted as lost so far.
    pub total_lost: u64,
    /// Round trip of the most recently sent packet among the acknowledged ones. `None` if that packet was a
    /// retransmission, or if [`Self::rate`] is `None`.
    pub rtt: Option<Duration>,
    /// Queueing delay of the newest data on the forward path, by the peer's clock; `None` if not reported.
    pub queueing_delay: Option<Duration>,
    /// Delivery-rate sample of the most recently sent packet among the acknowledged ones. `None` if no data is
    /// newly acknowledged, or only data whose original packet arrived although the data counted as lost or had been
    /// retransmitted.
    pub rate: Option<RateSample>,
    /// Before this acknowledgement, the window was almost full, or there was unsent or lost data.
    pub window_limited: bool,
}

/// Delivery-rate sample: delivery from the sending of a packet to its acknowledgement (draft-ietf-ccwg-bbr §4.1.1).
#[derive(Clone, Copy, Debug)]
pub struct RateSample {
    /// Bytes delivered when the packet was sent.
    pub prior_delivered: u64,
    /// Bytes that had counted as lost when the packet was sent.
    pub prior_lost: u64,
    /// Bytes in flight when the packet was sent, including its own.
    pub tx_in_flight: u64,
    /// Bytes delivered since the packet was sent.
    pub delivered: u64,
    /// The longest of three intervals, in which the delivered bytes were sent, received (if reported) and acknowledged.
    pub interval: Duration,
    /// Whether the sender lacked data, receive window or memory when the packet was sent.
    pub app_limited: bool,
}

/// A packet that counts as lost.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    /// Time at which the loss was detected.
    pub now: Instant,
    /// Payload of the packet in bytes.
    pub bytes: u64,
    /// Time of sending.
    pub sent_at: Instant,
    /// Bytes delivered when the packet was sent.
    pub prior_delivered: u64,
    /// Bytes in flight when the packet was sent, including its own.
    pub tx_in_flight: u64,
    /// Bytes that had counted as lost when the packet was sent.
    pub prior_lost: u64,
    /// Bytes counted as lost so far, including this packet's.
    pub total_lost: u64,
}

/// A congestion controller. For each acknowledgement, the sender calls [`Self::on_lost`] for each packet that counts as
/// lost because of the acknowledgement, then [`Self::on_ack`].
pub trait Controller {
    /// Handles a sent packet.
    fn on_sent(&mut self, sent: &Sent);
    /// Handles a packet that counts as lost.
    fn on_lost(&mut self, lost: &Lost);
    /// Handles an acknowledgement after its losses.
    fn on_ack(&mut self, ack: &Ack);
    /// Handles the acknowledgement of `bytes` that had counted as lost by mistake. Undoes a cut once the remaining
    /// losses would not have caused the cut.
    fn on_spurious(&mut self, now: Instant, bytes: u64);
    /// Handles the second consecutive retransmission timeout: the model of the path is invalid.
    fn on_time_out(&mut self, now: Instant);
    /// Handles the end of an idle time. Nothing has been in flight since `since`.
    fn on_idle_end(&mut self, now: Instant, since: Instant);
    /// Most bytes that may be in flight.
    fn window(&self) -> u64;
    /// Pacing rate in bytes a second; `None` to send without pacing.
    fn pacing_rate(&self) -> Option<u64>;
    /// Name of the state, for logs.
    fn state(&self) -> &'static str;
}

/// The controller of an association.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// BBR, version 3 (draft-ietf-ccwg-bbr).
    #[default]
    Bbr,
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
    Cubic,
}

/// A controller, dispatched by enum.
#[expect(
    clippy::large_enum_variant,
    reason = "the default variant is the larger one, and each association has one value"
)]
pub(super) enum Control {
    /// BBR.
    Bbr(Bbr),
    /// CUBIC.
    Cubic(Cubic),
}

impl Control {
    /// A controller of kind `algorithm`. `seed` determines its random values (BBR's probe intervals). Associations with
    /// the same seed would probe at the same times.
    #[must_use]
    pub(super) fn new(algorithm: Algorithm, sizes: ControllerSizes, now: Instant, seed: u64) -> Self {
        match algorithm {
            Algorithm::Bbr => Self::Bbr(Bbr::new(sizes, now, seed)),
            Algorithm::Cubic => Self::Cubic(Cubic::new(sizes, now)),
        }
    }
}

/// Calls a method of the controller in use.
macro_rules! dispatch {
    ($control:expr, $controller:ident => $call:expr) => {
        match $control {
            Control::Bbr($controller) => $call,
            Control::Cubic($controller) => $call,
        }
    };
}

impl Controller for Control {
    fn on_sent(&mut self, sent: &Sent) {
        dispatch!(self, controller => controller.on_sent(sent));
    }

    fn on_lost(&mut self, lost: &Lost) {
        dispatch!(self, controller => controller.on_lost(lost));
    }

    fn on_ack(&mut self, ack: &Ack) {
        dispatch!(self, controller => controller.on_ack(ack));
    }

    fn on_spurious(&mut self, now: Instant, bytes: u64) {
        dispatch!(self, controller => controller.on_spurious(now, bytes));
    }

    fn on_time_out(&mut self, now: Instant) {
        dispatch!(self, controller => controller.on_time_out(now));
    }

    fn on_idle_end(&mut self, now: Instant, since: Instant) {
        dispatch!(self, controller => controller.on_idle_end(now, since));
    }

    fn window(&self) -> u64 {
        dispatch!(self, controller => controller.window())
    }

    fn pacing_rate(&self) -> Option<u64> {
        dispatch!(self, controller => controller.pacing_rate())
    }

    fn state(&self) -> &'static str {
        dispatch!(self, controller => controller.state())
    }
}

/// Segments in the initial window (RFC 6928).
const INITIAL_SEGMENTS: u64 = 10;

/// Smallest window in segments: enough for a steady flow with delayed acknowledgements.
const MIN_SEGMENTS: u64 = 4;

impl ControllerSizes {
    /// Window before the first measurement of the path, in bytes.
    fn initial_window(&self) -> u64 {
        self.segment.saturating_mul(INITIAL_SEGMENTS).min(self.max_window)
    }

    /// Smallest window, in bytes.
    fn min_window(&self) -> u64 {
        self.segment.saturating_mul(MIN_SEGMENTS)
    }

    /// [`Self::short_path`] in nanoseconds.
    fn short_path_nanos(&self) -> u64 {
        nanos(self.short_path)
    }
}

/// `duration` in nanoseconds, saturating.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// `value * numerator / denominator`, saturating; zero if `denominator` is zero.
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    match value.checked_mul(numerator) {
        Some(product) => product.checked_div(denominator).unwrap_or(0),
        None => {
            let product = u128::from(value).saturating_mul(u128::from(numerator));
            u64::try_from(product.checked_div(u128::from(denominator)).unwrap_or(0)).unwrap_or(u64::MAX)
        }
    }
}

#[cfg(test)]
mod tests;
