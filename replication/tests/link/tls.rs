//! Mutual TLS: who is let in, who is not, and how certificates are replaced.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringwal_replication::link::tls::{Tls, TlsError};
use ringwal_replication::link::{Link, LinkError, Listener};
use ringwal_replication::wire::WireError;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore, Stream};

use super::{LIMIT, connect, run, says};
use crate::authority::{Authority, Issued, write};

fn load(issued: &Issued, authorities: &[&Authority]) -> Result<Arc<Tls>, TlsError> {
    let directory = tempfile::tempdir().expect("a directory");
    Tls::load(&write(directory.path(), issued, authorities)).map(Arc::new)
}

fn node(authority: &Authority) -> Arc<Tls> {
    load(&authority.issue("localhost"), &[authority]).expect("loaded")
}

/// What the accepting side says to a client that shows what it likes, or nothing.
fn accept_error(authority: &Authority, shown: Option<&Issued>) -> LinkError {
    let (tls, listener) = (node(authority), Listener::bind("127.0.0.1:0").expect("bound"));
    let address = listener.local_address();
    let config = client_config(authority, shown);
    let client = std::thread::spawn(move || {
        let mut socket = TcpStream::connect(address).expect("connected");
        let name = "localhost".try_into().expect("a name");
        let mut session = ClientConnection::new(Arc::new(config), name).expect("a session");
        let mut stream = Stream::new(&mut session, &mut socket);
        // The client's handshake is done before the server has looked at its certificate.
        let _ = stream.write_all(b"hello");
        stream.read(&mut [0; 10]).expect_err("refused");
    });
    let error = run(async {
        let (stream, _) = listener.accept().await.expect("accepted");
        Link::accept(stream, Some(&tls), LIMIT).await.expect_err("refused")
    });
    client.join().expect("no panic");
    error
}

fn client_config(authority: &Authority, shown: Option<&Issued>) -> ClientConfig {
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&authority.pem)).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version")
        .with_root_certificates(roots);
    match shown {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
            let chain = vec![certificate(&issued.certificate)];
            builder.with_client_auth_cert(chain, key).expect("a certificate")
        }
    }
}

#[test]
fn both_sides_know_each_other_by_name() {
    let authority = Authority::new();
    let dials = load(&authority.issue("node-1.example"), &[&authority]).expect("loaded");
    run(async {
        let (dialled, accepted) = connect(Some(dials), Some(node(&authority))).await;
        let (dialled, accepted) = (dialled.expect("a link"), accepted.expect("a link"));
        assert_eq!(dialled.peer_certificate().expect("TLS").names(), ["localhost"]);
        assert_eq!(accepted.peer_certificate().expect("TLS").names(), ["node-1.example"]);
        let (mut reader, writer_too) = accepted.split();
        let (mut back, mut writer) = dialled.split();
        let counts = writer.write_all(vec![Bytes::from_static(b"ring"); 300]).await;
        assert_eq!(counts.expect("written").bytes, 1200);
        assert_eq!(reader.read_exact(1200).await.expect("read"), b"ring".repeat(300));
        let closing = tokio_uring::spawn(writer.shutdown());
        assert_eq!(reader.receive().await.expect("an end, not an error"), 0);
        writer_too.shutdown().await;
        assert_eq!(back.receive().await.expect("an end, not an error"), 0);
        closing.await.expect("no panic");
    });
}

#[test]
fn an_ip_address_is_a_name_as_well() {
    let authority = Authority::new();
    let tls = load(&authority.issue("127.0.0.1"), &[&authority]).expect("loaded");
    run(async {
        let listener = Listener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_address().to_string();
        let server = tls.clone();
        let accepting = tokio_uring::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accepted");
            Link::accept(stream, Some(&server), LIMIT).await
        });
        let link = Link::dial(&address, Some(&tls), LIMIT).await.expect("a link");
        assert!(link.peer_certificate().expect("TLS").names().is_empty());
        accepting.await.expect("no panic").expect("a link");
    });
}

