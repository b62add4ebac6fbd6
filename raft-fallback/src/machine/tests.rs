//! Entries of Raft's log, as they may come, against real streams.

use std::sync::Mutex;
use std::time::Instant;

use openraft_rt_tokio::TokioRuntime;
use ringwal_engine::{Engine, boottime_ns};
use ringwal_replication::config::Config;
use ringwal_replication::driven;
use ringwal_replication::node_id::{ClusterId, RunId};
use ringwal_replication::{Ack, BeginAnew, Node};
use tempfile::TempDir;

use super::*;
use crate::applying::{Applying, ApplyingOptions};
use crate::command::{BrokerId, Command, Record, TopicName};
use crate::fakes::{FakePeers, log_id, membership, put};
use crate::metadata::Metadata;
use crate::replica::product::{NodeLed, NodeReplica};
use crate::replica::{Led as _, OutcomeError};
use crate::store::peers::NoAnswer;
use crate::store::wire::About;

const LONG: Duration = Duration::from_secs(30);

/// Directories and addresses of three nodes, of which a test starts some.
struct Place {
    folder: TempDir,
    members: Vec<Member>,
}

/// A node, and what applies Raft's log there.
struct Applies {
    node: Arc<Node>,
    replica: NodeReplica,
    metadata: Metadata,
    machine: Machine<TokioRuntime, NodeReplica, FakePeers>,
    watched: Watched<NodeLed>,
}

impl Place {
    fn new() -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [free(), free(), free()];
        let members = listeners.iter().zip(1..).map(|(listener, id)| Member {
            node: NodeId::new(id),
            address: listener.local_addr().unwrap().to_string(),
        });
        Self { folder: TempDir::new().unwrap(), members: members.collect() }
    }

    fn engine(&self, id: u64) -> Engine {
        let options = Engine::options().shards(1).segment_bytes(1 << 20).pool_bytes(4 << 20);
        options.open(self.folder.path().join(id.to_string())).unwrap()
    }

    fn start(&self, id: u64) -> Applies {
        self.start_asking(id, FakePeers::none())
    }

    fn start_asking(&self, id: u64, peers: FakePeers) -> Applies {
        let engine = self.engine(id);
        let mut config =
            Config::new(ClusterId::new([7; 16]), NodeId::new(id), self.members.clone());
        config.listen.clone_from(&self.members[id as usize - 1].address);
        let snapshots = Arc::new(|anew: &BeginAnew| Some(anew.trimmed));
        let node = Arc::new(Node::start_driven(engine.clone(), config, snapshots).unwrap());
        let options = ApplyingOptions::new(Arc::default(), Box::new(|_| ()));
        let (metadata, applying) = Applying::start(&engine, options).unwrap();
        let replica = NodeReplica::new(node.clone(), applying);
        let (machine, watched) = Machine::new(replica.clone(), peers, None);
        Applies { node, replica, metadata, machine, watched }
    }

    fn orphans(&self, id: u64) -> usize {
        let folder = self.folder.path().join(id.to_string()).join("orphans");
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }
}

impl Applies {
    async fn apply(&mut self, term: u64, index: u64, payload: Payload) -> Effect {
        let log_id = log_id(term, index);
        let effect = self.machine.effect(log_id, payload).await.unwrap();
        self.machine.note(log_id, None);
        effect
    }

    /// The start of an epoch that this run of this node leads.
    fn own_start(&self, epoch: u64, start: u64) -> Payload {
        start_of(epoch, self.replica.id(), self.replica.run(), start)
    }

    fn led(&self) -> Option<NodeLed> {
        self.watched.led.borrow().clone()
    }

    async fn append(&self, led: &NodeLed, record: &[u8]) -> u64 {
        led.lease_until(boottime_ns() + 3_600_000_000_000);
        led.append(record).await.unwrap().await.unwrap()
    }

    /// Epochs and bytes of the metadata stream.
    fn records(&self) -> Vec<(u64, Bytes)> {
        let stream = self.node.engine().stream(METADATA_STREAM);
        let records = stream.read(0..).unwrap().map(|record| record.unwrap());
        records.map(|one| (one.epoch(), Bytes::copy_from_slice(one.payload()))).collect()
    }

