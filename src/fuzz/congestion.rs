//! Fuzz target: a congestion controller of an SCTP association, whose peer acknowledges packets as it likes.

use core::time::Duration;
use std::collections::VecDeque;

use super::{Choices, FuzzTarget};
use crate::{
    base::Instant,
    transport::sctp::congestion::{Ack, Bbr, Controller, ControllerSizes, Cubic, Lost, RateSample, Sent},
};

pub(super) const TARGETS: &[FuzzTarget] =
    &[FuzzTarget { name: "congestion_control", run: congestion_control, seeds: congestion_seeds }];

/// The sizes of an association with full datagrams.
const SIZES: ControllerSizes = ControllerSizes {
    segment: 1_167,
    min_short_path_window: 256 << 10,
    short_path: Duration::from_millis(2),
    max_window: 16 << 20,
};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// A sent packet of [`SIZES`]`.segment` bytes, with the sender's counts at its departure.
#[derive(Clone, Copy)]
struct FuzzPacket {
    sent_at: Instant,
    prior_delivered: u64,
    prior_lost: u64,
    tx_in_flight: u64,
    window_limited: bool,
}

/// A sender without loss detection: the input selects the packets that are acknowledged and lost.
struct FuzzSender {
    control: Box<dyn Controller>,
    now: Instant,
    in_flight: VecDeque<FuzzPacket>,
    /// Number of packets that count as lost and have not been acknowledged since.
    lost: u64,
    delivered: u64,
    total_lost: u64,
    /// Time of the last sent packet, and of the last acknowledgement.
    active: Instant,
    /// Highest rate that the acknowledgements justify, in bytes a second.
    fastest: u64,
    /// Shortest round trip of all acknowledgements, in nanoseconds.
    shortest: u64,
}

impl FuzzSender {
    fn new(cubic: bool, seed: u64) -> Self {
        let now = Instant::START;
        let control: Box<dyn Controller> =
            if cubic { Box::new(Cubic::new(SIZES, now)) } else { Box::new(Bbr::new(SIZES, now, seed)) };
        Self {
            control,
            now,
            in_flight: VecDeque::new(),
            lost: 0,
            delivered: 0,
            total_lost: 0,
            active: now,
            fastest: SIZES.segment,
            shortest: u64::MAX,
        }
    }

    fn bytes_in_flight(&self) -> u64 {
        self.in_flight.len() as u64 * SIZES.segment
    }

    /// Whether the window has room for another packet.
    fn has_room(&self) -> bool {
        self.bytes_in_flight() + SIZES.segment <= self.control.window()
    }

    /// Sends at most `count` packets, as far as the window has room.
    fn send(&mut self, count: u8, limited: bool) {
        if self.in_flight.is_empty() {
            self.control.on_idle_end(self.now, self.active);
        }
        for _ in 0..count {
            if !self.has_room() {
                break;
            }
            let prior_in_flight = self.bytes_in_flight();
            let sent = Sent { now: self.now, bytes: SIZES.segment, prior_in_flight, retransmission: false };
            self.control.on_sent(&sent);
            self.in_flight.push_back(FuzzPacket {
                sent_at: self.now,
                prior_delivered: self.delivered,
                prior_lost: self.total_lost,
                tx_in_flight: prior_in_flight + SIZES.segment,
                window_limited: !limited,
            });
            self.active = self.now;
        }
    }

    /// Acknowledges at most `count` packets from place `at` on, with the peer's claims of queueing delay and of the
    /// interval between arrivals.
    fn acknowledge(&mut self, at: u8, count: u8, queueing_delay: Option<Duration>, arriving: Duration) {
        let prior_in_flight = self.bytes_in_flight();
        let from = usize::from(at).min(self.in_flight.len());
        let to = (from + usize::from(count)).min(self.in_flight.len());
        let window_limited = !self.has_room();
        let Some(newest) = self.in_flight.drain(from..to).next_back() else { return };
        let acked = (to - from) as u64 * SIZES.segment;
        self.delivered += acked;
        let rtt = self.now.since(newest.sent_at);
        self.control_ack(Ack {
            now: self.now,
            acked,
            lost: 0,
            prior_in_flight,
            in_flight: prior_in_flight - acked,
            delivered: self.delivered,
            total_lost: self.total_lost,
            rtt: Some(rtt),
            queueing_delay,
            rate: Some(RateSample {
                prior_delivered: newest.prior_delivered,
                prior_lost: newest.prior_lost,
                tx_in_flight: newest.tx_in_flight,
                delivered: self.delivered - newest.prior_delivered,
                interval: rtt.max(arriving),
                app_limited: !newest.window_limited,
            }),
            window_limited,
        });
        self.active = self.now;
    }

