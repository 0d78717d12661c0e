//! Test doubles: a core that joins the streams of two hubs, with the room and credit of the real core; a connector to
//! targets without an overlay; target servers.

use std::{
    collections::HashMap,
    future::poll_fn,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    client::StreamFailure,
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Isolation},
    path::PathError,
    stream::StreamCommand,
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

use super::{
    listener::accept_each,
    stream::{Hub, SocketEnd, Stream, splice},
};

/// Bytes of one DATA message.
const MESSAGE_LEN: usize = 963;
/// Maximum bytes of a stream that the core buffers.
pub(crate) const ROOM: usize = 128 * 1024;
/// Maximum bytes in flight to a reader.
pub(crate) const CREDIT: usize = 1024 * 1024;

/// The bytes in one direction of a stream.
struct Flow {
    buffered: BytesMut,
    credit: usize,
    /// The reason of the END after the buffered bytes.
    finishing: Option<EndReason>,
}

/// One direction of all streams.
#[derive(Default)]
pub(crate) struct Flows(HashMap<u64, Flow>);

impl Flows {
    pub(crate) fn open(&mut self, stream: u64) {
        self.0.insert(stream, Flow { buffered: BytesMut::new(), credit: CREDIT, finishing: None });
    }

    pub(crate) fn write(&mut self, stream: u64, bytes: &Bytes) {
        let Some(flow) = self.0.get_mut(&stream) else { return };
        flow.buffered.extend_from_slice(bytes);
        assert!(flow.buffered.len() <= ROOM, "bytes were written without room");
    }

    /// Ends the direction with END (`reason`) after the buffered bytes. The direction may have finished before, if
    /// `reason` isn't Done.
    pub(crate) fn finish(&mut self, stream: u64, reason: EndReason) {
        if reason != EndReason::Done && !self.0.contains_key(&stream) {
            self.open(stream);
        }
        if let Some(flow) = self.0.get_mut(&stream) {
            flow.finishing = Some(reason);
        }
    }

    pub(crate) fn credit(&mut self, stream: u64, bytes: usize) {
        if let Some(flow) = self.0.get_mut(&stream) {
            flow.credit += bytes;
            assert!(flow.credit <= CREDIT, "more bytes consumed than received");
        }
    }

    pub(crate) fn remove(&mut self, stream: u64) {
        self.0.remove(&stream);
    }

    /// Forwards bytes within the credit, then the end of the stream. Returns the remaining room.
    pub(crate) fn pump(&mut self, stream: u64, mut push: impl FnMut(&[u8]), finish: impl FnOnce(EndReason)) -> usize {
        let Some(flow) = self.0.get_mut(&stream) else { return 0 };
        let forwarded = flow.buffered.split_to(flow.credit.min(flow.buffered.len()));
        flow.credit -= forwarded.len();
        forwarded.chunks(MESSAGE_LEN).for_each(&mut push);
        let room = ROOM - flow.buffered.len();
        if let (Some(reason), true) = (flow.finishing, flow.buffered.is_empty()) {
            self.0.remove(&stream);
            finish(reason);
        }
        room
    }
}

/// Joins the streams of `hubs` that have the same number, without end.
pub(crate) async fn join_hubs(mut hubs: [Hub<u64>; 2], streams: Vec<u64>) {
    let mut flows = [Flows::default(), Flows::default()];
    for stream in streams {
        flows.iter_mut().for_each(|flows| flows.open(stream));
    }
    loop {
        let [left, right] = &mut hubs;
        let (from, (stream, command)) = tokio::select! {
            command = poll_fn(|cx| left.poll_command(cx)) => (0, command),
            command = poll_fn(|cx| right.poll_command(cx)) => (1, command),
        };
        let to = 1 - from;
        match command {
            StreamCommand::Write(bytes) => {
                flows[from].write(stream, &bytes);
                pump(&mut hubs, &mut flows, from, stream);
            }
            StreamCommand::Finish => {
                flows[from].finish(stream, EndReason::Done);
                pump(&mut hubs, &mut flows, from, stream);
            }
            StreamCommand::Fail(reason) => {
                flows[from].finish(stream, reason);
                pump(&mut hubs, &mut flows, from, stream);
            }
            StreamCommand::Consumed(bytes) => {
                flows[to].credit(stream, bytes);
                pump(&mut hubs, &mut flows, to, stream);
            }
            StreamCommand::Reset(reason) => {
                hubs[to].fail(stream, reason);
                flows.iter_mut().for_each(|flows| flows.remove(stream));
            }
            StreamCommand::Connected(_) | StreamCommand::Resolved { .. } => panic!("{command:?} of an open stream"),
        }
    }
}

fn pump(hubs: &mut [Hub<u64>; 2], flows: &mut [Flows; 2], from: usize, stream: u64) {
    let to = &mut hubs[1 - from];
    let mut end = None;
    let room = flows[from].pump(stream, |bytes| to.push(stream, bytes), |reason| end = Some(reason));
    match end {
        Some(EndReason::Done) => to.finish(stream),
        Some(reason) => {
            hubs.iter_mut().for_each(|hub| hub.fail(stream, reason));
            flows.iter_mut().for_each(|flows| flows.remove(stream));
        }
        None => hubs[from].set_room(stream, room),
    }
}

