//! A volunteer in a page: a relay that circuits reach over its gateways; the counterpart of `node::relay`.
//!
//! This module has the relay's core, its keys (stored by the wrapper), and its registration. The wrapper
//! (`web/src/umbel/volunteer.ts`) controls pauses, according to tabs, power and sleep. The volunteer forwards
//! circuits. It is an exit only for searches of the chosen engines ([`engines`]), initially none. Specified in the
//! sections on volunteers of `proto/07-directory.md` and `proto/08-paths.md`.

mod engines;
mod exit;
mod keys;
mod task;

use core::{
    cell::{Cell, RefCell},
    time::Duration,
};
use std::{rc::Rc, sync::Arc};

use js_sys::Function;
use rand::CryptoRng;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;
use web_sys::RtcCertificate;

use super::{
    clock,
    directory::Directories,
    drive::{PageDrive, randomness},
    failure::{FailureKind, PageFailure, object},
    store::Store,
    sync::Notify,
};
use crate::{
    base::{Instant, LinkEvent, LinkMachine, Rate, Transmit},
    channel::ChannelParameters,
    delegated::SearchAnswer,
    directory::Consensus,
    relay::{ExitStream, Reach, Relay, RelayEvent, RelayParameters},
    transport::{Driven, browser::BrowserCaps},
    wire::CELL_LEN,
};
use engines::VolunteerEngines;
pub(in crate::browser) use engines::describe;
use exit::VolunteerExit;
use keys::Keys;

/// Timeout for circuits in use when the volunteer stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// An interval of this length without a cell ends the wait for circuits earlier.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Time limit for the browser to send the last messages.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between checks for the end of all links.
const CLOSE_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of links; browsers allow 500.
const MAX_LINKS: usize = 256;

/// The phase of a volunteer; the names are those of `VolunteerState.phase` in `web/src/umbel/volunteer.ts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VolunteerPhase {
    Starting,
    Registering,
    Connecting,
    Reachable,
    Unreachable,
    Paused,
    Error,
}

impl VolunteerPhase {
    const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Registering => "registering",
            Self::Connecting => "connecting",
            Self::Reachable => "reachable",
            Self::Unreachable => "unreachable",
            Self::Paused => "paused",
            Self::Error => "error",
        }
    }
}

/// The relay's machine with its exit in a page.
pub(super) struct DrivenVolunteer {
    relay: Relay,
    exit: VolunteerExit,
    changed: Notify,
}

impl DrivenVolunteer {
    /// Sends the answer to the query of `stream`.
    fn answer(&mut self, now: Instant, stream: ExitStream, answer: &SearchAnswer) {
        self.exit.answer(now, &mut self.relay, stream, answer);
    }
}

impl LinkMachine for DrivenVolunteer {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        self.relay.handle_link(now, event, rng);
    }

    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.relay.handle_timeout(now, rng);
        self.exit.handle_timeout(now, &mut self.relay);
    }

    fn handle_batch_end(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.relay.handle_batch_end(now, rng);
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        self.relay.poll_transmit(now, rng)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        [self.relay.poll_timeout(), self.exit.poll_timeout()].into_iter().flatten().min()
    }
}

impl Driven for DrivenVolunteer {
    fn machine(&mut self) -> &mut impl LinkMachine {
        self
    }

    fn deliver(&mut self, now: Instant) -> bool {
        let mut delivered = false;
        while let Some(event) = self.relay.poll_event() {
            delivered = true;
            match event {
                RelayEvent::GatewaysChanged => self.changed.notify(),
                RelayEvent::Stream(stream, event) => self.exit.handle_event(now, &mut self.relay, stream, event),
                // This relay is no gateway.
                RelayEvent::VolunteersChanged => {}
            }
        }
        delivered
    }

    fn shut_down(&mut self, now: Instant) {
        self.relay.end_circuits(now);
    }
}

