use super::*;

#[tokio::test]
async fn other_machines_are_kept_out_unless_allowed() {
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
async fn a_taken_port_is_named_with_the_flag_that_changes_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let holder = TcpListener::bind(taken).await.unwrap();
    let error = listen(LocalPort::Http, taken, false).await.unwrap_err().to_string();
    assert!(error.contains(&taken.port().to_string()) && error.contains("--http"), "{error}");
    drop(holder);
}
