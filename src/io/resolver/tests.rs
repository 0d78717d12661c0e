use std::sync::atomic::{AtomicUsize, Ordering};
use std::{net::Ipv4Addr, sync::Arc};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::PTR},
};
use tokio::net::UdpSocket;

use super::*;

const GLOBAL: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 215, 14));
const PRIVATE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// A name server on loopback with a few names under `example.net`, and the count of its queries.
pub(crate) async fn name_server() -> (SocketAddr, Arc<AtomicUsize>) {
    name_server_with(answer).await
}

/// A name server on loopback with the answers of `answer`, and the count of its queries.
pub(super) async fn name_server_with(
    answer: impl Fn(&Message) -> Option<Message> + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let queries = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&queries);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            if let Some(answer) = answer(&Message::from_vec(&buffer[..length]).unwrap()) {
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    (address, queries)
}

/// The server's answer; `None` for queries that it leaves unanswered.
fn answer(question: &Message) -> Option<Message> {
    let query = question.queries.first().unwrap();
    let name = query.name().to_ascii().to_ascii_lowercase();
    let records: Vec<RData> = match (name.as_str(), query.query_type()) {
        ("silent.example.net.", _)
        | ("v4-only.example.net.", RecordType::AAAA)
        | ("v6-only.example.net.", RecordType::A) => return None,
        ("v4-only.example.net.", _) => vec![RData::A(Ipv4Addr::LOCALHOST.into())],
        ("v6-only.example.net.", _) => vec![RData::AAAA(Ipv6Addr::LOCALHOST.into())],
        ("six.example.net.", RecordType::A) => (2..8).map(|last| IpAddr::from([127, 0, 0, last]).into()).collect(),
        ("long.example.net.", RecordType::A) => vec![GLOBAL.into()],
        ("both.example.net.", RecordType::A) => vec![RData::A(Ipv4Addr::LOCALHOST.into())],
        ("both.example.net.", RecordType::AAAA) => vec![RData::AAAA(Ipv6Addr::LOCALHOST.into())],
        ("mixed.example.net.", RecordType::A) => vec![PRIVATE_ADDRESS.into(), GLOBAL.into()],
        ("private.example.net.", RecordType::A) => vec![PRIVATE_ADDRESS.into()],
        ("many.example.net.", RecordType::A) => (0..60).map(|last| IpAddr::from([93, 184, 215, last]).into()).collect(),
        ("ipv4only.arpa.", RecordType::AAAA) => {
            let addresses: [Ipv6Addr; 3] =
                ["2001:db8:64::192.0.0.170", "2001:db8:64::192.0.0.171", "2606:4700::1"].map(|ip| ip.parse().unwrap());
            addresses.map(|ip| RData::AAAA(ip.into())).into()
        }
        ("14.215.184.93.in-addr.arpa.", RecordType::PTR) => {
            vec![RData::PTR(PTR(Name::from_ascii("host.example.net.").unwrap()))]
        }
        (
            "both.example.net."
            | "mixed.example.net."
            | "private.example.net."
            | "six.example.net."
            | "long.example.net."
            | "many.example.net.",
            _,
        ) => Vec::new(),
        _ => {
            let mut message = Message::error_msg(question.id, question.op_code, ResponseCode::NXDomain);
            message.add_query(query.clone());
            return Some(message);
        }
    };
    let ttl = if name.starts_with("long.") { 86_400 } else { 60 };
    let mut message = Message::response(question.id, question.op_code);
    message.add_query(query.clone());
    message.add_answers(records.into_iter().map(|data| Record::from_rdata(query.name().clone(), ttl, data)));
    Some(message)
}

async fn resolver(private_addresses: bool) -> (Resolver, Arc<AtomicUsize>) {
    let (server, queries) = name_server().await;
    let timeout = Duration::from_secs(3);
    let options = ResolverOptions { servers: vec![server], private_addresses, timeout, ..ResolverOptions::default() };
    (Resolver::new(&options), queries)
}

fn name(text: &str) -> Host {
    Host::Name(text.to_owned())
}

#[tokio::test]
async fn names_resolve_to_addresses_and_addresses_to_names() {
    let (resolver, _) = resolver(true).await;
    let found = resolver.addresses(None, "both.example.net").await.unwrap();
    assert_eq!(found.answers, [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]);
    let found = resolver.resolve(None, &Host::Ip(GLOBAL)).await.unwrap();
    assert_eq!(found.answers, [ResolvedAnswer::Name("host.example.net".to_owned())]);
    for unknown in [name("none.example.net"), Host::Ip(IpAddr::from([93, 184, 215, 99]))] {
        assert_eq!(resolver.resolve(None, &unknown).await, Err(EndReason::NotFound));
    }
}

