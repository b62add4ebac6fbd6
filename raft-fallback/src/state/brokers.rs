//! The registered brokers, and where they get partitions.

use std::collections::BTreeMap;

use crate::command::BrokerId;
use crate::limits::BROKERS_MAX;
use crate::state::{Bound, Done, InSync, Outcome, Partition, Rejection};

/// What is known of a broker.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Broker {
    /// Where it is reached, the preferred address first.
    pub addresses: Vec<String>,
    /// The newest metadata version that it applies.
    pub knows: u32,
    /// When it was registered or changed last: the leader's clock, ms since 1970.
    pub registered_ms: u64,
}

#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct Brokers(BTreeMap<BrokerId, Broker>);

impl Brokers {
    pub(crate) fn get(&self, id: BrokerId) -> Option<&Broker> {
        self.0.get(&id)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (BrokerId, &Broker)> {
        self.0.iter().map(|(id, broker)| (*id, broker))
    }

    /// What is registered again as it is stays as it is, the time included.
    pub(crate) fn register(&mut self, id: BrokerId, new: Broker) -> Outcome {
        let is_full = self.0.len() == BROKERS_MAX;
        match self.0.get_mut(&id) {
            Some(old) if old.addresses == new.addresses && old.knows == new.knows => {
                Ok(Done::Unchanged)
            }
            Some(old) => {
                *old = new;
                Ok(Done::Changed)
            }
            None if is_full => Err(Rejection::Full { bound: Bound::Brokers }),
            None => {
                self.0.insert(id, new);
                Ok(Done::Created)
            }
        }
    }

    pub(crate) fn unregister(&mut self, id: BrokerId) -> Outcome {
        let gone = self.0.remove(&id);
        gone.map(|_| Done::Changed).ok_or(Rejection::BrokerNotFound { broker: id })
    }

    /// Takes one from a snapshot, in ascending order; false when it cannot be there.
    pub(crate) fn restore(&mut self, id: BrokerId, broker: Broker) -> bool {
        let is_last = self.0.last_key_value().is_none_or(|(last, _)| *last < id);
        is_last && self.0.len() < BROKERS_MAX && self.0.insert(id, broker).is_none()
    }

    /// Places the partitions of a topic that is made at `offset`, as Kafka does: the first replicas go
    /// round all brokers, from one on that depends on the offset, so that small topics do not all
    /// begin with the same broker. The others follow the first at a distance that grows with each
    /// round, so that what one broker led is not all led by its neighbour when it goes.
    ///
    /// The first replica leads, in leader epoch 1, and all are in sync: there is nothing to be had yet.
    pub(crate) fn place(
        &self,
        offset: u64,
        partitions: usize,
        replication_factor: u16,
    ) -> Result<Vec<Partition>, Rejection> {
        let brokers: Vec<BrokerId> = self.0.keys().copied().collect();
        let (count, copies) = (brokers.len(), usize::from(replication_factor));
        if count < copies {
            let registered = u32::try_from(count).expect("brokers are limited");
            return Err(Rejection::TooFewBrokers { asked: replication_factor, registered });
        }
        let start = usize::try_from(offset % count as u64).expect("less than a count");
        let replica = |partition: usize, copy: usize| {
            let (first, round) = ((start + partition) % count, start + partition / count);
            let distance = if copy == 0 { 0 } else { 1 + (round + copy - 1) % (count - 1) };
            brokers[(first + distance) % count]
        };
        let place = |partition| {
            let replicas: Vec<_> = (0..copies).map(|copy| replica(partition, copy)).collect();
            Partition {
                leader: Some(replicas[0]),
                leader_epoch: 1,
                in_sync: InSync::all(&replicas),
                replicas,
                high_watermark: 0,
            }
        };
        Ok((0..partitions).map(place).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn brokers(count: u64) -> Brokers {
        let mut brokers = Brokers::default();
        for id in 1..=count {
            let broker = Broker { addresses: vec![], knows: 1, registered_ms: 0 };
            assert_eq!(brokers.register(BrokerId::new(id), broker), Ok(Done::Created));
        }
        brokers
    }

    fn replicas(brokers: &Brokers, offset: u64, partitions: usize, copies: u16) -> Vec<Vec<u64>> {
        let placed = brokers.place(offset, partitions, copies).unwrap();
        let ids =
            |partition: Partition| partition.replicas.into_iter().map(BrokerId::get).collect();
        placed.into_iter().map(ids).collect()
    }

    #[test]
    fn partitions_go_round_the_brokers() {
        let three = brokers(3);
        let round = [vec![1, 2], vec![2, 3], vec![3, 1], vec![1, 3], vec![2, 1], vec![3, 2]];
        assert_eq!(replicas(&three, 0, 6, 2), round);
        assert_eq!(replicas(&three, 4, 1, 3), [vec![2, 1, 3]], "it begins elsewhere");
        assert_eq!(replicas(&brokers(1), 7, 2, 1), [vec![1], vec![1]]);
    }

    #[test]
    fn replicas_are_distinct_and_even() {
        for (count, offset) in (1..8).flat_map(|count| (0..20).map(move |offset| (count, offset))) {
            for copies in 1..=count as u16 {
                let rounds = count as usize * 3;
                let placed = replicas(&brokers(count), offset, rounds, copies);
                let mut held = BTreeMap::new();
                for replicas in &placed {
                    let distinct: BTreeSet<_> = replicas.iter().collect();
                    assert_eq!(distinct.len(), usize::from(copies));
                    replicas.iter().for_each(|broker| *held.entry(*broker).or_insert(0) += 1);
                }
                assert!(held.values().all(|held| *held == 3 * copies), "{held:?}");
            }
        }
    }

    #[test]
    fn no_copy_is_left_out_silently() {
        let few = |asked, registered| Rejection::TooFewBrokers { asked, registered };
        assert_eq!(brokers(2).place(0, 1, 3), Err(few(3, 2)));
        assert_eq!(brokers(0).place(0, 1, 1), Err(few(1, 0)));
    }
}