/// A volunteer, running or paused.
pub(super) struct BrowserVolunteer {
    directories: Rc<Directories>,
    keys: RefCell<Keys>,
    certificate: Option<RtcCertificate>,
    on_state: Function,
    /// Present while the volunteer runs.
    drive: RefCell<Option<PageDrive<DrivenVolunteer>>>,
    consensus: RefCell<Option<Arc<Consensus>>>,
    /// Limit of the average sending rate, in bytes per second.
    rate: Cell<Option<u64>>,
    /// The engines that the volunteer queries for clients.
    engines: VolunteerEngines,
    /// Notifies when the gateways or the offer change.
    changed: Notify,
    /// The number of the current run. A task of an earlier run ends.
    run_number: Cell<u64>,
    phase: Cell<VolunteerPhase>,
    /// The reason for the phase as a sentence; may be empty.
    why: RefCell<String>,
    /// Cells forwarded before the last start.
    earlier_cells: Cell<u64>,
}

/// The statistics of a volunteer.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Figures {
    gateways: usize,
    circuits: usize,
    /// Cells forwarded since the page was loaded.
    cells: u64,
    /// Queries answered with results since the page was loaded.
    searches: u32,
    /// Bytes of queries and answers since the page was loaded, including the engines' answers.
    search_bytes: u64,
}

impl BrowserVolunteer {
    /// A paused volunteer with the stored keys.
    pub(super) async fn new(
        directories: &[String],
        authorities: &[String],
        store: Store,
        certificate: Option<RtcCertificate>,
        on_state: Function,
    ) -> Result<Rc<Self>, PageFailure> {
        let keys = Keys::load(store.clone(), &mut randomness().map_err(unsupported)?).await;
        Ok(Rc::new(Self {
            directories: Rc::new(Directories::new(directories, authorities, store)?),
            keys: RefCell::new(keys),
            certificate,
            on_state,
            drive: RefCell::default(),
            consensus: RefCell::default(),
            rate: Cell::new(None),
            engines: VolunteerEngines::default(),
            changed: Notify::default(),
            run_number: Cell::new(0),
            phase: Cell::new(VolunteerPhase::Paused),
            why: RefCell::default(),
            earlier_cells: Cell::new(0),
        }))
    }

    /// Starts, or restarts with fresh links, for example after the machine has slept.
    pub(super) fn start(self: &Rc<Self>) {
        self.halt();
        self.engines.reset_failed();
        self.set_phase(VolunteerPhase::Starting, "");
        match self.make_drive() {
            Ok(drive) => {
                drive.set_rate(self.rate.get());
                self.drive.replace(Some(drive));
                spawn_local(task::run(Rc::clone(self), self.run_number.get()));
            }
            Err(failure) => self.set_phase(VolunteerPhase::Error, &failure.sentence),
        }
    }

    /// Closes all links and stops until the next start.
    pub(super) fn pause(&self, why: &str) {
        self.halt();
        self.set_phase(VolunteerPhase::Paused, why);
    }

    /// Stops gracefully. The volunteer accepts no more circuits and searches, waits a short time for those in use, and
    /// closes all links by the protocol. The wait is short because the user has turned the volunteer off.
    pub(super) async fn finish(&self) {
        let Some(drive) = self.drive() else { return };
        self.end_run();
        let run_number = self.run_number.get();
        drive.with(|driven, now, rng| {
            driven.exit.drain();
            driven.relay.drain(now, rng);
        });
        // The count of cells excludes the cells of searches, so searches are checked separately.
        let searches = || drive.with(|driven, _, _| driven.exit.is_busy()).unwrap_or_default();
        let until = clock::now().after(DRAIN_TIMEOUT);
        while clock::now() < until && self.run_number.get() == run_number {
            let (before, searching) = (self.figures(), searches());
            clock::sleep(DRAIN_CHECK_INTERVAL).await;
            if before.circuits == 0 || !searching && self.figures().cells == before.cells {
                break;
            }
        }
        drive.shut_down();
        drive.with(|driven, _, _| driven.relay.shut_down());
        let until = clock::now().after(CLOSE_TIMEOUT);
        while drive.links() > 0 && clock::now() < until {
            clock::sleep(CLOSE_CHECK_INTERVAL).await;
        }
        if self.run_number.get() == run_number {
            self.pause("");
        }
    }

