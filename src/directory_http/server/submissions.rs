//! The queue of submissions for the authority, in which the networks of the senders take turns.
//!
//! The queue has [`MAX_SUBMISSIONS`] places. At this cap, a new submission displaces the last one of the network
//! with the most submissions. That network must have at least two more than the sender's network. Otherwise the new
//! submission is refused. All peers without a global address count as one network.

use core::mem;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::Submission;
use crate::base::AddressPrefix;

/// Cap on queued submissions.
pub(super) const MAX_SUBMISSIONS: usize = 256;

/// An empty queue.
pub(super) fn queue() -> (SubmissionSender, Submissions) {
    let (tickets, receiver) = mpsc::channel(MAX_SUBMISSIONS);
    let waiting = Arc::<Mutex<WaitingSubmissions>>::default();
    (SubmissionSender { waiting: Arc::clone(&waiting), tickets }, Submissions { waiting, tickets: receiver })
}

/// The network of a sender; `None` if its address isn't global.
type SenderNetwork = Option<AddressPrefix>;

/// The sending end of the queue. Clones share the queue.
#[derive(Clone)]
pub(super) struct SubmissionSender {
    waiting: Arc<Mutex<WaitingSubmissions>>,
    /// One ticket for each queued submission.
    tickets: mpsc::Sender<()>,
}

/// The receiving end of the queue. A drop refuses all queued submissions.
pub struct Submissions {
    waiting: Arc<Mutex<WaitingSubmissions>>,
    tickets: mpsc::Receiver<()>,
}

/// The queued submissions.
#[derive(Default)]
struct WaitingSubmissions {
    /// The submissions of each network that has any, the first one first.
    by_network: BTreeMap<SenderNetwork, VecDeque<Submission>>,
    /// The networks with submissions, in the order of their turns.
    turns: VecDeque<SenderNetwork>,
}

impl SubmissionSender {
    /// Queues a submission from `network`. A submission without a place is dropped, so that its sender gets an answer.
    pub(super) fn send(&self, network: SenderNetwork, submission: Submission) {
        let mut waiting = lock(&self.waiting);
        let has_place = match self.tickets.try_send(()) {
            Ok(()) => true,
            // The new submission takes the ticket of the evicted one.
            Err(TrySendError::Full(())) => waiting.evict_for(&network),
            Err(TrySendError::Closed(())) => false,
        };
        if has_place {
            waiting.push(network, submission);
        }
    }
}

impl Submissions {
    /// Waits for the next submission; `None` once all senders are dropped and the queue is empty.
    pub async fn recv(&mut self) -> Option<Submission> {
        loop {
            self.tickets.recv().await?;
            if let Some(submission) = lock(&self.waiting).pop() {
                return Some(submission);
            }
        }
    }
}

impl Drop for Submissions {
    fn drop(&mut self) {
        self.tickets.close();
        let waiting = mem::take(&mut *lock(&self.waiting));
        drop(waiting);
    }
}

impl WaitingSubmissions {
    fn push(&mut self, network: SenderNetwork, submission: Submission) {
        let queue = self.by_network.entry(network).or_default();
        if queue.is_empty() {
            self.turns.push_back(network);
        }
        queue.push_back(submission);
    }

    /// Removes the first submission of the network whose turn it is.
    fn pop(&mut self) -> Option<Submission> {
        let network = self.turns.pop_front()?;
        let queue = self.by_network.get_mut(&network)?;
        let submission = queue.pop_front();
        if queue.is_empty() {
            self.by_network.remove(&network);
        } else {
            self.turns.push_back(network);
        }
        submission
    }

    /// Evicts the last submission of the network with the most submissions, in favour of one of `network`. Returns
    /// `false` if no network has enough submissions.
    fn evict_for(&mut self, network: &SenderNetwork) -> bool {
        let own = self.by_network.get(network).map_or(0, VecDeque::len);
        let Some(fullest) = self.by_network.values_mut().max_by_key(|queue| queue.len()) else { return false };
        // The fullest queue has at least two submissions, so it doesn't become empty.
        fullest.len() >= own.saturating_add(2) && fullest.pop_back().is_some()
    }
}

fn lock(waiting: &Mutex<WaitingSubmissions>) -> MutexGuard<'_, WaitingSubmissions> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use tokio::sync::oneshot;

    use super::*;

    /// Queues a submission from network `number`. Returns the receiver of its answer.
    fn send(
        sender: &SubmissionSender,
        number: u16,
    ) -> oneshot::Receiver<Result<(), crate::directory::DescriptorError>> {
        let (answer, receiver) = oneshot::channel();
        let [high, low] = number.to_be_bytes();
        let network = AddressPrefix::network([20, high, low, 1].into());
        let body = Bytes::copy_from_slice(&number.to_be_bytes());
        sender.send(Some(network), Submission::Descriptor(body, None, answer));
        receiver
    }

    /// The networks of all queued submissions, in the order in which they are received.
    async fn receive_all(sender: SubmissionSender, mut submissions: Submissions) -> Vec<u16> {
        drop(sender);
        let mut numbers = Vec::new();
        while let Some(Submission::Descriptor(body, ..)) = submissions.recv().await {
            numbers.push(u16::from_be_bytes([body[0], body[1]]));
        }
        numbers
    }

    #[tokio::test]
    async fn a_submission_waits_for_one_submission_of_each_other_network() {
        let (sender, submissions) = queue();
        for _ in 0..60 {
            (0..4).for_each(|number| _ = send(&sender, number));
        }
        _ = send(&sender, 9);
        let order = receive_all(sender, submissions).await;
        assert_eq!((order.len(), &order[..6]), (241, &[0, 1, 2, 3, 9, 0][..]));
    }

    #[tokio::test]
    async fn at_the_cap_the_network_with_the_most_submissions_loses_its_last_one() {
        let (sender, mut submissions) = queue();
        // 16 networks fill the queue with 16 submissions each, as many as they have connections.
        let answers: Vec<_> = (0..256).map(|number| send(&sender, number % 16)).collect();
        let mut refused = send(&sender, 3);
        assert!(refused.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        let mut honest = send(&sender, 99);
        assert!(
            honest.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty),
            "the submission waits"
        );
        let evicted = answers.into_iter().filter_map(|mut answer| answer.try_recv().err());
        assert_eq!(evicted.filter(|error| *error == oneshot::error::TryRecvError::Closed).count(), 1);
        for _ in 0..16 {
            assert!(submissions.recv().await.is_some());
        }
        let order = receive_all(sender, submissions).await;
        assert_eq!((order.len(), order[0]), (240, 99), "after one submission of each other network");
    }

    #[tokio::test]
    async fn a_dropped_receiver_refuses_queued_and_later_submissions() {
        let (sender, submissions) = queue();
        let queued = send(&sender, 1);
        drop(submissions);
        assert!(queued.await.is_err());
        assert!(send(&sender, 1).await.is_err());
    }
}
