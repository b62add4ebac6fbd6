//! Does what is asked, with a store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringwal_replication::Ack;
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use tokio::time::timeout;

use super::looking::look_at;
use super::text::hex;
use super::{
    Answer, Ask, CommandId, Executed, Failed, Look, MemberLine, Place, Question, Status, Write,
    rejected,
};
use crate::control::{ChangeError, MemberChange};
use crate::store::{ExecuteError, MetadataStore, Mode};

/// Nobody waits for longer.
const LIMIT_MAX: Duration = Duration::from_secs(60);

/// From now on the node of this store answers operators; the first store that is given stays.
pub fn serve(store: &MetadataStore) {
    let weak = store.downgrade();
    store.raft().operate_with(move |json| {
        let weak = weak.clone();
        Box::pin(async move {
            match weak.upgrade() {
                Some(store) => answer(&store, &json).await.json(),
                None => Answer::Failed(Failed::NotDone { why: "the node ends".into() }).json(),
            }
        })
    });
}

async fn answer(store: &MetadataStore, json: &[u8]) -> Answer {
    let Question { limit_ms, command, ask, .. } = match Question::decode(json) {
        Ok(question) => question,
        Err(failed) => return Answer::Failed(failed),
    };
    let limit = Duration::from_millis(limit_ms).min(LIMIT_MAX);
    let answered = match ask {
        Ask::Status => Ok(Answer::Status(Box::new(status(store)))),
        Ask::Look { look, linearizable: false } => {
            store.metadata().read(|state| look_at(state, look)).1
        }
        Ask::Look { look, linearizable: true } => linearizable(store, look, limit).await,
        Ask::Execute { write, quorum } => execute(store, write, quorum, command, limit).await,
        Ask::TransferLeader { to } => {
            let to = to.map(NodeId::new);
            change(store, limit, store.transfer_leader(to, limit)).await
        }
        Ask::AddMember { node, address } => {
            let added = MemberChange::AddLearner(Member { node: NodeId::new(node), address });
            change(store, limit, store.change_members(added)).await
        }
        Ask::PromoteMembers { nodes } => promote(store, nodes, limit).await,
        Ask::RemoveMember { node } => {
            let removed = MemberChange::Remove(NodeId::new(node));
            change(store, limit, store.change_members(removed)).await
        }
        Ask::SetFastPath { on } => {
            store.set_fast_path(on);
            Ok(Answer::Done)
        }
    };
    answered.unwrap_or_else(Answer::Failed)
}

/// Nothing is seen that is not committed: it could be gone later.
async fn linearizable(
    store: &MetadataStore,
    look: Look,
    limit: Duration,
) -> Result<Answer, Failed> {
    let late = || Failed::NotDone { why: format!("not known to be up to date within {limit:?}") };
    let reading = store.read(limit, move |state| look_at(state, look.clone()));
    match timeout(limit, reading).await {
        Ok(Ok((_, looked))) => looked,
        Ok(Err(error)) => Err(Failed::NotDone { why: error.to_string() }),
        Err(_) => Err(late()),
    }
}

async fn execute(
    store: &MetadataStore,
    write: Write,
    quorum: bool,
    command: Option<CommandId>,
    limit: Duration,
) -> Result<Answer, Failed> {
    let why = || "a command needs a session, whose numbers are not 0".to_owned();
    let session = command.and_then(CommandId::session);
    let session = session.ok_or_else(|| Failed::Refused { why: why() })?;
    let command = write.command(store.metadata())?;
    let ack = if quorum { Ack::Quorum } else { Ack::Local };
    let late = || Err(ExecuteError::Unknown { why: format!("no outcome within {limit:?}") });
    let executing = timeout(limit, store.run_as(session, command, ack, limit));
    match executing.await.unwrap_or_else(|_| late()) {
        Ok(executed) => Ok(Answer::Executed(Executed {
            epoch: executed.epoch,
            offset: executed.offset,
            quorum: executed.durable == Ack::Quorum,
            is_retry: executed.is_retry,
            done: executed.done.into(),
        })),
        Err(ExecuteError::Rejected(rejection)) => Err(rejected(rejection)),
        Err(ExecuteError::Invalid(why)) => Err(Failed::Refused { why }),
        Err(ExecuteError::NotDone { why }) => Err(Failed::NotDone { why }),
        Err(ExecuteError::Unknown { why }) => Err(Failed::Unknown { why }),
    }
}

