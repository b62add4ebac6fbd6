//! How a cluster begins: the member with the least id asks all others who they are. When each of them has
//! answered, and none knows of a cluster, it tells all of them who the members are, with their engines (I-15);
//! each writes that down as the first entry of its log. A node that has lost its disk finds others that know
//! of a cluster, or somebody who does not answer, and founds none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver as _;
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;

use crate::control::RaftHandle;
use crate::raft::RaftNode;
use crate::replica::Replica;
use crate::store::peers::Peers;
use crate::store::wire::{Answer, Ask, Founder};

const AGAIN: Duration = Duration::from_millis(100);
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Asks until the cluster is there, if this node is the one to do that.
pub(crate) async fn found<R: AsyncRuntime, N: Replica, P: Peers>(
    raft: RaftHandle<R, N, P>,
    replica: N,
    peers: P,
    members: Vec<Member>,
) {
    let me = replica.id();
    if members.iter().map(|member| member.node).min() != Some(me) {
        return;
    }
    loop {
        match raft.is_initialized().await {
            Ok(false) => {}
            // Maybe by a run of this node that has told nobody.
            Ok(true) => return tell(&raft, &peers, me).await,
            // Raft has ended.
            Err(_) => return,
        }
        match founders(&replica, &peers, &members).await {
            Ok(founders) => match write(&raft, &founders).await {
                Ok(()) => tracing::info!(members = founders.len(), "the cluster is founded"),
                Err(why) => tracing::warn!(why, "the cluster is not founded yet"),
            },
            Err(why) => tracing::info!(why, "the cluster is not founded yet"),
        }
        if !raft.is_initialized().await.unwrap_or(true) {
            R::sleep(AGAIN).await;
        }
    }
}

/// All members with their engines, when all are there and none knows of a cluster.
async fn founders<N: Replica, P: Peers>(
    replica: &N,
    peers: &P,
    members: &[Member],
) -> Result<Vec<Founder>, String> {
    let mut founders = Vec::new();
    for member in members {
        let engine = if member.node == replica.id() {
            replica.engine()
        } else {
            match peers.ask(member, Ask::About, ASK_LIMIT).await {
                Ok(Answer::About(about)) if about.node == member.node => {
                    if about.is_initialized {
                        return Err(format!(
                            "node {} knows of a cluster, and this node, whose disk is blank, is none of its \
                             members: have it added, with join = true",
                            member.node
                        ));
                    }
                    about.engine
                }
                Ok(_) => return Err(format!("{} is not node {}", member.address, member.node)),
                Err(no_answer) => return Err(no_answer.why),
            }
        };
        let (node, address) = (member.node, member.address.clone());
        founders.push(Founder { node, address, engine });
    }
    Ok(founders)
}

/// Writes the members as the first entry of the log, if there is none.
pub(crate) async fn write<R: AsyncRuntime, N: Replica, P: Peers>(
    raft: &RaftHandle<R, N, P>,
    founders: &[Founder],
) -> Result<(), String> {
    let nodes: BTreeMap<u64, RaftNode> = founders
        .iter()
        .map(|one| (one.node.get(), RaftNode::new(one.address.clone(), one.engine)))
        .collect();
    raft.initialize(nodes).await.map_err(|error| error.to_string())
}

/// Tells all members until each has heard of it, or somebody is elected: then who has not gets it from the log.
async fn tell<R: AsyncRuntime, N: Replica, P: Peers>(
    raft: &RaftHandle<R, N, P>,
    peers: &P,
    me: NodeId,
) {
    let mut told = BTreeSet::from([me]);
    loop {
        let metrics = raft.server_metrics().borrow_watched().clone();
        let nodes = metrics.membership_config.nodes();
        let founders: Vec<Founder> = nodes
            .map(|(id, node)| Founder {
                node: NodeId::new(*id),
                address: node.address.clone(),
                engine: node.engine,
            })
            .collect();
        if metrics.current_leader.is_some() || founders.iter().all(|one| told.contains(&one.node)) {
            return;
        }
        for Founder { node, address, .. } in &founders {
            if told.contains(node) {
                continue;
            }
            let member = Member { node: *node, address: address.clone() };
            match peers.ask(&member, Ask::Found(founders.clone()), ASK_LIMIT).await {
                Ok(Answer::Done) => drop(told.insert(*node)),
                Ok(answer) => tracing::info!(%node, ?answer, "was told of the cluster"),
                Err(no_answer) => {
                    tracing::warn!(%node, why = no_answer.why, "was not told of the cluster");
                }
            }
        }
        R::sleep(AGAIN).await;
    }
}
