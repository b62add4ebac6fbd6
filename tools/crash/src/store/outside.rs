//! Clients beside the nodes: each has a session, asks whichever node it likes over the port, and asks another one
//! when it has no outcome. They reach a node that is cut off from the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use ringwal_raft_fallback::operator::{
    Answer as Answered, Ask, CommandId, ExpectedKey, Failed, Look, Question as Asking, VERSION,
    Write,
};
use ringwal_replication::requests::Client as Connection;

use super::child::{CLUSTER, member};
use super::clients::{SHARED_KEYS, SHARED_TOPICS};
use super::lines::{Answer, Question, Told, What, now_ns};
use crate::history::session_key;
use crate::nodes::Heard;
use crate::nodes::topology::NODES;
use crate::random::{Random, mix};

/// How many there are.
const CLIENTS: u64 = 3;
/// A node is reached within this, or is not.
const CONNECT_LIMIT: Duration = Duration::from_millis(300);
/// Some of the times that an answer may take.
const LIMITS_MS: [u64; 3] = [150, 600, 2000];
/// Whoever says what these clients say, beside the nodes.
pub const OUTSIDE: usize = NODES;
/// Numbers of questions below are the nodes'.
const FIRST_QUESTION: u64 = 1 << 56;

/// All of them.
pub struct Outside {
    is_quiet: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Client {
    random: Random,
    mouth: Sender<Heard>,
    questions: Arc<AtomicU64>,
    connections: [Option<Connection>; NODES],
    /// Of the next command, when there is a session.
    command: Option<CommandId>,
}

/// What an attempt has come to.
enum Attempt {
    Answered(Answered),
    /// Nobody has taken it.
    NotAsked,
    /// Nobody has answered.
    Lost,
}

impl Outside {
    /// Starts them in the namespace that this thread is in.
    pub fn start(seed: u64, mouth: &Sender<Heard>) -> Outside {
        let is_quiet = Arc::new(AtomicBool::new(false));
        let questions = Arc::new(AtomicU64::new(FIRST_QUESTION));
        let start = |number| {
            let (is_quiet, mouth, questions) = (is_quiet.clone(), mouth.clone(), questions.clone());
            let random = Random::new(mix(seed) ^ (0x0717 + number));
            let connections = [const { None }; NODES];
            let mut client = Client { random, mouth, questions, connections, command: None };
            std::thread::spawn(move || {
                while !is_quiet.load(Ordering::Acquire) {
                    let pause = client.random.within(2..=20);
                    std::thread::sleep(Duration::from_millis(pause));
                    match client.random.below(4) {
                        0 => client.read(),
                        _ => client.execute(),
                    }
                }
            })
        };
        let threads = (0..CLIENTS).map(start).collect();
        Outside { is_quiet, threads }
    }