    /// Counts at most `count` packets from place `at` on as lost.
    fn lose(&mut self, at: u8, count: u8) {
        let prior_in_flight = self.bytes_in_flight();
        let from = usize::from(at).min(self.in_flight.len());
        let to = (from + usize::from(count)).min(self.in_flight.len());
        let packets: Vec<_> = self.in_flight.drain(from..to).collect();
        if packets.is_empty() {
            return;
        }
        for packet in &packets {
            self.total_lost += SIZES.segment;
            self.lost += 1;
            self.control.on_lost(&Lost {
                now: self.now,
                bytes: SIZES.segment,
                sent_at: packet.sent_at,
                prior_delivered: packet.prior_delivered,
                tx_in_flight: packet.tx_in_flight,
                prior_lost: packet.prior_lost,
                total_lost: self.total_lost,
            });
        }
        let lost = packets.len() as u64 * SIZES.segment;
        self.control_ack(Ack { lost, in_flight: prior_in_flight - lost, ..self.empty_ack(prior_in_flight) });
    }

    /// Acknowledges at most `count` packets that counted as lost.
    fn acknowledge_lost(&mut self, count: u8) {
        let count = u64::from(count).min(self.lost);
        if count == 0 {
            return;
        }
        let acked = count * SIZES.segment;
        self.lost -= count;
        self.delivered += acked;
        self.control.on_spurious(self.now, acked);
        self.control_ack(Ack { acked, ..self.empty_ack(self.bytes_in_flight()) });
    }

    /// An acknowledgement of nothing.
    fn empty_ack(&self, prior_in_flight: u64) -> Ack {
        Ack {
            now: self.now,
            acked: 0,
            lost: 0,
            prior_in_flight,
            in_flight: prior_in_flight,
            delivered: self.delivered,
            total_lost: self.total_lost,
            rtt: None,
            queueing_delay: None,
            rate: None,
            window_limited: !self.has_room(),
        }
    }

    fn control_ack(&mut self, ack: Ack) {
        if let Some(rtt) = ack.rtt {
            self.shortest = self.shortest.min(nanos(rtt));
        }
        if let Some(rate) = &ack.rate {
            self.fastest = self.fastest.max(per_second(rate.delivered, nanos(rate.interval)));
        }
        self.control.on_ack(&ack);
    }

