//! Options of a node, from flags and a TOML file. Each key is also a flag. Flags take precedence over the file, the
//! file over the defaults.
//!
//! Each `…Options` struct defines the keys of a node once: `clap` derives the flags from it, `serde` the file format.
//! An unknown key is an error that names the key.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Failure;

/// Keys of `umbel relay`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RelayOptions {
    /// Folder of this relay's keys and state [default: relay/ in umbel's state folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// UDP address to listen on [default: 0.0.0.0:4443]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// UDP address at which others reach this relay, if it isn't the listening address; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub(crate) address: Option<Vec<SocketAddr>>,
    /// Run as a volunteer, for example behind NAT: don't listen, but keep channels to gateways, over which circuits
    /// reach this relay [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) no_listen: Option<bool>,
    /// Run as a gateway, over which volunteers are reached [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) gateway: Option<bool>,
    /// Base URL of a directory; may be repeated
    #[arg(long, value_name = "URL")]
    pub(crate) directory: Option<Vec<String>>,
    /// Key of a trusted directory authority, as `umbel keys` shows it; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) authority: Option<Vec<String>>,
    /// Run as an exit, with a policy rule such as "accept *:443"; may be repeated; the first match counts, and an address
    /// without a match is rejected [default: no exit]
    #[arg(long, value_name = "RULE")]
    pub(crate) exit: Option<Vec<String>>,
    /// Allow streams to private, loopback and link-local addresses too; not for public relays [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) allow_private_targets: Option<bool>,
    /// DNS server for an exit's queries; may be repeated [default: the system's]
    #[arg(long, value_name = "IP")]
    pub(crate) resolver: Option<Vec<IpAddr>>,
    /// NAT64 prefix of this exit's network, such as 2001:db8:64::/96; the exit policy then also decides on the IPv4
    /// addresses in its addresses; may be repeated. Without it, an exit opens no IPv6 connections until a DNS server has
    /// answered the query for the prefixes [default: those that the DNS servers reveal, none with
    /// --allow-private-targets]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) nat64: Option<Vec<String>>,
    /// Perform requests for clients: searches with the engines below (search), also requests of the list below
    /// (allow-list), or any that the exit policy accepts (open) [default: none]
    #[arg(long, value_name = "TIER")]
    pub(crate) delegate: Option<DelegatePolicy>,
    /// Search engine for clients' searches: a file or URL of its OpenSearch description; NAME= before it replaces
    /// the name in the description, as in kiwix=http://127.0.0.1:8080/search/searchdescription.xml; may be repeated
    #[arg(long, value_name = "FILE or URL")]
    pub(crate) engine: Option<Vec<String>>,
    /// With --delegate allow-list, methods and host of allowed requests, such as "GET,HEAD example.org"; may be
    /// repeated
    #[arg(long, value_name = "METHODS HOST")]
    pub(crate) allow_request: Option<Vec<String>>,
    /// PEM file of root certificates to trust for performed requests, beside the system's; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) delegate_root: Option<Vec<PathBuf>>,
    /// Performed requests per second in total, on average; one listed relay or other source gets at most a quarter
    /// [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) delegated_rate: Option<u32>,
    /// Performed requests per second of one circuit, on average [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) delegated_circuit_rate: Option<u32>,
    /// Largest body of a performed request or its answer, in bytes or with a unit such as MiB [default: 256 MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) delegated_size: Option<ByteSize>,
    /// Time limit of one performed request, in seconds [default: 900]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) delegated_time: Option<u64>,
    /// TCP address at which to serve the pages for browsers (volunteer and search) to anyone [default: none]
    #[arg(long, value_name = "ADDR")]
    pub(crate) web: Option<SocketAddr>,
    /// With --web, search engine that volunteers in browsers may query: a file of its OpenSearch description; the
    /// engine must allow any page to read its answers (CORS); NAME= before it replaces the name in the description, as
    /// in wikipedia=FILE; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) web_engine: Option<Vec<String>>,
    /// Identity of another relay of the same operator, which clients don't use in one circuit with this relay; may be
    /// repeated
    #[arg(long, value_name = "RELAY")]
    pub(crate) family: Option<Vec<String>>,
    /// Congestion control of links to neighbours: bbr keeps its rate on lines with packet loss; cubic, as in most TCP
    /// stacks, slows down at each loss [default: bbr]
    #[arg(long, value_name = "NAME")]
    pub(crate) congestion: Option<Congestion>,
    /// Log level: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log: Option<String>,
}