    /// Tells them to end, and waits until they have. What they were told is in the pipe then.
    pub fn end(self) {
        self.is_quiet.store(true, Ordering::Release);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Client {
    fn say(&self, line: String) {
        // The operator hears it as long as it wants to.
        let _ = self.mouth.send(Heard { node: OUTSIDE, life: 0, line: Some(line) });
    }

    fn attempt(&mut self, node: usize, ask: Ask, command: Option<CommandId>) -> Attempt {
        let limit = Duration::from_millis(self.random.pick(&LIMITS_MS));
        let limit_ms = limit.as_millis() as u64;
        let asking = Asking { version: VERSION, limit_ms, command, ask };
        let asking = asking.encode().expect("it is short");
        let connection = match self.connections[node].take() {
            Some(connection) => Ok(connection),
            None => Connection::connect(CLUSTER, &member(node), None, CONNECT_LIMIT),
        };
        let Ok(mut connection) = connection else { return Attempt::NotAsked };
        match connection.ask(asking, limit + CONNECT_LIMIT) {
            Ok(reply) => {
                self.connections[node] = Some(connection);
                Attempt::Answered(Answered::decode(&reply).expect("a node answers"))
            }
            Err(error) if error.may_be_done() => Attempt::Lost,
            Err(_) => Attempt::NotAsked,
        }
    }

    fn any_node(&mut self) -> usize {
        self.random.below(NODES as u64) as usize
    }

    /// The next command of the session, or the first of a new one, if a node says where that begins.
    fn next_command(&mut self) -> Option<CommandId> {
        if self.command.is_none() {
            let node = self.any_node();
            let Attempt::Answered(Answered::Status(status)) = self.attempt(node, Ask::Status, None)
            else {
                return None;
            };
            let random = self.random.next().max(1);
            self.command = Some(CommandId { begun: status.applied, random, sequence: 0 });
        }
        let command = self.command.as_mut()?;
        command.sequence += 1;
        Some(*command)
    }

    /// A linearizable read of any node.
    fn read(&mut self) {
        let (node, key) = (self.any_node(), self.any_key());
        let number = self.questions.fetch_add(1, Ordering::AcqRel);
        let what = What::Read { client: OUTSIDE as u64, key: key.clone(), is_linearizable: true };
        self.say(Question { number, at_ns: now_ns(), what }.line());
        let ask = Ask::Look { look: Look::Key { key: key.into() }, linearizable: true };
        let answer = match self.attempt(node, ask, None) {
            Attempt::Answered(Answered::Key { applied: end, epoch, offset, .. }) => {
                Answer::Saw { epochs: None, end, version: Some((epoch, offset)) }
            }
            Attempt::Answered(Answered::NotFound { applied: end, .. }) => {
                Answer::Saw { epochs: None, end, version: None }
            }
            _ => Answer::NotConfirmed,
        };
        self.say(Told { number, at_ns: now_ns(), answer }.line());
    }

    fn any_key(&mut self) -> String {
        format!("key-{}", self.random.below(SHARED_KEYS))
    }

    /// A command, until it has an outcome or the client has lost its patience.
    fn execute(&mut self) {
        let Some(command) = self.next_command() else { return };
        let (write, quorum) = (self.write(), self.random.one_in(2));
        let number = self.questions.fetch_add(1, Ordering::AcqRel);
        let key = session_key(&command.session().expect("no number is 0"));
        self.say(Question { number, at_ns: now_ns(), what: What::Command(key) }.line());
        let mut answer = Answer::NotDone;
        for _ in 0..self.random.pick(&[1, 2, 5]) {
            let node = self.any_node();
            let ask = Ask::Execute { write: write.clone(), quorum };
            match self.attempt(node, ask, Some(command)) {
                Attempt::NotAsked => {}
                Attempt::Lost => answer = Answer::Unknown,
                Attempt::Answered(Answered::Executed(executed)) => {
                    answer = Answer::Executed {
                        place: Some((executed.epoch, executed.offset)),
                        did: Ok(executed.done),
                        is_quorum: executed.quorum,
                        is_retry: executed.is_retry,
                    };
                    break;
                }
                Attempt::Answered(Answered::Failed(Failed::Rejected { code, why })) => {
                    let is_refused = ["session_expired", "session_ahead", "sequence_forgotten"];
                    if !is_refused.contains(&code.as_str()) {
                        let (place, did, is_retry) = (None, Err(why), false);
                        answer = Answer::Executed { place, did, is_quorum: quorum, is_retry };
                    } else if matches!(answer, Answer::NotDone) {
                        answer = Answer::Refused;
                    }
                    break;
                }
                Attempt::Answered(Answered::Failed(
                    Failed::NotDone { .. } | Failed::NotLeader { .. },
                )) => {}
                Attempt::Answered(Answered::Failed(Failed::Unknown { .. })) => {
                    answer = Answer::Unknown;
                }
                Attempt::Answered(other) => {
                    self.say(format!("broken node {node} answers {other:?}"));
                    answer = Answer::Unknown;
                }
            }
        }
        if !matches!(answer, Answer::Executed { .. }) {
            self.command = None;
        }
        self.say(Told { number, at_ns: now_ns(), answer }.line());
    }

    fn write(&mut self) -> Write {
        let key = self.any_key().into();
        let name = format!("shared-{}", self.random.below(SHARED_TOPICS));
        let expected = self.random.pick(&[ExpectedKey::Any, ExpectedKey::Any, ExpectedKey::Absent]);
        match self.random.below(8) {
            0..3 => {
                let value = format!("{:x}", self.random.next()).into();
                Write::PutKey { key, value, expected }
            }
            3 => Write::DeleteKey { key, expected: ExpectedKey::Any },
            4 | 5 => Write::CreateTopic {
                name,
                partitions: 1,
                replication_factor: 1,
                configuration: BTreeMap::new(),
            },
            _ => Write::DeleteTopic { name },
        }
    }
}
