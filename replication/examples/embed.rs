//! Embedding replication: a leader and its follower, here in one process. Run it on any directory:
//! `cargo run --release -p ringwal-replication --example embed -- DIRECTORY`

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use ringwal_engine::{Engine, StreamId};
use ringwal_replication::config::Config;
use ringwal_replication::{Ack, Node};

const ORDERS: StreamId = StreamId::new(7);

/// A process has one of these: its own number, its own directory.
fn start(directory: &str, node: u64) -> Result<Node, Box<dyn Error>> {
    let config = Config::from_toml(&format!(
        r#"
        cluster = "6f1d8c0a-52b7-4a59-9f0e-3f8c2d7b1e44"
        node = {node}
        listen = "127.0.0.1:929{node}"
        members = [
            {{ node = 1, address = "127.0.0.1:9291" }},
            {{ node = 2, address = "127.0.0.1:9292" }},
        ]
        "#
    ))?;
    let engine = Engine::options().shards(1).open(format!("{directory}/node-{node}"))?;
    Ok(Node::start(engine, config)?) // it follows whoever leads
}

fn stop(node: Node) -> Result<(), Box<dyn Error>> {
    let engine = node.engine().clone();
    node.close(); // what is sealed still goes out
    engine.close()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "ringwal-data-embed".into());
    let follower = start(&directory, 2)?;

    let leader = start(&directory, 1)?;
    // You say who leads. An epoch is used once, and is greater than every one before.
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let leadership = leader.lead(epoch)?;
    let local = leadership.append(ORDERS, b"one", Ack::Local)?.wait()?; // on this disk
    let quorum = leadership.append(ORDERS, b"two", Ack::Quorum)?.wait()?; // on a majority; or .await
    println!("on this disk at offset {}", local.receipt.offset());
    println!("on a majority at offset {}", quorum.receipt.offset());

    // Durable records as they come. What is not committed yet may still be cut here.
    let mut tail = follower.subscribe(ORDERS, local.receipt.offset());
    for _ in 0..2 {
        let record = tail.next_blocking()?;
        println!("the follower has {:?}", String::from_utf8_lossy(record.payload()));
    }
    for state in leader.stats().followers {
        println!("node {} is {} records behind", state.node, state.lag_records);
    }
    stop(leader)?;
    stop(follower)
}
