//! Real applications that use the client's ports. The tests need the packages that `cargo xtask test` installs.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use super::harness::*;

#[test]
#[ignore = "needs curl, wget, git, openssl and python3 with requests and PySocks: cargo xtask test runs it"]
fn curl_wget_git_and_python_transfer_bytes_unchanged() {
    let testnet = Testnet::start(&[]);
    let target = TargetServer::start();
    let scratch = tempfile::tempdir().unwrap();
    curl(&testnet, &target, scratch.path());
    wget(&testnet, &target, scratch.path());
    python(&testnet, &target);
    git_over_https(&testnet, scratch.path());
}

#[test]
#[ignore = "needs curl and takes a minute: cargo xtask test runs it"]
fn a_download_of_500_mb_arrives_unchanged() {
    let testnet = Testnet::start(&[]);
    let target = TargetServer::start();
    let scratch = tempfile::tempdir().unwrap();
    let length = 500_000_000;
    let file = scratch.path().join("large");
    let proxy = format!("socks5h://{}", testnet.socks);
    succeed(Command::new("curl").args(["-sSf", "--proxy", &proxy, "-o"]).arg(&file).arg(target.url(length)));
    assert_eq!(fs::metadata(&file).unwrap().len(), length);
    assert!(is_body(&mut fs::File::open(&file).unwrap(), length).unwrap());
}

fn curl(testnet: &Testnet, target: &TargetServer, scratch: &Path) {
    let length = 3_000_000;
    for proxy in [format!("socks5h://{}", testnet.socks), format!("http://{}", testnet.http)] {
        for flag in ["-sSf", "-sSfp"] {
            let file = scratch.join("curl");
            succeed(Command::new("curl").args([flag, "--proxy", &proxy, "-o"]).arg(&file).arg(target.url(length)));
            assert!(is_body(&mut fs::File::open(&file).unwrap(), length).unwrap());
        }
    }
}

fn wget(testnet: &Testnet, target: &TargetServer, scratch: &Path) {
    let file = scratch.join("wget");
    let proxy = format!("http_proxy=http://{}", testnet.http);
    let length = 3_000_000;
    succeed(
        Command::new("wget").args(["-q", "-e", "use_proxy=yes", "-e", &proxy, "-O"]).arg(&file).arg(target.url(length)),
    );
    assert!(is_body(&mut fs::File::open(&file).unwrap(), length).unwrap());
}

fn python(testnet: &Testnet, target: &TargetServer) {
    let program = format!(
        "import requests, hashlib\n\
         proxy = 'socks5h://user:key@{}'\n\
         body = requests.get('{}', proxies={{'http': proxy}}, timeout=60).content\n\
         print(len(body), hashlib.sha256(body).hexdigest())",
        testnet.socks,
        target.url(1_000_000)
    );
    let output = succeed(Command::new("python3").args(["-c", &program]));
    let mut body = Body::new();
    let mut expected = Vec::new();
    while expected.len() < 1_000_000 {
        expected.extend(body.chunk());
    }
    expected.truncate(1_000_000);
    let expected = sha2::Sha256::digest_hex(&expected);
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("1000000 {expected}"));
}

trait DigestHex {
    fn digest_hex(bytes: &[u8]) -> String;
}

impl DigestHex for sha2::Sha256 {
    fn digest_hex(bytes: &[u8]) -> String {
        data_encoding::HEXLOWER.encode(&<Self as sha2::Digest>::digest(bytes))
    }
}

/// Clones a repository from a TLS server on loopback that serves static files.
fn git_over_https(testnet: &Testnet, scratch: &Path) {
    let site = scratch.join("site");
    let work = scratch.join("work");
    let (certificate, key) = (scratch.join("certificate.pem"), scratch.join("key.pem"));
    fs::create_dir_all(&site).unwrap();
    let git = |folder: &Path, arguments: &[&str]| {
        let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"];
        // Sets `GIT_SSL_CAINFO`, not `http.sslCAInfo`, because an inherited value of the variable takes precedence.
        let mut git = Command::new("git");
        git.current_dir(folder).env("GIT_SSL_CAINFO", &certificate);
        succeed(git.args(identity).args(arguments))
    };
    git(scratch, &["init", "-q", "work"]);
    fs::write(work.join("file"), Body::new().chunk()).unwrap();
    git(&work, &["add", "file"]);
    git(&work, &["commit", "-q", "-m", "a file"]);
    git(scratch, &["clone", "-q", "--bare", "work", "site/repository.git"]);
    git(&site.join("repository.git"), &["update-server-info"]);
    succeed(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate),
    );
    let server = https_server(&site, &certificate, &key);
    let proxy = format!("http.proxy=socks5h://{}", testnet.socks);
    let url = format!("https://localhost:{}/repository.git", server.port);
    git(scratch, &["-c", &proxy, "clone", "-q", &url, "copy"]);
    assert_eq!(fs::read(scratch.join("copy/file")).unwrap(), Body::new().chunk());
}

struct HttpsServer {
    process: std::process::Child,
    port: u16,
}

impl Drop for HttpsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn https_server(site: &Path, certificate: &Path, key: &Path) -> HttpsServer {
    const PROGRAM: &str = "import http.server, ssl, sys, os\n\
        os.chdir(sys.argv[1])\n\
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n\
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
        context.load_cert_chain(sys.argv[2], sys.argv[3])\n\
        server.socket = context.wrap_socket(server.socket, server_side=True)\n\
        print(server.server_port, flush=True)\n\
        server.serve_forever()\n";
    let mut process = Command::new("python3")
        .args(["-c", PROGRAM])
        .args([site, certificate, key])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let lines = lines_of(process.stdout.take().unwrap());
    let port = lines.recv_timeout(TIMEOUT).unwrap().parse().unwrap();
    HttpsServer { process, port }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
