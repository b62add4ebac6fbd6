//! The clients in a node's process: several threads that execute commands and read, with the store of that node.
//! Each command says something that no other one says, so that it is recognised in the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ringwal_raft_fallback::command::{BrokerId, Command, Expected, TopicName, Watermark};
use ringwal_raft_fallback::limits::METADATA_VERSION;
use ringwal_raft_fallback::operator::DoneShown;
use ringwal_raft_fallback::{ExecuteError, Executed, Execution, MetadataStore, Progress, State};
use ringwal_replication::Ack;

use super::lines::{Answer, Question, Told, What, content, now_ns};
use crate::history::{Place, is_of_session};
use crate::nodes::Voice;
use crate::random::{Random, mix, payload};

/// Clients of a node.
pub const CLIENTS: u64 = 4;
/// Keys that all clients use.
pub const SHARED_KEYS: u64 = 6;
/// Topics of which each client may make one.
pub const SHARED_TOPICS: u64 = 3;
/// Brokers that are registered, again and again.
const BROKERS: u64 = 3;
/// What a client leaves behind, of keys and of topics, before it removes more than it makes.
const OWN_MAX: usize = 6;
/// Some of the limits of what is asked.
const LIMITS_MS: [u64; 4] = [250, 1000, 2500, 6000];

/// See the module.
#[derive(Debug)]
pub struct Clients {
    store: MetadataStore,
    voice: Voice,
    seed: u64,
    /// Of the node's process.
    life: u64,
    /// Questions so far.
    questions: AtomicU64,
    /// Clients that have not ended.
    running: AtomicU64,
    is_quiet: AtomicBool,
}

/// One of them.
struct Client<'a> {
    all: &'a Clients,
    number: u64,
    random: Random,
    keys: Vec<Vec<u8>>,
    topics: Vec<TopicName>,
}

impl Clients {
    /// Of a life of a node.
    pub fn new(store: MetadataStore, voice: Voice, seed: u64, life: u64) -> Arc<Clients> {
        let (questions, running) = (AtomicU64::new(0), AtomicU64::new(CLIENTS));
        let is_quiet = AtomicBool::new(false);
        Arc::new(Clients { store, voice, seed, life, questions, running, is_quiet })
    }

    /// Starts all.
    pub fn start(self: &Arc<Clients>) {
        for number in 0..CLIENTS {
            let all = self.clone();
            std::thread::spawn(move || {
                let random = Random::new(mix(all.seed ^ mix(all.life)) ^ number);
                let (keys, topics) = (Vec::new(), Vec::new());
                Client { all: &all, number, random, keys, topics }.run();
                if all.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                    all.voice.say("over");
                }
            });
        }
    }

    /// They wait for their last outcomes, and end.
    pub fn quiet(&self) {
        self.is_quiet.store(true, Ordering::Release);
    }

    /// A number that nothing else in any life of any node has.
    pub fn next(&self) -> u64 {
        (self.life << 32) | self.questions.fetch_add(1, Ordering::AcqRel)
    }

    fn ask(&self, number: u64, what: What) {
        self.voice.say(&Question { number, at_ns: now_ns(), what }.line());
    }

    fn tell(&self, number: u64, answer: Answer) {
        self.voice.say(&Told { number, at_ns: now_ns(), answer }.line());
    }

    /// Executes a command, with everything that has to be said about it.
    pub async fn execute(&self, command: Command, ack: Ack, limit: Duration) -> Option<DoneShown> {
        let number = self.next();
        self.ask(number, What::Command(content(&command)));
        let execution: Execution = self.store.execute_within(command, ack, limit);
        let outcome = execution.await;
        let done = outcome.as_ref().ok().map(|executed| executed.done.into());
        let answer = match outcome {
            Ok(Executed { epoch, offset, durable, is_retry, done }) => Answer::Executed {
                place: Some((epoch, offset)),
                did: Ok(done.into()),
                is_quorum: durable == Ack::Quorum,
                is_retry,
            },
            Err(ExecuteError::Rejected(why)) if is_of_session(&why) => Answer::Refused,
            Err(ExecuteError::Rejected(why)) => Answer::Executed {
                place: None,
                did: Err(why.to_string()),
                is_quorum: ack == Ack::Quorum,
                is_retry: false,
            },
            Err(ExecuteError::NotDone { .. }) => Answer::NotDone,
            Err(ExecuteError::Unknown { .. }) => Answer::Unknown,
            Err(error) => {
                self.voice.say(&format!("broken a command of this test: {error}"));
                Answer::Unknown
            }
        };
        self.tell(number, answer);
        done
    }
}

fn look(state: &State, key: &str) -> (u64, u64, Option<Place>) {
    let version = state.key(key.as_bytes()).map(|found| found.version);
    (state.epoch(), state.end(), version.map(|version| (version.epoch, version.offset)))
}

