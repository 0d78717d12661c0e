//! `umbel fetch --gateway` through a testnet: exits forward requests that only the gateway decrypts, and two exits fetch
//! the gateway's keys.

use std::{
    fs,
    io::{self, BufReader, Cursor, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Output,
    sync::{Arc, Mutex},
    thread,
};

use bhttp::{Message, Mode};
use nix::unistd::Pid;
use ohttp::{
    KeyConfig, Server, SymmetricSuite,
    hpke::{Aead, Kdf, Kem},
};

use super::harness::*;

#[test]
fn a_sealed_request_reaches_its_target_through_a_gateway_whose_keys_two_exits_fetch() {
    let testnet = Testnet::start(&[]);
    let target = TargetServer::start();
    let gateway = Gateway::start(|_| keys(1));
    let fetched = fetch(&testnet, &gateway, &target.url(50_000));
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    assert_eq!(fetched.stdout.len(), 50_000);
    assert!(is_body(&mut fetched.stdout.as_slice(), 50_000).unwrap());

    let received = gateway.received.lock().unwrap();
    let exits: Vec<_> =
        processes().into_iter().filter(|(_, words)| words.iter().any(|word| word == "--delegate=open")).collect();
    let is_exit = |pid: &Pid| exits.iter().any(|(exit, _)| exit == pid);
    assert!(matches!(received.key_fetchers.as_slice(), [one, other] if one != other && is_exit(one) && is_exit(other)));
    let [sealed] = received.sealed.as_slice() else { panic!("one sealed request") };
    let address = target.address.to_string();
    assert!(sealed.len() > address.len());
    assert!(
        sealed.windows(address.len()).all(|part| part != address.as_bytes()),
        "the sealed request hides the target"
    );
    drop(received);

    let inconsistent = Gateway::start(|earlier| keys(u8::try_from(earlier).unwrap()));
    let refused = fetch(&testnet, &inconsistent, &target.url(1));
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("different keys"), "{refused:?}");
    assert!(inconsistent.received.lock().unwrap().sealed.is_empty(), "no request is sealed if keys differ");
}

#[test]
fn no_request_is_sealed_with_only_one_exit() {
    let testnet = Testnet::start(&["--relays=3", "--exits=1"]);
    let gateway = Gateway::start(|_| keys(1));
    let refused = fetch(&testnet, &gateway, "http://target.example/");
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only one exit"), "{refused:?}");
    assert!(gateway.received.lock().unwrap().sealed.is_empty());
}

fn fetch(testnet: &Testnet, gateway: &Gateway, url: &str) -> Output {
    let arguments = [format!("--control={}", testnet.page), format!("--gateway=http://{}", gateway.address)];
    umbel().arg("fetch").args(arguments).arg(url).output().unwrap()
}

/// A key configuration, determined by `number`.
fn keys(number: u8) -> KeyConfig {
    let suite = SymmetricSuite::new(Kdf::HkdfSha256, Aead::ChaCha20Poly1305);
    KeyConfig::derive(number, Kem::X25519Sha256, vec![suite], &[number; 32]).unwrap()
}

/// An Oblivious HTTP gateway on loopback, which decrypts requests with `keys(1)` and performs them.
struct Gateway {
    address: SocketAddr,
    received: Arc<Mutex<ReceivedRequests>>,
}

/// Requests that a gateway received.
#[derive(Default)]
struct ReceivedRequests {
    /// The processes that have fetched the keys.
    key_fetchers: Vec<Pid>,
    sealed: Vec<Vec<u8>>,
}

impl Gateway {
    /// Starts the gateway, which ends with the test's process. `keys_for` returns the keys for a fetch, given the
    /// number of earlier fetches.
    fn start(keys_for: fn(usize) -> KeyConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(ReceivedRequests::default()));
        let record = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let record = Arc::clone(&record);
                thread::spawn(move || serve(stream, keys_for, &record));
            }
        });
        Self { address, received }
    }
}

fn serve(stream: TcpStream, keys_for: fn(usize) -> KeyConfig, received: &Mutex<ReceivedRequests>) {
    let peer = stream.peer_addr().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (request, length) = head(&mut reader);
    assert!(request.contains(" /.well-known/ohttp-gateway "), "{request}");
    if request.starts_with("GET ") {
        let mut received = received.lock().unwrap();
        let fetched_keys = keys_for(received.key_fetchers.len());
        received.key_fetchers.push(owner_of(peer));
        return answer(stream, "application/ohttp-keys", &KeyConfig::encode_list(&[fetched_keys]).unwrap());
    }
    let mut sealed = vec![0; length];
    reader.read_exact(&mut sealed).unwrap();
    let (message, sealer) = Server::new(keys(1)).unwrap().decapsulate(&sealed).unwrap();
    received.lock().unwrap().sealed.push(sealed);
    let mut response = Vec::new();
    forward(&message).write_bhttp(Mode::KnownLength, &mut response).unwrap();
    answer(stream, "message/ohttp-res", &sealer.encapsulate(&response).unwrap());
}

/// Forwards a decrypted request to its target; returns the answer.
fn forward(message: &[u8]) -> Message {
    let request = Message::read_bhttp(&mut Cursor::new(message)).unwrap();
    let text = |part: Option<&[u8]>| String::from_utf8(part.unwrap().to_vec()).unwrap();
    let (host, path) = (text(request.control().authority()), text(request.control().path()));
    let mut target = TcpStream::connect(&host).unwrap();
    write!(target, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let mut reader = BufReader::new(target);
    let (status, length) = head(&mut reader);
    assert!(status.starts_with("HTTP/1.1 200"), "{status}");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut response = Message::response(bhttp::StatusCode::OK);
    response.write_content(body);
    response
}

/// The first line of a message, and the length of its body.
fn head(reader: &mut impl io::BufRead) -> (String, usize) {
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(':') {
            None => return (first, length),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap()
            }
            Some(_) => {}
        }
    }
}

fn answer(mut stream: TcpStream, kind: &str, body: &[u8]) {
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
        .unwrap();
    stream.write_all(body).unwrap();
}

/// The process at the other end of a TCP connection over loopback.
fn owner_of(peer: SocketAddr) -> Pid {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{:04X}", peer.port());
    let inode = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find_map(|columns| {
        (columns.get(1) == Some(&local.as_str()) && columns.get(9) != Some(&"0")).then(|| columns[9].to_owned())
    });
    let socket = format!("socket:[{}]", inode.expect("a connection of this machine"));
    let has = |pid: Pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.as_os_str() == socket.as_str())
    };
    processes().into_iter().map(|(pid, _)| pid).find(|pid| has(*pid)).expect("the owner of the connection")
}
