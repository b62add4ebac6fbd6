//! Links without TLS: beginnings, ends and what goes wrong.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringwal_replication::link::{Link, LinkError, Listener, Received};
use ringwal_replication::wire::{Message, WireError};

use super::{LIMIT, connect, run, says};

const SECOND: Duration = Duration::from_secs(1);

fn heartbeat() -> Vec<u8> {
    Message::Heartbeat { time_ns: 1 }.encode()
}

/// A link, and a plain socket at its other end.
async fn link_and_socket(setup: impl FnOnce(&TcpStream)) -> (Link, TcpStream) {
    let listener = Listener::bind("127.0.0.1:0").expect("bound");
    let socket = TcpStream::connect(listener.local_address()).expect("connected");
    let (stream, peer) = listener.accept().await.expect("accepted");
    setup(&stream);
    let link = Link::accept(stream, None, LIMIT).await.expect("a link");
    assert_eq!((link.peer(), peer), (socket.local_addr().expect("an address"), peer));
    assert!(link.peer_certificate().is_none());
    (link, socket)
}

#[test]
fn two_listeners_at_one_port_are_one_too_many() {
    let first = Listener::bind("127.0.0.1:0").expect("bound");
    let address = first.local_address().to_string();
    let error = Listener::bind(&address).expect_err("in use");
    assert!(matches!(error, LinkError::AddressInUse { .. }));
    says(error, &[&address, "another node", "`listen`"]);
    // Also when the first one is at work.
    run(async {
        let socket = TcpStream::connect(first.local_address()).expect("connected");
        first.accept().await.expect("accepted");
        assert!(matches!(Listener::bind(&address), Err(LinkError::AddressInUse { .. })));
        drop(socket);
    });
    drop(first);
    // At once, though a connection of the first one lingers.
    Listener::bind(&address).expect("free again");
}

#[test]
fn addresses_are_what_they_should_be() {
    for bad in ["9291", "::1:9291", "host"] {
        says(Listener::bind(bad).expect_err("no address"), &[bad, "host:port"]);
    }
    says(Listener::bind("192.0.2.1:9291").expect_err("not here"), &["192.0.2.1", "`listen`"]);
    if let Ok(listener) = Listener::bind("[::1]:0") {
        run(async {
            let address = listener.local_address().to_string();
            let link = Link::dial(&address, None, LIMIT).await.expect("a link");
            assert_eq!(link.peer(), listener.local_address());
        });
    }
}

#[test]
fn dialling_says_why_it_failed() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0").expect("bound");
        let address = format!("localhost:{}", listener.local_address().port());
        drop(listener);
        let error = Link::dial(&address, None, LIMIT).await.expect_err("nobody there");
        assert!(matches!(error, LinkError::Connect { .. }), "{error}");
        says(error, &[&address, "check that the node runs"]);
        let error = Link::dial("nobody.invalid:1", None, 3 * SECOND).await.expect_err("no host");
        assert!(matches!(error, LinkError::Resolve { .. } | LinkError::Timeout { .. }), "{error}");
        says(error, &["nobody.invalid:1"]);
        let error = Link::dial("localhost", None, LIMIT).await.expect_err("no port");
        assert!(matches!(error, LinkError::Address { .. }), "{error}");
    });
}

#[test]
fn partial_writes_are_continued() {
    run(async {
        let small = |stream: &TcpStream| {
            rustix::net::sockopt::set_socket_send_buffer_size(stream, 16_384).expect("set");
        };
        let (link, mut socket) = link_and_socket(small).await;
        let reading = std::thread::spawn(move || {
            let (mut bytes, mut some) = (Vec::new(), [0; 3000]);
            loop {
                match socket.read(&mut some).expect("read") {
                    0 => return bytes,
                    read => bytes.extend_from_slice(&some[..read]),
                }
            }
        });
        let slices: Vec<Bytes> = (0..200_u32)
            .map(|seed| (0..10_000 + seed).map(|index| (index * seed) as u8).collect())
            .collect();
        let (_reader, mut writer) = link.split();
        let counts = writer.write_all(slices.clone()).await.expect("written");
        assert!(counts.calls > 10, "{counts:?}");
        writer.shutdown().await;
        assert!(reading.join().expect("no panic") == slices.concat());
    });
}

#[test]
fn one_direction_may_end_before_the_other() {
    run(async {
        let (link, mut socket) = link_and_socket(|_| {}).await;
        let (mut reader, mut writer) = link.split();
        socket.write_all(&heartbeat()).expect("written");
        socket.shutdown(Shutdown::Write).expect("ended");
        assert_eq!(reader.receive().await.expect("a message"), heartbeat().len());
        assert!(matches!(reader.next_item(0), Ok(Some(Received::Message(_)))));
        assert_eq!(reader.next_item(0), Ok(None));
        assert_eq!(reader.receive().await.expect("the end"), 0);
        assert_eq!(reader.receive().await.expect("still"), 0);
        writer.write_all(vec![Bytes::from_static(b"goes on")]).await.expect("written");
        let start = Instant::now();
        writer.shutdown().await;
        assert!(start.elapsed() < Duration::from_millis(200), "nobody had to be waited for");
        let mut bytes = String::new();
        socket.read_to_string(&mut bytes).expect("read");
        assert_eq!(bytes, "goes on");
    });
}

