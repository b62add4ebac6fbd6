//! Against real nodes, whose stores say what they are told to.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use ringwal_engine::Engine;
use ringwal_raft_fallback::operator::{DoneShown, reply_to};
use ringwal_replication::Node;
use ringwal_replication::config::Config;
use ringwal_replication::node_id::ClusterId;
use ringwal_replication::requests::{Asked, Replies};

use super::*;

const CLUSTER: ClusterId = ClusterId::new([3; 16]);
const LIMIT: Duration = Duration::from_secs(20);

type Answering = Box<dyn Fn(&Question) -> Option<Answer> + Send + Sync>;

/// Answers, or gives no reply, and keeps what it was asked.
struct Store {
    answering: Answering,
    asked: Arc<Mutex<Vec<Question>>>,
}

impl Replies for Store {
    fn handle(&self, asked: Asked) {
        let mut is_answered = true;
        let reply = reply_to(asked.bytes, |question| {
            self.asked.lock().unwrap().push(question.clone());
            let answer = (self.answering)(&question);
            is_answered = answer.is_some();
            answer.unwrap_or(Answer::Done)
        });
        if let (true, Some(reply)) = (is_answered, reply) {
            asked.reply.send(reply);
        }
    }
}

struct Running {
    _directory: tempfile::TempDir,
    _node: Node,
    asked: Arc<Mutex<Vec<Question>>>,
}

impl Running {
    fn start(member: &Member, answering: Answering) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new(CLUSTER, member.node, vec![member.clone()]);
        config.listen.clone_from(&member.address);
        let options = Engine::options().shards(1).segment_bytes(1 << 20).pool_bytes(4 << 20);
        let node = Node::start(options.open(directory.path()).unwrap(), config).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        node.reply_with(Arc::new(Store { answering, asked: asked.clone() }));
        Running { _directory: directory, _node: node, asked }
    }

    /// The commands that it was asked to execute.
    fn commands(&self) -> Vec<Option<CommandId>> {
        let asked = self.asked.lock().unwrap();
        let commands = asked.iter().filter(|q| matches!(q.ask, Ask::Execute { .. }));
        commands.map(|question| question.command).collect()
    }
}

fn members(count: u64) -> Vec<Member> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    (1..)
        .zip(&listeners)
        .map(|(node, listener)| Member { node: NodeId::new(node), address: address(listener) })
        .collect()
}

fn cluster(members: &[Member], limit: Duration) -> Cluster {
    let config = ClusterConfig { cluster: CLUSTER, members: members.to_vec(), tls: None };
    Cluster::of(config, limit)
}

/// A status, and this to all else.
fn store(
    applied: u64,
    rest: impl Fn(&Question) -> Option<Answer> + Send + Sync + 'static,
) -> Answering {
    Box::new(move |question| match question.ask {
        Ask::Status => Some(Answer::Status(Box::new(Status { applied, ..Status::default() }))),
        _ => rest(question),
    })
}

fn executed(is_retry: bool) -> Answer {
    let done = DoneShown::Created;
    Answer::Executed(Executed { epoch: 2, offset: 9, quorum: false, is_retry, done })
}

fn write() -> Write {
    Write::UnregisterBroker { broker: 1 }
}

fn text(error: &anyhow::Error) -> String {
    error.downcast_ref::<Failure>().expect("a failure with its code").text()
}

#[test]
fn a_command_without_an_outcome_is_asked_elsewhere_as_the_same_one() {
    let members = members(4);
    // The first is not there; the second does not know, the third says nothing.
    let unknown = |_: &Question| Some(Answer::Failed(Failed::Unknown { why: "the end".into() }));
    let running = [
        Running::start(&members[1], store(7, unknown)),
        Running::start(&members[2], store(8, |_| None)),
        Running::start(&members[3], store(9, |_| Some(executed(true)))),
    ];
    let executed = cluster(&members, LIMIT).execute(write(), true).unwrap();
    assert!(executed.is_retry && executed.offset == 9);
    let commands: Vec<_> = running.iter().map(Running::commands).collect();
    let first = commands[0][0].expect("it has a session");
    assert_eq!((first.begun, first.sequence), (7, 1));
    assert!(commands.iter().flatten().all(|command| *command == Some(first)), "{commands:?}");
    assert!(commands.iter().all(|commands| !commands.is_empty()));
}

#[test]
fn who_leads_is_asked_where_only_it_can_do_it() {
    let members = members(3);
    let place = Place { node: 3, address: members[2].address.clone() };
    let not_leader =
        move |_: &Question| Some(Answer::Failed(Failed::NotLeader { leader: Some(place.clone()) }));
    let _one = Running::start(&members[0], store(0, not_leader));
    let _leader = Running::start(&members[2], store(0, |_| Some(Answer::Done)));
    // It is not in the file.
    let ask = Ask::TransferLeader { to: Some(1) };
    cluster(&members[..1], LIMIT).change(&ask, |_| false).unwrap();
}

#[test]
fn what_is_done_without_an_answer_is_seen() {
    let members = members(1);
    let promoted = VoterOf(4);
    let running = Running::start(
        &members[0],
        Box::new(move |question| match question.ask {
            Ask::Status => Some(Answer::Status(Box::new(promoted.status()))),
            // As one that closes.
            _ => None,
        }),
    );
    let ask = Ask::PromoteMembers { nodes: vec![4] };
    let is_voter = |status: &Status| status.members.iter().any(|m| m.node == 4 && m.is_voter);
    cluster(&members, LIMIT).change(&ask, is_voter).unwrap();
    let asked = running.asked.lock().unwrap();
    assert_eq!(asked.iter().filter(|q| matches!(q.ask, Ask::PromoteMembers { .. })).count(), 1);
}

/// A status with this voter.
struct VoterOf(u64);

impl VoterOf {
    fn status(&self) -> Status {
        let line = ringwal_raft_fallback::operator::MemberLine {
            node: self.0,
            address: "127.0.0.1:1".into(),
            is_voter: true,
            engine: String::new(),
        };
        Status { members: vec![line], ..Status::default() }
    }
}

#[test]
fn errors_say_whether_it_may_be_done_and_what_the_nodes_say() {
    let members = members(2);
    let short = Duration::from_millis(400);
    let said = text(&cluster(&members, short).execute(write(), false).unwrap_err());
    assert!(said.contains("it is not done") && said.contains("cannot connect"), "{said}");
    assert!(said.contains("node 1 at 127.0.0.1:") && said.contains("node 2 at"), "{said}");

    let unknown =
        |_: &Question| Some(Answer::Failed(Failed::Unknown { why: "no majority".into() }));
    let _one = Running::start(&members[0], store(0, unknown));
    let said = text(&cluster(&members, short).execute(write(), false).unwrap_err());
    assert!(said.contains("it may be done") && said.contains("no majority"), "{said}");
    drop(_one);

    let rejected = Failed::Rejected { code: "topic_exists".into(), why: "there already".into() };
    let rejected = move |_: &Question| Some(Answer::Failed(rejected.clone()));
    let one = Running::start(&members[0], store(0, rejected));
    let said = text(&cluster(&members, LIMIT).execute(write(), false).unwrap_err());
    assert_eq!(said, "error: there already\n");
    assert_eq!(one.commands().len(), 1, "asked once");
}
