//! What may go wrong between nodes, end to end.

use bytes::Bytes;
use ringwal_replication::promise::Promise;

use super::*;
use crate::store::peers::Peers as _;
use crate::store::wire::{Answer, Ask};

const SHORT: Duration = Duration::from_millis(300);

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn put_within(
    store: &MetadataStore,
    key: &str,
    ack: Ack,
    limit: Duration,
) -> Result<Executed, ExecuteError> {
    let (key, value) = (key.as_bytes().to_vec(), b"value".to_vec());
    let put = Command::PutKey { key, value, expected: Expected::Any };
    store.execute_within(put, ack, limit).wait()
}

fn has(store: &MetadataStore, key: &str) -> bool {
    store.metadata().read(|state| state.key(key.as_bytes()).is_some()).1
}

fn all_keys(store: &MetadataStore) -> Vec<Vec<u8>> {
    store.metadata().read(|state| state.keys(b"").map(|(key, _)| key.to_vec()).collect()).1
}

fn orphans(cluster: &Cluster, id: u64) -> usize {
    let folder = cluster.folder.path().join(id.to_string()).join("orphans");
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

fn fast(cluster: &Cluster) -> u64 {
    cluster.leader(|mode| mode == Mode::Fast)
}

/// A leader that is cut off from all others, and has answered for a record that it alone has.
fn answers_alone(cluster: &Cluster) -> (u64, Executed) {
    for _ in 0..20 {
        let leader = fast(cluster);
        converge(cluster);
        cluster.network().isolate(leader);
        match put_within(&cluster.nodes[&leader], "alone", Ack::Local, SHORT) {
            Ok(done) if done.durable == Ack::Local => return (leader, done),
            // Its lease had lapsed first.
            _ => cluster.network().heal(),
        }
    }
    panic!("no leader answers while it is cut off, though it holds its lease");
}

fn others(cluster: &Cluster, id: u64) -> Vec<MetadataStore> {
    let others = cluster.nodes.iter().filter(|(other, _)| **other != id);
    others.map(|(_, store)| store.clone()).collect()
}

/// Every node has the same records, in the same epochs, and the same state.
fn assert_same(cluster: &Cluster) {
    converge(cluster);
    let records = |store: &MetadataStore| {
        let records = store.wal().unwrap().replay(0..).unwrap().map(|record| record.unwrap());
        let records = records.map(|one| (one.epoch(), one.payload().to_vec()));
        records.collect::<Vec<_>>()
    };
    let first = cluster.any();
    for store in cluster.nodes.values() {
        until("the same records", || records(store) == records(first));
        assert_eq!(all_keys(store), all_keys(first));
    }
}

#[test]
fn a_leader_that_is_cut_off_answers_nothing_after_its_lease_and_comes_back_with_an_orphan() {
    let cluster = Cluster::networked(3);
    put(&cluster.nodes[&fast(&cluster)], "before", Ack::Quorum).unwrap();
    let (cut_off, alone) = answers_alone(&cluster);
    let store = &cluster.nodes[&cut_off];
    until("its lease lapses", || store.status().lease_ms.is_none_or(|left| left == 0));
    // It may still take itself for the leader.
    let late = put_within(store, "late", Ack::Local, SHORT);
    assert!(
        matches!(late, Err(ExecuteError::Unknown { .. } | ExecuteError::NotDone { .. })),
        "{late:?}"
    );
    // What it reads may be stale, and is not said to be anything else.
    assert!(has(store, "alone"));
    let read = store.linearize(SHORT).wait();
    assert!(matches!(read, Err(ReadError::NotConfirmed(_))), "{read:?}");
    let rest = others(&cluster, cut_off);
    until("another leader", || rest.iter().any(|store| store.status().mode == Mode::Fast));
    let theirs = put(&rest[0], "theirs", Ack::Quorum).unwrap();
    assert!(theirs.epoch > alone.epoch);
    assert!(rest.iter().all(|store| !has(store, "alone")));
    cluster.network().heal();
    until("it follows", || store.status().begun == rest[0].status().begun);
    assert_same(&cluster);
    assert_eq!(orphans(&cluster, cut_off), 1);
    assert!(!has(store, "alone") && has(store, "theirs") && has(store, "before"));
}

#[test]
fn a_leader_that_dies_before_it_sends_comes_back_and_its_offsets_are_others() {
    let mut cluster = Cluster::networked(3);
    let (dead, alone) = answers_alone(&cluster);
    cluster.stop(dead);
    cluster.network().heal();
    let leader = fast(&cluster);
    let store = cluster.nodes[&leader].clone();
    // Its offset is used again.
    while put(&store, "theirs", Ack::Quorum).unwrap().offset < alone.offset {}
    cluster.start(dead);
    until("it follows", || cluster.nodes[&dead].status().begun == store.status().begun);
    assert_same(&cluster);
    let back = &cluster.nodes[&dead];
    assert!(!has(back, "alone") && has(back, "theirs"));
    assert_eq!(orphans(&cluster, dead), 1);
    let at = back.wal().unwrap().replay(alone.offset..=alone.offset).unwrap().next();
    assert!(at.unwrap().unwrap().epoch() > alone.epoch);
}

#[test]
fn a_command_whose_answer_is_lost_on_the_way_executes_once() {
    let cluster = Cluster::networked(3);
    for number in 0..20 {
        let leader = fast(&cluster);
        converge(&cluster);
        let asks = &cluster.nodes[&(leader % 3 + 1)];
        let key = format!("once {number}");
        cluster.network().lose(leader, leader % 3 + 1);
        let done = std::thread::scope(|scope| {
            let put = scope.spawn(|| put_within(asks, &key, Ack::Local, LONG));
            let is_executed = || cluster.nodes.values().any(|store| has(store, &key));
            until("it is executed", is_executed);
            // What comes behind it has its answer.
            let _ = put_within(&cluster.nodes[&leader], "behind", Ack::Quorum, LONG);
            cluster.network().heal();
            put.join().unwrap().unwrap()
        });
        assert_eq!(done.done, Done::Created, "the first outcome");
        // Otherwise the answer was still on its way when all was whole again.
        if done.is_retry {
            return assert_same(&cluster);
        }
    }
    panic!("no answer is lost");
}

/// Stopped and started at once: for the others it never was away.
#[test]
fn a_leader_that_is_restarted_within_the_election_timeout_opens_no_epoch_of_its_term() {
    let mut cluster = Cluster::new(3);
    let leader = fast(&cluster);
    put(&cluster.nodes[&leader], "before", Ack::Quorum).unwrap();
    let before = cluster.nodes[&leader].status().begun.expect("it leads");
    cluster.stop(leader);
    cluster.start(leader);
    let deadline = Instant::now() + LONG;
    let after = loop {
        let modes = cluster.nodes.values().map(MetadataStore::status);
        let leads = modes.filter(|status| status.mode == Mode::Fast).find_map(|one| one.begun);
        if let Some(begun) = leads {
            break begun;
        }
        assert!(Instant::now() < deadline, "nobody leads");
        std::thread::yield_now();
    };
    assert!(after.epoch > before.epoch, "{after:?} after {before:?}");
    assert!(after.run != before.run);
    put(cluster.any(), "after", Ack::Quorum).unwrap();
    assert_same(&cluster);
    assert_eq!(all_keys(cluster.any()), [b"after".to_vec(), b"before".to_vec()]);
}

/// Nor does its leader go on in the term that it has given away.
#[test]
fn a_transfer_that_is_not_taken_says_who_leads_and_the_fast_path_comes_back_in_a_later_epoch() {
    let cluster = Cluster::networked(3);
    for (limit, number) in [(LONG, 0), (SHORT, 1)] {
        let leader = fast(&cluster);
        let store = cluster.nodes[&leader].clone();
        put(&store, &format!("before {number}"), Ack::Quorum).unwrap();
        converge(&cluster);
        let before = store.status();
        let to = NodeId::new(leader % 3 + 1);
        cluster.network().isolate(to.get());
        let given = store.transfer_leader(Some(to), limit).wait();
        let after = store.status();
        match given {
            Err(ChangeError::OtherElected { asked, leader }) => {
                assert!(asked == to && leader != to, "{leader} instead of {asked}");
            }
            // Nobody was elected in time.
            Err(ChangeError::Unknown(_)) if limit == SHORT => {}
            given => panic!("{given:?}"),
        }
        let leads = matches!(after.mode, Mode::Fast | Mode::Raft(_));
        assert!(!leads || after.term > before.term, "{after:?}");
        // Without the one that is away.
        let epoch = |store: &MetadataStore| store.status().begun.map_or(0, |begun| begun.epoch);
        let rest = others(&cluster, to.get());
        let is_open = |store: &MetadataStore| {
            store.status().mode == Mode::Fast && Some(epoch(store)) > before.begun.map(|b| b.epoch)
        };
        until("the fast path", || rest.iter().any(is_open));
        put(&store, &format!("after {number}"), Ack::Local).unwrap();
        cluster.network().heal();
        assert_same(&cluster);
    }
    assert_eq!(all_keys(cluster.any()).len(), 4);
}

/// The one with the least id, which founds clusters, loses its disk.
#[test]
fn a_blank_disk_with_an_old_identity_counts_for_nothing_until_it_is_admitted_again() {
    let mut cluster = Cluster::new(3);
    let mut leader = fast(&cluster);
    put(&cluster.nodes[&leader], "before", Ack::Quorum).unwrap();
    converge(&cluster);
    if leader == 1 {
        cluster.nodes[&1].transfer_leader(None, LONG).wait().unwrap();
        until("the transfer", || fast(&cluster) != 1);
        leader = fast(&cluster);
    }
    let other = 5 - leader;
    converge(&cluster);
    cluster.stop(1);
    std::fs::remove_dir_all(cluster.folder.path().join("1")).unwrap();
    cluster.start(1);
    cluster.stop(other);
    // Two of three run, and one of them is nobody.
    let lonely = put_within(&cluster.nodes[&leader], "lonely", Ack::Quorum, LONG / 15);
    assert!(lonely.is_err(), "{lonely:?}");
    let blank = cluster.nodes[&1].status();
    assert_eq!((blank.applied.end, blank.begun, blank.members.len()), (0, None, 0), "{blank:?}");
    // Nor does it promise anything, whoever asks.
    let peers = cluster.nodes[&leader].raft().inner.started.executor.peers.clone();
    let run = cluster.nodes[&leader].raft().node().run();
    let promise = Promise { epoch: 1_000, leader: NodeId::new(leader), run };
    let ask = Ask::Promise { promise, index: 1 };
    let promised = crate::blocking::block_on(peers.ask(&cluster.members[0], ask, LONG));
    assert!(matches!(promised, Ok(Answer::NotDone(_))), "{promised:?}");
    cluster.start(other);
    put(&cluster.nodes[&other], "again", Ack::Quorum).unwrap();
    let change = |change: MemberChange| {
        let deadline = Instant::now() + LONG;
        loop {
            let leader = cluster.leader(|mode| matches!(mode, Mode::Fast | Mode::Raft(_)));
            match cluster.nodes[&leader].change_members(change.clone()).wait() {
                Ok(()) => return,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    };
    change(MemberChange::Remove(NodeId::new(1)));
    change(MemberChange::AddLearner(cluster.members[0].clone()));
    change(MemberChange::SetVoters((1..=3).map(NodeId::new).collect()));
    assert_same(&cluster);
    let leader = cluster.leader(|mode| matches!(mode, Mode::Fast | Mode::Raft(_)));
    let third = if leader == 1 { 2 } else { 5 - leader };
    cluster.stop(third);
    put(cluster.any(), "with its new disk", Ack::Quorum).unwrap();
    assert_same(&cluster);
}

/// Whatever way each takes, a topic is made and dropped in turns, on every node alike.
#[test]
fn a_topic_is_made_through_raft_and_dropped_by_the_log_in_one_order() {
    let cluster = Cluster::new(3);
    let leader = fast(&cluster);
    let store = cluster.nodes[&leader].clone();
    let register = store.register_broker(BrokerId::new(1), vec!["one:9092".into()]);
    register.wait().unwrap();
    let name = TopicName::new("contended").unwrap();
    let tell = |executed: Result<Executed, ExecuteError>| match executed {
        Ok(done) => Some((done.offset, done.done)),
        Err(ExecuteError::Rejected(_)) => None,
        Err(error) => panic!("{error}"),
    };
    let from = cluster.nodes[&(leader % 3 + 1)].clone();
    let mut done = std::thread::scope(|scope| {
        let create = |_: u32| from.create_topic(name.clone(), 1, 1, BTreeMap::new()).wait();
        let creates = scope.spawn(move || (0..60).map(create).filter_map(tell).collect::<Vec<_>>());
        let delete = |_| store.delete_topic(name.clone()).wait();
        let deletes = scope.spawn(move || (0..60).map(delete).filter_map(tell).collect::<Vec<_>>());
        let switches = &cluster.nodes[&leader];
        for is_on in [false, true, false, true] {
            switches.set_fast_path(is_on);
            let expected = if is_on { Mode::Fast } else { Mode::Raft(Reason::SwitchedOff) };
            cluster.leader(|mode| mode == expected);
            put(switches, "between", Ack::Quorum).unwrap();
        }
        [creates.join().unwrap(), deletes.join().unwrap()].concat()
    });
    done.sort_by_key(|(offset, _)| *offset);
    assert!(done.len() > 1, "{done:?}");
    for (place, (offset, what)) in done.iter().enumerate() {
        let is_made = matches!(what, Done::TopicCreated { .. });
        assert_eq!(is_made, place % 2 == 0, "at offset {offset}: {done:?}");
    }
    assert_same(&cluster);
    let is_there = |store: &MetadataStore| store.metadata().read(|s| s.topic(&name).is_some()).1;
    for store in cluster.nodes.values() {
        assert_eq!(is_there(store), done.len() % 2 == 1);
    }
}

/// They have Raft's log, and would be a majority: what is committed is with them first.
#[test]
fn nodes_without_the_streams_do_not_become_a_majority() {
    let mut cluster = Cluster::networked(3);
    cluster.add_networked(4);
    cluster.add_networked(5);
    let leader = fast(&cluster);
    put_many(&cluster.nodes[&leader], "before", 10);
    converge(&cluster);
    let store = cluster.nodes[&leader].clone();
    for id in [4, 5] {
        cluster.network().starve(id);
        cluster.start_joining(id);
        let add = MemberChange::AddLearner(cluster.members[id as usize - 1].clone());
        store.change_members(add).wait().unwrap();
        let begun = store.status().begun;
        until("Raft's log", || cluster.nodes[&id].status().begun == begun);
    }
    let voters = |store: &MetadataStore| {
        let members = store.status().members.into_iter().filter(|member| member.is_voter);
        members.map(|member| member.node.get()).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let three = [leader, 4, 5].map(NodeId::new).into();
        let change = scope.spawn(|| store.change_members(MemberChange::SetVoters(three)).wait());
        // The leader goes on, and nothing that is committed is in the hands of those two.
        for number in 0..200 {
            let done = put_within(&store, &format!("meanwhile {number}"), Ack::Local, LONG);
            done.unwrap();
        }
        assert_eq!((voters(&store), change.is_finished()), (vec![1, 2, 3], false));
        assert!([4, 5].iter().all(|id| cluster.nodes[id].status().durable == 0));
        cluster.network().heal();
        change.join().unwrap().unwrap();
    });
    assert_eq!(voters(&store), [leader, 4, 5]);
    put(&store, "after", Ack::Quorum).unwrap();
    assert_same(&cluster);
}

#[test]
fn what_is_no_command_or_of_nobody_is_refused_before_it_is_durable() {
    let cluster = Cluster::new(3);
    let leader = fast(&cluster);
    let end = converge(&cluster);
    let from = &cluster.nodes[&(leader % 3 + 1)];
    let peers = from.raft().inner.started.executor.peers.clone();
    let ask = |ask| {
        let to = &cluster.members[leader as usize - 1];
        crate::blocking::block_on(peers.ask(to, ask, LONG)).unwrap()
    };
    let execute = |record| Ask::Execute { ack: Ack::Local, limit_ms: 1_000, record };
    let mut unknown = crate::fakes::put("key").to_vec();
    unknown[4] = 99;
    let command = Command::RaiseVersion { version: 1 };
    let nobodys = Record { time_ms: 7, session: None, command }.encode().unwrap();
    for record in [Bytes::from(unknown), Bytes::from_static(b"?"), nobodys.into()] {
        let answer = ask(execute(record));
        assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    }
    // A promise is for whoever asks.
    let run = from.raft().node().run();
    let promise = Promise { epoch: 1_000, leader: NodeId::new(leader), run };
    let answer = ask(Ask::Promise { promise, index: 0 });
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    assert_eq!(cluster.nodes[&leader].wal().unwrap().end(), end);
}

/// A command whose outcome somebody has been told.
struct Told {
    key: String,
    outcome: Result<Executed, ExecuteError>,
}

/// Puts keys until it is stopped, one after the other.
fn put_until(store: &MetadataStore, what: &str, ack: Ack, stop: &AtomicBool) -> Vec<Told> {
    let mut told = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let key = format!("{what} {}", told.len());
        let outcome = put_within(store, &key, ack, LONG / 6);
        told.push(Told { key, outcome });
    }
    told
}

/// Its device fails under commands of callers everywhere.
#[test]
fn a_leader_whose_engine_fails_steps_down_and_forwards_and_nothing_committed_is_lost() {
    let mut cluster = Cluster::new(3);
    let failed = fast(&cluster);
    let store = cluster.nodes[&failed].clone();
    let rest = others(&cluster, failed);
    put(&store, "before", Ack::Quorum).unwrap();
    let before = store.status().begun.expect("it leads");
    let stop = AtomicBool::new(false);
    let (told, next) = std::thread::scope(|scope| {
        let stop = &stop;
        let mut writers = Vec::new();
        for (name, store) in [("leader", &store), ("follower", &rest[0]), ("other", &rest[1])] {
            for (level, ack) in [("local", Ack::Local), ("quorum", Ack::Quorum)] {
                let what = format!("{name} {level}");
                writers.push(scope.spawn(move || put_until(store, &what, ack, stop)));
            }
        }
        until("commands are executed", || all_keys(&store).len() > 60);
        cluster.failing[&failed].store(true, Ordering::SeqCst);
        until("it says why it is unfit", || store.status().unfit.is_some());
        let leads = |store: &&MetadataStore| store.status().mode == Mode::Fast;
        until("another leader", || rest.iter().any(|store| leads(&store)));
        let next = rest.iter().find(leads).and_then(|store| store.status().begun);
        // Callers of every node, of the one that has failed too, go on.
        let executed = put(&store, "forwarded", Ack::Quorum).unwrap();
        assert!(executed.epoch > before.epoch, "{executed:?}");
        let count = all_keys(&rest[0]).len();
        until("commands go on", || all_keys(&rest[0]).len() > count + 60);
        stop.store(true, Ordering::SeqCst);
        let told = writers.into_iter().flat_map(|writer| writer.join().unwrap());
        (told.collect::<Vec<_>>(), next)
    });
    let next = next.expect("it has begun an epoch");
    assert!(next.epoch > before.epoch && next.leader.get() != failed, "{next:?}");
    let status = store.status();
    assert!(status.unfit.as_ref().is_some_and(|why| why.contains("failed")), "{status:?}");
    assert!(!matches!(status.mode, Mode::Fast | Mode::Raft(_)), "{status:?}");
    // All that was said is so, on both that are left.
    let last = rest[0].linearize(LONG).wait().unwrap();
    let applied = |store: &MetadataStore| store.metadata().progress().end >= last.end;
    until("both have it all", || rest.iter().all(applied));
    let mut executed = 0;
    for Told { key, outcome } in &told {
        for store in &rest {
            let is_there = has(store, key);
            match outcome {
                Ok(done) if done.durable == Ack::Quorum || done.epoch > before.epoch => {
                    assert!(is_there, "{key}: {done:?} is lost");
                }
                // On one device only, which has failed: said so, and it may be lost.
                Ok(_) | Err(ExecuteError::Unknown { .. }) => {}
                Err(ExecuteError::NotDone { .. }) => assert!(!is_there, "{key} is done"),
                Err(error) => panic!("{key}: {error}"),
            }
        }
        executed += u64::from(outcome.is_ok());
    }
    assert!(
        executed > 60 && rest.iter().all(|store| has(store, "before") && has(store, "forwarded"))
    );
    // With a sound device it comes back, and is as the others.
    drop(store);
    cluster.stop(failed);
    cluster.start(failed);
    assert_same(&cluster);
}

/// Raft remembers who led last, also across a restart.
#[test]
fn who_hears_of_no_leader_says_so() {
    let mut cluster = Cluster::new(3);
    let leader = fast(&cluster);
    let mut others = (1..=3).filter(|id| *id != leader);
    let (dead, alone) = (others.next().unwrap(), others.next().unwrap());
    until("it follows", || {
        let status = cluster.nodes[&alone].status();
        (status.mode, status.leader) == (Mode::Forwarding, Some(NodeId::new(leader)))
    });
    cluster.stop(leader);
    cluster.stop(dead);
    let hears_nobody = |cluster: &Cluster| {
        let status = cluster.nodes[&alone].status();
        (status.mode, status.leader) == (Mode::NoLeader, None)
    };
    until("the silence is noticed", || hears_nobody(&cluster));
    cluster.stop(alone);
    cluster.start(alone);
    assert!(hears_nobody(&cluster), "of this run it has heard nobody");
    cluster.start(dead);
    until("one of them leads", || !hears_nobody(&cluster));
}
