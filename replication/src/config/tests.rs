use super::*;

const CLUSTER: &str = "6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44";

fn member(node: u64, address: &str) -> Member {
    Member { node: NodeId::new(node), address: address.into() }
}

fn good() -> Config {
    let members = vec![member(1, "127.0.0.1:9291"), member(2, "[::1]:9292")];
    Config::new(ClusterId::new([7; 16]), NodeId::new(1), members)
}

/// The message with which a changed configuration is refused.
fn refusal(change: impl FnOnce(&mut Config)) -> String {
    let mut config = good();
    config.check().expect("good before the change");
    change(&mut config);
    config.check().expect_err("refused").to_string()
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

fn toml(rest: &str) -> Result<Config, ConfigError> {
    Config::from_toml(&format!(
        "cluster = \"{CLUSTER}\"\nnode = 1\n\
         members = [{{ node = 1, address = \"127.0.0.1:1\" }}]\n{rest}"
    ))
}

fn toml_refusal(rest: &str) -> String {
    toml(rest).expect_err("refused").to_string()
}

#[test]
fn the_smallest_text_has_the_defaults() {
    let config = toml("").expect("good");
    let cluster = ClusterId::new(0x6f1d8c0a_52b7_4a59_9f0e_3f8c2d7b1e44_u128.to_be_bytes());
    assert_eq!(config, Config::new(cluster, NodeId::new(1), vec![member(1, "127.0.0.1:1")]));
    assert_eq!(config.listen, "127.0.0.1:9291");
}

#[test]
fn values_are_read_as_people_write_them() {
    let config = toml(
        "window_bytes = \"16 MiB\"\nretain_bytes_max = 0\nheartbeat = \"50ms\"\n\
         session_timeout = \"1s 500ms\"\nfollow_trims = false\n\
         [tls]\ncertificate = \"a\"\nkey = \"b\"\nauthority = \"c\"\n",
    )
    .expect("good");
    assert_eq!((config.window_bytes, config.retain_bytes_max), (16 << 20, 0));
    assert_eq!(config.heartbeat, Duration::from_millis(50));
    assert_eq!(config.session_timeout, Duration::from_millis(1500));
    assert!(!config.follow_trims);
    assert_eq!(config.tls, Some(TlsConfig::new("a", "b", "c")));
    let plain = CLUSTER.replace('-', "");
    let again = Config::from_toml(&format!(
        "cluster = \"{plain}\"\nnode = 1\nmembers = [{{ node = 1, address = \"localhost:1\" }}]"
    ));
    assert_eq!(again.expect("good").cluster, config.cluster);
}

#[test]
fn texts_of_another_schema_are_refused() {
    says(&toml_refusal("heartbaet = \"1s\""), &["heartbaet"]);
    says(&toml_refusal("heartbeat = 100"), &["heartbeat", "100"]);
    says(&toml_refusal("heartbeat = \"fast\""), &["\"fast\"", "\"100ms\""]);
    says(&toml_refusal("window_bytes = \"much\""), &["\"much\"", "\"8 MiB\""]);
    says(&toml_refusal("window_bytes = -1"), &["-1"]);
    says(&toml_refusal("[tls]\nkey = \"b\""), &["certificate"]);
    says(&toml_refusal("[tls]\ncertificate=\"a\"\nkey=\"b\"\nauthority=\"c\"\nca=\"d\""), &["ca"]);
    for cluster in
        ["", "6f1d", "+f1d8c0a52b74a599f0e3f8c2d7b1e44", "6f1d8c0a52b7-4a59-9f0e-3f8c2d7b1e44-"]
    {
        let text = format!("cluster = \"{cluster}\"\nnode = 1\nmembers = []");
        let message = Config::from_toml(&text).expect_err("refused").to_string();
        says(&message, &["32 hexadecimal digits", cluster]);
    }
    says(&Config::from_toml("node = 1").expect_err("refused").to_string(), &["cluster"]);
}

#[test]
fn members_are_distinct_and_this_node_is_one() {
    says(&refusal(|c| c.node = NodeId::new(0)), &["node = 0", "from 1"]);
    says(&refusal(|c| c.node = NodeId::new(3)), &["node = 3", "not among the members"]);
    says(&refusal(|c| c.members.clear()), &["node = 1", "not among the members"]);
    says(&refusal(|c| c.members.push(member(2, "localhost:3"))), &["node = 2", "twice"]);
    says(&refusal(|c| c.members.push(member(3, "[::1]:9292"))), &["node 3", "same address"]);
    says(&refusal(|c| c.members.push(member(0, "localhost:3"))), &["from 1"]);
    says(&refusal(|c| c.members.push(member(1 << 63, "localhost:3"))), &["below 2^63"]);
    says(&refusal(|c| c.members[1].address = "[::1]:0".into()), &["node 2", "port 0"]);
    let many = |c: &mut Config| {
        c.members = (1..=65).map(|node| member(node, &format!("localhost:{node}"))).collect();
    };
    says(&refusal(many), &["members = 65", "at most 64"]);
}

#[test]
fn addresses_have_a_host_and_a_port() {
    let bad = [
        "",
        "host",
        ":1",
        "::1:9291",
        "[::1]",
        "[host]:1",
        "host:",
        "host:65536",
        "host:+1",
        "a b:1",
        "http://host:1",
        "[::1:1",
    ];
    for address in bad {
        says(&refusal(|c| c.listen = address.into()), &["listen", address, "host:port"]);
        says(&refusal(|c| c.members[1].address = address.into()), &["node 2", "host:port"]);
    }
}

#[test]
fn times_have_bounds() {
    let second = Duration::from_secs(1);
    says(&refusal(|c| c.heartbeat = Duration::ZERO), &["heartbeat = 0ns", "between 1ms"]);
    says(&refusal(|c| c.heartbeat = 61 * second), &["heartbeat = 61s"]);
    let short = |c: &mut Config| c.session_timeout = Duration::from_millis(299);
    says(&refusal(short), &["session_timeout = 299ms", "at least 300ms"]);
    says(&refusal(|c| c.session_timeout = 3601 * second), &["session_timeout = 3601s"]);
    says(&refusal(|c| c.reconnect_min = Duration::ZERO), &["reconnect_min = 0ns"]);
    says(&refusal(|c| c.reconnect_min = 3 * second), &["reconnect_min = 3s", "2s"]);
    says(&refusal(|c| c.reconnect_max = 3601 * second), &["reconnect_max = 3601s"]);
    says(&refusal(|c| c.drain_timeout = 3601 * second), &["drain_timeout = 3601s"]);
    let reload = |c: &mut Config| {
        let tls = TlsConfig { reload: Duration::ZERO, ..TlsConfig::new("a", "b", "c") };
        c.tls = Some(tls);
    };
    says(&refusal(reload), &["tls.reload = 0ns"]);
}

#[test]
fn sizes_have_bounds() {
    says(&refusal(|c| c.window_bytes = 1000), &["window_bytes = 1000", "1048576"]);
    says(&refusal(|c| c.window_bytes = 2 << 30), &["window_bytes = 2147483648"]);
    says(&refusal(|c| c.connections_max = 1), &["connections_max = 1", "between 2"]);
    says(&refusal(|c| c.connections_max = 5000), &["connections_max = 5000"]);
}

#[test]
fn nothing_is_open_to_a_network_by_accident() {
    for host in ["0.0.0.0", "[::]", "10.0.0.1", "node-1", "localhost.example"] {
        let address = format!("{host}:9291");
        let message = refusal(|c| c.listen = address.clone());
        says(&message, &["listen", &address, "[tls]", "insecure = true"]);
        let message = refusal(|c| c.members[1].address = address.clone());
        says(&message, &["node 2", &address, "insecure = true"]);
    }
    for host in ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "localhost", "LOCALHOST"]
    {
        let mut config = good();
        config.listen = format!("{host}:0");
        config.check().expect(host);
    }
    let open = |c: &mut Config| c.listen = "0.0.0.0:9291".into();
    let mut config = good();
    open(&mut config);
    config.insecure = true;
    config.check().expect("said in so many words");
    config.tls = Some(TlsConfig::new("a", "b", "c"));
    says(&config.check().expect_err("both").to_string(), &["insecure = true", "remove one"]);
    config.insecure = false;
    config.check().expect("with TLS");
}