    /// The window is within its bounds. The pacing rate is not zero, and at most three times the rate that the
    /// acknowledgements justify: that of the fastest sample, or of a whole window in each of the shortest round trips.
    fn assert_bounds(&self) {
        let window = self.control.window();
        assert!((4 * SIZES.segment..=SIZES.max_window).contains(&window), "a window of {window} bytes");
        let Some(rate) = self.control.pacing_rate() else { return };
        let justified = self.fastest.max(per_second(SIZES.max_window, self.shortest));
        assert!((1..=justified.saturating_mul(3)).contains(&rate), "{rate} bytes a second, {justified} justified");
        assert!(!self.control.state().is_empty());
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `bytes` in each `interval` of nanoseconds, in bytes a second.
fn per_second(bytes: u64, interval: u64) -> u64 {
    let rate = u128::from(bytes) * u128::from(SECOND) / u128::from(interval.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// 2^(`choice` mod 64) − 1 nanoseconds: small and large times are equally frequent.
fn any_time(choice: u8) -> Duration {
    Duration::from_nanos((1 << (choice % 64)) - 1)
}

/// 2^(`choice` mod 64) − 1.
fn any_number(choice: u8) -> u64 {
    (1 << (choice % 64)) - 1
}

/// For any order of sent, acknowledged and lost packets and any claims of the peer, the window stays within its bounds,
/// and the pacing rate is neither zero nor above what the acknowledgements justify.
fn congestion_control(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let kind = choices.u8();
    let mut sender = FuzzSender::new(kind & 1 != 0, u64::from(kind >> 1));
    while !choices.is_empty() {
        match choices.u8() % 12 {
            0 | 1 => {
                let (count, limited) = (choices.u8(), choices.u8() % 4 == 3);
                sender.send(count, limited);
            }
            2..=4 => {
                let (at, count, claims) = (choices.u8(), choices.u8(), choices.u8());
                let queueing_delay = (claims & 1 != 0).then(|| any_time(choices.u8()));
                let arriving = if claims & 2 != 0 { any_time(choices.u8()) } else { Duration::ZERO };
                // Usually the oldest packets are acknowledged.
                sender.acknowledge(if claims & 4 != 0 { at } else { 0 }, count, queueing_delay, arriving);
            }
            5 => sender.lose(choices.u8() % 32, choices.u8()),
            6 => sender.acknowledge_lost(choices.u8()),
            7 => sender.control.on_time_out(sender.now),
            8 => {
                // Inconsistent counts, which no loss detection reports.
                let delivered = sender.delivered;
                let any = &mut || any_number(choices.u8());
                let rate = RateSample {
                    prior_delivered: any(),
                    prior_lost: any(),
                    tx_in_flight: any(),
                    delivered: any(),
                    interval: Duration::from_nanos(any()),
                    app_limited: any() % 2 == 0,
                };
                let ack = Ack {
                    acked: any() >> 24,
                    lost: any() >> 24,
                    prior_in_flight: any(),
                    in_flight: any(),
                    delivered,
                    rtt: Some(Duration::from_nanos(any())),
                    queueing_delay: Some(Duration::from_nanos(any())),
                    rate: Some(rate),
                    ..sender.empty_ack(0)
                };
                sender.control_ack(ack);
            }
            // At most 34 s, and at most a millisecond.
            9 => sender.now = sender.now.after(any_time(choices.u8() % 36)),
            _ => sender.now = sender.now.after(any_time(choices.u8() % 21)),
        }
        sender.assert_bounds();
    }
}

fn congestion_seeds() -> Vec<Vec<u8>> {
    let send = |count: u8| [0, count, 0];
    let acknowledge = |count: u8| [2, 0, count, 0];
    // Waits of about a millisecond and about 17 ms.
    let (short, long) = ([10, 20], [9, 24]);
    // Startup, then steady rounds of ten packets.
    let start = [&send(10)[..], &long, &acknowledge(10), &send(20), &long, &acknowledge(20)].concat();
    let steady = [&send(10)[..], &short, &send(10), &long, &acknowledge(10), &acknowledge(10)].concat().repeat(20);
    // Losses, of which half were spurious; a timeout; a pause.
    let lossy = [&send(200)[..], &long, &[5, 0, 90], &acknowledge(100), &[6, 45], &long, &[5, 0, 60]].concat();
    let pauses = [&[7][..], &[9, 33], &send(9), &[9, 30], &acknowledge(9)].concat();
    let claims = [&send(40)[..], &[4, 3, 20, 7, 24, 30], &long, &[4, 0, 20, 3, 63, 63], &send(40)].concat();
    let any = [&[8][..], &[20; 6], &[3, 40, 50, 60], &[63, 62, 61]].concat();
    let operations = [
        [&start[..], &steady, &lossy, &steady].concat(),
        [&start[..], &steady, &pauses, &start].concat(),
        [&start[..], &claims, &steady, &claims].concat(),
        [&start[..], &any, &steady, &any, &pauses].concat(),
    ];
    // BBR and CUBIC.
    operations
        .iter()
        .flat_map(|operations| [[&[2][..], operations].concat(), [&[3][..], operations].concat()])
        .collect()
}