/// Congestion control of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Congestion {
    /// BBR, version 3.
    Bbr,
    /// CUBIC with HyStart++.
    Cubic,
}

/// The requests that a relay performs for clients. Each policy includes the policies before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DelegatePolicy {
    /// Searches with the configured engines.
    Search,
    /// Requests to listed hosts.
    AllowList,
    /// Any request that the exit policy accepts.
    Open,
}

/// Keys of `umbel client`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientOptions {
    /// Folder of this client's guards and consensus [default: client/ in umbel's state folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address of the SOCKS5 port [default: 127.0.0.1:9350]
    #[arg(long, value_name = "ADDR")]
    pub(crate) socks: Option<SocketAddr>,
    /// Address of the HTTP proxy port [default: 127.0.0.1:9351]
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<SocketAddr>,
    /// Address of the search page, also used by the other commands [default: 127.0.0.1:9352]
    #[arg(long, value_name = "ADDR")]
    pub(crate) page: Option<SocketAddr>,
    /// Search engine of queries that name no engine [default: the engine that most exits offer]
    #[arg(long, value_name = "NAME")]
    pub(crate) engine: Option<String>,
    /// Base URL of a directory; may be repeated
    #[arg(long, value_name = "URL")]
    pub(crate) directory: Option<Vec<String>>,
    /// Key of a trusted directory authority, as `umbel keys` shows it; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) authority: Option<Vec<String>>,
    /// Identity of a relay or volunteer to use as the middle of all circuits: for tests and measurements only,
    /// because it makes this client distinguishable
    #[arg(long, value_name = "RELAY")]
    pub(crate) middle: Option<String>,
    /// Use different circuits for different hosts: streams through the two proxy ports to different hosts share no
    /// circuit
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) isolate_destination: Option<bool>,
    /// Let the ports listen on an address that other machines can reach; these machines can then use this client's
    /// circuits [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) allow_remote: Option<bool>,
    /// Log level: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log: Option<String>,
}

/// Keys of `umbel directory`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DirectoryOptions {
    /// Folder of the authority's key and documents [default: directory/ in umbel's state folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// TCP address of the HTTP API [default: 127.0.0.1:9360]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Number of verified relays to wait for before the first consensus [default: 3]
    #[arg(long, value_name = "N")]
    pub(crate) await_relays: Option<usize>,
    /// Seconds between two consensuses, at least 1 [default: 1800]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) interval: Option<u64>,
    /// Seconds between two volunteer lists, 1 to 600; volunteers and their gateways report at the same interval
    /// [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) volunteer_interval: Option<u64>,
    /// List relays at private and loopback addresses, and allow several relays of one network (/16, /32) on a path;
    /// for a network on one machine or one site [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) private_network: Option<bool>,
    /// State that the machine's clock is right. Otherwise a directory waits at its start while the clock is before its
    /// last consensus, or after the end of that consensus. For one start only [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) clock_is_right: Option<bool>,
    /// Serve the pages for browsers too: /volunteer and /search [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) web: Option<bool>,
    /// With --web, search engine that volunteers in browsers may query: a file of its OpenSearch description; the
    /// engine must allow any page to read its answers (CORS); NAME= before it replaces the name in the description, as
    /// in wikipedia=FILE; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) web_engine: Option<Vec<String>>,
    /// Address of a reverse proxy in front of this directory, or a prefix such as 192.0.2.0/24 that contains only proxies.
    /// The directory takes the addresses of the proxy's clients from X-Forwarded-For; may be repeated [default: none]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) trusted_proxy: Option<Vec<String>>,
    /// Log level: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log: Option<String>,
}