async fn promote(
    store: &MetadataStore,
    nodes: Vec<u64>,
    limit: Duration,
) -> Result<Answer, Failed> {
    let status = store.status();
    if status.leader != Some(status.node) {
        return Err(Failed::NotLeader { leader: place(store, status.leader) });
    }
    let nodes: BTreeSet<NodeId> = nodes.into_iter().map(NodeId::new).collect();
    if let Some(node) = nodes.iter().find(|node| status.members.iter().all(|m| m.node != **node)) {
        let why = format!("node {node} is no member; add it first: ringwal member add");
        return Err(Failed::Refused { why });
    }
    let voters = status.members.iter().filter(|member| member.is_voter).map(|member| member.node);
    let voters = voters.chain(nodes).collect();
    change(store, limit, store.change_members(MemberChange::SetVoters(voters))).await
}

async fn change(
    store: &MetadataStore,
    limit: Duration,
    changing: impl Future<Output = Result<(), ChangeError>>,
) -> Result<Answer, Failed> {
    match timeout(limit, changing).await {
        Ok(Ok(())) => Ok(Answer::Done),
        Ok(Err(ChangeError::NotLeader(leader))) => {
            Err(Failed::NotLeader { leader: place(store, leader) })
        }
        Ok(Err(error @ ChangeError::OtherElected { .. })) => {
            Err(Failed::NotDone { why: error.to_string() })
        }
        Ok(Err(ChangeError::NotNow(why))) => Err(Failed::NotDone { why }),
        Ok(Err(ChangeError::Unknown(why))) => Err(Failed::Unknown { why }),
        Err(_) => {
            Err(Failed::Unknown { why: format!("it has not come to an end within {limit:?}") })
        }
    }
}

fn place(store: &MetadataStore, leader: Option<NodeId>) -> Option<Place> {
    let members = store.status().members;
    let member = members.into_iter().find(|member| Some(member.node) == leader)?;
    Some(Place { node: member.node.get(), address: member.address })
}

fn status(store: &MetadataStore) -> Status {
    let status = store.status();
    let me = status.members.iter().find(|member| member.node == status.node);
    let role = match (status.mode, me) {
        (Mode::Fast | Mode::Raft(_), _) => "leader",
        (Mode::Recovering, _) => "recovering",
        (_, Some(member)) if member.is_voter => "follower",
        (_, Some(_)) => "learner",
        (_, None) => "no member",
    };
    let mode = match status.mode {
        Mode::Raft(reason) => format!("raft ({reason})"),
        mode => mode.name().to_owned(),
    };
    let (topics, brokers) =
        store.metadata().read(|state| (state.topics().len(), state.brokers().len())).1;
    let members = status.members.iter().map(|member| MemberLine {
        node: member.node.get(),
        address: member.address.clone(),
        is_voter: member.is_voter,
        engine: if member.engine == [0; 16] { String::new() } else { hex(&member.engine) },
    });
    let counts = &status.commands;
    let fallbacks: BTreeMap<String, u64> = counts
        .fallbacks
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.to_string(), *count))
        .collect();
    Status {
        node: status.node.get(),
        cluster: hex(&store.raft().inner.config.replication.cluster.bytes()),
        role: role.to_owned(),
        term: status.term,
        epoch: status.begun.map_or(0, |begun| begun.epoch),
        leader: status.leader.map(NodeId::get),
        mode,
        fast_path: status.is_fast_path,
        has_lease: status.lease_ms.is_some_and(|left| left > 0),
        applied: status.applied.end,
        committed: status.committed,
        topics: topics as u64,
        brokers: brokers as u64,
        members: members.collect(),
        fast: counts.fast,
        fallbacks,
        unfit: status.unfit.or(status.trouble),
    }
}
