//! The task of a started volunteer: consensus, gateways, registration, until it is halted.

use core::{cell::Cell, time::Duration};
use std::{rc::Rc, sync::Arc};

use wasm_bindgen_futures::spawn_local;

use super::{BrowserVolunteer, VolunteerPhase, engines};
use crate::{
    base::Instant,
    browser::{
        clock,
        directory::{DocumentFetchError, of_another_time},
        drive::randomness,
        failure::{FailureKind, PageFailure},
        follow,
    },
    crypto::OnionPublic,
    delegated::Offer,
    directory::{Consensus, Registration, VolunteerDescriptor, VolunteerProfile},
};

/// Age at which a descriptor is signed anew.
const DESCRIPTOR_AGE: Duration = Duration::from_secs(6 * 60 * 60);
/// Delay between retries, first and largest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Delay from a change of its gateways to the query for their confirmation.
const ASK_AFTER_CHANGE: Duration = Duration::from_secs(1);
/// Time limit for the first gateway, after which the volunteer reports that none answers.
const FIRST_GATEWAY_TIMEOUT: Duration = Duration::from_secs(25);
const NO_GATEWAY: &str = "No gateway of this volunteer can be reached: this network may block WebRTC or UDP. The volunteer \
                          keeps retrying.";
/// Interval at which the page is updated with statistics.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// The state of one start.
struct Course {
    volunteer: Rc<BrowserVolunteer>,
    number: u64,
    /// A directory has accepted the registration.
    registered: Cell<bool>,
    /// A gateway has confirmed it, so the directory lists it, at the latest in the next list.
    confirmed: Cell<bool>,
    /// The last time with a gateway, or of the start.
    alone_since: Cell<Instant>,
}

/// Runs start number `number` until the next one.
pub(super) async fn run(volunteer: Rc<BrowserVolunteer>, number: u64) {
    let course = Rc::new(Course {
        volunteer,
        number,
        registered: Cell::new(false),
        confirmed: Cell::new(false),
        alone_since: Cell::new(clock::now()),
    });
    let mut retry = RETRY.0;
    let first = loop {
        match follow::first_consensus(&course.volunteer.directories).await {
            _ if course.is_over() => return,
            Ok(first) => break first,
            Err(failure) => course.volunteer.set_phase(VolunteerPhase::Error, &failure.sentence),
        }
        clock::sleep(retry).await;
        retry = retry.saturating_mul(2).min(RETRY.1);
    };
    course.take_consensus(&first);
    let (wanted, take) = (Rc::clone(&course), Rc::clone(&course));
    spawn_local(follow::follow(
        Rc::clone(&course.volunteer.directories),
        Some(first),
        move || !wanted.is_over(),
        move |consensus: Arc<Consensus>| take.take_consensus(&consensus),
    ));
    spawn_local(show(Rc::clone(&course)));
    let keeps = Rc::clone(&course);
    spawn_local(engines::keep(Rc::clone(&course.volunteer), move || !keeps.is_over()));
    // Independent of this start: queries received before its end are still answered.
    if let Some(driver) = course.volunteer.driver() {
        spawn_local(engines::serve(Rc::clone(&course.volunteer), driver));
    }
    course.volunteer.set_phase(VolunteerPhase::Registering, "");
    course.keep_registered().await;
}

/// Sends changed statistics to the wrapper.
async fn show(course: Rc<Course>) {
    let mut shown = None;
    while !course.is_over() {
        course.judge();
        let figures = course.volunteer.figures();
        if shown.replace(figures) != Some(figures) {
            course.volunteer.tell();
        }
        let heard = course.volunteer.changed.times();
        clock::within(SHOW_EVERY, course.volunteer.changed.after(heard)).await;
    }
}

impl Course {
    fn is_over(&self) -> bool {
        self.volunteer.course.get() != self.number
    }

    fn take_consensus(&self, consensus: &Arc<Consensus>) {
        self.volunteer.consensus.replace(Some(Arc::clone(consensus)));
        if let Some(driver) = self.volunteer.driver() {
            driver.with(|core, now, _| core.relay.set_consensus(now, Arc::clone(consensus)));
        }
    }

