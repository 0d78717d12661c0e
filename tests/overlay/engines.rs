//! Search engines for the exits of a testnet: Kiwix and searx from Debian, and one with scripted answers.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Instant,
};

use super::harness::*;

/// A program that serves HTTP on loopback; a drop ends it.
pub(crate) struct Served {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Served {
    fn start(command: &mut Command, address: SocketAddr) -> Self {
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let served = Self { process, address };
        await_true("the engine answers", Instant::now() + TIMEOUT, || TcpStream::connect(address).is_ok());
        served
    }

    /// The body of the answer to a GET for `path`.
    pub(crate) fn get(&self, path: &str) -> String {
        get(self.address, path)
    }
}

/// The Rust book as a ZIM file: at the path that `cargo xtask test` sets, or at its default path.
pub(crate) fn rust_book() -> PathBuf {
    if let Some(zim) = std::env::var_os("UMBEL_TEST_ZIM") {
        return zim.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    cache.join("umbel-tools/rust-book/rust-book.zim")
}

/// `kiwix-serve` over the Rust book.
pub(crate) fn kiwix() -> Served {
    let address = free_address();
    let mut command = Command::new("kiwix-serve");
    command.arg(format!("--address={}", address.ip())).arg(format!("--port={}", address.port())).arg(rust_book());
    Served::start(&mut command, address)
}

/// searx, which queries `kiwix`.
pub(crate) fn searx(kiwix: &Served, folder: &Path) -> Served {
    let address = free_address();
    let settings = include_str!("searx.yml")
        .replace("PORT", &address.port().to_string())
        .replace("KIWIX", &kiwix.address.to_string());
    let file = folder.join("searx.yml");
    fs::write(&file, settings).unwrap();
    Served::start(Command::new("searx-run").env("SEARX_SETTINGS_PATH", file), address)
}

/// An HTTP server whose answers a closure determines.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
}

impl Scripted {
    /// Starts the server, which ends with the test's process. `answer` receives the request's target.
    pub(crate) fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = Arc::clone(&answer);
                thread::spawn(move || serve(stream, &*answer));
            }
        });
        Self { address }
    }

    /// Writes an OpenSearch description of the server as an engine into `folder`, for the exits.
    pub(crate) fn describe(&self, name: &str, folder: &Path) -> PathBuf {
        describe(name, &format!("http://{}/search?q={{searchTerms}}&amp;page={{startPage?}}", self.address), folder)
    }
}

/// An OpenSearch description of an engine with answers in RSS.
pub(crate) fn describe(name: &str, template: &str, folder: &Path) -> PathBuf {
    let file = folder.join(format!("{name}.xml"));
    let text = format!(
        "<?xml version=\"1.0\"?><OpenSearchDescription xmlns=\"http://a9.com/-/spec/opensearch/1.1/\">\
         <ShortName>{name}</ShortName><Description>A test's engine</Description>\
         <Url type=\"application/rss+xml\" template=\"{template}\"/></OpenSearchDescription>"
    );
    fs::write(&file, text).unwrap();
    file
}

fn serve(stream: TcpStream, answer: &dyn Fn(&str) -> Vec<u8>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut request = String::new();
    reader.read_line(&mut request).ok().filter(|read| *read > 0)?;
    let mut header = String::new();
    while reader.read_line(&mut header).ok()? > 2 {
        header.clear();
    }
    let mut stream = stream;
    stream.write_all(&answer(request.split_whitespace().nth(1)?)).ok()
}

/// An HTTP answer with status 200.
pub(crate) fn ok(kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// An HTTP answer with `status` and an empty body.
pub(crate) fn status(status: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
}

/// An RSS answer of results with these titles, each with a different URL.
pub(crate) fn rss(titles: &[&str]) -> Vec<u8> {
    let item = |title: &&str| {
        let place = title.to_lowercase().replace(' ', "-");
        format!("<item><title>{title}</title><link>https://{place}.example/</link><description>x</description></item>")
    };
    let items: String = titles.iter().map(item).collect();
    ok("application/rss+xml", &format!("<rss version=\"2.0\"><channel><title>t</title>{items}</channel></rss>"))
}

/// The body of the answer to a GET for `path` at `address`.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 "), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The text between each `<tag>` and its end in `text`, entities decoded.
pub(crate) fn elements(text: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let inner = text.split(&open).skip(1).map(|rest| rest.split(&close).next().unwrap());
    let decoded = inner.map(|text| {
        let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
        text.replace("&amp;", "&").trim().to_owned()
    });
    decoded.collect()
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
