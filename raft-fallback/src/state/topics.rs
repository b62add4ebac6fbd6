//! Topics and their partitions, and which stream holds which.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use ringwal_engine::StreamId;

use crate::command::{BrokerId, TopicName, Watermark};
use crate::limits::{PARTITIONS_TOTAL_MAX, REPLICATION_FACTOR_MAX};
use crate::state::{Bound, Configuration, Done, Outcome, Rejection};

/// No partition has a lesser stream: 0 is the metadata stream, and the others are kept back.
pub const FIRST_STREAM: u64 = 16;

/// One topic, for ever: a later one of the same name has another id.
///
/// It is the stream of the topic's first partition. An epoch gives the streams from its number times
/// 2^32 plus [`FIRST_STREAM`] on, one after the other, and none twice, also when the topic is
/// deleted. The epoch has to be part of it: where records were cut that no majority had, others take
/// their offsets, and a count that went on from what is left would give the streams of a lost topic,
/// with whatever a majority has of its records, to a topic of the next leader.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct TopicId(u64);

impl TopicId {
    /// The topic with this id.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// Its id.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The stream with the records of a partition: the topic's id plus the partition's number.
    pub const fn stream(self, partition: u32) -> StreamId {
        StreamId::new(self.0.wrapping_add(partition as u64))
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of a topic.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// How many brokers hold each partition.
    pub replication_factor: u16,
    /// Whatever was said when it was made.
    pub configuration: Configuration,
    /// When it was made: the leader's clock, ms since 1970.
    pub created_ms: u64,
    /// Its partitions, from 0 on.
    pub partitions: Vec<Partition>,
}

/// What is known of a partition.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Partition {
    /// The brokers that hold it, the preferred leader first. One may be unregistered by now.
    pub replicas: Vec<BrokerId>,
    /// Who leads, if anybody.
    pub leader: Option<BrokerId>,
    /// Grows whenever another broker leads, or none.
    pub leader_epoch: u64,
    /// Who has all of it.
    pub in_sync: InSync,
    /// Everything below this offset is replicated.
    pub high_watermark: u64,
}

/// Which of a partition's replicas have all of it. Never none: the last one stays also when it is
/// unregistered, since only that broker has everything.
///
/// A bit for each replica, in their order: there are very many partitions.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct InSync(u16);

const _: () = assert!(REPLICATION_FACTOR_MAX as u32 <= u16::BITS);

impl InSync {
    /// All of them.
    pub(crate) fn all(replicas: &[BrokerId]) -> Self {
        Self(u16::MAX >> (u16::BITS as usize - replicas.len()))
    }

    /// Some of them. The error is one that is not among them.
    pub(crate) fn new(
        replicas: &[BrokerId],
        in_sync: impl IntoIterator<Item = BrokerId>,
    ) -> Result<Self, BrokerId> {
        in_sync.into_iter().try_fold(Self(0), |Self(bits), broker| {
            let place = replicas.iter().position(|replica| *replica == broker).ok_or(broker)?;
            Ok(Self(bits | 1 << place))
        })
    }

    fn has(self, place: usize) -> bool {
        self.0 & 1 << place != 0
    }
}

/// Where a partition is.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Assignment {
    /// Its topic.
    pub topic: TopicId,
    /// Its number.
    pub partition: u32,
    /// Where its records are.
    pub stream: StreamId,
    /// Its brokers.
    pub placed: Partition,
}

impl Partition {
    /// Who has all of it, in the order of the replicas.
    pub fn in_sync(&self) -> impl Iterator<Item = BrokerId> {
        let in_sync = self.in_sync;
        let replicas = self.replicas.iter().enumerate();
        replicas.filter(move |(place, _)| in_sync.has(*place)).map(|(_, broker)| *broker)
    }

    /// Whether a broker has all of it.
    pub fn is_in_sync(&self, broker: BrokerId) -> bool {
        self.in_sync().any(|one| one == broker)
    }

    /// The brokers are known to be registered.
    pub(crate) fn set_leader(
        &mut self,
        leader: Option<BrokerId>,
        leader_epoch: u64,
        in_sync: BTreeSet<BrokerId>,
    ) -> Outcome {
        let of_replicas = InSync::new(&self.replicas, in_sync.iter().copied())
            .map_err(|broker| Rejection::NotAReplica { broker })?;
        if let Some(broker) = leader.filter(|leader| !in_sync.contains(leader)) {
            return Err(Rejection::LeaderNotInSync { broker });
        }
        let current = self.leader_epoch;
        if leader_epoch < current || (leader_epoch == current && leader != self.leader) {
            return Err(Rejection::LeaderEpoch { current });
        }
        if leader_epoch == current && of_replicas == self.in_sync {
            return Ok(Done::Unchanged);
        }
        (self.leader, self.leader_epoch, self.in_sync) = (leader, leader_epoch, of_replicas);
        Ok(Done::Changed)
    }