    fn keys(&self) -> Vec<String> {
        let keys = |state: &crate::State| {
            let keys = state.keys(b"").map(|(key, _)| String::from_utf8(key.to_vec()).unwrap());
            keys.collect()
        };
        self.metadata.read(keys).1
    }

    fn wait_applied(&self, end: u64) {
        self.metadata.wait_applied(end - 1).wait(Instant::now() + LONG).unwrap();
    }

    fn close(self) {
        let engine = self.node.engine().clone();
        drop(self);
        engine.close().unwrap();
    }
}

fn start_of(epoch: u64, leader: NodeId, run: RunId, start: u64) -> Payload {
    Payload::EpochStart { epoch, leader, run, starts: vec![(METADATA_STREAM, start)] }
}

/// The start of an epoch of somebody who is not there.
fn their_start(epoch: u64, start: u64) -> Payload {
    start_of(epoch, NodeId::new(3), RunId::new([3; 16]), start)
}

fn extend(epoch: u64, base: u64, keys: &[&str]) -> Payload {
    Payload::Extend {
        epoch,
        base,
        continues: false,
        records: keys.iter().map(|key| put(key)).collect(),
    }
}

/// One that goes on where the one before ends.
fn extend_on(epoch: u64, base: u64, keys: &[&str]) -> Payload {
    let records = keys.iter().map(|key| put(key)).collect();
    Payload::Extend { epoch, base, continues: true, records }
}