/// The options of flags and file; flags take precedence.
///
/// # Errors
/// [`Failure::Invalid`] when the file can't be read or isn't TOML, or a key of the file is unknown or has a wrong
/// value.
pub(crate) fn load<T: Serialize + DeserializeOwned>(flags: &T, file: Option<&Path>) -> Result<T, Failure> {
    let mut table = match file {
        None => toml::Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(Failure::invalid(path.display().to_string()))?;
            parse::<T>(&text).map_err(Failure::invalid(path.display().to_string()))?
        }
    };
    let flags = toml::Table::try_from(flags).map_err(Failure::usage)?;
    table.extend(flags);
    table.try_into().map_err(Failure::usage)
}

/// Checks `text` against the keys of `T`, so that an error names its line, and returns the text as a table.
fn parse<T: DeserializeOwned>(text: &str) -> Result<toml::Table, toml::de::Error> {
    toml::from_str::<T>(text)?;
    toml::from_str(text)
}

/// The folder of a node's state: `configured`, otherwise the folder that systemd sets, otherwise the folder of `role`
/// in the user's state folder.
///
/// # Errors
/// [`Failure::Usage`] when none of these folders is set.
pub(crate) fn data_dir(configured: Option<&Path>, role: &str) -> Result<PathBuf, Failure> {
    if let Some(configured) = configured {
        return Ok(configured.to_owned());
    }
    if let Some(state) = std::env::var_os("STATE_DIRECTORY") {
        return Ok(PathBuf::from(state));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state =
        state.or(home).ok_or_else(|| Failure::usage("data-dir is missing, and HOME is not set; add --data-dir"))?;
    Ok(state.join("umbel").join(role))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_flag_takes_precedence_over_the_file() {
        let file = file("listen = \"127.0.0.1:1\"\nexit = [\"accept *:80\"]\n");
        let flags = RelayOptions { listen: Some("127.0.0.1:2".parse().unwrap()), ..RelayOptions::default() };
        let options = load(&flags, Some(file.path())).unwrap();
        assert_eq!(options.listen, flags.listen);
        assert_eq!(options.exit.unwrap(), ["accept *:80"]);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_key() {
        let file = file("listen = \"127.0.0.1:1\"\n");
        let message = load(&ClientOptions::default(), Some(file.path())).unwrap_err().to_string();
        assert!(message.contains("listen"), "{message}");
        assert!(message.contains("line 1"), "{message}");
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_its_line() {
        let file = file("\nlisten = 5\n");
        let message = load(&RelayOptions::default(), Some(file.path())).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_the_file() {
        let failure = load(&ClientOptions::default(), Some(Path::new("/nonexistent.toml"))).unwrap_err();
        assert_eq!(failure.status(), 2);
        assert!(failure.to_string().contains("/nonexistent.toml"), "{failure}");
    }

    /// Asserts that the sample file is valid and names every key.
    fn assert_sample<O: Args + Serialize + DeserializeOwned + Default>(name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
        load(&O::default(), Some(&path)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let options = O::augment_args(clap::Command::new("node"));
        assert!(options.get_arguments().count() > 0);
        for key in options.get_arguments() {
            let key = key.get_id().as_str();
            let sets = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
            assert!(text.lines().any(sets), "deploy/{name} lacks {key}");
        }
    }

    #[test]
    fn the_sample_configurations_are_valid_and_complete() {
        assert_sample::<DirectoryOptions>("directory.toml");
        assert_sample::<ClientOptions>("client.toml");
        assert_sample::<RelayOptions>("exit.toml");
        let relay = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/relay.toml");
        load(&RelayOptions::default(), Some(&relay)).unwrap();
    }
}
