//! A table of real clients: the result of each request is the same directly and through each port, or the row states
//! the difference.
//!
//! A row is a client, its arguments and a path of the [`origin`](super::origin). A result is the client's output, and
//! the requests and ends of the connections that the origin got. To add a client, write a function that returns its
//! command for a [`Way`], and a row.

use std::{
    fs,
    hash::{Hash as _, Hasher as _},
    process::Command,
    time::Instant,
};

use super::{
    harness::*,
    origin::{ConnectionRecord, Origin},
};

/// How a client reaches the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Socks(std::net::SocketAddr),
    Http(std::net::SocketAddr),
}

impl Way {
    /// The URL of the proxy, whose scheme lets the exit resolve names.
    fn proxy(self) -> Option<String> {
        match self {
            Self::Direct => None,
            Self::Socks(port) => Some(format!("socks5h://{port}")),
            Self::Http(port) => Some(format!("http://{port}")),
        }
    }
}

/// The stated difference of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Differs {
    /// Output and connections are the same.
    Nothing,
    /// Connections are not compared: the client reports an early answer while it sends, and resets.
    Connections,
    /// The output through each port is this one. Directly it is too, unless the reset overtakes the client's next write.
    Output(&'static str),
    /// The output through the HTTP port is this one.
    HttpOutput(&'static str),
    /// The client has no SOCKS. The results of the HTTP port are the same.
    NoSocks,
}

struct Row {
    client: fn(Way) -> Command,
    arguments: &'static [&'static str],
    path: &'static str,
    differs: Differs,
}

const fn row(
    client: fn(Way) -> Command,
    arguments: &'static [&'static str],
    path: &'static str,
    differs: Differs,
) -> Row {
    Row { client, arguments, path, differs }
}

/// In arguments, `{url}` is the URL of the row's path, `{large-file}` a file of 12 MB, and `{output}` a file whose content is
/// a part of the output.
const ROWS: &[Row] = &[
    row(curl, &["-i", "-H", "X-CaSe: 1", "{url}"], "/echo", Differs::Nothing),
    row(curl, &["-i", "--http1.0", "{url}"], "/echo", Differs::Nothing),
    row(curl, &["-i", "--path-as-is", "{url}"], "/echo/a\"b<c>d/../x", Differs::Nothing),
    row(curl, &["-i", "-I", "{url}"], "/large", Differs::Nothing),
    row(curl, &["{url}"], "/large", Differs::Nothing),
    row(curl, &["-i", "{url}", "{url}", "{url}"], "/echo", Differs::Nothing),
    row(curl, &["-i", "-d", "a=b", "{url}"], "/echo", Differs::Nothing),
    row(curl, &["-i", "-H", "Transfer-Encoding: chunked", "-d", "a=b", "{url}"], "/echo", Differs::Nothing),
    row(curl, &["-i", "-H", "Expect: 100-continue", "-d", "a=b", "{url}"], "/continue", Differs::Nothing),
    row(curl, &["-i", "{url}"], "/cookies", Differs::Nothing),
    // The HTTP port forwards no early hints, because some clients take them for the response.
    row(curl, &["-i", "{url}"], "/hints", Differs::HttpOutput("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")),
    row(curl, &["-i", "{url}"], "/trailers", Differs::Nothing),
    row(curl, &["-i", "{url}"], "/no-content", Differs::Nothing),
    row(curl, &["-w", "%{http_code}", "{url}"], "/until-close", Differs::Nothing),
    row(curl, &["-w", "%{http_code} %header{x-folded}", "{url}"], "/folded", Differs::Nothing),
    row(curl, &["-w", "%{http_code}", "{url}"], "/inexact", Differs::Nothing),
    row(
        curl,
        &["-w", "%{http_code}", "-H", "Expect:", "-T", "{large-file}", "{url}"],
        "/early",
        Differs::Output("early413"),
    ),
    row(
        curl,
        &["-w", "%{http_code} %{size_upload}", "-H", "Expect: 100-continue", "-T", "{large-file}", "{url}"],
        "/refused-body",
        Differs::Connections,
    ),
    row(wget, &["-O-", "{url}"], "/echo", Differs::NoSocks),
    row(wget, &["-O-", "{url}"], "/large", Differs::NoSocks),
    row(wget, &["-O-", "{url}"], "/until-close", Differs::NoSocks),
    row(git, &["ls-remote", "{url}"], "/repository.git", Differs::Nothing),
    row(python, &[REQUESTS, "{url}"], "/echo", Differs::Nothing),
    row(python, &[REQUESTS, "{url}"], "/trailers", Differs::Nothing),
    row(python, &[URLLIB, "{url}"], "/echo", Differs::NoSocks),
    row(python, &[WEBSOCKET, "{url}"], "/websocket", Differs::NoSocks),
    row(node, &[NODE, "{url}"], "/trailers", Differs::NoSocks),
    row(apt, &["download-file", "{url}", "{output}"], "/large", Differs::Nothing),
];