/// The two ends of one stream.
pub(crate) fn stream_pair() -> (Stream, Stream) {
    let mut hubs = [Hub::new(), Hub::new()];
    let ends = (hubs[0].open(1, ROOM), hubs[1].open(1, ROOM));
    tokio::spawn(join_hubs(hubs, vec![1]));
    ends
}

/// The reason in a stream's error.
pub(crate) fn reason_of(error: &std::io::Error) -> Option<EndReason> {
    error.get_ref()?.downcast_ref::<super::stream::StreamFailed>().map(|failed| failed.0)
}

/// A connector that connects to targets directly, without an overlay, and records its requests.
///
/// The names `origin.test` and `localhost` resolve to 127.0.0.1. `never.test` neither connects nor fails. Each other
/// name fails; [`Self::address`] lists the reasons.
#[derive(Clone, Default)]
pub(crate) struct Direct {
    pub(crate) requests: Arc<Mutex<Vec<(Target, Isolation)>>>,
}

impl Direct {
    pub(crate) fn isolations(&self) -> Vec<Isolation> {
        self.requests.lock().unwrap().iter().map(|(_, isolation)| *isolation).collect()
    }

    async fn address(host: &Host) -> Result<IpAddr, ConnectError> {
        const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match host {
            Host::Ip(ip) => Ok(*ip),
            Host::Name(name) => match name.as_str() {
                "origin.test" | "localhost" => Ok(LOOPBACK),
                "refused.test" => Err(EndReason::Refused.into()),
                "unreachable.test" => Err(EndReason::Unreachable.into()),
                "policy.test" => Err(EndReason::Policy.into()),
                "timedout.test" => Err(EndReason::TimedOut.into()),
                "notfound.test" => Err(EndReason::NotFound.into()),
                "lookup.test" => Err(EndReason::LookupFailed.into()),
                "limit.test" => Err(EndReason::ResourceLimit.into()),
                "noexit.test" => Err(PathError::NoExit.into()),
                "few.test" => Err(PathError::TooFewRelays.into()),
                "expired.test" => Err(StreamFailure::ConsensusExpired.into()),
                "notpublic.test" => Err(StreamFailure::NotPublic.into()),
                "guard.test" => Err(StreamFailure::GuardUnreachable.into()),
                "circuit.test" => Err(StreamFailure::NoCircuit.into()),
                "full.test" => Err(StreamFailure::LimitReached.into()),
                "notready.test" => Err(StreamFailure::NoConsensus.into()),
                "never.test" => core::future::pending().await,
                _ => Err(EndReason::Failed.into()),
            },
        }
    }
}

impl Connector for Direct {
    async fn open(&self, target: Target, isolation: Isolation) -> Result<Stream, ConnectError> {
        self.requests.lock().unwrap().push((target.clone(), isolation));
        let ip = Self::address(&target.host).await?;
        let socket = TcpStream::connect((ip, target.port)).await.map_err(|_| EndReason::Refused)?;
        let (near, far) = stream_pair();
        tokio::spawn(splice(socket, far, &[], SocketEnd::Target(None)));
        Ok(near)
    }

    async fn resolve(&self, host: Host, isolation: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        self.requests.lock().unwrap().push((Target { host: host.clone(), port: 1 }, isolation));
        match host {
            Host::Ip(_) => Ok(vec![ResolvedAnswer::Name("origin.test".to_owned())]),
            Host::Name(_) => Ok(vec![ResolvedAnswer::Ip(Self::address(&host).await?)]),
        }
    }

    async fn delegate(&self, _: DelegatedRequest) -> Result<Delegated, ConnectError> {
        Err(PathError::NotOffered.into())
    }
}

/// A target that serves accepted sockets with `serve`, at most 64 concurrently. Returns the address.
pub(crate) async fn target_server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept_each(listener, 64, serve));
    address
}

/// A target that answers the first bytes of each connection with `answer`.
pub(crate) async fn answering_server(answer: &'static [u8]) -> SocketAddr {
    target_server(move |mut socket| async move {
        // The other end may disconnect at any time.
        let _ = socket.read(&mut [0; 1024]).await;
        let _ = socket.write_all(answer).await;
    })
    .await
}

/// A target that echoes its input, and finishes after the other end has finished.
pub(crate) async fn echo_server() -> SocketAddr {
    target_server(|mut socket| async move {
        let (mut reader, mut writer) = socket.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    })
    .await
}

/// The command that runs the ignored test `name` of this program in a separate process, after the shell command
/// `limits`.
pub(crate) fn with_limits(name: &str, limits: &str) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(format!("{limits}; exec \"$0\" --exact {name} --ignored --nocapture"));
    command.arg(std::env::current_exe().unwrap());
    command
}