fn records(of: &[(u64, &[&str])]) -> Vec<(u64, Bytes)> {
    let records = of.iter().flat_map(|(epoch, keys)| keys.iter().map(|key| (*epoch, put(key))));
    records.collect()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_extend_that_is_applied_late_or_again_takes_nothing_from_the_fast_path() {
    let place = Place::new();
    let mut node = place.start(1);
    let entries = [
        (1, node.own_start(1, 0)),
        (2, extend(1, 0, &["a", "b"])),
        (3, extend(1, 1, &["b", "c", "d", "e"])),
    ];
    assert_eq!(node.apply(1, 1, entries[0].1.clone()).await, Effect::Done);
    let led = node.led().expect("it leads");
    assert_eq!(node.apply(1, 2, entries[1].1.clone()).await, Effect::Done);
    assert_eq!(node.append(&led, &put("c")).await, 2);
    assert_eq!(node.append(&led, &put("d")).await, 3);
    // Again, and one that reaches into what the fast path has added: only what is lacking is added.
    assert_eq!(node.apply(1, 2, entries[1].1.clone()).await, Effect::Done);
    assert_eq!(node.records(), records(&[(1, &["a", "b", "c", "d"])]));
    assert_eq!(node.apply(1, 3, entries[2].1.clone()).await, Effect::Done);
    assert_eq!(node.append(&led, &put("f")).await, 5);
    assert_eq!(node.apply(1, 2, entries[1].1.clone()).await, Effect::Done);
    let all = records(&[(1, &["a", "b", "c", "d", "e", "f"])]);
    assert_eq!(node.records(), all);
    drop(led);
    node.close();
    // After a restart all of the log is applied again; the epoch is of another run, and led by nobody.
    let mut node = place.start(1);
    for (index, payload) in entries {
        let expected = if index == 1 { Effect::Nothing } else { Effect::Done };
        assert_eq!(node.apply(1, index, payload).await, expected, "{index}");
    }
    assert_eq!((node.records(), node.led().is_none()), (all.clone(), true));
    // A later epoch has begun: what is of this one comes too late.
    assert_eq!(node.apply(2, 4, their_start(2, 6)).await, Effect::Done);
    assert_eq!(node.apply(1, 5, extend(1, 6, &["late"])).await, Effect::Nothing);
    assert_eq!(node.records(), all);
    node.wait_applied(6);
    assert_eq!(node.keys(), ["a", "b", "c", "d", "e", "f"]);
    node.close();
}

/// Raft refused the entry with "c" and took the one behind it.
#[tokio::test]
async fn what_goes_on_from_an_entry_that_is_not_there_does_nothing() {
    let place = Place::new();
    let mut node = place.start(1);
    let own = node.own_start(1, 0);
    assert_eq!(node.apply(1, 1, own.clone()).await, Effect::Done);
    assert_eq!(node.apply(1, 2, extend_on(1, 0, &["nothing before"])).await, Effect::Nothing);
    assert_eq!(node.apply(1, 3, extend(1, 0, &["a"])).await, Effect::Done);
    assert_eq!(node.apply(1, 4, extend_on(1, 1, &["b"])).await, Effect::Done);
    assert_eq!(node.apply(1, 5, extend_on(1, 3, &["d"])).await, Effect::Nothing);
    assert_eq!(node.apply(1, 6, extend_on(1, 4, &["e"])).await, Effect::Nothing);
    let held = records(&[(1, &["a", "b"])]);
    assert_eq!(node.records(), held);
    // The fast path has added something since: what went on from "b" before that is not known any more.
    let led = node.led().unwrap();
    assert_eq!(node.append(&led, &put("fast")).await, 2);
    assert_eq!(node.apply(1, 7, extend(1, 2, &["fast"])).await, Effect::Done);
    assert_eq!(node.apply(1, 8, extend_on(1, 2, &["again"])).await, Effect::Nothing);
    assert_eq!(node.apply(2, 9, their_start(2, 3)).await, Effect::Done);
    assert_eq!(node.apply(2, 10, extend_on(2, 3, &["of no one"])).await, Effect::Nothing);
    assert_eq!(node.records(), records(&[(1, &["a", "b", "fast"])]));
    // A base says where the next one goes on.
    assert_eq!(node.apply(2, 11, extend(2, 3, &["x"])).await, Effect::Done);
    let chain = node.machine.make_base().and_then(|base| base.chain);
    assert_eq!(chain, Some(Chain { epoch: 2, end: 4 }));
    drop(led);
    node.close();
}

/// After a restart an epoch has begun whose start is not applied again yet: where it starts is not known.
#[tokio::test]
async fn no_base_is_made_before_the_start_of_the_present_epoch_is_applied_again() {
    let place = Place::new();
    let mut node = place.start(1);
    let entries = [
        (1, node.own_start(1, 0)),
        (1, extend(1, 0, &["a", "b"])),
        (2, their_start(2, 2)),
        (2, extend(2, 2, &["c"])),
    ];
    for ((term, payload), index) in entries.clone().into_iter().zip(1..) {
        assert_eq!(node.apply(term, index, payload).await, Effect::Done);
    }
    node.close();
    let mut node = place.start(1);
    for ((term, payload), index) in entries.into_iter().zip(1..) {
        node.apply(term, index, payload).await;
        let builder = node.machine.try_create_snapshot_builder(false).await;
        let epochs =
            builder.and_then(|builder| builder.base).map(|base| base.streams[0].epochs.clone());
        let both = vec![EpochStart { epoch: 1, start: 0 }, EpochStart { epoch: 2, start: 2 }];
        assert_eq!(epochs, (index >= 3).then_some(both), "after entry {index}");
    }
    node.close();
}

#[test]
fn only_what_counts_exactly_when_the_entry_before_does_is_joined_to_it() {
    let entry = |term, index, payload| Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(payload),
    };
    let joined = |next: Entry| {
        let mut first = extend(1, 4, &["a", "b"]);
        let is_joined = join(&mut first, log_id(1, 1), &next);
        let expected: &[&str] = if is_joined { &["a", "b", "c"] } else { &["a", "b"] };
        assert_eq!(first, extend(1, 4, expected));
        is_joined
    };
    assert!(joined(entry(1, 2, extend_on(1, 6, &["c"]))));
    assert!(!joined(entry(1, 2, extend(1, 6, &["c"]))), "it counts by itself");
    assert!(!joined(entry(1, 2, extend_on(1, 7, &["c"]))), "above a hole");
    assert!(!joined(entry(1, 2, extend_on(2, 6, &["c"]))), "another epoch");
    assert!(!joined(entry(2, 2, extend_on(1, 6, &["c"]))), "another term");
    assert!(!joined(entry(1, 2, their_start(1, 6))));
}

