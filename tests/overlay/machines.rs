//! The README's network of three machines: network namespaces, each in a different subnet.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Instant,
};

use super::harness::*;

/// Address of the target.
const TARGET: &str = "10.5.0.1";
/// Bytes of the target's body.
const LENGTH: usize = 2_000_000;

#[test]
#[ignore = "needs root, iproute2, curl and python3: cargo xtask test runs it"]
fn a_client_fetches_through_the_three_machines_of_the_readme() {
    if !may_make_namespaces() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let network = Network::new(&["10.1.0.1", "10.2.0.1", "10.3.0.1", "10.4.0.1", TARGET]);
    let authority = shown_key(&folder.join("directory"), "directory", "authority");
    let mut nodes = vec![directory(&network, folder)];
    for machine in 0..3 {
        nodes.push(relay(&network, folder, machine, &authority));
    }
    nodes.push(network.umbel(3, |command| {
        command.args(["client", "--directory=http://10.1.0.1:9360", "--authority", &authority]);
        command.arg("--data-dir").arg(folder.join("client"));
    }));
    nodes.push(target_server(&network, folder));
    await_body(&network, folder);

    // The exit's policy has only 80 and 443; 97 is curl's exit status for a refusal by the proxy.
    let refused = fetch(&network, &format!("http://{TARGET}:25/"));
    assert_eq!(refused.status.code(), Some(97));
}

#[test]
#[ignore = "needs root, iproute2, nftables, curl and python3: cargo xtask test runs it"]
fn a_volunteer_behind_masquerading_nat_carries_a_circuit() {
    if !may_make_namespaces() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let mut network = Network::new(&["10.1.0.1", "10.2.0.1", "10.3.0.1", "10.4.0.1", TARGET, "10.6.0.1"]);
    let inside = network.add_behind_nat(5);
    let authority = shown_key(&folder.join("directory"), "directory", "authority");
    let mut nodes = vec![directory(&network, folder)];
    for machine in 0..3 {
        nodes.push(relay(&network, folder, machine, &authority));
    }
    let volunteer = identity_in(&folder.join("volunteer"));
    let network_options = ["--directory=http://10.1.0.1:9360", "--authority", &authority];
    nodes.push(network.umbel(inside, |command| {
        command.args(["relay", "--no-listen"]).args(network_options).arg("--data-dir").arg(folder.join("volunteer"));
    }));
    nodes.push(network.umbel(3, |command| {
        command.arg("client").args(network_options).args(["--middle", &volunteer]);
        command.arg("--data-dir").arg(folder.join("client"));
    }));
    nodes.push(target_server(&network, folder));
    await_body(&network, folder);
    // The NAT router has forwarded all bytes.
    let counters = network.command(5, "nft").args(["list", "counter", "ip", "house", "out"]).output().unwrap();
    let counters = String::from_utf8(counters.stdout).unwrap();
    let bytes = counters.split_whitespace().skip_while(|word| *word != "bytes").nth(1).unwrap();
    assert!(bytes.parse::<usize>().unwrap() > LENGTH, "{counters}");
}

/// The target's server, with a body of [`LENGTH`] bytes.
fn target_server(network: &Network, folder: &Path) -> ChildProcess {
    fs::write(folder.join("body"), Body::new().chunk().repeat(40).get(..LENGTH).unwrap()).unwrap();
    let serve = ["-m", "http.server", "80", "--bind", TARGET, "--directory"];
    network.spawn(4, "python3", |command| _ = command.args(serve).arg(folder))
}

/// Waits until the client fetches the body from the target, and compares it.
fn await_body(network: &Network, folder: &Path) {
    let end = Instant::now() + TIMEOUT;
    let url = format!("http://{TARGET}/body");
    await_true("the client fetches the body from the target", end, || fetch(network, &url).status.success());
    assert_eq!(fetch(network, &url).stdout, fs::read(folder.join("body")).unwrap());
}

fn directory(network: &Network, folder: &Path) -> ChildProcess {
    let file = folder.join("directory.toml");
    fs::write(&file, "listen = \"10.1.0.1:9360\"\nawait_relays = 3\nvolunteer_interval = 1\nprivate_network = true\n")
        .unwrap();
    network.umbel(0, |command| {
        command.arg("directory").arg("--config").arg(&file).arg("--data-dir").arg(folder.join("directory"));
    })
}