/// Debian's Requests, with a session of two requests.
const REQUESTS: &str = "import os, requests, sys\n\
    session = requests.Session()\n\
    proxy = os.environ.get('proxy')\n\
    for _ in range(2):\n    \
        answer = session.get(sys.argv[1], proxies={'http': proxy} if proxy else {}, timeout=60)\n    \
        print(answer.status_code, sorted(answer.headers.items()), answer.text)\n";

/// The library of Python, which finds the proxy in the environment.
const URLLIB: &str = "import sys, urllib.request\n\
    print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())\n";

/// A WebSocket whose URL is sent to the proxy as aiohttp does.
const WEBSOCKET: &str = "import os, socket, sys, urllib.parse\n\
    url = urllib.parse.urlsplit(sys.argv[1])\n\
    proxy = urllib.parse.urlsplit(os.environ.get('proxy', ''))\n\
    peer = proxy if proxy.port else url\n\
    target = 'ws://' + url.netloc + url.path if proxy.port else url.path\n\
    stream = socket.create_connection((peer.hostname, peer.port), timeout=60)\n\
    head = f'GET {target} HTTP/1.1\\r\\nHost: {url.netloc}\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\\r\\n'\n\
    stream.sendall(head.encode() + b'question')\n\
    stream.shutdown(socket.SHUT_WR)\n\
    while piece := stream.recv(4096):\n    \
        print(piece.decode(), end='')\n";

/// The parser of Node, which is strict.
const NODE: &str = "const http = require('http');\n\
    const url = new URL(process.argv[1]);\n\
    const proxy = process.env.proxy ? new URL(process.env.proxy) : url;\n\
    const path = process.env.proxy ? url.href : url.pathname;\n\
    const request = http.request({ host: proxy.hostname, port: proxy.port, path, headers: { Host: url.host }, agent: false });\n\
    request.on('information', (answer) => console.log(answer.statusCode, answer.rawHeaders));\n\
    request.on('response', (answer) => {\n\
        answer.on('data', (data) => process.stdout.write(data));\n\
        answer.on('end', () => console.log(answer.statusCode, answer.rawHeaders, answer.rawTrailers));\n\
    });\n\
    request.end();\n";

/// A command without the proxies of the environment.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(variable).env_remove(variable.to_uppercase());
    }
    command
}

fn curl(way: Way) -> Command {
    let mut curl = command("curl");
    curl.args(["-q", "-sS", "--max-time", "60"]);
    if let Some(proxy) = way.proxy() {
        curl.args(["--proxy", &proxy]);
    }
    curl
}

fn wget(way: Way) -> Command {
    let mut wget = command("wget");
    wget.args(["--no-config", "-q", "--tries=1"]);
    if let Some(proxy) = way.proxy() {
        wget.args(["-e", "use_proxy=yes", "-e", &format!("http_proxy={proxy}")]);
    }
    wget
}

