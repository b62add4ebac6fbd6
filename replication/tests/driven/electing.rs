//! What an embedder does with all of it: one leader after the other.

use std::collections::BTreeMap;

use ringwal_replication::driven::Promised;
use ringwal_replication::{Ack, Leadership, Node};

use crate::setup::*;

/// The nodes that answer promise, what is greatest is fetched, and the epoch begins at all of them.
fn elect(cluster: &Cluster, nodes: &[&Node], leader: &Node, epoch: u64) -> Leadership {
    let promise = of(leader, epoch);
    let promising: Vec<_> = nodes.iter().map(|node| (*node, node.promise(promise))).collect();
    let promised: Vec<(&Node, Promised)> = promising
        .into_iter()
        .map(|(node, promising)| (node, promising.wait().expect("a later epoch")))
        .collect();
    for stream in [STREAM, OTHER] {
        let greatest = |promised: &Promised| {
            let held = promised.held.get(&stream).filter(|held| held.end > 0);
            held.map(|held| (held.epochs.epoch_at(held.end - 1), held.end))
        };
        let best = promised.iter().max_by_key(|(_, promised)| greatest(promised));
        let (best, best_promised) = best.expect("some answer");
        if let (Some((_, end)), true) = (greatest(best_promised), best.id() != leader.id()) {
            let member = cluster.member(best.id().get() as usize);
            let fetching = leader.fetch_from(member, vec![(stream, 0..end)]);
            fetching.wait().expect("it has what is greatest");
        }
    }
    let starts = ends(leader);
    let leadership = lead(leader, epoch);
    for node in nodes.iter().filter(|node| node.id() != leader.id()) {
        follow(node, promise, &starts);
    }
    leadership
}

#[test]
fn what_a_majority_has_survives_every_change_of_the_leader() {
    let cluster = Cluster::new(3);
    let nodes = [1, 2, 3].map(|node| cluster.start(node));
    let mut committed = BTreeMap::new();
    for epoch in 1..=24u64 {
        let leader = &nodes[(epoch * 7 % 3) as usize];
        // In turn one of the others does not answer and misses the epoch; it takes part in the next.
        let absent = epoch.is_multiple_of(4).then(|| nodes[((epoch * 7 + 1) % 3) as usize].id());
        let present: Vec<&Node> = nodes.iter().filter(|node| Some(node.id()) != absent).collect();
        let leadership = elect(&cluster, &present, leader, epoch);
        let mut pending = Vec::new();
        for number in 0..40u64 {
            let stream = if number % 3 == 0 { OTHER } else { STREAM };
            let ack = if number % 2 == 0 { Ack::Quorum } else { Ack::Local };
            let record = [epoch.to_le_bytes(), number.to_le_bytes()].concat();
            let token = leadership.append(stream, &record, ack).expect("it leads");
            pending.push((stream, ack, record, token));
        }
        // The next change comes while some are in flight.
        let waited = pending.len() - (epoch % 5) as usize * 4;
        for (index, (stream, ack, record, token)) in pending.into_iter().enumerate() {
            if index >= waited {
                continue;
            }
            let receipt = token.wait().expect("a receipt").receipt;
            if ack == Ack::Quorum {
                committed.insert((stream, receipt.offset()), (epoch, record));
            }
        }
        if let Some(absent) = absent {
            // What it has missed begins there as well, in the order of the log.
            let node = nodes.iter().find(|node| node.id() == absent).expect("one of them");
            let start = |stream: ringwal_engine::StreamId| {
                let epochs = leader.engine().stream(stream).epochs();
                let begun = epochs.iter().find(|begun| begun.epoch == epoch);
                (stream, begun.map_or(leader.engine().stream(stream).end(), |begun| begun.start))
            };
            follow(node, of(leader, epoch), &[start(STREAM), start(OTHER)]);
        }
    }
    let last = elect(&cluster, &nodes.each_ref(), &nodes[0], 100);
    for stream in [STREAM, OTHER] {
        let pending = last.append(stream, b"the last", Ack::Quorum).expect("it leads");
        let end = pending.wait().expect("a majority").receipt.offset() + 1;
        for node in &nodes {
            wait_end(node, stream, end);
            assert!(contents(node, stream) == contents(&nodes[0], stream), "stream {stream}");
        }
    }
    for ((stream, offset), (epoch, record)) in committed {
        let held = &contents(&nodes[1], stream)[offset as usize];
        assert_eq!((held.0, &held.2), (epoch, &record), "{offset} of stream {stream}");
    }
    assert!(nodes.iter().all(|node| node.stats().violations == 0));
    nodes.into_iter().for_each(stop);
}
