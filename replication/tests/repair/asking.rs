//! Whoever asks for more than it may, or does not take what it asked for.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use ringwal_engine::StreamId;
use ringwal_replication::Ack;
use ringwal_replication::fetch::WHOEVER;
use ringwal_replication::node_id::{NodeId, RunId};
use ringwal_replication::wire::{
    Answer, ConnectionKind, HELLO_BYTES, Hello, Message, Refusal, Wanted,
};

use super::setup::{CLUSTER, Cluster, LIMIT, append, stop};

fn dial(cluster: &Cluster) -> (TcpStream, Answer) {
    let hello = Hello {
        versions: (1, 1),
        kind: ConnectionKind::Fetch,
        cluster: CLUSTER,
        from: NodeId::new(2),
        to: WHOEVER,
        run: RunId::new([3; 16]),
        engine: [4; 16],
        epoch: 0,
    };
    let mut connection = TcpStream::connect(cluster.address(1)).expect("it listens");
    connection.set_read_timeout(Some(LIMIT)).expect("a socket");
    connection.set_write_timeout(Some(Duration::from_secs(2))).expect("a socket");
    connection.write_all(&hello.encode()).expect("it reads");
    let mut bytes = vec![0; HELLO_BYTES];
    connection.read_exact(&mut bytes).expect("it answers");
    let mut reason = vec![0; Answer::reason_length(&bytes).expect("an answer")];
    connection.read_exact(&mut reason).expect("it says why");
    bytes.extend(reason);
    let answer = Answer::decode(&bytes).expect("an answer");
    (connection, answer)
}

fn fetch(stream: u64) -> Vec<u8> {
    let stream = StreamId::new(stream);
    Message::Fetch(Wanted { stream, from: 0, end: 1 << 40, is_check: false }).encode()
}

/// Reads until the other side ends it.
fn is_dropped(mut connection: TcpStream) -> bool {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match connection.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn who_floods_or_does_not_read_costs_no_more_than_its_share() {
    let cluster = Cluster::new(2, 1);
    let node = cluster.start(1);
    let leadership = node.lead(1).expect("a new epoch");
    append(&leadership, 0..20_000, Ack::Local);

    // One that asks without end is dropped.
    let (mut flood, _) = dial(&cluster);
    let many = fetch(9).repeat(64);
    while flood.write_all(&many).is_ok() {}
    drop(flood);
    // So is one that asks for what is the node's own, or speaks as somebody else.
    for bad in [fetch(3), Message::HistoriesEnd.encode(), b"RFnonsense that is no frame".repeat(4)]
    {
        let (mut connection, answer) = dial(&cluster);
        assert!(answer.refused.is_none());
        connection.write_all(&bad).expect("it reads");
        assert!(is_dropped(connection));
    }
    // Those that do not read hold their places, and nothing else.
    let idle: Vec<_> = (0..4)
        .map(|_| {
            let (mut connection, answer) = dial(&cluster);
            assert!(answer.refused.is_none(), "{answer:?}");
            connection.write_all(&fetch(9).repeat(10)).expect("it reads");
            connection
        })
        .collect();
    let (_, answer) = dial(&cluster);
    assert!(matches!(answer.refused, Some((Refusal::NotNow, _))), "{answer:?}");
    append(&leadership, 0..1_000, Ack::Local);
    assert!(leadership.ended().is_none(), "nobody was deposed");
    assert_eq!(node.stats().promised_epoch, 1);
    drop(idle);
    super::setup::wait_until("they have gone", || dial(&cluster).1.refused.is_none());
    stop(node);
}
