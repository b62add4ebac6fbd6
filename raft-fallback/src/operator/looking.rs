//! Answers from a state.

use super::{
    Answer, BrokerLine, Failed, KeyLine, Look, PAGE, PAGE_OF_BROKERS, PartitionLine, Text,
    TopicLine, TopicShown,
};
use crate::command::{BrokerId, TopicName};
use crate::state::{Broker, KeyValue, Partition, State, Topic, TopicId};

/// Answers.
pub(crate) fn look_at(state: &State, look: Look) -> Result<Answer, Failed> {
    let applied = state.end();
    let not_found = |what: String| Ok(Answer::NotFound { applied, what });
    match look {
        Look::Topics { after } => {
            let later = state.topics().filter(|(id, _)| id.get() > after);
            let (topics, more) = page(PAGE, later.map(|(id, topic)| topic_line(id, topic)));
            Ok(Answer::Topics { applied, topics, more })
        }
        Look::Topic { name, from } => match state.topic(&topic_name(&name)?) {
            Some((id, topic)) => {
                let partitions = (0..).zip(&topic.partitions).skip(from as usize);
                let (shown, more) = page(
                    PAGE,
                    partitions.map(|(number, placed)| partition_line(id, number, placed)),
                );
                Ok(Answer::Topic(TopicShown {
                    applied,
                    line: topic_line(id, topic),
                    created_ms: topic.created_ms,
                    configuration: topic
                        .configuration
                        .iter()
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .collect(),
                    shown,
                    more,
                }))
            }
            None => not_found(format!("topic {name}")),
        },
        Look::Brokers { after } => {
            let is_later = |id: BrokerId| after.is_none_or(|after| id.get() > after);
            let later = state.brokers().filter(|(id, _)| is_later(*id));
            let (brokers, more) =
                page(PAGE_OF_BROKERS, later.map(|(id, broker)| broker_line(id, broker)));
            Ok(Answer::Brokers { applied, brokers, more })
        }
        Look::Key { key } => match state.key(key.as_bytes()) {
            Some(KeyValue { value, version }) => Ok(Answer::Key {
                applied,
                value: value.clone().into(),
                epoch: version.epoch,
                offset: version.offset,
            }),
            None => not_found(format!("key {key}")),
        },
        Look::Keys { prefix, after } => {
            let after = after.as_ref().map(Text::as_bytes);
            let (keys, more) = page(
                PAGE,
                state
                    .keys(prefix.as_bytes())
                    .filter(|(key, _)| after.is_none_or(|after| *key > after))
                    .map(|(key, value)| key_line(key, value)),
            );
            Ok(Answer::Keys { applied, keys, more })
        }
        Look::Watermark { topic, partition } => {
            let found = state.topic(&topic_name(&topic)?);
            match found.and_then(|(id, _)| state.watermark(id, partition)) {
                Some(high_watermark) => Ok(Answer::Watermark { applied, high_watermark }),
                None => not_found(format!("partition {partition} of topic {topic}")),
            }
        }
    }
}

fn topic_name(name: &str) -> Result<TopicName, Failed> {
    TopicName::new(name).map_err(|error| Failed::Refused { why: error.to_string() })
}

/// The first of them, and whether there are more.
fn page<T>(count: usize, mut all: impl Iterator<Item = T>) -> (Vec<T>, bool) {
    let first = all.by_ref().take(count).collect();
    (first, all.next().is_some())
}

fn topic_line(id: TopicId, topic: &Topic) -> TopicLine {
    TopicLine {
        id: id.get(),
        name: topic.name.as_str().to_owned(),
        partitions: topic.partitions.len() as u32,
        replication_factor: topic.replication_factor,
    }
}

fn partition_line(id: TopicId, partition: u32, placed: &Partition) -> PartitionLine {
    PartitionLine {
        partition,
        stream: id.stream(partition).get(),
        leader: placed.leader.map(BrokerId::get),
        leader_epoch: placed.leader_epoch,
        replicas: placed.replicas.iter().map(|broker| broker.get()).collect(),
        in_sync: placed.in_sync().map(|broker| broker.get()).collect(),
        high_watermark: placed.high_watermark,
    }
}

fn broker_line(id: BrokerId, broker: &Broker) -> BrokerLine {
    BrokerLine {
        broker: id.get(),
        addresses: broker.addresses.clone(),
        knows: broker.knows,
        registered_ms: broker.registered_ms,
    }
}

fn key_line(key: &[u8], KeyValue { value, version }: &KeyValue) -> KeyLine {
    let (epoch, offset) = (version.epoch, version.offset);
    KeyLine { key: key.to_vec().into(), bytes: value.len() as u64, epoch, offset }
}