    /// Limits the average sending rate in bytes per second; `None` removes the limit.
    pub(super) fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.rate.set(bytes_per_second);
        if let Some(drive) = self.drive() {
            drive.set_rate(bytes_per_second);
        }
    }

    /// Replaces the engines that the volunteer queries for clients. Each engine has a name and an OpenSearch description,
    /// at the same index.
    pub(super) fn set_engines(&self, names: &[String], descriptions: &[String]) -> Result<(), PageFailure> {
        let before = self.engines.offered();
        self.engines.choose(names, descriptions)?;
        if self.engines.offered() != before {
            self.changed.notify();
        }
        self.report_state();
        Ok(())
    }

    fn halt(&self) {
        self.earlier_cells.set(self.figures().cells);
        if let Some(drive) = self.drive.take() {
            drive.stop();
        }
        self.end_run();
    }

    /// Starts a new run number, which ends the tasks of the last run.
    fn end_run(&self) {
        self.run_number.set(self.run_number.get().wrapping_add(1));
        self.engines.abort_trial();
        self.changed.notify();
        self.engines.query_arrived.notify();
    }

    fn make_drive(&self) -> Result<PageDrive<DrivenVolunteer>, PageFailure> {
        let (identity, onion_keys) = self.keys.try_borrow().map_err(|_| unsupported(JsValue::NULL))?.for_relay();
        let channel = ChannelParameters { channels: MAX_LINKS, queued: 16_384, ..ChannelParameters::default() };
        let parameters = RelayParameters {
            channel,
            circuits: 4096,
            stream_records: 64 * 1024,
            // The timers of a hidden page fire once a second, so a burst of CREATEs must not need them.
            circuit_handshakes: Rate { per_second: 500, burst: 32 },
            delegate: true,
            reach: Reach::Gateways,
            ..RelayParameters::default()
        };
        let exit = VolunteerExit::new(&self.engines);
        let driven = DrivenVolunteer {
            relay: Relay::new(identity, onion_keys, parameters),
            exit,
            changed: self.changed.clone(),
        };
        let caps = BrowserCaps { links: MAX_LINKS, ..BrowserCaps::default() };
        let rng = randomness().map_err(unsupported)?;
        PageDrive::start(driven, caps, self.certificate.clone(), rng).map_err(unsupported)
    }

    fn drive(&self) -> Option<PageDrive<DrivenVolunteer>> {
        self.drive.try_borrow().ok()?.clone()
    }

    fn figures(&self) -> Figures {
        let statistics = self
            .drive()
            .and_then(|drive| drive.with(|driven, _, _| (driven.relay.gateways().len(), driven.relay.statistics())));
        let (gateways, circuits, cells) = statistics
            .map_or((0, 0, 0), |(gateways, statistics)| (gateways, statistics.circuits, statistics.cells_switched));
        let (searches, search_bytes) = (self.engines.answered.get(), self.engines.search_bytes.get());
        Figures { gateways, circuits, cells: self.earlier_cells.get().saturating_add(cells), searches, search_bytes }
    }

    fn set_phase(&self, phase: VolunteerPhase, why: &str) {
        let same_phase = self.phase.replace(phase) == phase;
        if let Ok(mut current) = self.why.try_borrow_mut()
            && !(same_phase && *current == why)
        {
            why.clone_into(&mut current);
            drop(current);
            self.report_state();
        }
    }

    /// Reports the state to the wrapper.
    fn report_state(&self) {
        let Figures { gateways, circuits, cells, searches, search_bytes } = self.figures();
        let number = |number: usize| JsValue::from(u32::try_from(number).unwrap_or(u32::MAX));
        let bytes = cells.saturating_mul(u64::try_from(CELL_LEN).unwrap_or(u64::MAX)).saturating_add(search_bytes);
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let bytes = bytes as f64;
        let why = self.why.try_borrow().map(|why| why.clone()).unwrap_or_default();
        let identity = self.keys.try_borrow().map(|keys| keys.id().to_base32()).unwrap_or_default();
        let state = object(&[
            ("phase", self.phase.get().name().into()),
            ("why", if why.is_empty() { JsValue::UNDEFINED } else { why.into() }),
            ("gateways", number(gateways)),
            ("circuits", number(circuits)),
            ("bytes", bytes.into()),
            ("identity", identity.into()),
            ("engines", self.engines.shown().into()),
            ("searches", searches.into()),
        ]);
        // An exception in the wrapper's callback is ignored.
        let _ = self.on_state.call1(&JsValue::NULL, &state);
    }
}

fn unsupported(_: JsValue) -> PageFailure {
    PageFailure::new(FailureKind::NoWebrtc, "this browser lacks or disables a feature that a volunteer needs")
}
