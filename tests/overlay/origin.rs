//! An HTTP origin with the behaviours that proxies change, which records its connections.

use std::{
    io::{self, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// The requests of one connection, and how the client ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionRecord {
    /// The heads, as they arrived.
    heads: Vec<String>,
    /// Whether the client finished the connection, instead of a reset. `None` if the origin closed it first.
    is_finished: Option<bool>,
}

#[derive(Default)]
struct Records {
    open: usize,
    ended: Vec<ConnectionRecord>,
}

/// The running origin, which ends with the test's process.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    records: Arc<Mutex<Records>>,
}

impl Origin {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let records = Arc::new(Mutex::new(Records::default()));
        let shared = Arc::clone(&records);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.lock().unwrap().open += 1;
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let mut heads = Vec::new();
                    let is_finished = serve(&stream, &mut heads);
                    drop(stream);
                    let mut records = shared.lock().unwrap();
                    records.open -= 1;
                    records.ended.push(ConnectionRecord { heads, is_finished });
                });
            }
        });
        Self { address, records }
    }

    /// The connections since the last call, once there are some and all have ended.
    pub(crate) fn take_records(&self) -> Option<Vec<ConnectionRecord>> {
        let mut records = self.records.lock().unwrap();
        (records.open == 0 && !records.ended.is_empty()).then(|| core::mem::take(&mut records.ended))
    }
}

/// Answers requests until one side ends the connection.
fn serve(stream: &TcpStream, heads: &mut Vec<String>) -> Option<bool> {
    let mut reader = BufReader::new(stream);
    loop {
        let head = match read_head(&mut reader) {
            Ok(head) if head.is_empty() => return Some(true),
            Ok(head) => head,
            Err(_) => return Some(false),
        };
        heads.push(head.clone());
        let is_open = answer(&head, &mut reader, stream).unwrap_or(false);
        if !is_open {
            return None;
        }
    }
}

fn read_head(reader: &mut impl io::BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return if head.is_empty() { Ok(head) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
    Ok(head)
}

/// Reads a body, as the head delimits it.
fn read_body(head: &str, reader: &mut impl io::BufRead) -> io::Result<Vec<u8>> {
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some(length) = lower.split("\r\ncontent-length: ").nth(1) {
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        reader.take(length).read_to_end(&mut body)?;
    } else if lower.contains("\r\ntransfer-encoding: chunked\r\n") {
        while !body.ends_with(b"0\r\n\r\n") {
            reader.read_until(b'\n', &mut body)?;
        }
    }
    Ok(body)
}

/// Answers a request. Returns whether the connection stays open.
fn answer(head: &str, reader: &mut BufReader<&TcpStream>, mut stream: &TcpStream) -> io::Result<bool> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    let with_length = |status: &str, fields: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let ok = |fields: &str, body: &[u8]| with_length("200 OK", fields, body);
    let sent: Vec<u8> = match path.split('?').next().unwrap_or_default() {
        path if path.starts_with("/echo") => {
            let body = read_body(head, reader)?;
            ok("X-CaSe: kept\r\n", &[head.as_bytes(), &body].concat())
        }
        "/large" => {
            let body = vec![b'x'; 3_000_000];
            let answer = ok("", &body);
            let end = if head.starts_with("HEAD ") { answer.len() - body.len() } else { answer.len() };
            answer[..end].to_vec()
        }
        "/continue" => {
            stream.write_all(b"HTTP/1.1 100 Continue\r\nX-Interim: 1\r\n\r\n")?;
            ok("", &read_body(head, reader)?)
        }
        "/cookies" => {
            let cookies: String =
                (0..200).map(|number| format!("Set-Cookie: c{number}=1; Path=/elsewhere\r\n")).collect();
            ok(&cookies, b"ok")
        }
        "/hints" => [&b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"[..], &ok("", b"ok")].concat(),
        "/trailers" => {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
                .to_vec()
        }
        "/no-content" => b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n".to_vec(),
        "/folded" => ok("X-Folded: a\r\n\tb\r\n c\r\n", b"ok"),
        "/inexact" => ok("X-Space : 1\r\n: nameless\r\n", b"ok"),
        "/until-close" => {
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil close")?;
            return Ok(false);
        }
        "/early" => {
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly")?;
            return Ok(false);
        }
        "/refused-body" => {
            stream.write_all(b"HTTP/1.1 417 No\r\nContent-Length: 7\r\nConnection: close\r\n\r\nrefused")?;
            return Ok(false);
        }
        "/websocket" => {
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")?;
            let mut question = Vec::new();
            reader.read_to_end(&mut question)?;
            stream.write_all(&[b"answer to ", &question[..]].concat())?;
            return Ok(false);
        }
        "/repository.git/info/refs" => {
            ok("Content-Type: text/plain\r\n", format!("{}\trefs/heads/main\n", "1".repeat(40)).as_bytes())
        }
        "/repository.git/HEAD" => ok("Content-Type: text/plain\r\n", b"ref: refs/heads/main\n"),
        _ => with_length("404 Not Found", "", b"no such path\n"),
    };
    stream.write_all(&sent)?;
    Ok(true)
}