#[tokio::test]
async fn private_names_and_addresses_fail_with_policy_unless_allowed() {
    let (strict, queries) = resolver(false).await;
    assert_eq!(strict.addresses(None, "mixed.example.net").await.unwrap().answers, [GLOBAL]);
    assert_eq!(strict.addresses(None, "private.example.net").await, Err(EndReason::Policy));
    let before = queries.load(Ordering::Relaxed);
    for private in [
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "printer.local",
        "box.lan",
        "x.home.arpa",
        "intranet",
        "127",
        "127.1",
        "x.test",
        "nas.home",
        "wiki.corp",
        "FRITZ.box.",
        "x.resolver.arpa",
        "1.0.0.10.in-addr.arpa",
    ] {
        assert_eq!(strict.addresses(None, private).await, Err(EndReason::Policy), "{private}");
    }
    assert_eq!(strict.resolve(None, &Host::Ip(PRIVATE_ADDRESS)).await, Err(EndReason::Policy));
    assert_eq!(queries.load(Ordering::Relaxed), before, "a private name was queried");

    let (lenient, queries) = resolver(true).await;
    assert_eq!(lenient.addresses(None, "private.example.net").await.unwrap().answers, [PRIVATE_ADDRESS]);
    let before = queries.load(Ordering::Relaxed);
    let loopback = lenient.addresses(None, "localhost").await.unwrap().answers;
    assert_eq!(loopback, [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    assert_eq!(queries.load(Ordering::Relaxed), before, "localhost was queried");
}

#[tokio::test]
async fn special_names_are_never_queried() {
    let (resolver, queries) = resolver(true).await;
    for special in ["abc.onion", "onion", "x.invalid", "x.ALT.", "a..b", &"a".repeat(200)] {
        assert!(matches!(resolver.addresses(None, special).await, Err(EndReason::NotFound)), "{special}");
    }
    assert_eq!(queries.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn all_answers_have_the_same_ttl() {
    let (resolver, _) = resolver(true).await;
    for queried in ["both.example.net", "long.example.net", "localhost"] {
        assert_eq!(resolver.addresses(None, queried).await.unwrap().ttl, TTL, "{queried}");
    }
    assert_eq!(resolver.resolve(None, &Host::Ip(GLOBAL)).await.unwrap().ttl, TTL);
}

#[tokio::test]
async fn a_repeated_lookup_queries_the_name_server_again() {
    let (resolver, queries) = resolver(true).await;
    for queried in ["both.example.net", "long.example.net", "none.example.net"] {
        let mut counts = Vec::new();
        for _ in 0..2 {
            let before = queries.load(Ordering::Relaxed);
            let _ = resolver.addresses(None, queried).await;
            counts.push(queries.load(Ordering::Relaxed) - before);
        }
        assert!(counts[0] >= 2 && counts[0] == counts[1], "{queried}: {counts:?}");
    }
}

#[tokio::test]
async fn a_lookup_does_not_wait_for_the_timeout_of_an_unanswered_family() {
    let (resolver, _) = resolver(true).await;
    for (queried, expected) in [
        ("v4-only.example.net", IpAddr::from(Ipv4Addr::LOCALHOST)),
        ("v6-only.example.net", Ipv6Addr::LOCALHOST.into()),
    ] {
        let start = Instant::now();
        assert_eq!(resolver.addresses(None, queried).await.unwrap().answers, [expected]);
        // The unanswered query takes 2 s.
        assert!(start.elapsed() < Duration::from_secs(1), "{queried}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn answers_are_capped() {
    let (resolver, _) = resolver(false).await;
    assert_eq!(resolver.addresses(None, "many.example.net").await.unwrap().answers.len(), MAX_ANSWERS);
}

#[tokio::test]
async fn a_failure_of_the_name_server_is_no_missing_address() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp, ResponseCode::FormErr] {
        let (server, _) = name_server_with(move |question| {
            let mut message = Message::error_msg(question.id, question.op_code, code);
            message.add_query(question.queries.first().unwrap().clone());
            Some(message)
        })
        .await;
        let resolver = Resolver::new(&ResolverOptions { servers: vec![server], ..ResolverOptions::default() });
        assert_eq!(resolver.addresses(None, "example.net").await, Err(EndReason::LookupFailed), "{code}");
        assert_eq!(resolver.resolve(None, &Host::Ip(GLOBAL)).await, Err(EndReason::LookupFailed), "{code}");
    }
}

#[tokio::test]
async fn a_silent_server_times_out_and_lookups_beyond_the_cap_wait() {
    let (server, _) = name_server().await;
    let options = ResolverOptions {
        servers: vec![server],
        concurrency: 1,
        timeout: Duration::from_millis(300),
        ..ResolverOptions::default()
    };
    let resolver = Resolver::new(&options);
    let start = Instant::now();
    let (first, second) =
        tokio::join!(resolver.addresses(None, "silent.example.net"), resolver.addresses(None, "mixed.example.net"));
    assert_eq!(first, Err(EndReason::LookupFailed));
    assert!(matches!(second, Err(EndReason::LookupFailed) | Ok(_)));
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(resolver.addresses(None, "mixed.example.net").await.unwrap().answers, [GLOBAL]);
}
