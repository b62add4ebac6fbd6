//! What is in the metadata store: topics, brokers, keys and watermarks.

use anyhow::Result;
use ringwal_raft_fallback::operator::{
    Answer, BrokerLine, DoneShown, Executed, ExpectedKey, KeyLine, Look, PartitionLine, Text,
    TopicLine, Write,
};
use serde_json::{Value, json};

use super::asking::Cluster;
use super::show::{self, Table, list, optional};
use crate::cli::{
    AckName, BrokerArgs, BrokerCommand, ClientArgs, ExpectedArgs, KeyArgs, KeyCommand, ReadArgs,
    TopicArgs, TopicCommand, WatermarkArgs, WatermarkCommand, WriteArgs,
};
use crate::exit::{Exit, Failure};

/// `ringwal topic`.
pub fn topic(args: &TopicArgs) -> Result<Exit> {
    match &args.command {
        TopicCommand::Create { name, partitions, replication_factor, settings, write, client } => {
            let create = Write::CreateTopic {
                name: name.clone(),
                partitions: *partitions,
                replication_factor: *replication_factor,
                configuration: settings.iter().cloned().collect(),
            };
            execute(client, write, create, &format!("topic {name}"))
        }
        TopicCommand::Delete { name, write, client } => {
            let delete = Write::DeleteTopic { name: name.clone() };
            execute(client, write, delete, &format!("topic {name}"))
        }
        TopicCommand::List { read, client } => topics(client, read),
        TopicCommand::Get { name, read, client } => show_topic(client, read, name),
    }
}

/// `ringwal broker`.
pub fn broker(args: &BrokerArgs) -> Result<Exit> {
    match &args.command {
        BrokerCommand::Register { broker, addresses, write, client } => {
            let register = Write::RegisterBroker { broker: *broker, addresses: addresses.clone() };
            execute(client, write, register, &format!("broker {broker}"))
        }
        BrokerCommand::Unregister { broker, write, client } => {
            let unregister = Write::UnregisterBroker { broker: *broker };
            execute(client, write, unregister, &format!("broker {broker}"))
        }
        BrokerCommand::List { read, client } => brokers(client, read),
    }
}

/// `ringwal key`.
pub fn key(args: &KeyArgs) -> Result<Exit> {
    match &args.command {
        KeyCommand::Put { key, value, expected, write, client } => {
            let put = Write::PutKey {
                key: key.as_str().into(),
                value: value.as_str().into(),
                expected: expected_of(expected),
            };
            execute(client, write, put, &format!("key {key}"))
        }
        KeyCommand::Delete { key, expected, write, client } => {
            let delete =
                Write::DeleteKey { key: key.as_str().into(), expected: expected_of(expected) };
            execute(client, write, delete, &format!("key {key}"))
        }
        KeyCommand::Get { key, read, client } => {
            let look = Look::Key { key: key.as_str().into() };
            let answer = look_at(&mut Cluster::open(client)?, look, read)?;
            let Answer::Key { applied, value, epoch, offset } = answer else {
                return Err(unexpected(&answer));
            };
            let json = json!({
                "key": key, "value": value, "epoch": epoch, "offset": offset, "applied": applied,
            });
            let text = || format!("{value}\nversion {epoch}:{offset}\n");
            show::print(client.json, &json, text).map(|()| Exit::Success)
        }
        KeyCommand::List { prefix, read, client } => keys(client, read, prefix),
    }
}

/// `ringwal watermark`.
pub fn watermark(args: &WatermarkArgs) -> Result<Exit> {
    match &args.command {
        WatermarkCommand::Raise { topic, partition, offset, write, client } => {
            let raise = Write::RaiseWatermark {
                topic: topic.clone(),
                partition: *partition,
                offset: *offset,
            };
            execute(client, write, raise, &format!("partition {partition} of topic {topic}"))
        }
        WatermarkCommand::Get { topic, partition, read, client } => {
            let look = Look::Watermark { topic: topic.clone(), partition: *partition };
            let answer = look_at(&mut Cluster::open(client)?, look, read)?;
            let Answer::Watermark { applied, high_watermark } = answer else {
                return Err(unexpected(&answer));
            };
            let json = json!({"high_watermark": high_watermark, "applied": applied});
            let text = || format!("{high_watermark}\n");
            show::print(client.json, &json, text).map(|()| Exit::Success)
        }
    }
}

fn expected_of(args: &ExpectedArgs) -> ExpectedKey {
    match args.if_version {
        Some((epoch, offset)) => ExpectedKey::Version { epoch, offset },
        None if args.if_absent => ExpectedKey::Absent,
        None => ExpectedKey::Any,
    }
}

/// Executes a command, and says what came of it.
fn execute(client: &ClientArgs, args: &WriteArgs, write: Write, what: &str) -> Result<Exit> {
    let executed = Cluster::open(client)?.execute(write, args.ack == AckName::Quorum)?;
    show::print(client.json, &executed, || said(&executed, what)).map(|()| Exit::Success)
}

fn said(executed: &Executed, what: &str) -> String {
    let done = match executed.done {
        DoneShown::TopicCreated { topic } => format!("{what} is created, id {topic}"),
        DoneShown::TopicDeleted { partitions, .. } => {
            format!("{what} with {partitions} partitions is deleted")
        }
        DoneShown::Created => format!("{what} is new"),
        DoneShown::Changed => format!("{what} is changed"),
        DoneShown::Unchanged => format!("{what} is as it was"),
        DoneShown::Watermarks { unknown: 1.., .. } => format!("{what} is not there"),
        DoneShown::Watermarks { raised: 0, .. } => format!("{what} is as high already"),
        DoneShown::Watermarks { .. } => format!("the high watermark of {what} is raised"),
    };
    let durable = if executed.quorum { "on a majority" } else { "on the leader" };
    let again = if executed.is_retry { ", by an earlier attempt" } else { "" };
    let (epoch, offset) = (executed.epoch, executed.offset);
    format!("{done} ({durable}, epoch {epoch}, offset {offset}{again})\n")
}