#[tokio::test]
async fn what_is_of_another_epoch_than_the_term_of_its_entry_does_nothing() {
    let place = Place::new();
    let mut node = place.start(1);
    let own = node.own_start(1, 0);
    assert_eq!(node.apply(2, 1, own).await, Effect::Nothing);
    assert_eq!((node.replica.begun(), node.led().is_none()), (None, true));
    assert_eq!(node.apply(1, 2, extend(1, 0, &["early"])).await, Effect::Nothing, "not begun");
    let own = node.own_start(1, 0);
    assert_eq!(node.apply(1, 3, own.clone()).await, Effect::Done);
    // Queued in term 1, proposed by the same node in term 2, before the epoch of that begins.
    assert_eq!(node.apply(2, 4, extend(1, 0, &["queued"])).await, Effect::Nothing);
    assert_eq!(node.apply(2, 5, extend(2, 0, &["early"])).await, Effect::Nothing, "not begun");
    assert_eq!(node.records(), []);
    assert_eq!(node.apply(1, 6, own).await, Effect::Nothing, "it has begun before");
    assert_eq!(node.led().map(|led| led.epoch()), Some(1));
    node.close();
}

/// Deposed, restarted and elected again: the entry of the run before begins an epoch, and this run leads
/// in none. Nor does it below what it has promised to somebody else meanwhile.
#[tokio::test]
async fn an_epoch_start_that_comes_after_its_leader_was_deposed_is_led_by_nobody() {
    let place = Place::new();
    let mut node = place.start(1);
    let before = start_of(1, node.replica.id(), RunId::new([9; 16]), 0);
    assert_eq!(node.apply(1, 1, before).await, Effect::Done);
    assert!(node.led().is_none());
    let other = Promise { epoch: 5, leader: NodeId::new(3), run: RunId::new([3; 16]) };
    node.replica.promise(other).await.unwrap();
    let own = node.own_start(3, 0);
    assert_eq!(node.apply(3, 2, own).await, Effect::Done);
    assert_eq!(node.replica.begun().map(|begun| begun.epoch), Some(3));
    assert!(node.led().is_none());
    assert_eq!(node.apply(5, 3, their_start(5, 0)).await, Effect::Done);
    node.close();
}

#[tokio::test]
async fn offsets_of_a_returning_leader_are_used_again_for_other_commands() {
    let place = Place::new();
    let mut node = place.start(1);
    let own = node.own_start(1, 0);
    assert_eq!(node.apply(1, 1, own).await, Effect::Done);
    assert_eq!(node.apply(1, 2, extend(1, 0, &["a", "b"])).await, Effect::Done);
    let led = node.led().unwrap();
    assert_eq!(node.append(&led, &put("alone")).await, 2);
    node.replica.outcome(1, 2).await.expect("it is applied");
    assert_eq!(node.keys(), ["a", "alone", "b"]);
    // Nobody else had it.
    assert_eq!(node.apply(2, 3, their_start(2, 2)).await, Effect::Done);
    assert_eq!(place.orphans(1), 1);
    assert_eq!(node.keys(), ["a", "b"], "the state goes back");
    let superseded = node.replica.outcome(1, 2).await;
    assert!(matches!(superseded, Err(OutcomeError::Superseded(_))), "{superseded:?}");
    assert!(led.append(&put("more")).await.is_err(), "its leadership is over");
    assert_eq!(node.apply(2, 4, extend(2, 2, &["theirs"])).await, Effect::Done);
    assert_eq!(node.replica.outcome(2, 2).await.expect("applied").offset, 2);
    assert!(node.replica.outcome(1, 2).await.is_err());
    assert_eq!(node.records(), records(&[(1, &["a", "b"]), (2, &["theirs"])]));
    assert_eq!(node.keys(), ["a", "b", "theirs"]);
    drop(led);
    node.close();
}

