//! A client in a page: its start and the refresh of its documents.

use core::{
    cell::{Cell, RefCell},
    time::Duration,
};
use std::{rc::Rc, sync::Arc};

use js_sys::Function;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;

use super::{
    client::{DrivenPageClient, Readiness},
    clock,
    directory::Directories,
    drive::{PageDrive, randomness},
    failure::{FailureKind, PageFailure},
    follow,
    store::{Store, StoreEntry},
    sync::oneshot,
};
use crate::{
    client::{ClientMachine, ClientParameters, Isolation},
    crypto::sha256,
    delegated::{Delegation, ExitStatistics, Offers, engines},
    directory::{Consensus, VolunteerList},
    path::GuardSample,
    transport::browser::BrowserCaps,
};

/// Time limit of the first circuit, after the consensus.
const CIRCUIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which the start waits for the volunteer list, after the consensus.
const VOLUNTEERS_TIMEOUT: Duration = Duration::from_millis(250);
/// Spare circuits for searches: for a query, for its second try at another exit, and for the next query.
const SPARE_SEARCHES: usize = 3;

/// State shared by all handles of a page's client.
pub(super) struct Page {
    pub(super) drive: PageDrive<DrivenPageClient>,
    pub(super) exit_statistics: RefCell<ExitStatistics>,
    /// The consensus in use.
    consensus: RefCell<Option<Arc<Consensus>>>,
    /// The volunteer list in use.
    volunteers: RefCell<Option<Arc<VolunteerList>>>,
    /// The number of isolations made so far, of which the next isolation is a digest.
    isolations: Cell<u64>,
}

impl Page {
    /// Starts a client and waits for its first circuit. Calls `progress` with the name of each completed step.
    pub(super) async fn start(
        directories: &[String],
        authorities: &[String],
        store: Store,
        progress: &Function,
    ) -> Result<Rc<Self>, PageFailure> {
        let report = |step: &str| drop(progress.call1(&JsValue::NULL, &JsValue::from_str(step)));
        let directories = Rc::new(Directories::new(directories, authorities, store.clone())?);
        let guards = store.read(StoreEntry::Guards).await.and_then(|bytes| GuardSample::decode(&bytes).ok());
        let parameters = ClientParameters { max_circuits: 64, max_streams: 256, ..ClientParameters::default() };
        let client = ClientMachine::new(parameters, guards.unwrap_or_default());
        let readiness = Readiness::default();
        let driven = DrivenPageClient::new(client, store, readiness.clone());
        let unsupported = |_| {
            PageFailure::new(FailureKind::NoWebrtc, "this browser lacks or disables a feature that the client needs")
        };
        let rng = randomness().map_err(unsupported)?;
        let drive = PageDrive::start(driven, BrowserCaps::default(), None, rng).map_err(unsupported)?;
        let page = Rc::new(Self {
            drive,
            exit_statistics: RefCell::default(),
            consensus: RefCell::default(),
            volunteers: RefCell::default(),
            isolations: Cell::new(0),
        });
        // Both documents are fetched in parallel, so that the first circuits can use volunteers too. The volunteer list
        // is optional.
        let (mut reply, list) = oneshot();
        let list_source = Rc::clone(&directories);
        spawn_local(async move { reply.send(list_source.fetch(None).await.ok().flatten().map(Arc::new)) });
        let first = follow::first_consensus(&directories).await?;
        let list = clock::within(VOLUNTEERS_TIMEOUT, list).await.flatten().flatten();
        if let Some(list) = &list {
            page.set_volunteers(Arc::clone(list));
        }
        page.set_consensus(Arc::clone(&first));
        report("consensus");
        page.follow(directories, first, list);
        let circuit = async {
            while !readiness.ready.get() && !page.drive.is_stopped() {
                let seen = readiness.changed.count();
                readiness.changed.notified_since(seen).await;
            }
        };
        clock::within(CIRCUIT_TIMEOUT, circuit).await.ok_or_else(|| {
            let message = "no circuit could be built in time: this network may block WebRTC or UDP";
            page.drive.stop();
            PageFailure::new(FailureKind::Network, message)
        })?;
        ["channel", "circuit", "ready"].into_iter().for_each(report);
        Ok(page)
    }

    /// The consensus in use; `None` before the first.
    pub(super) fn consensus(&self) -> Option<Arc<Consensus>> {
        self.consensus.try_borrow().ok()?.clone()
    }

    /// The delegated requests that each exit offers.
    pub(super) fn offers(&self) -> Offers {
        let consensus = self.consensus()?;
        let volunteers = self.volunteers.try_borrow().ok().and_then(|list| list.clone());
        let volunteers = volunteers.filter(|list| clock::wall_time() < list.valid_until());
        let listed = consensus.relays().iter().map(|relay| (relay.identity(), &relay.profile.offer));
        let volunteers =
            volunteers.iter().flat_map(|list| list.volunteers()).map(|relay| (relay.identity(), &relay.profile.offer));
        let offering = listed.chain(volunteers).filter(|(_, offer)| !offer.is_empty());
        Some(offering.map(|(relay, offer)| (relay, offer.clone())).collect())
    }

    /// A fresh isolation for one request.
    pub(super) fn isolation(&self) -> Isolation {
        let number = self.isolations.get();
        self.isolations.set(number.wrapping_add(1));
        isolation(number)
    }

    /// Refreshes documents while the client runs.
    fn follow(
        self: &Rc<Self>,
        directories: Rc<Directories>,
        first: Arc<Consensus>,
        volunteers: Option<Arc<VolunteerList>>,
    ) {
        let wanted = || {
            let page = Rc::downgrade(self);
            move || page.upgrade().is_some_and(|page| !page.drive.is_stopped())
        };
        let page = Rc::downgrade(self);
        spawn_local(follow::follow(Rc::clone(&directories), Some(first), wanted(), move |consensus| {
            page.upgrade().into_iter().for_each(|page| page.set_consensus(Arc::clone(&consensus)));
        }));
        let page = Rc::downgrade(self);
        spawn_local(follow::follow(directories, volunteers, wanted(), move |list| {
            page.upgrade().into_iter().for_each(|page| page.set_volunteers(Arc::clone(&list)));
        }));
    }

    fn set_volunteers(&self, volunteers: Arc<VolunteerList>) {
        self.volunteers.replace(Some(Arc::clone(&volunteers)));
        self.drive.with(|driven, now, _| driven.client.set_volunteers(now, clock::wall_time(), volunteers));
    }

    fn set_consensus(&self, consensus: Arc<Consensus>) {
        if let Ok(mut in_use) = self.consensus.try_borrow_mut() {
            *in_use = Some(Arc::clone(&consensus));
        }
        let default_engine = engines(&self.offers(), None).into_iter().next();
        self.drive.with(|driven, now, rng| {
            driven.client.set_consensus(now, clock::wall_time(), consensus, rng);
            // A search is the most likely request of a page.
            if let Some(engine) = default_engine {
                driven.client.keep_ready(Delegation::Search(engine), SPARE_SEARCHES);
            }
        });
    }
}

/// The isolation with the number `number`.
pub(super) fn isolation(number: u64) -> Isolation {
    Isolation(sha256(&number.to_be_bytes()))
}
