//! Programs that are no node ask one.

#[path = "link/authority.rs"]
#[expect(dead_code, reason = "the tests of links use the rest")]
mod authority;

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use authority::{Authority, write};
use bytes::Bytes;
use ringwal_engine::Engine;
use ringwal_replication::Node;
use ringwal_replication::config::{Config, Member, TlsConfig};
use ringwal_replication::node_id::{ClusterId, NodeId};
use ringwal_replication::repair::FetchError;
use ringwal_replication::requests::{
    Asked, Client, ClientError, REQUEST_BYTES_MAX, Replies, Reply, RequestError,
};
use ringwal_replication::wire::Refusal;

const CLUSTER: ClusterId = ClusterId::new([9; 16]);
const LIMIT: Duration = Duration::from_secs(20);

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

/// Node 1, alone, in a directory.
fn start(directory: &Path, address: &str, tls: Option<TlsConfig>) -> (Node, Member) {
    let member = Member { node: NodeId::new(1), address: address.to_owned() };
    let mut config = Config::new(CLUSTER, member.node, vec![member.clone()]);
    (config.listen, config.tls) = (address.to_owned(), tls);
    let options = Engine::options().shards(1).segment_bytes(1 << 20).pool_bytes(4 << 20);
    let engine = options.lock_wait(LIMIT).open(directory).expect("the engine opens");
    (Node::start(engine, config).expect("the node starts"), member)
}

fn stop(node: Node) {
    let engine = node.engine().clone();
    node.close();
    engine.close().expect("a sound disk");
}

/// The same bytes.
struct Echo;

impl Replies for Echo {
    fn handle(&self, asked: Asked) {
        assert!(asked.from.is_client(), "node {}", asked.from);
        asked.reply.send(asked.bytes);
    }
}

/// Keeps what comes.
#[derive(Default)]
struct Keep {
    kept: Mutex<Vec<Reply>>,
}

impl Keep {
    fn take(&self) -> Reply {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(reply) = self.kept.lock().unwrap().pop() {
                return reply;
            }
            assert!(Instant::now() < deadline, "nothing was asked");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Replies for Keep {
    fn handle(&self, asked: Asked) {
        self.kept.lock().unwrap().push(asked.reply);
    }
}

fn connect(member: &Member) -> Result<Client, ClientError> {
    Client::connect(CLUSTER, member, None, LIMIT)
}

/// Until the node takes requests: it learns of its replies on its own thread.
fn client(member: &Member, tls: Option<&TlsConfig>) -> Client {
    let deadline = Instant::now() + LIMIT;
    loop {
        match Client::connect(CLUSTER, member, tls, LIMIT) {
            Ok(client) => return client,
            Err(error) => assert!(
                error.to_string().contains("nobody replies") && Instant::now() < deadline,
                "{error}"
            ),
        }
    }
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at / 7) as u8).collect()
}

#[track_caller]
fn assert_refused(outcome: Result<Client, ClientError>, wanted: Refusal, part: &str) {
    let error = outcome.expect_err("refused");
    let ClientError::Hello(hello) = &error else { panic!("{error}") };
    let FetchError::Refused { refusal, why, .. } = &**hello else { panic!("{error}") };
    assert!(*refusal == wanted && why.contains(part), "{refusal}: {why}");
}

