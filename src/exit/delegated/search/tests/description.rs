//! Tests of engines whose descriptions come from a URL.

use super::*;

/// Serves the current `document`; 503 while it is empty.
async fn describing(document: Arc<Mutex<String>>) -> SocketAddr {
    http_server(move |_| {
        let document = document.lock().unwrap().clone();
        let status = if document.is_empty() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        async move { Response::builder().status(status).body(Full::<Bytes>::from(document)).unwrap() }
    })
    .await
}

#[tokio::test]
async fn a_description_from_a_url_is_refreshed_and_kept_after_a_failure() {
    let (address, _) = redirecting(|_| None).await;
    let document = Arc::new(Mutex::new(described(JSON, &format!("http://{address}/old?q={{searchTerms}}"))));
    let url = format!("mine=http://{}/description.xml?a=b", describing(Arc::clone(&document)).await);
    let engines = Engines::load(&[url], senders(no_server(), Tls::default())).await.unwrap();
    let path = || {
        let request = SearchRequest::new(name("mine"), "x", 1, None).unwrap();
        engines.find(&name("mine")).unwrap().engine.question(&request).unwrap().url.path().to_owned()
    };
    assert_eq!((engines.names(), path()), (vec![name("mine")], "/old".to_owned()));
    *document.lock().unwrap() = described(JSON, &format!("http://{address}/new?q={{searchTerms}}"));
    engines.refresh_all().await;
    assert_eq!(path(), "/new");
    *document.lock().unwrap() = "broken".to_owned();
    engines.refresh_all().await;
    assert_eq!(path(), "/new");
}

#[tokio::test]
async fn an_engine_whose_url_fails_at_the_start_is_offered_after_a_retry() {
    let long = answering(200, &[], vec![b' '; 70_000]).await;
    let document = Arc::new(Mutex::new(String::new()));
    let delayed = describing(Arc::clone(&document)).await;
    let urls = [format!("http://{long}/"), "http://127.0.0.1:1/".to_owned(), format!("http://{delayed}/")];
    let engines = Engines::load(&urls, senders(no_server(), Tls::default())).await.unwrap();
    assert_eq!(engines.names(), []);
    *document.lock().unwrap() = described(JSON, "https://engine.example/?q={searchTerms}");
    let added = async {
        tokio::select! {
            () = engines.refresh_engines() => {}
            () = engines.engine_added() => {}
        }
    };
    timeout(DEADLINE, added).await.unwrap();
    assert_eq!(engines.names(), [name("engine")]);
}

#[tokio::test]
async fn an_engine_with_a_late_description_replaces_none_of_the_same_name() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(described(JSON, "https://first.example/?q={searchTerms}").as_bytes()).unwrap();
    let first = file.path().to_str().unwrap().to_owned();
    let document = Arc::new(Mutex::new(String::new()));
    let delayed = format!("http://{}/", describing(Arc::clone(&document)).await);
    let engines = Engines::load(&[delayed, first], senders(no_server(), Tls::default())).await.unwrap();
    *document.lock().unwrap() = described(JSON, "https://second.example/?q={searchTerms}");
    engines.refresh_all().await;
    let url = engines.find(&name("engine")).unwrap().engine.question(&query("x")).unwrap().url;
    assert_eq!((engines.names(), url.host_str()), (vec![name("engine")], Some("first.example")));
}

#[tokio::test]
async fn a_description_from_another_host_reaches_no_address_of_this_network() {
    let (address, requests) = redirecting(|_| None).await;
    // The engine is at this machine. The description's URL names the same host in one case only.
    let template = format!("http://127.0.0.1:{}/?q={{searchTerms}}", address.port());
    let document = Arc::new(Mutex::new(described(JSON, &template)));
    let port = describing(document).await.port();
    for (host, allowed) in [("localhost", false), ("127.0.0.1", true)] {
        let url = format!("http://{host}:{port}/");
        let engines = Engines::load(&[url], senders(no_server(), Tls::default())).await.unwrap();
        let (answer, counted) =
            exchanged(ExitSearch::new(engines, SearchCaps::default()), &query("x").encode().unwrap()).await;
        if allowed {
            only(SearchAnswer::decode(&answer).unwrap());
        } else {
            assert_eq!(counted, Err(Refusal::Prohibited));
        }
    }
    assert_eq!(requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn each_reason_against_an_engine_has_its_own_error() {
    let load = async |entries: &[String]| {
        Engines::load(entries, senders(no_server(), Tls::default())).await.map(drop).unwrap_err().to_string()
    };
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(described(JSON, "https://engine.example/?q={searchTerms}").as_bytes()).unwrap();
    let good = file.path().to_str().unwrap().to_owned();
    assert!(load(&["/none.xml".into()]).await.starts_with("engine \"/none.xml\": No such file"));
    assert!(load(&[good.clone(), good.clone()]).await.contains("two engines have the name \"engine\""));
    assert!(load(&[format!("A b={good}")]).await.contains("before the \"=\""));
    assert!(load(&["ftp://engine.example/".into()]).await.contains("neither a file nor"));
    let page = answering(200, &[], b"<html></html>".to_vec()).await;
    assert!(load(&[format!("http://{page}/")]).await.contains("not an OpenSearch 1.1 description"));
    let missing = answering(404, &[], Vec::new()).await;
    let twice = [format!("engine=http://{missing}/"), good.clone()];
    assert!(
        load(&twice).await.contains("two engines have the name \"engine\""),
        "also if one description is still missing"
    );
    let many: Vec<String> = (0..33).map(|number| format!("e{number}={good}")).collect();
    assert_eq!(load(&many).await, "the number of engines exceeds 32");
    let both =
        Engines::load(&[good.clone(), format!("other={good}")], senders(no_server(), Tls::default())).await.unwrap();
    assert_eq!(both.names(), [name("engine"), name("other")]);
}
