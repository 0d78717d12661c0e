//! The tasks of a running volunteer: consensus, registration, trials of engines, statistics.

use core::{cell::Cell, time::Duration};
use std::{rc::Rc, sync::Arc};

use wasm_bindgen_futures::spawn_local;

use super::{BrowserVolunteer, VolunteerPhase, engines, unsupported};
use crate::{
    base::Instant,
    browser::{
        clock,
        directory::{DocumentFetchError, clock_failure},
        drive::randomness,
        failure::{FailureKind, PageFailure},
        follow,
    },
    crypto::OnionPublic,
    delegated::Offer,
    directory::{Consensus, Registration, VolunteerDescriptor, VolunteerProfile},
};

/// Age at which a new descriptor replaces the signed one.
const MAX_DESCRIPTOR_AGE: Duration = Duration::from_secs(6 * 60 * 60);
/// Delay before the first retry; each further delay is twice as long.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay between retries.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);
/// Delay from a change of the gateways or the offer to the next registration.
const CHANGE_DELAY: Duration = Duration::from_secs(1);
/// Time without a channel to a gateway after which the volunteer reports that it can reach no gateway.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(25);
/// The reason that a page shows for an unreachable volunteer.
const NO_GATEWAY: &str = "No gateway of this volunteer can be reached: this network may block WebRTC or UDP. The volunteer \
                          keeps retrying.";
/// Interval between reports of statistics to the page.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The state of one run.
struct Run {
    volunteer: Rc<BrowserVolunteer>,
    number: u64,
    /// Whether a directory has accepted the registration.
    registered: Cell<bool>,
    /// Whether a gateway has reported this volunteer. The next volunteer list, at the latest, contains a reported
    /// volunteer.
    confirmed: Cell<bool>,
    /// The last time at which there was a channel to a gateway; initially the start of the run.
    gateway_seen_at: Cell<Instant>,
}

/// Performs run `number` until the next run starts.
pub(super) async fn run(volunteer: Rc<BrowserVolunteer>, number: u64) {
    let run = Rc::new(Run {
        volunteer,
        number,
        registered: Cell::new(false),
        confirmed: Cell::new(false),
        gateway_seen_at: Cell::new(clock::now()),
    });
    let mut retry_delay = MIN_RETRY_DELAY;
    let first = loop {
        match follow::first_consensus(&run.volunteer.directories).await {
            _ if run.is_over() => return,
            Ok(first) => break first,
            Err(failure) => run.volunteer.set_phase(VolunteerPhase::Error, &failure.sentence),
        }
        clock::sleep(retry_delay).await;
        retry_delay = retry_delay.saturating_mul(2).min(MAX_RETRY_DELAY);
    };
    run.handle_consensus(&first);
    let (wanted, take) = (Rc::clone(&run), Rc::clone(&run));
    spawn_local(follow::follow(
        Rc::clone(&run.volunteer.directories),
        Some(first),
        move || !wanted.is_over(),
        move |consensus: Arc<Consensus>| take.handle_consensus(&consensus),
    ));
    spawn_local(report_statistics(Rc::clone(&run)));
    let trials = Rc::clone(&run);
    spawn_local(engines::run_trials(Rc::clone(&run.volunteer), move || !trials.is_over()));
    // This task may outlast the run, because queries received before its end are still answered.
    if let Some(drive) = run.volunteer.drive() {
        spawn_local(engines::serve(Rc::clone(&run.volunteer), drive));
    }
    run.volunteer.set_phase(VolunteerPhase::Registering, "");
    run.keep_registered().await;
}

/// Sends changed statistics to the wrapper.
async fn report_statistics(run: Rc<Run>) {
    let mut shown = None;
    while !run.is_over() {
        run.update_phase();
        let figures = run.volunteer.figures();
        if shown.replace(figures) != Some(figures) {
            run.volunteer.report_state();
        }
        let seen = run.volunteer.changed.count();
        clock::within(REPORT_INTERVAL, run.volunteer.changed.notified_since(seen)).await;
    }
}

impl Run {
    fn is_over(&self) -> bool {
        self.volunteer.run_number.get() != self.number
    }

    fn handle_consensus(&self, consensus: &Arc<Consensus>) {
        self.volunteer.consensus.replace(Some(Arc::clone(consensus)));
        if let Some(drive) = self.volunteer.drive() {
            drive.with(|driven, _, _| driven.relay.set_consensus(Arc::clone(consensus)));
        }
    }

