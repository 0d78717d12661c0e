use super::*;

#[tokio::test]
async fn a_port_listens_on_loopback_unless_remote_access_is_allowed() {
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
async fn the_error_for_a_used_port_names_the_port_and_its_flag() {
    let used = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other = TcpListener::bind(used).await.unwrap();
    let error = listen(LocalPort::Http, used, false).await.unwrap_err().to_string();
    assert!(error.contains(&used.port().to_string()) && error.contains("--http"), "{error}");
    drop(other);
}