#[test]
fn an_end_without_notice_is_an_error() {
    let authority = Authority::new();
    run(async {
        let (dialled, accepted) = connect(Some(node(&authority)), Some(node(&authority))).await;
        drop(dialled.expect("a link").split());
        let (mut reader, _writer) = accepted.expect("a link").split();
        let error = reader.receive().await.expect_err("cut off");
        assert!(matches!(error, LinkError::Read { .. }), "{error}");
    });
}

#[test]
fn a_server_of_another_authority_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    run(async {
        let (dialled, accepted) = connect(Some(node(&ours)), Some(node(&theirs))).await;
        let error = dialled.expect_err("refused");
        assert!(matches!(error, LinkError::Handshake { .. }), "{error}");
        says(error, &["localhost:", "UnknownIssuer", "certificates of the same authority"]);
        says(accepted.expect_err("refused"), &["UnknownCA"]);
    });
}

#[test]
fn a_server_of_another_name_is_refused() {
    let authority = Authority::new();
    let other = load(&authority.issue("node-9.example"), &[&authority]).expect("loaded");
    run(async {
        let (dialled, _) = connect(Some(node(&authority)), Some(other)).await;
        says(dialled.expect_err("refused"), &["localhost", "node-9.example"]);
    });
}

#[test]
fn clients_that_cannot_be_trusted_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    says(accept_error(&ours, None), &["no certificates"]);
    says(accept_error(&ours, Some(&theirs.issue("localhost"))), &["UnknownIssuer"]);
    says(accept_error(&ours, Some(&ours.issue_expired("localhost"))), &["expired"]);
    let server_only = ours.issue_with("localhost", |params| {
        params.extended_key_usages.pop();
    });
    says(accept_error(&ours, Some(&server_only)), &["client authentication"]);
}

#[test]
fn a_client_without_tls_is_told_apart() {
    let authority = Authority::new();
    run(async {
        let (dialled, accepting) = (None, Some(node(&authority)));
        let listener = Listener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_address().to_string();
        let server = tokio_uring::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accepted");
            Link::accept(stream, accepting.as_deref(), LIMIT).await
        });
        let link = Link::dial(&address, dialled, LIMIT).await.expect("nothing is wrong yet");
        let (mut reader, mut writer) = link.split();
        writer.write_all(vec![Bytes::from(vec![b'r'; 128])]).await.expect("written");
        let error = server.await.expect("no panic").expect_err("refused");
        assert!(matches!(error, LinkError::Handshake { .. }), "{error}");
        says(error, &["both sides need TLS"]);
        // What comes, if anything, is TLS saying so.
        if matches!(reader.receive().await, Ok(1..)) {
            assert!(!matches!(reader.next_item(0), Ok(Some(_))));
        }
    });
}

#[test]
fn a_client_with_tls_is_told_apart_where_there_is_none() {
    let authority = Authority::new();
    run(async {
        let listener = Listener::bind("127.0.0.1:0").expect("bound");
        let address = format!("localhost:{}", listener.local_address().port());
        let server = tokio_uring::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accepted");
            let link = Link::accept(stream, None, LIMIT).await.expect("nothing is wrong yet");
            let (mut reader, _writer) = link.split();
            reader.receive().await.expect("bytes");
            reader.next_item(0).expect_err("no item")
        });
        let dialled = Link::dial(&address, Some(&node(&authority)), LIMIT).await;
        let error = server.await.expect("no panic");
        assert!(matches!(error, WireError::Magic(_)), "{error}");
        says(error, &["speaks TLS"]);
        says(dialled.expect_err("no handshake"), &["both sides need TLS"]);
    });
}

