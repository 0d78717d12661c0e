use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::Stdio,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::io::testing::with_limits;

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_port_listens_on_loopback_unless_remote_access_is_allowed() {
    for address in ["0.0.0.0:0", "192.0.2.1:9350", "[::]:0", "[2001:db8::1]:9350"] {
        let address: SocketAddr = address.parse().unwrap();
        let error = listen(LocalPort::Socks, address, false).await.unwrap_err().to_string();
        assert!(error.contains("--socks") && error.contains("--allow-remote"), "{error}");
        assert!(check_address(LocalPort::Socks, address, true).is_ok());
    }
    for address in ["127.0.0.1:0", "127.3.2.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        assert!(check_address(LocalPort::Http, address.parse().unwrap(), false).is_ok(), "{address}");
    }
}

#[tokio::test]
async fn the_error_for_a_used_port_names_the_port_and_its_flag() {
    let used = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other = TcpListener::bind(used).await.unwrap();
    let error = listen(LocalPort::Http, used, false).await.unwrap_err().to_string();
    assert!(error.contains(&used.port().to_string()) && error.contains("--http"), "{error}");
    drop(other);
}

/// Echoes the input until the connection ends.
async fn echo(mut socket: TcpStream) {
    let (mut reader, mut writer) = socket.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

async fn reply_busy(mut socket: TcpStream) {
    let _ = socket.write_all(b"busy").await;
}

#[tokio::test]
async fn a_connection_beyond_the_cap_is_refused_until_another_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept_or_shed(listener, 2, echo, reply_busy));
    let mut served = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"x").await.unwrap();
        assert_eq!(timeout(DEADLINE, socket.read_u8()).await.unwrap().unwrap(), b'x');
        served.push(socket);
    }
    // Successive connections, more than the cap on concurrent refusals.
    for _ in 0..2 * MAX_SHEDDING {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let mut reply = String::new();
        timeout(DEADLINE, socket.read_to_string(&mut reply)).await.unwrap().unwrap();
        assert_eq!(reply, "busy");
    }
    served.clear();
    let serves_again = async {
        loop {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(b"x").await.unwrap();
            if socket.read_u8().await.is_ok_and(|byte| byte == b'x') {
                return;
            }
        }
    };
    timeout(DEADLINE, serves_again).await.unwrap();
}

#[tokio::test]
#[ignore = "a_port_without_free_descriptors_refuses_and_serves_again runs it with few descriptors"]
async fn port_in_child() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("port {}", listener.local_addr().unwrap().port());
    accept_or_shed(listener, 1024, echo, reply_busy).await;
}

#[test]
fn a_port_without_free_descriptors_refuses_and_serves_again() {
    let mut child =
        with_limits("io::listener::tests::port_in_child", "ulimit -n 64").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port: u16 =
        lines.find_map(|line| line.unwrap().strip_prefix("port ").map(|port| port.parse().unwrap())).unwrap();
    let connect = || {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut byte = [0];
        // A refused connection may already be reset.
        let _ = socket.write_all(b"x");
        let read = socket.read(&mut byte);
        if let Err(error) = &read {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "a connection hangs: {error}");
        }
        (socket, matches!(read, Ok(1)).then_some(byte[0]))
    };
    let sockets: Vec<_> = (0..200).map(|_| connect()).collect();
    let served = sockets.iter().filter(|(_, byte)| *byte == Some(b'x')).count();
    assert!((16..64).contains(&served), "{served} served");
    assert!(sockets.iter().any(|(_, byte)| *byte == Some(b'b')), "none is refused by a reply");
    drop(sockets);
    let end = std::time::Instant::now() + DEADLINE;
    while connect().1 != Some(b'x') {
        assert!(std::time::Instant::now() < end, "the port doesn't serve again");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