impl Client<'_> {
    fn run(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let Ok(runtime) = runtime else {
            self.all.voice.say("broken no runtime for a client");
            return;
        };
        runtime.block_on(async {
            while !self.all.is_quiet.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(self.random.within(1..=12)));
                self.act().await;
            }
        });
    }

    async fn act(&mut self) {
        let limit = Duration::from_millis(self.random.pick(&LIMITS_MS));
        match self.random.below(10) {
            0..7 => {
                let command = self.command();
                let ack = self.random.pick(&[Ack::Local, Ack::Local, Ack::Quorum]);
                self.all.execute(command, ack, limit).await;
            }
            7 | 8 => self.read(true, limit).await,
            _ => self.read(false, limit).await,
        }
    }

    async fn read(&mut self, is_linearizable: bool, limit: Duration) {
        let (number, key) = (self.all.next(), self.shared_key());
        let client = (self.all.life << 8) | self.number;
        self.all.ask(number, What::Read { client, key: key.clone(), is_linearizable });
        let metadata = self.all.store.metadata();
        let seen = if is_linearizable {
            self.all.store.read(limit, move |state| look(state, &key)).await
        } else {
            Ok(metadata.read(|state| look(state, &key)))
        };
        let answer = match seen {
            Ok((Progress { epoch: progress, .. }, (epoch, end, version))) => {
                Answer::Saw { epochs: Some((progress, epoch)), end, version }
            }
            Err(_) => Answer::NotConfirmed,
        };
        self.all.tell(number, answer);
    }

    fn shared_key(&mut self) -> String {
        format!("key-{}", self.random.below(SHARED_KEYS))
    }

    /// Removes something of this client's, when there is enough of it.
    fn takes(&mut self, count: usize) -> bool {
        count > 0 && self.random.below(OWN_MAX as u64) < count as u64
    }

    fn command(&mut self) -> Command {
        let tag = self.all.next();
        match self.random.below(12) {
            0..5 => self.put_shared(tag),
            5 | 6 => self.own_key(tag),
            7 | 8 => self.own_topic(tag),
            9 => {
                let name = format!("shared-{}", self.random.below(SHARED_TOPICS));
                let configuration = BTreeMap::from([("by".to_owned(), tag.to_string())]);
                create(&name, 1, configuration)
            }
            10 => Command::RegisterBroker {
                broker: BrokerId::new(1 + self.random.below(BROKERS)),
                addresses: vec![format!("broker-{tag:x}:9092")],
                knows: METADATA_VERSION,
            },
            _ => self.about_a_partition(tag),
        }
    }

    fn put_shared(&mut self, tag: u64) -> Command {
        let key = self.shared_key().into_bytes();
        let version = self.all.store.metadata().read(|state| {
            let found = state.key(&key).map(|found| found.version);
            found.map_or(Expected::Absent, Expected::Version)
        });
        let expected = if self.random.one_in(2) { Expected::Any } else { version.1 };
        let length = if self.random.one_in(60) { 20_000 } else { self.random.within(8..=200) };
        Command::PutKey { key, value: payload(self.all.seed, tag, length as usize), expected }
    }

    fn own_key(&mut self, tag: u64) -> Command {
        if self.takes(self.keys.len()) {
            let key = self.keys.pop().expect("there are some");
            return Command::DeleteKey { key, expected: Expected::Any };
        }
        let key = format!("own-{tag:x}").into_bytes();
        self.keys.push(key.clone());
        let (value, expected) = (tag.to_le_bytes().to_vec(), Expected::Absent);
        Command::PutKey { key, value, expected }
    }

    fn own_topic(&mut self, tag: u64) -> Command {
        if self.takes(self.topics.len()) {
            let name = self.topics.pop().expect("there are some");
            return Command::DeleteTopic { name };
        }
        let create = create(&format!("own-{tag:x}"), 2, BTreeMap::new());
        if let Command::CreateTopic { name, .. } = &create {
            self.topics.push(name.clone());
        }
        create
    }

    /// Of whatever topic comes first.
    fn about_a_partition(&mut self, tag: u64) -> Command {
        let (_, topic) =
            self.all.store.metadata().read(|state| state.topics().next().map(|(id, _)| id));
        let Some(topic) = topic else { return self.own_topic(tag) };
        if self.random.one_in(2) {
            let watermarks = vec![Watermark { topic, partition: 0, offset: tag }];
            return Command::UpdateWatermarks { watermarks };
        }
        let leader = BrokerId::new(1 + self.random.below(BROKERS));
        let (leader, in_sync) = (Some(leader), [leader].into());
        Command::SetLeader { topic, partition: 0, leader, leader_epoch: tag, in_sync }
    }
}

/// Makes a topic.
pub fn create(name: &str, partitions: u32, configuration: BTreeMap<String, String>) -> Command {
    let name = TopicName::new(name).expect("letters, digits and dashes");
    Command::CreateTopic { name, partitions, replication_factor: 1, configuration }
}