#[test]
fn an_end_inside_of_an_item_is_no_end() {
    run(async {
        let (link, mut socket) = link_and_socket(|_| {}).await;
        let (mut reader, _writer) = link.split();
        socket.write_all(&heartbeat()[..20]).expect("written");
        drop(socket);
        reader.receive().await.expect("a part");
        assert_eq!(reader.next_item(0), Ok(None));
        let error = reader.receive().await.expect_err("inside");
        assert!(matches!(error, LinkError::EndInside { received: 20, .. }), "{error}");

        let (link, mut socket) = link_and_socket(|_| {}).await;
        let (mut reader, _writer) = link.split();
        socket.write_all(&[1; 100]).expect("written");
        drop(socket);
        let error = reader.read_exact(128).await.expect_err("inside");
        assert!(matches!(error, LinkError::EndInside { received: 100, .. }), "{error}");
    });
}

#[test]
fn what_follows_a_hello_stays_for_the_items() {
    run(async {
        let (link, mut socket) = link_and_socket(|_| {}).await;
        let (mut reader, _writer) = link.split();
        socket.write_all(&[vec![5; 128], heartbeat()].concat()).expect("written");
        assert_eq!(reader.read_exact(128).await.expect("a hello"), vec![5; 128]);
        // Even when it is asked for more first: it has something that was not looked at.
        assert_eq!(reader.receive().await.expect("there"), heartbeat().len());
        assert!(matches!(reader.next_item(0), Ok(Some(Received::Message(_)))));
        assert_eq!(reader.next_item(0), Ok(None));
        assert_eq!(reader.read_exact(0).await.expect("nothing"), "");
    });
}

#[test]
fn a_length_bomb_is_refused() {
    run(async {
        let (link, mut socket) = link_and_socket(|_| {}).await;
        let (mut reader, _writer) = link.split();
        let mut header = heartbeat();
        header[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..4]), &header[8..16]);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        socket.write_all(&header).expect("written");
        reader.receive().await.expect("bytes");
        let error = reader.next_item(1 << 20).expect_err("too long");
        assert!(matches!(error, WireError::TooLong { .. }), "{error}");
    });
}

#[test]
fn a_shutdown_wakes_the_reader_and_waits_for_nobody_long() {
    run(async {
        let (link, _socket_that_stays_open) = link_and_socket(|_| {}).await;
        let (mut reader, writer) = link.split();
        let reading = tokio_uring::spawn(async move { reader.receive().await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let start = Instant::now();
        writer.shutdown().await;
        assert_eq!(reading.await.expect("no panic").expect("the end"), 0);
        assert!(start.elapsed() < SECOND);

        let (link, _socket_that_stays_open) = link_and_socket(|_| {}).await;
        let (mut reader, writer) = link.split();
        let reading = tokio_uring::spawn(async move { reader.receive().await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(writer);
        assert_eq!(reading.await.expect("no panic").expect("the end"), 0);
    });
}

#[test]
fn unread_bytes_do_not_destroy_the_last_words() {
    run(async {
        let (link, mut socket) = link_and_socket(|_| {}).await;
        let (reader, mut writer) = link.split();
        socket.write_all(&vec![1; 100_000]).expect("written");
        drop(reader);
        let reading = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut bytes = String::new();
            socket.read_to_string(&mut bytes).map(|_| bytes)
        });
        writer.write_all(vec![Bytes::from_static(b"leaving")]).await.expect("written");
        writer.shutdown().await;
        assert_eq!(reading.join().expect("no panic").expect("no reset"), "leaving");
    });
}

#[test]
fn a_link_is_of_no_use_when_an_operation_was_dropped() {
    run(async {
        let (link, _socket) = link_and_socket(|_| {}).await;
        let (mut reader, mut writer) = link.split();
        let short = Duration::from_millis(10);
        tokio::time::timeout(short, reader.receive()).await.expect_err("nothing comes");
        let error = reader.receive().await.expect_err("cancelled");
        assert!(matches!(error, LinkError::Cancelled { what: "read", .. }), "{error}");
        let much = vec![Bytes::from(vec![0; 64 << 20])];
        tokio::time::timeout(short, writer.write_all(much)).await.expect_err("nobody reads");
        let error = writer.write_all(vec![]).await.expect_err("cancelled");
        assert!(matches!(error, LinkError::Cancelled { what: "write", .. }), "{error}");
    });
}

#[test]
fn writing_to_a_peer_that_is_gone_fails() {
    run(async {
        let (dialled, accepted) = connect(None, None).await;
        drop(dialled.expect("a link"));
        let (mut reader, mut writer) = accepted.expect("a link").split();
        assert_eq!(reader.receive().await.expect("the end"), 0);
        for _ in 0..100 {
            let written = writer.write_all(vec![Bytes::from(vec![0; 1 << 20])]).await;
            if let Err(error) = written {
                assert!(matches!(error, LinkError::Write { .. }), "{error}");
                return;
            }
        }
        panic!("a hundred megabytes went nowhere");
    });
}