/// What is not there is a failure.
fn look_at(cluster: &mut Cluster, look: Look, read: &ReadArgs) -> Result<Answer> {
    match cluster.look(look, read.linearizable)? {
        Answer::NotFound { applied, what } => {
            let failure = Failure::new(Exit::Failure, format!("there is no {what}"));
            let failure = failure.cause(format!(
                "the node that was asked has applied everything below offset {applied}"
            ));
            Err(match read.linearizable {
                true => failure.into(),
                false => failure.fix("--linearizable, if it is new").into(),
            })
        }
        answer => Ok(answer),
    }
}

fn unexpected(answer: &Answer) -> anyhow::Error {
    Failure::new(Exit::Failure, "a node answers what nobody asked")
        .cause(format!("{answer:?}"))
        .into()
}

fn topics(client: &ClientArgs, read: &ReadArgs) -> Result<Exit> {
    let mut cluster = Cluster::open(client)?;
    let mut all: Vec<TopicLine> = Vec::new();
    let upto = loop {
        let after = all.last().map_or(0, |line| line.id);
        match look_at(&mut cluster, Look::Topics { after }, read)? {
            Answer::Topics { applied, topics, more } => {
                all.extend(topics);
                if !more {
                    break applied;
                }
            }
            other => return Err(unexpected(&other)),
        }
    };
    let text = || {
        let mut table = Table::new(["topic", "id", "partitions", "replication"]);
        for line in &all {
            let replication = line.replication_factor.to_string();
            let (id, partitions) = (line.id.to_string(), line.partitions.to_string());
            table.row([line.name.clone(), id, partitions, replication]);
        }
        table.text()
    };
    show::print(client.json, &json!({"applied": upto, "topics": all}), text)?;
    Ok(Exit::Success)
}

fn show_topic(client: &ClientArgs, read: &ReadArgs, name: &str) -> Result<Exit> {
    let mut cluster = Cluster::open(client)?;
    let mut partitions: Vec<PartitionLine> = Vec::new();
    let topic = loop {
        let look = Look::Topic { name: name.to_owned(), from: partitions.len() as u32 };
        match look_at(&mut cluster, look, read)? {
            Answer::Topic(mut topic) => {
                partitions.append(&mut topic.shown);
                if !topic.more {
                    break topic;
                }
            }
            other => return Err(unexpected(&other)),
        }
    };
    let json: Value = json!({
        "name": name, "id": topic.line.id, "replication_factor": topic.line.replication_factor,
        "created_ms": topic.created_ms, "configuration": topic.configuration,
        "partitions": partitions, "applied": topic.applied,
    });
    let text = || {
        let mut text = format!("topic {name}, id {}\n", topic.line.id);
        for (key, value) in &topic.configuration {
            text += &format!("{key}={value}\n");
        }
        let mut table =
            Table::new(["partition", "stream", "leader", "replicas", "in sync", "watermark"]);
        for line in &partitions {
            table.row([
                line.partition.to_string(),
                line.stream.to_string(),
                optional(line.leader.as_ref()),
                list(&line.replicas),
                list(&line.in_sync),
                line.high_watermark.to_string(),
            ]);
        }
        text + &table.text()
    };
    show::print(client.json, &json, text).map(|()| Exit::Success)
}

fn brokers(client: &ClientArgs, read: &ReadArgs) -> Result<Exit> {
    let mut cluster = Cluster::open(client)?;
    let mut all: Vec<BrokerLine> = Vec::new();
    let upto = loop {
        let after = all.last().map(|line| line.broker);
        match look_at(&mut cluster, Look::Brokers { after }, read)? {
            Answer::Brokers { applied, brokers, more } => {
                all.extend(brokers);
                if !more {
                    break applied;
                }
            }
            other => return Err(unexpected(&other)),
        }
    };
    let text = || {
        let mut table = Table::new(["broker", "addresses"]);
        for line in &all {
            table.row([line.broker.to_string(), list(&line.addresses)]);
        }
        table.text()
    };
    show::print(client.json, &json!({"applied": upto, "brokers": all}), text)?;
    Ok(Exit::Success)
}

fn keys(client: &ClientArgs, read: &ReadArgs, prefix: &str) -> Result<Exit> {
    let mut cluster = Cluster::open(client)?;
    let mut all: Vec<KeyLine> = Vec::new();
    let upto = loop {
        let after: Option<Text> = all.last().map(|line| line.key.clone());
        match look_at(&mut cluster, Look::Keys { prefix: prefix.into(), after }, read)? {
            Answer::Keys { applied, keys, more } => {
                all.extend(keys);
                if !more {
                    break applied;
                }
            }
            other => return Err(unexpected(&other)),
        }
    };
    let text = || {
        let mut table = Table::new(["key", "bytes", "version"]);
        for line in &all {
            let version = format!("{}:{}", line.epoch, line.offset);
            table.row([line.key.to_string(), line.bytes.to_string(), version]);
        }
        table.text()
    };
    show::print(client.json, &json!({"applied": upto, "keys": all}), text)?;
    Ok(Exit::Success)
}