    /// Registers once per interval and after each change, with the same descriptor while it is current.
    async fn keep_registered(&self) {
        let (mut signed, mut retry_delay) = (None, MIN_RETRY_DELAY);
        while !self.is_over() {
            let descriptor = match self.descriptor(signed.take()) {
                Ok(descriptor) => descriptor,
                Err(failure) => return self.volunteer.set_phase(VolunteerPhase::Error, &failure.sentence),
            };
            let outcome = self.volunteer.directories.register(&descriptor.bytes).await;
            if self.is_over() {
                return;
            }
            match outcome {
                Ok(registration) => {
                    let seen = self.volunteer.changed.count();
                    self.handle_registration(&registration);
                    (signed, retry_delay) = (Some(descriptor), MIN_RETRY_DELAY);
                    // A gateway reports its volunteers soon after a change, so the next registration shows its report.
                    // A changed offer needs a registration too.
                    let changed = clock::within(self.interval(), self.volunteer.changed.notified_since(seen)).await;
                    if changed.is_some() {
                        clock::sleep(CHANGE_DELAY.min(self.interval())).await;
                    }
                }
                Err(error) => {
                    // The next try signs a new descriptor, because the directory may have refused this one as outdated.
                    self.handle_failure(error);
                    clock::sleep(retry_delay).await;
                    retry_delay = retry_delay.saturating_mul(2).min(MAX_RETRY_DELAY);
                }
            }
        }
    }

    /// Interval between registrations.
    fn interval(&self) -> Duration {
        let consensus = self.volunteer.consensus.try_borrow();
        let interval = consensus.ok().and_then(|in_use| in_use.as_ref().map(|it| it.parameters().volunteer_interval()));
        interval.unwrap_or(MAX_RETRY_DELAY)
    }

    fn handle_registration(&self, registration: &Registration) {
        if let Some(drive) = self.volunteer.drive() {
            drive.with(|driven, now, _| driven.relay.handle_registration(now, registration));
        }
        self.registered.set(true);
        self.confirmed.set(!registration.gateways.is_empty());
        self.update_phase();
    }

    /// Handles a failed registration. A confirmed volunteer with a gateway stays reachable, because the last list is
    /// valid for a while.
    fn handle_failure(&self, error: DocumentFetchError) {
        let refused = matches!(error, DocumentFetchError::Refused(..));
        let failure = if refused && self.is_clock_fast() { clock_failure() } else { error.into() };
        if !self.confirmed.get() || self.volunteer.figures().gateways == 0 {
            self.registered.set(false);
            self.volunteer.set_phase(VolunteerPhase::Error, &failure.sentence);
        }
    }

    /// Whether the consensus is no longer fresh by this device's clock, although a directory has just answered. The clock
    /// is then probably fast, and directories refuse descriptors with a later date.
    fn is_clock_fast(&self) -> bool {
        let consensus = self.volunteer.consensus.try_borrow();
        consensus.is_ok_and(|in_use| in_use.as_ref().is_some_and(|it| clock::wall_time() >= it.fresh_until()))
    }

    /// Sets the phase of a registered volunteer.
    fn update_phase(&self) {
        if !self.registered.get() {
            return;
        }
        let (now, gateways) = (clock::now(), self.volunteer.figures().gateways);
        if gateways > 0 {
            self.gateway_seen_at.set(now);
        }
        let (phase, why) = match (gateways, self.confirmed.get()) {
            (1.., true) => (VolunteerPhase::Reachable, ""),
            (0, _) if now.since(self.gateway_seen_at.get()) > GATEWAY_TIMEOUT => {
                (VolunteerPhase::Unreachable, NO_GATEWAY)
            }
            _ => (VolunteerPhase::Connecting, ""),
        };
        self.volunteer.set_phase(phase, why);
    }

    /// A signed descriptor: `before` if its onion key and offer are current and its age is below
    /// [`MAX_DESCRIPTOR_AGE`], otherwise a new one.
    fn descriptor(&self, before: Option<CurrentDescriptor>) -> Result<CurrentDescriptor, PageFailure> {
        let failed = || PageFailure::new(FailureKind::BadInput, "this volunteer's descriptor could not be signed");
        let mut rng = randomness().map_err(unsupported)?;
        let mut keys = self.volunteer.keys.try_borrow_mut().map_err(|_| failed())?;
        if let Some(next) = keys.rotate(&mut rng)
            && let Some(drive) = self.volunteer.drive()
        {
            drive.with(|driven, _, _| driven.relay.rotate_onion_key(next));
        }
        let onion_key = keys.for_relay().1.public();
        let now = clock::wall_time();
        let offer = Offer { engines: self.volunteer.engines.offered(), ..Offer::default() };
        if let Some(before) = before
            && before.onion_key == onion_key
            && before.offer == offer
            && clock::now().since(before.signed_at) < MAX_DESCRIPTOR_AGE
        {
            return Ok(before);
        }
        let mut profile = VolunteerProfile {
            identity: keys.id(),
            onion_key,
            family: Vec::new(),
            operator: String::new(),
            offer: offer.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // The volunteer list limits the size of each entry, so surplus engines are omitted, as in native nodes.
        while !profile.fits() && profile.offer.engines.pop().is_some() {}
        let bytes = VolunteerDescriptor { profile, published: now }.sign(keys.identity()).map_err(|_| failed())?;
        Ok(CurrentDescriptor { bytes, onion_key, offer, signed_at: clock::now() })
    }
}

/// A signed descriptor, with the inputs that require a new one when they change.
struct CurrentDescriptor {
    /// The encoded descriptor with its signature.
    bytes: Vec<u8>,
    onion_key: OnionPublic,
    /// The chosen engines that work, of which the descriptor may omit some.
    offer: Offer,
    signed_at: Instant,
}