    /// Registers each interval, with the same descriptor while it is valid.
    async fn keep_registered(&self) {
        let (mut signed, mut retry) = (None, RETRY.0);
        while !self.is_over() {
            let descriptor = match self.descriptor(signed.take()) {
                Ok(descriptor) => descriptor,
                Err(failure) => return self.volunteer.set_phase(VolunteerPhase::Error, &failure.sentence),
            };
            let outcome = self.volunteer.directories.register(&descriptor.0).await;
            if self.is_over() {
                return;
            }
            match outcome {
                Ok(registration) => {
                    let heard = self.volunteer.changed.times();
                    self.take_registration(&registration);
                    (signed, retry) = (Some(descriptor), RETRY.0);
                    // A gateway reports its volunteers soon after a change, so the directory is queried then. The
                    // offer may have changed too.
                    let changed = clock::within(self.interval(), self.volunteer.changed.after(heard)).await;
                    if changed.is_some() {
                        clock::sleep(ASK_AFTER_CHANGE.min(self.interval())).await;
                    }
                }
                Err(error) => {
                    // The next try signs a new descriptor: the directory may have refused this one as outdated.
                    self.take_failure(error);
                    clock::sleep(retry).await;
                    retry = retry.saturating_mul(2).min(RETRY.1);
                }
            }
        }
    }

    fn interval(&self) -> Duration {
        let consensus = self.volunteer.consensus.try_borrow();
        let interval = consensus.ok().and_then(|kept| kept.as_ref().map(|it| it.parameters().volunteer_interval()));
        interval.unwrap_or(RETRY.1)
    }

    fn take_registration(&self, registration: &Registration) {
        if let Some(driver) = self.volunteer.driver() {
            driver.with(|core, now, _| core.relay.handle_registration(now, registration));
        }
        self.registered.set(true);
        self.confirmed.set(!registration.gateways.is_empty());
        self.judge();
    }

    /// An unreachable directory doesn't make a volunteer unreachable at once: the last list stays valid for a while.
    fn take_failure(&self, error: DocumentFetchError) {
        let refused = matches!(error, DocumentFetchError::Refused(..));
        let failure = if refused && self.is_of_another_time() { of_another_time() } else { error.into() };
        if !self.confirmed.get() || self.volunteer.figures().gateways == 0 {
            self.registered.set(false);
            self.volunteer.set_phase(VolunteerPhase::Error, &failure.sentence);
        }
    }

    /// Whether the consensus is expired by this device's clock, though a directory has just answered. In that case
    /// documents signed by that clock are refused as being from the future.
    fn is_of_another_time(&self) -> bool {
        let consensus = self.volunteer.consensus.try_borrow();
        consensus.is_ok_and(|kept| kept.as_ref().is_some_and(|it| clock::wall_time() >= it.fresh_until()))
    }

    /// Determines the state of a registered volunteer.
    fn judge(&self) {
        if !self.registered.get() {
            return;
        }
        let (now, gateways) = (clock::now(), self.volunteer.figures().gateways);
        if gateways > 0 {
            self.alone_since.set(now);
        }
        let (phase, why) = match (gateways, self.confirmed.get()) {
            (1.., true) => (VolunteerPhase::Reachable, ""),
            (0, _) if now.since(self.alone_since.get()) > FIRST_GATEWAY_TIMEOUT => {
                (VolunteerPhase::Unreachable, NO_GATEWAY)
            }
            _ => (VolunteerPhase::Connecting, ""),
        };
        self.volunteer.set_phase(phase, why);
    }

    /// The signed descriptor, with its onion key and creation time: the `before` one while it is valid.
    fn descriptor(&self, before: Option<Signed>) -> Result<Signed, PageFailure> {
        let broken = |_| PageFailure::new(FailureKind::BadInput, "this volunteer's stored keys are invalid");
        let mut rng = randomness().map_err(|_| broken(()))?;
        let mut keys = self.volunteer.keys.try_borrow_mut().map_err(|_| broken(()))?;
        if let Some(next) = keys.rotate(&mut rng)
            && let Some(driver) = self.volunteer.driver()
        {
            driver.with(|core, _, _| core.relay.rotate_onion_key(next));
        }
        let onion_key = keys.for_relay().1.public();
        let now = clock::wall_time();
        let offer = Offer { engines: self.volunteer.engines.offered(), ..Offer::default() };
        if let Some(before) = before
            && before.1 == onion_key
            && before.2 == offer
            && clock::now().since(before.3) < DESCRIPTOR_AGE
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
        // As in native nodes: the volunteer list limits the size of each entry.
        while !profile.fits() && profile.offer.engines.pop().is_some() {}
        let signed = VolunteerDescriptor { profile, published: now }.sign(keys.identity()).map_err(|_| broken(()))?;
        Ok(Signed(signed, onion_key, offer, clock::now()))
    }
}

/// A signed descriptor, its onion key, its offer, and its creation time.
struct Signed(Vec<u8>, OnionPublic, Offer, Instant);
