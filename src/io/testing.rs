//! For tests: a core without an overlay, which joins the streams of two hubs with room and credit as the real one has.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

use crate::wire::EndReason;

use super::stream::{Hub, Stream, StreamCommand, StreamKey};

/// Bytes of one DATA message.
const MESSAGE: usize = 963;
/// What the core buffers of one stream.
pub(crate) const ROOM: usize = 128 * 1024;
/// What may be underway to a reader.
pub(crate) const CREDIT: usize = 1024 * 1024;

/// What goes from one end of a stream to the other.
struct Flow {
    buffered: BytesMut,
    credit: usize,
    finishing: bool,
}

/// All streams of one direction.
#[derive(Default)]
pub(crate) struct Flows(HashMap<StreamKey, Flow>);

impl Flows {
    pub(crate) fn open(&mut self, key: StreamKey) {
        self.0.insert(key, Flow { buffered: BytesMut::new(), credit: CREDIT, finishing: false });
    }

    pub(crate) fn write(&mut self, key: StreamKey, bytes: &Bytes) {
        let flow = self.0.get_mut(&key).unwrap();
        flow.buffered.extend_from_slice(bytes);
        assert!(flow.buffered.len() <= ROOM, "more was written than there was room for");
    }

    pub(crate) fn finish(&mut self, key: StreamKey) {
        self.0.get_mut(&key).unwrap().finishing = true;
    }

    pub(crate) fn credit(&mut self, key: StreamKey, bytes: usize) {
        if let Some(flow) = self.0.get_mut(&key) {
            flow.credit += bytes;
            assert!(flow.credit <= CREDIT, "more was consumed than had come");
        }
    }

    pub(crate) fn forget(&mut self, key: StreamKey) {
        self.0.remove(&key);
    }

    /// Moves what credit allows, and the end after it; gives the room left.
    pub(crate) fn pump(&mut self, key: StreamKey, mut push: impl FnMut(&[u8]), finish: impl FnOnce()) -> usize {
        let Some(flow) = self.0.get_mut(&key) else { return 0 };
        let taken = flow.buffered.split_to(flow.credit.min(flow.buffered.len()));
        flow.credit -= taken.len();
        taken.chunks(MESSAGE).for_each(&mut push);
        let room = ROOM - flow.buffered.len();
        if flow.finishing && flow.buffered.is_empty() {
            self.0.remove(&key);
            finish();
        }
        room
    }
}

/// Joins the streams of `hubs` that have the same key, for ever.
pub(crate) async fn join_hubs(mut hubs: [Hub; 2], keys: Vec<StreamKey>) {
    let mut flows = [Flows::default(), Flows::default()];
    for key in keys {
        flows.iter_mut().for_each(|flows| flows.open(key));
    }
    loop {
        let [left, right] = &mut hubs;
        let (from, command) = tokio::select! {
            command = left.command() => (0, command),
            command = right.command() => (1, command),
        };
        let to = 1 - from;
        match command {
            StreamCommand::Write { key, bytes } => {
                flows[from].write(key, &bytes);
                pump(&mut hubs, &mut flows, from, key);
            }
            StreamCommand::Finish { key } => {
                flows[from].finish(key);
                pump(&mut hubs, &mut flows, from, key);
            }
            StreamCommand::Consumed { key, bytes } => {
                flows[to].credit(key, bytes);
                pump(&mut hubs, &mut flows, to, key);
            }
            StreamCommand::Reset { key, reason } => {
                hubs[to].fail(key, reason);
                flows.iter_mut().for_each(|flows| flows.forget(key));
            }
        }
    }
}

fn pump(hubs: &mut [Hub; 2], flows: &mut [Flows; 2], from: usize, key: StreamKey) {
    let to = &mut hubs[1 - from];
    let mut finished = false;
    let room = flows[from].pump(key, |bytes| to.push(key, bytes), || finished = true);
    if finished {
        to.finish(key);
    } else {
        hubs[from].set_room(key, room);
    }
}

/// Two ends of one stream.
pub(crate) fn stream_pair() -> (Stream, Stream) {
    let mut hubs = [Hub::new(), Hub::new()];
    let ends = (hubs[0].open(1, ROOM), hubs[1].open(1, ROOM));
    tokio::spawn(join_hubs(hubs, vec![1]));
    ends
}

/// The reason inside an error of a stream.
pub(crate) fn reason_of(error: &std::io::Error) -> Option<EndReason> {
    error.get_ref()?.downcast_ref::<super::stream::StreamFailed>().map(|failed| failed.0)
}
