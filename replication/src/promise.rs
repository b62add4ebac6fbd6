//! The epoch that a node has promised: whom it follows, or that it leads, and nobody of an earlier
//! epoch any more. Kept in stream 3 of its engine, with what it knows to be committed.

use ringwal_engine::StreamId;
use ringwal_engine::mutants::{self, Mutant};

use crate::node_id::{ClusterId, NodeId, RunId};
use crate::wire::{ConnectionKind, EPOCH_MAX, Hello, Refusal};

/// The stream in which a node keeps its own facts. It is not replicated.
pub const FACTS_STREAM: StreamId = StreamId::new(3);

/// Whether a stream is replicated: all but 1 to 3, which are a node's own.
pub fn is_replicated(stream: StreamId) -> bool {
    !(1..=FACTS_STREAM.get()).contains(&stream.get())
}

/// As the leader of a promise: an epoch that others have seen, and it is not known whose it is. A
/// repaired node that may have lost what it promised promises it; see [`crate::repair`].
pub const NOBODY: NodeId = NodeId::new(0);

/// An epoch and the run of the node that leads in it. An epoch belongs to one run of one process.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Promise {
    /// Which epoch.
    pub epoch: u64,
    /// Who leads in it.
    pub leader: NodeId,
    /// In which run of its process.
    pub run: RunId,
}

/// Something that a node keeps in [`FACTS_STREAM`]; the last of each kind counts.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Fact {
    /// What it has promised.
    Promise(Promise),
    /// Offsets up to which streams are known to be committed: all that are.
    Committed(Vec<(StreamId, u64)>),
    /// The engine that another member had: with another one it has lost what it promised, and does not
    /// count for a majority until it is re-admitted (I-15).
    Member(NodeId, [u8; 16]),
    /// The epoch that has begun last: whatever is not of it was cut. Of driven nodes only.
    Begun(Promise),
}

const PROMISE: u8 = 1;
const COMMITTED: u8 = 2;
const MEMBER: u8 = 3;
const BEGUN: u8 = 4;

impl Promise {
    fn encode(&self, kind: u8) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.leader.get().to_le_bytes());
        bytes.extend_from_slice(&self.run.bytes());
        bytes
    }
}

impl Fact {
    /// The bytes of its record.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Promise(_) if mutants::is(Mutant::PromiseNotPersisted) => vec![COMMITTED],
            Self::Promise(promise) => promise.encode(PROMISE),
            Self::Begun(promise) => promise.encode(BEGUN),
            Self::Member(node, engine) => {
                let mut bytes = vec![MEMBER];
                bytes.extend_from_slice(&node.get().to_le_bytes());
                bytes.extend_from_slice(engine);
                bytes
            }
            Self::Committed(ends) => {
                let mut bytes = vec![COMMITTED];
                for (stream, end) in ends {
                    bytes.extend_from_slice(&stream.get().to_le_bytes());
                    bytes.extend_from_slice(&end.to_le_bytes());
                }
                bytes
            }
        }
    }

    /// Reads a record; `None` when it is none of a version that this one knows.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let word = |at: usize| {
            let bytes = rest.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        match *kind {
            PROMISE | BEGUN => {
                let run: [u8; 16] = rest.get(16..32)?.try_into().ok()?;
                let (leader, run) = (NodeId::new(word(8)?), RunId::new(run));
                let promise = Promise { epoch: word(0)?, leader, run };
                Some(if *kind == BEGUN { Self::Begun(promise) } else { Self::Promise(promise) })
            }
            MEMBER => {
                let engine = rest.get(8..24)?.try_into().ok()?;
                Some(Self::Member(NodeId::new(word(0)?), engine))
            }
            COMMITTED if rest.len().is_multiple_of(16) => {
                let pair = |at| Some((StreamId::new(word(at)?), word(at + 8)?));
                (0..rest.len()).step_by(16).map(pair).collect::<Option<_>>().map(Self::Committed)
            }
            _ => None,
        }
    }
}

/// Who a node is, for whoever dials it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Identity {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Which node.
    pub node: NodeId,
}

/// What a hello of a leader comes to.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Admission {
    /// It leads in the promised epoch.
    Follow,
    /// Make this promise durable, then follow.
    Promise(Promise),
    /// Refuse it, and say why.
    Refuse(Refusal, String),
}