fn git(way: Way) -> Command {
    let mut git = command("git");
    git.args(["-c", &format!("http.proxy={}", way.proxy().unwrap_or_default())]);
    git
}

fn python(way: Way) -> Command {
    let mut python = command("python3");
    if let Some(proxy) = way.proxy() {
        python.env("proxy", &proxy).env("http_proxy", &proxy);
    }
    python.arg("-c");
    python
}

fn node(way: Way) -> Command {
    let mut node = command("node");
    node.envs(way.proxy().map(|proxy| ("proxy", proxy)));
    node.arg("-e");
    node
}

fn apt(way: Way) -> Command {
    let mut apt = command("/usr/lib/apt/apt-helper");
    apt.args(["-q=2", "-o", &format!("Acquire::http::Proxy={}", way.proxy().unwrap_or("DIRECT".to_owned()))]);
    apt
}

/// What a client did.
#[derive(Debug, PartialEq, Eq)]
struct ClientResult {
    success: bool,
    output: String,
    connections: Vec<ConnectionRecord>,
}

/// The text of `bytes`; of many bytes, only their number and their hash.
fn summary(bytes: &[u8]) -> String {
    if bytes.len() < 20_000 {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut hasher = std::hash::DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} bytes with the hash {:x}", bytes.len(), hasher.finish())
}

fn run(row: &Row, way: Way, origin: &Origin, large_file: &str) -> ClientResult {
    let mut client = (row.client)(way);
    let file = tempfile::NamedTempFile::new().unwrap();
    let output_path = file.path().to_str().unwrap();
    let url = format!("http://{}{}", origin.address, row.path);
    for argument in row.arguments {
        let argument = argument.replace("{url}", &url).replace("{large-file}", large_file);
        client.arg(argument.replace("{output}", output_path));
    }
    eprintln!("{:?} {:?} {} {way:?}", client.get_program(), row.arguments.last(), row.path);
    let output = client.output().unwrap_or_else(|error| panic!("{client:?}: {error}"));
    let mut connections = Vec::new();
    // A client that fails may not have connected.
    if output.status.success() {
        await_true("the connections to the origin end", Instant::now() + TIMEOUT, || match origin.take_records() {
            Some(records) => {
                connections = records;
                true
            }
            None => false,
        });
    }
    if matches!(row.differs, Differs::Connections | Differs::Output(_)) {
        connections.clear();
    }
    let text = summary(&[output.stdout, fs::read(output_path).unwrap()].concat());
    if !output.status.success() {
        eprintln!("failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    ClientResult { success: output.status.success(), output: text, connections }
}

#[test]
#[ignore = "needs curl, wget, git, Node and python3 with requests and PySocks: cargo xtask test runs it"]
fn each_client_gets_the_same_through_each_port_as_directly() {
    let testnet = Testnet::start(&[]);
    let origin = Origin::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(12_000_000).unwrap();
    let large_file = file.path().to_str().unwrap();
    let mut failures = Vec::new();
    for row in ROWS {
        let direct = run(row, Way::Direct, &origin, large_file);
        assert!(!direct.output.is_empty(), "{:?} {} has a direct result: {direct:?}", row.arguments, row.path);
        let ways = [Way::Socks(testnet.socks), Way::Http(testnet.http)];
        for way in ways.into_iter().filter(|way| row.differs != Differs::NoSocks || matches!(way, Way::Http(_))) {
            let through = run(row, way, &origin, large_file);
            let is_expected = match row.differs {
                Differs::Output(expected) => through.output == expected,
                Differs::HttpOutput(expected) if matches!(way, Way::Http(_)) => through.output == expected,
                _ => through == direct,
            };
            if !is_expected {
                let program = (row.client)(way).get_program().to_owned();
                failures.push(format!("{program:?} {} {way:?}:\n  {through:?}\n  direct: {direct:?}", row.path));
            }
        }
    }
    assert!(failures.is_empty(), "{} results differ:\n{}", failures.len(), failures.join("\n"));
}