fn relay(network: &Network, folder: &Path, machine: usize, authority: &str) -> ChildProcess {
    let file = folder.join(format!("relay{machine}.toml"));
    let mut text = format!(
        "listen = \"0.0.0.0:4443\"\naddress = [\"{}:4443\"]\ndirectory = [\"http://10.1.0.1:9360\"]\n\
         authority = [\"{authority}\"]\n",
        network.addresses[machine],
    );
    if machine == 2 {
        text += "exit = [\"reject *:25\", \"accept *:80\", \"accept *:443\"]\nallow_private_targets = true\n";
    }
    fs::write(&file, text).unwrap();
    network.umbel(machine, |command| {
        command.arg("relay").arg("--config").arg(&file).arg("--data-dir").arg(folder.join(format!("relay{machine}")));
    })
}

fn fetch(network: &Network, url: &str) -> Output {
    let arguments = ["-sS", "--max-time", "20", "--proxy", "socks5h://127.0.0.1:9350", url];
    network.command(3, "curl").args(arguments).output().unwrap()
}

/// Machines as network namespaces on one bridge; a drop removes them.
pub(crate) struct Network {
    pub(crate) addresses: Vec<String>,
    prefix: String,
}

impl Network {
    pub(crate) fn new(addresses: &[&str]) -> Self {
        let prefix = format!("um{}", std::process::id());
        let network = Self { addresses: addresses.iter().map(ToString::to_string).collect(), prefix };
        let bridge = network.bridge();
        ip(&["netns", "add", &bridge]);
        ip(&["-n", &bridge, "link", "add", "bridge", "type", "bridge"]);
        ip(&["-n", &bridge, "link", "set", "bridge", "up"]);
        for (machine, address) in addresses.iter().enumerate() {
            let (name, interface) = (network.name(machine), format!("c{machine}"));
            ip(&["netns", "add", &name]);
            ip(&["-n", &bridge, "link", "add", &interface, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            ip(&["-n", &bridge, "link", "set", &interface, "master", "bridge", "up"]);
            ip(&["-n", &name, "address", "add", &format!("{address}/8"), "dev", "eth0"]);
            ip(&["-n", &name, "link", "set", "eth0", "up"]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
        }
        network
    }

    /// Adds a machine behind the NAT `router`, which forwards outgoing packets with its own address, and incoming
    /// packets of established connections only. Returns the machine's number.
    fn add_behind_nat(&mut self, router: usize) -> usize {
        let inside = self.addresses.len();
        self.addresses.push("192.168.7.2".to_owned());
        let (router, name) = (self.name(router), self.name(inside));
        ip(&["netns", "add", &name]);
        ip(&["-n", &router, "link", "add", "home", "type", "veth", "peer", "name", "eth0", "netns", &name]);
        ip(&["-n", &router, "address", "add", "192.168.7.1/24", "dev", "home"]);
        ip(&["-n", &router, "link", "set", "home", "up"]);
        ip(&["-n", &name, "address", "add", "192.168.7.2/24", "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "route", "add", "default", "via", "192.168.7.1"]);
        ip(&["netns", "exec", &router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        let rules = "
            table ip house {
                counter out { }
                chain leaving { type nat hook postrouting priority srcnat; oifname \"eth0\" masquerade; }
                chain passing {
                    type filter hook forward priority filter; policy drop;
                    iifname \"home\" counter name \"out\" accept
                    ct state established,related accept
                }
            }";
        ip(&["netns", "exec", &router, "nft", rules]);
        inside
    }

    /// The name of the namespace with the bridge.
    fn bridge(&self) -> String {
        format!("{}bridge", self.prefix)
    }
}

impl Namespaces for Network {
    fn name(&self, machine: usize) -> String {
        format!("{}m{machine}", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (0..self.addresses.len()).map(|machine| self.name(machine)).chain([self.bridge()]) {
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments:?} (needs root): {}", String::from_utf8_lossy(&output.stderr));
}