/// Decides about a hello of kind [`ConnectionKind::Frames`] (I-11). `members` may lead.
pub fn admit(
    me: Identity,
    members: &[NodeId],
    promised: Option<Promise>,
    hello: &Hello,
) -> Admission {
    if let Some((refusal, what)) = refuse_stranger(me, members, hello) {
        return Admission::Refuse(refusal, what);
    }
    let offered = Promise { epoch: hello.epoch, leader: hello.from, run: hello.run };
    match promised {
        Some(promised) if promised == offered => Admission::Follow,
        // No earlier one; this one it may well have been.
        Some(promised) if promised.leader == NOBODY && promised.epoch == offered.epoch => {
            Admission::Promise(offered)
        }
        Some(promised) if promised.epoch >= offered.epoch => {
            let what = format!(
                "epoch {} is promised to node {}; epoch {} of node {} is over, or was used before",
                promised.epoch, promised.leader, offered.epoch, offered.leader
            );
            Admission::Refuse(Refusal::Epoch, what)
        }
        _ => Admission::Promise(offered),
    }
}

/// Decides about a hello of kind [`ConnectionKind::Frames`] where the embedder drives: nothing is
/// promised for it. Only the leader of the epoch that has begun last is followed, and only while no
/// later one is promised.
pub fn admit_driven(
    me: Identity,
    promised: Option<Promise>,
    begun: Option<Promise>,
    hello: &Hello,
) -> Admission {
    let offered = Promise { epoch: hello.epoch, leader: hello.from, run: hello.run };
    // Whose epoch has begun is named by the embedder's log, whether it has told the members or not.
    if let Some((refusal, what)) = refuse_stranger(me, &[hello.from], hello) {
        return Admission::Refuse(refusal, what);
    }
    let is_over = promised.is_some_and(|promised| {
        let is_same = promised == offered || promised.leader == NOBODY;
        promised.epoch > offered.epoch || (promised.epoch == offered.epoch && !is_same)
    });
    match promised {
        Some(promised) if is_over => {
            let what = format!(
                "epoch {} is promised to node {}; epoch {} of node {} is over, or was used before",
                promised.epoch, promised.leader, offered.epoch, offered.leader
            );
            Admission::Refuse(Refusal::Epoch, what)
        }
        Some(promised) if promised == offered && begun == Some(offered) => Admission::Follow,
        _ => {
            let what = format!("epoch {} has not begun at node {} yet", offered.epoch, me.node);
            Admission::Refuse(Refusal::NotBegun, what)
        }
    }
}

/// Whoever speaks no common protocol, or is of another cluster.
pub(crate) fn refuse_foreign(me: Identity, hello: &Hello) -> Option<(Refusal, String)> {
    let from = hello.from;
    if hello.version().is_none() {
        let (oldest, newest) = hello.versions;
        let what = format!(
            "node {from} speaks protocol {oldest} to {newest}, node {} {} to {}",
            me.node,
            crate::wire::PROTOCOL_VERSION_MIN,
            crate::wire::PROTOCOL_VERSION
        );
        return Some((Refusal::Version, what));
    }
    (hello.cluster != me.cluster).then(|| {
        let what = format!("node {from} is of another cluster than {}", me.node);
        (Refusal::Cluster, what)
    })
}