/// The leader is dead, and who is ahead in another epoch is no source.
#[tokio::test]
async fn what_is_lacking_below_an_extend_comes_from_who_has_begun_its_epoch() {
    let place = Place::new();
    let mut source = place.start(2);
    assert_eq!(source.apply(3, 1, their_start(3, 0)).await, Effect::Done);
    assert_eq!(source.apply(3, 2, extend(3, 0, &["a", "b", "c"])).await, Effect::Done);
    let asked = Arc::new(Mutex::new(0u64));
    let counted = asked.clone();
    let about = About {
        node: NodeId::new(2),
        engine: source.replica.engine(),
        run: source.replica.run(),
        is_initialized: true,
        begun: None,
        leader: None,
        applied: 3,
    };
    let peers = FakePeers::new(move |to, ask| {
        assert_eq!(ask, Ask::About);
        if to.get() != 2 {
            return Err(NoAnswer { why: "it is dead".to_owned(), may_be_done: false });
        }
        let mut count = counted.lock().unwrap();
        *count += 1;
        let promise = |epoch| Promise { epoch, leader: to, run: RunId::new([3; 16]) };
        let begun = [None, Some(promise(2)), Some(promise(4)), Some(promise(3))];
        let begun = begun[(*count as usize - 1).min(3)];
        Ok(Answer::About(About { begun, ..about.clone() }))
    });
    let mut node = place.start_asking(1, peers);
    let addresses = node_addresses(&place);
    let addresses: Vec<_> = addresses.iter().map(|(id, address)| (*id, &**address)).collect();
    node.machine.note(log_id(1, 0), Some(membership(&addresses)));
    assert_eq!(node.apply(3, 1, their_start(3, 0)).await, Effect::Done);
    assert_eq!(node.apply(3, 3, extend(3, 3, &["d"])).await, Effect::Done);
    assert_eq!(node.records(), records(&[(3, &["a", "b", "c", "d"])]));
    assert_eq!(*asked.lock().unwrap(), 3, "only who has begun epoch 3, or a later one");
    node.close();
    source.close();
}

fn node_addresses(place: &Place) -> Vec<(u64, String)> {
    place.members.iter().map(|member| (member.node.get(), member.address.clone())).collect()
}

/// The base of the log is past an epoch of which this node has not heard; it has records that were never
/// committed. It cuts them, and says nothing before it holds what is committed.
#[tokio::test]
async fn a_base_past_an_epoch_start_cuts_what_parts_and_counts_when_the_records_are_here() {
    let place = Place::new();
    let mut leader = place.start(2);
    assert_eq!(leader.apply(1, 1, their_start(1, 0)).await, Effect::Done);
    let first = ["0", "1", "2", "3", "4"];
    assert_eq!(leader.apply(1, 2, extend(1, 0, &first)).await, Effect::Done);
    let addresses = node_addresses(&place);
    let alone = membership(&[(2, &addresses[1].1)]);
    // It feeds nobody.
    leader.machine.note(log_id(1, 3), Some(alone.clone()));
    let own = leader.own_start(2, 5);
    assert_eq!(leader.apply(2, 4, own).await, Effect::Done);
    assert_eq!(leader.apply(2, 5, extend(2, 5, &["x", "y"])).await, Effect::Done);
    until("what is committed", || leader.replica.committed_ends().contains(&(METADATA_STREAM, 7)))
        .await;
    let base = leader.machine.make_base().expect("something is applied");
    assert_eq!(base.last, log_id(2, 5));

    let engine = place.engine(1);
    engine.set_epoch(1);
    let divergent = [&first[..], &["alone", "too"]].concat();
    let divergent: Vec<_> = divergent.iter().map(|key| put(key)).collect();
    engine.stream(METADATA_STREAM).append_batch(&divergent).unwrap().wait().unwrap();
    engine.close().unwrap();
    let about = About {
        node: NodeId::new(2),
        engine: leader.replica.engine(),
        run: leader.replica.run(),
        is_initialized: true,
        begun: leader.replica.begun(),
        leader: None,
        applied: 7,
    };
    let peers = FakePeers::new(move |to, ask| {
        assert_eq!((to.get(), ask), (2, Ask::About), "who has begun as much is asked");
        Ok(Answer::About(about.clone()))
    });
    let mut node = place.start_asking(1, peers);
    assert_eq!(node.apply(1, 1, their_start(1, 0)).await, Effect::Done);
    assert_eq!(node.records().len(), 7);
    // Nobody who has the records is reached.
    let nowhere = Base { membership: membership(&[(1, &addresses[0].1)]), ..base.clone() };
    let (replica, applied) = (node.replica.clone(), node.watched.applied.clone());
    let is_cut = until("the cut", || {
        replica.begun().is_some_and(|begun| begun.epoch == 2) && replica.metadata_end() == 5
    });
    tokio::select! {
        installed = node.machine.install(nowhere) => panic!("without the records: {installed:?}"),
        () = is_cut => {}
    }
    assert!(!applied.borrow().has_applied(2), "nothing is said to be applied");
    assert!(node.replica.load_base().await.unwrap().is_none(), "nor kept");
    assert_eq!(place.orphans(1), 1);

    let both = membership(&[(1, &addresses[0].1), (2, &addresses[1].1)]);
    leader.machine.note(log_id(2, 6), Some(both.clone()));
    let base = Base { membership: both, ..base };
    node.machine.install(base.clone()).await.unwrap();
    assert!(applied.borrow().has_applied(5));
    assert_eq!(node.records(), records(&[(1, &first), (2, &["x", "y"])]));
    assert_eq!(node.records(), leader.records());
    assert_eq!(node.replica.load_base().await.unwrap(), Some(base));
    node.wait_applied(7);
    until("the state goes back", || node.keys() == ["0", "1", "2", "3", "4", "x", "y"]).await;
    assert!(node.led().is_none());
    node.close();
    leader.close();
}

