use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::{
    io::testing::{ROOM, reason_of, stream_pair},
    stream::StreamCommand,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// The next command, if one is ready.
fn command(hub: &mut Hub<u64>) -> Option<(u64, StreamCommand)> {
    match hub.poll_command(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(command) => Some(command),
        Poll::Pending => None,
    }
}

/// The output of `future`; `None` if it is still pending after all other tasks have run many times. The tests run on
/// one thread, so this needs no clock.
async fn poll_until_idle<F: Future>(future: F) -> Option<F::Output> {
    let mut future = core::pin::pin!(future);
    for _ in 0..1000 {
        tokio::select! {
            biased;
            output = &mut future => return Some(output),
            () = tokio::task::yield_now() => {}
        }
    }
    None
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[tokio::test]
async fn bytes_arrive_both_ways_and_each_direction_finishes_independently() {
    let (mut left, mut right) = stream_pair();
    let sent = pattern(3_000_001);
    let expected = sent.clone();
    let answering = tokio::spawn(async move {
        let mut got = Vec::new();
        right.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        right.write_all(b"bytes after the peer's end").await.unwrap();
        right.shutdown().await.unwrap();
    });
    left.write_all(&sent).await.unwrap();
    left.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, left.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"bytes after the peer's end");
    answering.await.unwrap();
    assert_eq!(left.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_dropped_stream_is_an_error_at_the_other_end_after_earlier_bytes() {
    let (mut left, mut right) = stream_pair();
    left.write_all(b"part").await.unwrap();
    let mut part = [0; 4];
    right.read_exact(&mut part).await.unwrap();
    drop(left);
    let error = timeout(DEADLINE, right.read(&mut part)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(reason_of(&error), Some(EndReason::Reset));
    assert_eq!(right.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stream_finished_both_ways_is_not_reset_when_dropped() {
    let mut hub = Hub::<u64>::new();
    let mut stream = hub.open(7, 100);
    stream.write_all(b"all").await.unwrap();
    stream.shutdown().await.unwrap();
    hub.finish(7);
    drop(stream);
    assert_eq!(command(&mut hub), Some((7, StreamCommand::Write("all".into()))));
    assert_eq!(command(&mut hub), Some((7, StreamCommand::Finish)));
    assert_eq!(command(&mut hub), None);
    assert_eq!(hub.len(), 0);
}

#[tokio::test]
async fn a_reset_reports_its_reason() {
    let mut hub = Hub::<u64>::new();
    hub.open(7, 100).reset(EndReason::TimedOut);
    assert_eq!(command(&mut hub), Some((7, StreamCommand::Reset(EndReason::TimedOut))));
    assert_eq!(command(&mut hub), None);
    assert_eq!(hub.len(), 0);
}

#[tokio::test]
async fn received_bytes_are_read_before_a_failure_and_do_not_end_cleanly() {
    let mut hub = Hub::<u64>::new();
    let mut stream = hub.open(7, 100);
    hub.push(7, b"some");
    hub.push(7, b"thing");
    hub.fail(7, EndReason::Failed);
    let mut got = Vec::new();
    let error = stream.read_to_end(&mut got).await.unwrap_err();
    assert_eq!((got.as_slice(), error.kind()), (&b"something"[..], io::ErrorKind::ConnectionAborted));
}

#[tokio::test]
async fn streams_fail_when_the_hub_is_dropped() {
    let mut hub = Hub::<u64>::new();
    let mut stream = hub.open(7, 100);
    let reading = tokio::spawn(async move { stream.read(&mut [0; 8]).await });
    tokio::task::yield_now().await;
    drop(hub);
    assert!(timeout(DEADLINE, reading).await.unwrap().unwrap().is_err());
}

#[tokio::test]
async fn a_writer_stops_at_the_room_and_continues_with_more_room() {
    let mut hub = Hub::<u64>::new();
    let mut stream = hub.open(7, 10);
    assert_eq!(stream.write(&[1; 64]).await.unwrap(), 10);
    let mut writing = tokio::spawn(async move {
        stream.write_all(&[2; 20]).await.unwrap();
        stream
    });
    assert!(matches!(command(&mut hub), Some((7, StreamCommand::Write(bytes))) if bytes.len() == 10));
    hub.set_room(7, 0);
    assert!(poll_until_idle(&mut writing).await.is_none(), "bytes were written without room");
    hub.set_room(7, 15);
    assert!(matches!(poll_fn(|cx| hub.poll_command(cx)).await, (7, StreamCommand::Write(bytes)) if bytes.len() == 15));
    hub.set_room(7, 15);
    let _stream = timeout(DEADLINE, writing).await.unwrap().unwrap();
    assert!(matches!(command(&mut hub), Some((7, StreamCommand::Write(bytes))) if bytes.len() == 5));
}

#[tokio::test]
async fn small_pieces_occupy_little_more_memory_than_their_bytes() {
    let mut hub = Hub::<u64>::new();
    let stream = hub.open(7, 10);
    for _ in 0..1_000_000 {
        hub.push(7, b"x");
    }
    let capacity: usize = stream.shared.lock().received.iter().map(BytesMut::capacity).sum();
    assert!(capacity < 1_000_000 + 2 * NEXT_CHUNK_LEN, "{capacity} bytes held");
}

#[tokio::test]
async fn single_byte_writes_queue_a_stream_once() {
    let mut hub = Hub::<u64>::new();
    let mut stream = hub.open(7, 10_000);
    for _ in 0..5_000 {
        stream.write_all(b"x").await.unwrap();
    }
    assert!(matches!(command(&mut hub), Some((7, StreamCommand::Write(bytes))) if bytes.len() == 5_000));
    assert_eq!(command(&mut hub), None);
}

#[tokio::test]
async fn a_stalled_reader_stops_its_writer() {
    let (mut left, right) = stream_pair();
    let block = vec![0; 64 * 1024];
    let mut written = 0;
    while let Some(result) = poll_until_idle(left.write(&block)).await {
        written += result.unwrap();
    }
    assert!(written > 0 && written <= crate::io::testing::CREDIT + 2 * ROOM, "{written} unread bytes were accepted");
    drop(right);
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn a_spliced_socket_carries_bytes_and_half_closes() {
    let (left, right) = stream_pair();
    let (mut application, near) = socket_pair().await;
    let (far, mut target) = socket_pair().await;
    tokio::spawn(splice(near, left, b"early ", SocketEnd::Application));
    tokio::spawn(splice(far, right, &[], SocketEnd::Target(None)));
    application.write_all(b"question").await.unwrap();
    application.shutdown().await.unwrap();
    let mut question = String::new();
    timeout(DEADLINE, target.read_to_string(&mut question)).await.unwrap().unwrap();
    assert_eq!(question, "early question");
    target.write_all(b"answer").await.unwrap();
    drop(target);
    let mut answer = String::new();
    timeout(DEADLINE, application.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "answer");
}

#[tokio::test]
async fn a_failed_stream_resets_the_socket_and_a_failed_socket_the_stream() {
    let (left, right) = stream_pair();
    let (mut application, near) = socket_pair().await;
    tokio::spawn(splice(near, left, &[], SocketEnd::Application));
    right.reset(EndReason::Failed);
    let error = timeout(DEADLINE, application.read(&mut [0; 8])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let (left, mut right) = stream_pair();
    let (application, near) = socket_pair().await;
    tokio::spawn(splice(near, left, &[], SocketEnd::Application));
    reset_on_close(&application);
    drop(application);
    let error = timeout(DEADLINE, right.read(&mut [0; 8])).await.unwrap().unwrap_err();
    assert_eq!(reason_of(&error), Some(EndReason::Reset));
}

/// Reads to the end or an error.
async fn read_all(socket: &mut (impl tokio::io::AsyncRead + Unpin)) -> (Vec<u8>, io::Result<usize>) {
    let mut bytes = Vec::new();
    let result = timeout(DEADLINE, socket.read_to_end(&mut bytes)).await.unwrap();
    (bytes, result)
}

#[tokio::test]
async fn an_answer_before_a_reset_by_the_target_arrives_at_an_application_that_still_sends() {
    let expected = pattern(20_000);
    for is_finished in [false, true] {
        for _ in 0..20 {
            let (left, right) = stream_pair();
            let (application, near) = socket_pair().await;
            let (far, mut target) = socket_pair().await;
            tokio::spawn(splice(near, left, &[], SocketEnd::Application));
            tokio::spawn(splice(far, right, &[], SocketEnd::Target(None)));
            let (mut reader, mut writer) = application.into_split();
            let sending = tokio::spawn(async move { while writer.write_all(&[7; 10_000]).await.is_ok() {} });
            target.read_exact(&mut [0; 1000]).await.unwrap();
            // Unread bytes make the kernel reset the connection at the drop.
            target.readable().await.unwrap();
            target.write_all(&expected).await.unwrap();
            if is_finished {
                target.shutdown().await.unwrap();
            }
            drop(target);
            let (answer, result) = read_all(&mut reader).await;
            assert!(answer == expected, "{} bytes of the answer arrived, then {result:?}", answer.len());
            // A target that has finished has sent a complete answer.
            assert!(is_finished || result.is_err(), "the end of an answer without its end looks complete");
            timeout(DEADLINE, sending).await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn bytes_before_a_reset_by_the_application_arrive_at_the_target() {
    let (left, right) = stream_pair();
    let (mut application, near) = socket_pair().await;
    let (far, mut target) = socket_pair().await;
    tokio::spawn(splice(near, left, &[], SocketEnd::Application));
    tokio::spawn(splice(far, right, &[], SocketEnd::Target(None)));
    let expected = pattern(300_000);
    application.write_all(&expected).await.unwrap();
    await_acknowledged(&application, SocketEnd::Application).await;
    reset_on_close(&application);
    drop(application);
    let (received, result) = read_all(&mut target).await;
    assert!(received == expected, "{} bytes arrived", received.len());
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_application_that_reads_slowly_gets_all_bytes_before_a_reset() {
    let (left, mut right) = stream_pair();
    let (mut application, near) = socket_pair().await;
    tokio::spawn(splice(near, left, &[], SocketEnd::Application));
    // More than the buffers of the sockets hold.
    let expected = pattern(12 << 20);
    let mut received = Vec::new();
    let sending = async {
        right.write_all(&expected).await.unwrap();
        right.reset_after_bytes(EndReason::Reset).await;
    };
    let reading = async {
        let mut block = [0; 4096];
        while let Ok(read @ 1..) = application.read(&mut block).await {
            received.extend_from_slice(&block[..read]);
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    };
    timeout(DEADLINE, async { tokio::join!(sending, reading) }).await.unwrap();
    assert!(received == expected, "{} bytes arrived", received.len());
}

#[tokio::test]
async fn the_last_bytes_of_a_failed_stream_are_written_before_the_reset() {
    let mut hub = Hub::<u64>::new();
    let (mut application, near) = socket_pair().await;
    let splicing = tokio::spawn(splice(near, hub.open(7, ROOM), &[], SocketEnd::Application));
    // The application sends, so that both directions of the splice meet the failure.
    application.write_all(b"request").await.unwrap();
    hub.push(7, b"answer");
    hub.fail(7, EndReason::Reset);
    let (answer, result) = read_all(&mut application).await;
    assert_eq!(answer, b"answer");
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(timeout(DEADLINE, splicing).await.unwrap().unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spliced_sockets_carry_more_than_20_mib_a_second() {
    const TOTAL: usize = 256 * 1024 * 1024;
    let (left, right) = stream_pair();
    let (mut application, near) = socket_pair().await;
    let (far, mut target) = socket_pair().await;
    tokio::spawn(splice(near, left, &[], SocketEnd::Application));
    tokio::spawn(splice(far, right, &[], SocketEnd::Target(None)));
    let start = Instant::now();
    tokio::spawn(async move {
        let block = vec![7; 64 * 1024];
        for _ in 0..TOTAL / block.len() {
            target.write_all(&block).await.unwrap();
        }
    });
    let mut block = vec![0; 64 * 1024];
    let mut got = 0;
    loop {
        match application.read(&mut block).await.unwrap() {
            0 => break,
            read => got += read,
        }
        if got == TOTAL {
            break;
        }
    }
    let rate = got as f64 / start.elapsed().as_secs_f64() / 1_048_576.0;
    eprintln!("{rate:.0} MiB/s");
    assert!(rate > 20.0, "{rate:.0} MiB/s");
}