/// Whoever must not lead here, whatever was promised. Nothing that it names may become a promise.
fn refuse_stranger(me: Identity, members: &[NodeId], hello: &Hello) -> Option<(Refusal, String)> {
    let Hello { from, to, epoch, .. } = hello;
    if let Some(refused) = refuse_foreign(me, hello) {
        return Some(refused);
    }
    if *to != me.node {
        return Some((Refusal::Node, format!("this is node {}, not {to}", me.node)));
    }
    if *from == me.node {
        let what = format!("node {from} dials itself, or two nodes have that id");
        return Some((Refusal::Node, what));
    }
    if hello.kind != ConnectionKind::Frames {
        let what = format!("nobody leads over a connection of kind {:?}", hello.kind);
        return Some((Refusal::Kind, what));
    }
    if !members.contains(from) {
        let what = format!("node {from} is none of the members that node {} knows", me.node);
        return Some((Refusal::NotAMember, what));
    }
    // A promise of the last epoch would keep every later leader out for ever.
    (*epoch > EPOCH_MAX).then(|| {
        let what = format!("epoch {epoch} is beyond {EPOCH_MAX}, which no cluster comes to");
        (Refusal::Epoch, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Identity = Identity { cluster: ClusterId::new([1; 16]), node: NodeId::new(3) };

    const MEMBERS: [NodeId; 3] = [NodeId::new(1), NodeId::new(2), NodeId::new(3)];

    fn promise(epoch: u64, run: u8) -> Promise {
        Promise { epoch, leader: NodeId::new(2), run: RunId::new([run; 16]) }
    }

    fn hello(offered: Promise) -> Hello {
        Hello {
            versions: (1, 1),
            kind: ConnectionKind::Frames,
            cluster: ME.cluster,
            from: offered.leader,
            to: ME.node,
            run: offered.run,
            engine: [5; 16],
            epoch: offered.epoch,
        }
    }

    #[test]
    fn an_epoch_belongs_to_one_run() {
        let promised = Some(promise(5, 1));
        let outcome = |epoch, run| match admit(ME, &MEMBERS, promised, &hello(promise(epoch, run)))
        {
            Admission::Follow => "follow",
            Admission::Promise(_) => "promise",
            Admission::Refuse(Refusal::Epoch, _) => "refuse",
            other => panic!("{other:?}"),
        };
        let outcomes = [(4, 1), (5, 1), (5, 2), (6, 1), (6, 2)].map(|(e, r)| outcome(e, r));
        assert_eq!(outcomes, ["refuse", "follow", "refuse", "promise", "promise"]);
        assert_eq!(
            admit(ME, &MEMBERS, None, &hello(promise(0, 1))),
            Admission::Promise(promise(0, 1)),
            "the first promise"
        );
    }

    #[test]
    fn an_epoch_of_somebody_unknown_is_promised_to_whoever_leads_in_it() {
        let promised = Some(Promise { leader: NOBODY, ..promise(5, 0) });
        let admit = |epoch| admit(ME, &MEMBERS, promised, &hello(promise(epoch, 1)));
        assert!(matches!(admit(4), Admission::Refuse(Refusal::Epoch, _)));
        assert_eq!(admit(5), Admission::Promise(promise(5, 1)));
        assert_eq!(admit(6), Admission::Promise(promise(6, 1)));
    }

    #[test]
    fn where_somebody_drives_only_who_leads_in_the_epoch_that_has_begun_is_followed() {
        let (five, six) = (promise(5, 1), promise(6, 1));
        let outcome = |promised: Promise, begun, offered| match admit_driven(
            ME,
            Some(promised),
            begun,
            &hello(offered),
        ) {
            Admission::Follow => "follow",
            Admission::Refuse(Refusal::Epoch, _) => "over",
            Admission::Refuse(Refusal::NotBegun, _) => "not begun",
            other => panic!("{other:?}"),
        };
        assert_eq!(outcome(five, None, five), "not begun", "promised only");
        assert_eq!(outcome(five, Some(five), five), "follow");
        assert_eq!(outcome(five, Some(five), promise(5, 2)), "over", "another run");
        assert_eq!(outcome(five, Some(five), promise(4, 1)), "over");
        assert_eq!(outcome(five, Some(five), six), "not begun", "nothing is promised by a hello");
        assert_eq!(outcome(six, Some(five), five), "over", "a later one is promised");
        let unknown = Promise { leader: NOBODY, ..promise(5, 0) };
        assert_eq!(outcome(unknown, None, five), "not begun");
        let first = admit_driven(ME, None, None, &hello(five));
        assert!(matches!(first, Admission::Refuse(Refusal::NotBegun, _)), "{first:?}");
        let other = Hello { cluster: ClusterId::new([2; 16]), ..hello(five) };
        let other = admit_driven(ME, Some(five), Some(five), &other);
        assert!(matches!(other, Admission::Refuse(Refusal::Cluster, _)), "{other:?}");
    }

    #[test]
    fn strangers_are_refused_by_name() {
        let good = hello(promise(5, 1));
        for (bad, refusal) in [
            (Hello { versions: (9, 9), ..good }, Refusal::Version),
            (Hello { cluster: ClusterId::new([2; 16]), ..good }, Refusal::Cluster),
            (Hello { to: NodeId::new(4), ..good }, Refusal::Node),
            (Hello { from: ME.node, ..good }, Refusal::Node),
            (Hello { from: NodeId::new(4), ..good }, Refusal::NotAMember),
            (Hello { kind: ConnectionKind::Fetch, ..good }, Refusal::Kind),
            (Hello { epoch: EPOCH_MAX + 1, ..good }, Refusal::Epoch),
            (Hello { epoch: u64::MAX, ..good }, Refusal::Epoch),
        ] {
            let outcome = admit(ME, &MEMBERS, None, &bad);
            assert!(
                matches!(&outcome, Admission::Refuse(why, _) if *why == refusal),
                "{outcome:?}"
            );
        }
    }

    #[test]
    fn facts_come_back_as_they_were() {
        let ends = vec![(StreamId::new(4), 9), (StreamId::new(0), u64::MAX)];
        for fact in [
            Fact::Promise(promise(7, 8)),
            Fact::Begun(promise(7, 8)),
            Fact::Committed(ends),
            Fact::Committed(vec![]),
            Fact::Member(NodeId::new(2), [7; 16]),
        ] {
            assert_eq!(Fact::decode(&fact.encode()), Some(fact));
        }
        for bytes in [&[][..], &[1, 2], &[2, 0], &[9; 33]] {
            assert_eq!(Fact::decode(bytes), None);
        }
        assert_eq!(
            [0, 1, 2, 3, 4].map(StreamId::new).map(is_replicated),
            [true, false, false, false, true]
        );
    }
}
