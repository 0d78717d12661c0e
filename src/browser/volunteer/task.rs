//! A volunteer's course: from the consensus to being reached, and on until it is halted.

use core::{cell::Cell, time::Duration};
use std::{rc::Rc, sync::Arc};

use wasm_bindgen_futures::spawn_local;

use super::{Phase, Volunteer, engines};
use crate::{
    base::Instant,
    browser::{
        clock,
        directory::{DirectoryError, of_another_time},
        drive::randomness,
        failure::{Failure, Kind},
        follow,
    },
    crypto::OnionPublic,
    delegated::Offer,
    directory::{Consensus, Registration, VolunteerDescriptor, VolunteerProfile},
};

/// How old a descriptor may get before a new one is signed.
const DESCRIPTOR_AGE: Duration = Duration::from_secs(6 * 60 * 60);
/// Between tries of a directory, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// From a change of its gateways until it asks whether they have confirmed it.
const ASK_AFTER_CHANGE: Duration = Duration::from_secs(1);
/// For the first gateway to answer; after it the volunteer says that none does.
const PATIENCE: Duration = Duration::from_secs(25);
const NO_GATEWAY: &str = "None of the relays that this volunteer may use as gateways answers as it should: this network may \
                          block WebRTC or UDP. It keeps trying.";
/// How often figures are shown that change by themselves.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// What a course has found out.
struct Course {
    volunteer: Rc<Volunteer>,
    number: u64,
    /// A directory has taken it.
    registered: Cell<bool>,
    /// A gateway has confirmed it, so that it is listed or will be.
    confirmed: Cell<bool>,
    /// When it last had a gateway, or began.
    alone_since: Cell<Instant>,
}

/// Runs the course `number` until the next begins.
pub(super) async fn run(volunteer: Rc<Volunteer>, number: u64) {
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
            Err(failure) => course.volunteer.set_phase(Phase::Error, &failure.sentence),
        }
        clock::sleep(retry).await;
        retry = retry.saturating_mul(2).min(RETRY.1);
    };
    course.take_consensus(&first);
    let (wanted, take) = (Rc::clone(&course), Rc::clone(&course));
    spawn_local(follow::consensus(
        Rc::clone(&course.volunteer.directories),
        first,
        move || !wanted.is_over(),
        move |consensus| take.take_consensus(&consensus),
    ));
    spawn_local(show(Rc::clone(&course)));
    let keeps = Rc::clone(&course);
    spawn_local(engines::keep(Rc::clone(&course.volunteer), move || !keeps.is_over()));
    // Not only for this course: what was asked before the end is answered still.
    if let Some(driver) = course.volunteer.driver() {
        spawn_local(engines::serve(Rc::clone(&course.volunteer), driver));
    }
    course.volunteer.set_phase(Phase::Registering, "");
    course.keep_registered().await;
}

/// Shows the figures as they change.
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
            driver.with(|core, _, _| core.relay.set_consensus(Arc::clone(consensus)));
        }
    }

    /// Registers each interval, with the same bytes while they count.
    async fn keep_registered(&self) {
        let (mut signed, mut retry) = (None, RETRY.0);
        while !self.is_over() {
            let descriptor = match self.descriptor(signed.take()) {
                Ok(descriptor) => descriptor,
                Err(failure) => return self.volunteer.set_phase(Phase::Error, &failure.sentence),
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
                    // A gateway reports its volunteers soon after a change; then there is something to ask. What is offered may
                    // have changed too.
                    let changed = clock::within(self.interval(), self.volunteer.changed.after(heard)).await;
                    if changed.is_some() {
                        clock::sleep(ASK_AFTER_CHANGE.min(self.interval())).await;
                    }
                }
                Err(error) => {
                    // Signed anew next time: what was refused as older, say, must not come again.
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

    /// A directory that can't be asked doesn't make a volunteer unreachable at once: its list counts for a while.
    fn take_failure(&self, error: DirectoryError) {
        let refused = matches!(error, DirectoryError::Refused(..));
        let failure = if refused && self.is_of_another_time() { of_another_time() } else { error.into() };
        if !self.confirmed.get() || self.volunteer.figures().gateways == 0 {
            self.registered.set(false);
            self.volunteer.set_phase(Phase::Error, &failure.sentence);
        }
    }

    /// Whether the list of relays has aged by this device's clock, though the directory has just been heard of: what is signed
    /// by that clock is refused as coming from the future.
    fn is_of_another_time(&self) -> bool {
        let consensus = self.volunteer.consensus.try_borrow();
        consensus.is_ok_and(|kept| kept.as_ref().is_some_and(|it| clock::wall_time() >= it.fresh_until()))
    }

    /// Says how it stands, once it is registered.
    fn judge(&self) {
        if !self.registered.get() {
            return;
        }
        let (now, gateways) = (clock::now(), self.volunteer.figures().gateways);
        if gateways > 0 {
            self.alone_since.set(now);
        }
        let (phase, why) = match (gateways, self.confirmed.get()) {
            (1.., true) => (Phase::Reachable, ""),
            (0, _) if now.since(self.alone_since.get()) > PATIENCE => (Phase::Unreachable, NO_GATEWAY),
            _ => (Phase::Connecting, ""),
        };
        self.volunteer.set_phase(phase, why);
    }

    /// The signed descriptor with the onion key in it, and when it was made: the one before, while it counts.
    fn descriptor(&self, before: Option<Signed>) -> Result<Signed, Failure> {
        let broken = |_| Failure::new(Kind::BadInput, "this volunteer's keys can't be used");
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
        // As natively: a list of volunteers has room for so much of each.
        while !profile.fits() && profile.offer.engines.pop().is_some() {}
        let signed = VolunteerDescriptor { profile, published: now }.sign(keys.identity()).map_err(|_| broken(()))?;
        Ok(Signed(signed, onion_key, offer, clock::now()))
    }
}

/// A signed descriptor, the onion key in it, what it was to offer, and when it was made.
struct Signed(Vec<u8>, OnionPublic, Offer, Instant);