#[test]
fn requests_of_every_length_are_replied_to() {
    let directory = tempfile::tempdir().unwrap();
    let (node, member) = start(directory.path(), &free_address(), None);
    assert_refused(connect(&member), Refusal::NotNow, "nobody replies");
    node.reply_with(Arc::new(Echo));
    let mut client = client(&member, None);
    for length in [0, 1, 1000, 256 << 10, (256 << 10) + 1, REQUEST_BYTES_MAX] {
        let reply = client.ask(pattern(length), LIMIT).expect("a reply");
        assert!(reply == pattern(length), "{length} bytes");
    }
    let long = client.ask(vec![0; REQUEST_BYTES_MAX + 1], LIMIT).unwrap_err();
    assert!(matches!(long, RequestError::TooLong { .. }), "{long}");
    // Several at once, each of whom is another one.
    let clients: Vec<_> = (0..4)
        .map(|n: u8| {
            let member = member.clone();
            std::thread::spawn(move || {
                let mut client = connect(&member).expect("it is reached");
                (0..50)
                    .for_each(|m| assert_eq!(client.ask(vec![n, m], LIMIT).unwrap(), [n, m][..]));
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("all replied to"));
    assert_eq!(client.ask("still there", LIMIT).unwrap(), "still there");
    drop(client);
    stop(node);
}

#[test]
fn who_is_not_meant_is_not_asked() {
    let directory = tempfile::tempdir().unwrap();
    let (node, member) = start(directory.path(), &free_address(), None);
    node.reply_with(Arc::new(Echo));
    let foreign = Client::connect(ClusterId::new([1; 16]), &member, None, LIMIT);
    assert_refused(foreign, Refusal::Cluster, "another cluster");
    let other = Member { node: NodeId::new(2), ..member.clone() };
    assert_refused(connect(&other), Refusal::Node, "this is node 1");
    stop(node);
    let gone = connect(&member).unwrap_err();
    assert!(gone.to_string().contains("cannot connect"), "{gone}");
}

#[test]
fn who_does_not_answer_a_hello_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let member = Member { node: NodeId::new(1), address };
    let late = Client::connect(CLUSTER, &member, None, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(late, ClientError::Late { .. }), "{late}");
}

#[test]
fn a_late_reply_and_a_lost_one_may_be_done() {
    let directory = tempfile::tempdir().unwrap();
    let address = free_address();
    let (node, member) = start(directory.path(), &address, None);
    let keep = Arc::new(Keep::default());
    node.reply_with(keep.clone());

    let mut one = client(&member, None);
    let late = one.ask("one", Duration::from_millis(20)).unwrap_err();
    assert!(matches!(late, RequestError::Late { is_sent: true, .. }), "{late}");
    assert!(late.may_be_done());
    keep.take().send("too late");
    let over = one.ask("again", LIMIT).unwrap_err();
    assert!(matches!(over, RequestError::NotReached { .. }) && !over.may_be_done(), "{over}");

    let mut two = client(&member, None);
    let asking = std::thread::spawn(move || (two.ask("two", LIMIT), two));
    drop(keep.take());
    let (none, mut two) = asking.join().unwrap();
    let none = none.unwrap_err();
    assert!(matches!(none, RequestError::NoReply { .. }) && none.may_be_done(), "{none}");

    // The connection is as good as before; then its other side ends.
    let asking = std::thread::spawn(move || two.ask("three", LIMIT));
    let kept = keep.take();
    stop(node);
    let lost = asking.join().unwrap().unwrap_err();
    assert!(matches!(lost, RequestError::Lost { .. }) && lost.may_be_done(), "{lost}");
    drop(kept);
}

#[test]
fn with_tls_a_certificate_of_a_member_or_of_operators_may_ask() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let certificate = |authority: &Authority, name: &str, more: &[&str]| {
        let folder = directory.path().join(format!("{name}-{}", more.len()));
        std::fs::create_dir_all(&folder).unwrap();
        let issued = authority.issue_with(name, |params| {
            let names: Vec<_> = more.iter().map(|name| (*name).to_owned()).collect();
            let more = rcgen::CertificateParams::new(names).expect("names");
            params.subject_alt_names.extend(more.subject_alt_names);
        });
        write(&folder, &issued, &[authority])
    };
    let own = certificate(&authority, "node-1", &["127.0.0.1"]);
    let (node, member) = start(&directory.path().join("data"), &free_address(), Some(own.clone()));
    node.reply_with(Arc::new(Echo));
    let operators = certificate(&authority, "operator", &[]);
    for tls in [&own, &operators] {
        let mut client = client(&member, Some(tls));
        let reply = client.ask(pattern(REQUEST_BYTES_MAX), LIMIT).expect("a reply");
        assert!(reply == pattern(REQUEST_BYTES_MAX));
    }
    let somebody = certificate(&authority, "node-7", &[]);
    let refused = Client::connect(CLUSTER, &member, Some(&somebody), LIMIT);
    assert_refused(refused, Refusal::NotAMember, "operator");
    let stranger = certificate(&Authority::new(), "operator", &["stranger"]);
    let refused = Client::connect(CLUSTER, &member, Some(&stranger), LIMIT).unwrap_err();
    let ClientError::Hello(hello) = &refused else { panic!("{refused}") };
    assert!(matches!(**hello, FetchError::Link(_)), "{refused}");
    assert!(connect(&member).is_err(), "without TLS");
    stop(node);
}