#[test]
fn a_handshake_that_nobody_answers_takes_its_time_and_no_longer() {
    let authority = Authority::new();
    run(async {
        // The kernel connects; nobody accepts.
        let listener = Listener::bind("127.0.0.1:0").expect("bound");
        let address = format!("localhost:{}", listener.local_address().port());
        let (start, limit) = (Instant::now(), Duration::from_millis(200));
        let error = Link::dial(&address, Some(&node(&authority)), limit).await.expect_err("late");
        assert!(matches!(error, LinkError::Timeout { .. }), "{error}");
        assert!(start.elapsed() >= limit && start.elapsed() < 10 * limit);
        let silent = TcpStream::connect(listener.local_address()).expect("connected");
        listener.accept().await.expect("the first");
        let (stream, _) = listener.accept().await.expect("the silent one");
        let error = Link::accept(stream, Some(&node(&authority)), limit).await;
        assert!(matches!(error, Err(LinkError::Timeout { .. })), "{error:?}");
        drop(silent);
    });
}

#[test]
fn files_that_do_not_fit_together_are_refused_with_their_names() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = ours.issue("localhost");
    let refused = |issued: &Issued, authority| load(issued, &[authority]).expect_err("refused");
    let other_key = Issued { key: ours.issue("localhost").key, ..ours.issue("localhost") };
    says(refused(&other_key, &ours), &["node.key", "node.crt", "replace both together"]);
    says(refused(&good, &theirs), &["node.crt", "authority.crt", "UnknownIssuer"]);
    says(refused(&ours.issue_expired("localhost"), &ours), &["server", "valid now"]);
    let server_only = ours.issue_with("localhost", |params| {
        params.extended_key_usages.pop();
    });
    says(refused(&server_only, &ours), &["client", "clientAuth"]);
    let empty = Issued { certificate: String::new(), key: good.key.clone() };
    says(refused(&empty, &ours), &["node.crt", "certificate", "PEM"]);
    let no_key = Issued { certificate: good.certificate.clone(), key: "x".into() };
    says(refused(&no_key, &ours), &["node.key", "private key"]);
    let mut missing = write(tempfile::tempdir().expect("one").path(), &good, &[&ours]);
    missing.key = "/nowhere/node.key".into();
    says(Tls::load(&missing).expect_err("gone"), &["node.crt"]);
}

#[test]
fn new_certificates_are_used_without_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let (old, new) = (Authority::new(), Authority::new());
    let files = write(directory.path(), &old.issue("localhost"), &[&old]);
    let server = Arc::new(Tls::load(&files).expect("loaded"));
    assert!(!server.reload_if_changed().expect("nothing new"));
    let of_old = node(&old);
    let of_new = node(&new);
    let is_taken = |dials: &Arc<Tls>| {
        run(async {
            let (dialled, accepted) = connect(Some(dials.clone()), Some(server.clone())).await;
            assert_eq!(dialled.is_ok(), accepted.is_ok());
            accepted.is_ok()
        })
    };
    assert!(is_taken(&of_old) && !is_taken(&of_new));

    // Half of a key, and then a key that fits no certificate: what was there stays in force.
    let next = new.issue("localhost");
    std::fs::write(&files.key, &next.key[..next.key.len() / 2]).expect("written");
    says(server.reload_if_changed().expect_err("half a key"), &["node.key"]);
    says(server.reload_if_changed().expect_err("still"), &["node.key"]);
    assert!(is_taken(&of_old) && !is_taken(&of_new));
    std::fs::write(&files.key, &next.key).expect("written");
    says(server.reload_if_changed().expect_err("another key"), &["does not fit"]);
    assert!(is_taken(&of_old));

    write(directory.path(), &next, &[&new]);
    assert!(server.reload_if_changed().expect("loaded"));
    assert!(!server.reload_if_changed().expect("nothing new"));
    assert!(is_taken(&of_new) && !is_taken(&of_old));

    std::fs::remove_file(&files.authority).expect("removed");
    says(server.reload_if_changed().expect_err("gone"), &["authority.crt"]);
    assert!(is_taken(&of_new));
}