    /// A broker is there no more.
    fn leave(&mut self, broker: BrokerId) {
        let place = self.replicas.iter().position(|replica| *replica == broker);
        if let Some(place) = place
            && self.in_sync.0 != 1 << place
        {
            self.in_sync.0 &= !(1 << place);
        }
        if self.leader == Some(broker) {
            let next = self.in_sync().find(|other| *other != broker);
            self.leader = next;
            self.leader_epoch += 1;
        }
    }
}

#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct Topics {
    topics: BTreeMap<TopicId, Topic>,
    /// Looked up, and never gone through: their order is the hash's.
    names: HashMap<TopicName, TopicId>,
    /// The next stream to be given, unless a later epoch begins with a greater one.
    next_stream: u64,
    /// Of all topics.
    partitions: u64,
}

impl Topics {
    pub(crate) fn get(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    pub(crate) fn by_name(&self, name: &TopicName) -> Option<(TopicId, &Topic)> {
        let id = *self.names.get(name)?;
        Some((id, &self.topics[&id]))
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (TopicId, &Topic)> {
        self.topics.iter().map(|(id, topic)| (*id, topic))
    }

    /// See the field.
    pub(crate) fn next_stream(&self) -> u64 {
        self.next_stream
    }

    /// Makes a topic, whose partitions `place` gives when its name is free. The name is looked up once:
    /// of all that applying such a command costs, that is the most.
    pub(crate) fn create(
        &mut self,
        epoch: u64,
        topic: Topic,
        place: impl FnOnce() -> Result<Vec<Partition>, Rejection>,
    ) -> Outcome {
        if topic.name.is_reserved() {
            return Err(Rejection::TopicReserved);
        }
        let free = match self.names.entry(topic.name.clone()) {
            Entry::Occupied(taken) => return Err(Rejection::TopicExists { topic: *taken.get() }),
            Entry::Vacant(free) => free,
        };
        let partitions = place()?;
        let count = partitions.len() as u64;
        if self.partitions + count > PARTITIONS_TOTAL_MAX {
            return Err(Rejection::Full { bound: Bound::Partitions });
        }
        let streams = streams(self.next_stream, epoch, count);
        let (id, next) = streams.ok_or(Rejection::Full { bound: Bound::Streams })?;
        self.next_stream = next;
        self.partitions += count;
        free.insert(id);
        self.topics.insert(id, Topic { partitions, ..topic });
        Ok(Done::TopicCreated { topic: id })
    }

    pub(crate) fn delete(&mut self, name: &TopicName) -> Outcome {
        if name.is_reserved() {
            return Err(Rejection::TopicReserved);
        }
        let id = self.names.remove(name).ok_or(Rejection::TopicNotFound)?;
        let topic = self.topics.remove(&id).expect("both maps have it");
        self.partitions -= topic.partitions.len() as u64;
        let partitions = u32::try_from(topic.partitions.len()).expect("partitions are limited");
        Ok(Done::TopicDeleted { topic: id, partitions })
    }

    pub(crate) fn partition_mut(
        &mut self,
        topic: TopicId,
        partition: u32,
    ) -> Result<&mut Partition, Rejection> {
        let topic = self.topics.get_mut(&topic).ok_or(Rejection::TopicNotFound)?;
        let partitions = u32::try_from(topic.partitions.len()).expect("partitions are limited");
        let placed = topic.partitions.get_mut(partition as usize);
        placed.ok_or(Rejection::PartitionNotFound { partitions })
    }

    pub(crate) fn raise(&mut self, watermarks: &[Watermark]) -> Done {
        let (mut raised, mut unknown) = (0, 0);
        for Watermark { topic, partition, offset } in watermarks {
            match self.partition_mut(*topic, *partition) {
                Err(_) => unknown += 1,
                Ok(placed) if placed.high_watermark >= *offset => {}
                Ok(placed) => {
                    placed.high_watermark = *offset;
                    raised += 1;
                }
            }
        }
        Done::Watermarks { raised, unknown }
    }

    /// A broker is there no more: looks at every partition, since that is rare.
    pub(crate) fn leave(&mut self, broker: BrokerId) {
        let partitions = self.topics.values_mut().flat_map(|topic| &mut topic.partitions);
        partitions.for_each(|partition| partition.leave(broker));
    }

    /// With what a snapshot says of it.
    pub(crate) fn restored(next_stream: u64) -> Self {
        Self { next_stream, ..Self::default() }
    }

    /// Takes one from a snapshot, in ascending order; false when it cannot be there. It is found by its name
    /// when [`Topics::restore_names`] has said that it can be.
    pub(crate) fn restore(&mut self, id: TopicId, topic: Topic) -> bool {
        let after_last = self.topics.last_key_value().map_or(FIRST_STREAM, |(last, topic)| {
            last.0.saturating_add(topic.partitions.len() as u64)
        });
        let count = topic.partitions.len() as u64;
        let end = id.0.saturating_add(count);
        self.partitions += count;
        after_last <= id.0
            && end <= self.next_stream
            && self.partitions <= PARTITIONS_TOTAL_MAX
            && !topic.name.is_reserved()
            && self.topics.insert(id, topic).is_none()
    }

    /// All topics of a snapshot are there; false when two have one name. One table of the right size is made
    /// for all names, where one that grows would look at each several times.
    pub(crate) fn restore_names(&mut self) -> bool {
        self.names = HashMap::with_capacity(self.topics.len());
        let names = self.topics.iter().map(|(id, topic)| (topic.name.clone(), *id));
        self.names.extend(names);
        self.names.len() == self.topics.len()
    }
}

/// The first of `count` streams, and the one after the last.
fn streams(next_stream: u64, epoch: u64, count: u64) -> Option<(TopicId, u64)> {
    let base = epoch.checked_mul(1 << 32)?;
    let first = next_stream.max(base + FIRST_STREAM);
    let next = first.checked_add(count)?;
    (next - base <= 1 << 32).then_some((TopicId(first), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(id: u64) -> BrokerId {
        BrokerId::new(id)
    }

    fn brokers(ids: &[u64]) -> BTreeSet<BrokerId> {
        ids.iter().copied().map(BrokerId::new).collect()
    }

    fn partition() -> Partition {
        Partition {
            replicas: vec![broker(2), broker(1), broker(3)],
            leader: Some(broker(2)),
            leader_epoch: 1,
            in_sync: InSync(0b111),
            high_watermark: 0,
        }
    }

    fn topic(name: &str, partitions: usize) -> Topic {
        Topic {
            name: TopicName::new(name).unwrap(),
            replication_factor: 3,
            configuration: Configuration::default(),
            created_ms: 0,
            partitions: vec![partition(); partitions],
        }
    }

    fn create(topics: &mut Topics, epoch: u64, topic: Topic) -> Outcome {
        let partitions = topic.partitions.clone();
        topics.create(epoch, topic, || Ok(partitions))
    }

    fn created(id: u64) -> Outcome {
        Ok(Done::TopicCreated { topic: TopicId(id) })
    }

    #[test]
    fn streams_are_given_once() {
        let mut topics = Topics::default();
        assert_eq!(create(&mut topics, 0, topic("a", 3)), created(16));
        assert_eq!(create(&mut topics, 0, topic("b", 1)), created(19));
        let b = TopicName::new("b").unwrap();
        assert_eq!(topics.delete(&b), Ok(Done::TopicDeleted { topic: TopicId(19), partitions: 1 }));
        assert_eq!(
            create(&mut topics, 0, topic("b", 1)),
            created(20),
            "not the one that is free again"
        );
        assert_eq!(TopicId(16).stream(2), StreamId::new(18));
        // Another leader, who had not got "b", gives other streams.
        assert_eq!(create(&mut topics, 2, topic("c", 1)), created((2 << 32) + 16));
        assert_eq!(create(&mut topics, 2, topic("d", 1)), created((2 << 32) + 17));
    }

    #[test]
    fn an_epoch_has_an_end_of_streams() {
        let full = Err(Rejection::Full { bound: Bound::Streams });
        let mut topics = Topics { next_stream: (4 << 32) - 1, ..Topics::default() };
        assert_eq!(create(&mut topics, 3, topic("a", 2)), full);
        assert_eq!(create(&mut topics, 3, topic("a", 1)), created((4 << 32) - 1));
        assert_eq!(create(&mut topics, 3, topic("b", 1)), full);
        assert_eq!(create(&mut topics, 1 << 32, topic("b", 1)), full);
        assert_eq!(create(&mut topics, u64::MAX, topic("b", 1)), full);
        assert_eq!(create(&mut topics, 4, topic("b", 1)), created((4 << 32) + 16));
    }

    #[test]
    fn names_are_unique_and_some_reserved() {
        let mut topics = Topics::default();
        assert_eq!(create(&mut topics, 0, topic("__metadata", 1)), Err(Rejection::TopicReserved));
        assert_eq!(create(&mut topics, 0, topic("a", 1)), created(16));
        let exists = Err(Rejection::TopicExists { topic: TopicId(16) });
        assert_eq!(create(&mut topics, 0, topic("a", 2)), exists);
        let delete = |topics: &mut Topics, name| topics.delete(&TopicName::new(name).unwrap());
        assert_eq!(delete(&mut topics, "b"), Err(Rejection::TopicNotFound));
        assert_eq!(delete(&mut topics, "__metadata"), Err(Rejection::TopicReserved));
    }

    #[test]
    fn partitions_of_all_topics_are_bounded() {
        let mut topics = Topics { partitions: PARTITIONS_TOTAL_MAX - 1, ..Topics::default() };
        let full = Err(Rejection::Full { bound: Bound::Partitions });
        assert_eq!(create(&mut topics, 0, topic("a", 2)), full);
        assert_eq!(create(&mut topics, 0, topic("a", 1)), created(16));
    }

    #[test]
    fn a_leaders_epoch_never_goes_back() {
        let mut placed = partition();
        let (one, two) = (Some(broker(1)), Some(broker(2)));
        let all = brokers(&[1, 2, 3]);
        let behind = |current| Err(Rejection::LeaderEpoch { current });
        assert_eq!(placed.set_leader(two, 1, all.clone()), Ok(Done::Unchanged));
        assert_eq!(placed.set_leader(two, 0, all.clone()), behind(1));
        assert_eq!(placed.set_leader(one, 1, all.clone()), behind(1), "two leaders in one epoch");
        assert_eq!(placed.set_leader(two, 1, brokers(&[2])), Ok(Done::Changed), "only in sync");
        assert_eq!(placed.set_leader(one, 5, all.clone()), Ok(Done::Changed));
        assert_eq!(placed.set_leader(two, 4, all), behind(5));
        assert_eq!(placed.set_leader(None, 6, brokers(&[1])), Ok(Done::Changed));
        let stranger = brokers(&[1, 9]);
        let no_replica = Err(Rejection::NotAReplica { broker: broker(9) });
        assert_eq!(placed.set_leader(one, 7, stranger), no_replica);
        let not_in_sync = Err(Rejection::LeaderNotInSync { broker: broker(2) });
        assert_eq!(placed.set_leader(two, 7, brokers(&[1])), not_in_sync);
        assert_eq!((placed.leader, placed.leader_epoch), (None, 6));
    }

    #[test]
    fn who_leaves_leads_no_more() {
        let mut topics = Topics::default();
        create(&mut topics, 0, topic("a", 1)).unwrap();
        let look = |topics: &Topics| topics.topics[&TopicId(16)].partitions[0].clone();
        topics.leave(broker(9));
        assert_eq!(look(&topics), partition());
        topics.leave(broker(2));
        let left = look(&topics);
        assert_eq!((left.leader, left.leader_epoch), (Some(broker(1)), 2), "the next replica");
        assert_eq!(left.in_sync().collect::<BTreeSet<_>>(), brokers(&[1, 3]));
        topics.leave(broker(3));
        topics.leave(broker(1));
        let last = look(&topics);
        assert_eq!((last.leader, last.leader_epoch), (None, 3));
        assert_eq!(last.in_sync().collect::<Vec<_>>(), [broker(1)], "only it has everything");
        assert_eq!(last.replicas, partition().replicas);
    }

    #[test]
    fn watermarks_only_rise() {
        let mut topics = Topics::default();
        create(&mut topics, 0, topic("a", 2)).unwrap();
        let mark =
            |topic, partition, offset| Watermark { topic: TopicId(topic), partition, offset };
        let all = [mark(16, 0, 5), mark(16, 1, 7), mark(16, 2, 9), mark(99, 0, 9), mark(16, 0, 3)];
        assert_eq!(topics.raise(&all), Done::Watermarks { raised: 2, unknown: 2 });
        assert_eq!(topics.raise(&all), Done::Watermarks { raised: 0, unknown: 2 });
        let marks =
            topics.topics[&TopicId(16)].partitions.iter().map(|placed| placed.high_watermark);
        assert_eq!(marks.collect::<Vec<_>>(), [5, 7]);
    }
}