/// Records of a topic come before the record that makes the topic: replication does not ask what they are.
#[tokio::test]
async fn data_that_comes_before_its_metadata_is_there_when_that_comes() {
    let place = Place::new();
    let (leader, mut follower) = (place.start(1), place.start(2));
    let promise = Promise { epoch: 1, leader: leader.node.id(), run: leader.node.run() };
    let begun = leader.node.begin(promise, Vec::new()).await.unwrap();
    let driven::Begun::Leading(leadership) = begun else { panic!("{begun:?}") };
    leadership.lease_until(boottime_ns() + 3_600_000_000_000);
    let own = start_of(1, leader.node.id(), leader.node.run(), 0);
    assert_eq!(follower.apply(1, 1, own).await, Effect::Done);
    let name = TopicName::new("orders").unwrap();
    let commands = [
        Command::RegisterBroker { broker: BrokerId::new(1), addresses: Vec::new(), knows: 1 },
        Command::CreateTopic {
            name: name.clone(),
            partitions: 2,
            replication_factor: 1,
            configuration: Default::default(),
        },
    ];
    // Which stream it will be is known when the record is durable at the leader; here, before that.
    let mut state = crate::State::default();
    let commands = commands.map(|command| Record { time_ms: 7, session: None, command });
    for (record, offset) in commands.iter().zip(0..) {
        state.apply(offset, 1, record.clone()).unwrap();
    }
    let stream = state.assignment(&name, 1).unwrap().stream;
    let data = leadership.append(stream, b"data", Ack::Quorum).unwrap();
    data.await.expect("a majority");
    assert_eq!(follower.metadata.progress().end, 0);
    for record in commands {
        let record = record.encode().unwrap();
        let pending = leadership.append(METADATA_STREAM, &record, Ack::Quorum).unwrap();
        pending.await.expect("a majority");
    }
    follower.metadata.wait_for_topic(name.clone()).wait(Instant::now() + LONG).unwrap();
    let there = follower.metadata.read(|state| state.assignment(&name, 1).unwrap().stream).1;
    let mut read = follower.node.engine().stream(there).read(0..).unwrap();
    assert_eq!(read.next().unwrap().unwrap().payload(), b"data");
    drop(read);
    drop(leadership);
    follower.close();
    leader.close();
}

/// Durable is not applied: the state stops before it, on every node, and its caller learns no outcome.
#[tokio::test]
async fn an_extend_with_a_command_that_is_not_known_is_durable_and_stops_the_state() {
    let place = Place::new();
    let mut node = place.start(1);
    assert_eq!(node.apply(1, 1, their_start(1, 0)).await, Effect::Done);
    let mut unknown = put("unknown").to_vec();
    unknown[4] = 99;
    let records = vec![put("a"), unknown.into(), put("b")];
    let extend = Payload::Extend { epoch: 1, base: 0, continues: false, records };
    assert_eq!(node.apply(1, 2, extend).await, Effect::Done);
    assert_eq!(node.replica.metadata_end(), 3);
    assert!(node.replica.outcome(1, 0).await.is_ok());
    for offset in [1, 2] {
        let outcome = node.replica.outcome(1, offset).await;
        assert!(matches!(outcome, Err(OutcomeError::Unknown(_))), "{outcome:?}");
    }
    assert_eq!((node.metadata.progress().end, node.keys()), (1, vec!["a".to_owned()]));
    assert!(node.metadata.stopped().is_some());
    // The streams go on.
    assert_eq!(node.apply(2, 3, their_start(2, 3)).await, Effect::Done);
    assert_eq!(node.replica.metadata_end(), 3);
    node.close();
}
