use super::*;

fn run<F: Future>(test: F) -> F::Output {
    tokio_uring::start(async {
        timeout(Duration::from_secs(60), test).await.expect("done within a minute")
    })
}

/// A link and a plain socket at its other end.
async fn link_and_socket() -> (Link, std::net::TcpStream) {
    let listener = Listener::bind("127.0.0.1:0").expect("bound");
    let socket = std::net::TcpStream::connect(listener.local_address()).expect("connected");
    let (stream, _) = listener.accept().await.expect("accepted");
    let link = Link::accept(stream, None, Duration::from_secs(9)).await.expect("plain");
    (link, socket)
}

#[test]
fn what_is_written_is_where_the_caller_has_it() {
    run(async {
        let (link, mut socket) = link_and_socket().await;
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut socket, &mut bytes).expect("read");
            bytes
        });
        let batch = Bytes::from((0..3_000_000_u32).map(|index| index as u8).collect::<Vec<_>>());
        // More than one call takes, of which some are empty, and parts of one buffer.
        let slices: Vec<Bytes> =
            (0..3000).map(|at| batch.slice(at * 1000..at * 1000 + 900)).collect();
        let mut given = slices.clone();
        (0..3000).step_by(7).for_each(|at| given.insert(at, Bytes::new()));
        let (_reader, mut writer) = link.split();
        let counts = writer.write_all(given).await.expect("written");
        assert_eq!(counts.bytes, 3000 * 900);
        assert!(counts.calls >= 3, "{counts:?}");
        let owned = batch.as_ptr() as usize..batch.as_ptr() as usize + batch.len();
        assert!(writer.observed.len() >= 3000);
        for observed in &writer.observed {
            assert!(owned.contains(&observed.start) && observed.end <= owned.end);
            assert!(!observed.is_empty());
        }
        drop(writer);
        assert_eq!(reading.join().expect("a reader"), slices.concat());
    });
}

#[test]
fn many_short_slices_are_written_in_few_calls() {
    run(async {
        let (link, _socket) = link_and_socket().await;
        let (_reader, mut writer) = link.split();
        let counts = writer.write_all(vec![Bytes::from_static(b"ringwal"); 2048]).await;
        assert_eq!(counts.expect("written"), WriteCounts { calls: 2, bytes: 2048 * 7 });
        assert_eq!(writer.write_all(Vec::new()).await.expect("nothing"), WriteCounts::default());
    });
}

#[test]
fn what_was_written_is_dropped_and_a_slice_may_be_cut() {
    let slices = || ["ab", "cde", "f"].map(Bytes::from).to_vec();
    let left = |written| {
        let mut slices = slices();
        advance(&mut slices, written);
        slices.concat()
    };
    for written in 0..=6 {
        assert_eq!(left(written), &b"abcdef"[written..]);
    }
}

#[test]
fn sockets_find_out_that_their_peer_is_gone() {
    run(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let socket = std::net::TcpStream::connect(address).expect("connected");
        set_options(&socket).expect("set");
        assert!(sockopt::tcp_nodelay(&socket).expect("read"));
        assert!(sockopt::socket_keepalive(&socket).expect("read"));
        assert_eq!(sockopt::tcp_keepidle(&socket), Ok(Duration::from_secs(15)));
        assert_eq!(sockopt::tcp_keepintvl(&socket), Ok(Duration::from_secs(5)));
        assert_eq!(sockopt::tcp_keepcnt(&socket), Ok(3));
        assert_eq!(sockopt::tcp_user_timeout(&socket), Ok(USER_TIMEOUT_MS));
    });
}
