//! How a cluster is, and who is in it.

use std::collections::BTreeSet;

use anyhow::Result;
use ringwal_raft_fallback::operator::{Answer, Ask, Status};
use ringwal_replication::config::Member;
use ringwal_replication::node_id::NodeId;
use serde_json::{Value, json};

use super::asking::Cluster;
use super::show::{self, Table, optional};
use crate::cli::{
    ClientArgs, FastPathAction, FastPathArgs, MemberArgs, MemberCommand, TransferArgs,
};
use crate::exit::{Exit, Failure};

/// What one member says.
struct Said {
    member: Member,
    status: Result<Status, String>,
}

/// `ringwal status`: fails when a member does not answer.
pub fn status(args: &ClientArgs) -> Result<Exit> {
    let all = ask_all(&mut Cluster::open(args)?, &Ask::Status);
    let json: Vec<Value> = all
        .iter()
        .map(|said| match &said.status {
            Ok(status) => json!({"address": said.member.address, "status": status}),
            Err(why) => json!({
                "node": said.member.node.get(), "address": said.member.address, "error": why,
            }),
        })
        .map(flat)
        .collect();
    show::print(args.json, &json!({"nodes": json}), || status_table(&all))?;
    is_all(&all)
}

/// The status beside the address, not inside.
fn flat(mut said: Value) -> Value {
    if let Some(Value::Object(status)) = said.get_mut("status").map(Value::take) {
        let fields = said.as_object_mut().expect("it is made as one");
        fields.remove("status");
        fields.extend(status);
    }
    said
}

fn status_table(all: &[Said]) -> String {
    let mut table = Table::new([
        "node",
        "address",
        "role",
        "epoch",
        "leader",
        "mode",
        "lease",
        "applied",
        "committed",
        "topics",
    ]);
    let mut silent = String::new();
    for Said { member, status } in all {
        let (node, address) = (member.node.to_string(), member.address.clone());
        match status {
            Ok(status) => table.row([
                node,
                address,
                status.role.clone(),
                status.epoch.to_string(),
                optional(status.leader.as_ref()),
                status.mode.clone(),
                if status.has_lease { "held" } else { "-" }.to_owned(),
                status.applied.to_string(),
                status.committed.to_string(),
                status.topics.to_string(),
            ]),
            Err(why) => {
                silent += &format!("node {node}: {why}\n");
                table.row([node, address, "no answer".to_owned()]);
            }
        }
    }
    table.text() + &silent
}

/// Everybody: the members of the file, and those that answers name.
fn ask_all(cluster: &mut Cluster, ask: &Ask) -> Vec<Said> {
    let mut to_ask: Vec<Member> = cluster.members().to_vec();
    let mut asked = BTreeSet::new();
    let mut all = Vec::new();
    while let Some(member) = to_ask.pop() {
        if !asked.insert(member.node) {
            continue;
        }
        let status = match cluster.ask_of(&member, ask) {
            Ok(Answer::Status(status)) => Ok(*status),
            Ok(Answer::Done) => cluster.status_of(&member),
            Ok(Answer::Failed(failed)) => Err(failed.to_string()),
            Ok(other) => Err(format!("it answers what nobody asked: {other:?}")),
            Err(why) => Err(why),
        };
        if let Ok(status) = &status {
            to_ask.extend(status.members.iter().map(|line| Member {
                node: NodeId::new(line.node),
                address: line.address.clone(),
            }));
        }
        all.push(Said { member, status });
    }
    all.sort_by_key(|said| said.member.node);
    all
}

fn is_all(all: &[Said]) -> Result<Exit> {
    let silent = all.iter().filter(|said| said.status.is_err()).count();
    match silent {
        0 => Ok(Exit::Success),
        silent => Err(Failure::new(
            Exit::Failure,
            format!("{silent} of {} nodes do not answer", all.len()),
        )
        .fix("start them again: ringwal node --config node-N.toml")
        .into()),
    }
}

/// `ringwal transfer-leader`.
pub fn transfer_leader(args: &TransferArgs) -> Result<Exit> {
    let mut cluster = Cluster::open(&args.client)?;
    let (to, before) = (args.to, cluster.status()?.leader);
    let is_wanted = |leader: u64| match to {
        Some(to) => leader == to,
        None => Some(leader) != before,
    };
    let is_done = |status: &Status| status.leader.is_some_and(is_wanted);
    cluster.change(&Ask::TransferLeader { to }, is_done)?;
    // It leads when its epoch has begun.
    let leader = loop {
        let leads = ask_all(&mut cluster, &Ask::Status).into_iter().find_map(|said| {
            let status = said.status.ok()?;
            (status.role == "leader" && is_wanted(status.node)).then_some(status)
        });
        if leads.is_some() || !cluster.wait() {
            break leads;
        }
    };
    let Some(Status { node, epoch, .. }) = leader else {
        let error = "the leadership is given away, and nobody else leads yet";
        return Err(Failure::new(Exit::Failure, error).fix("look again: ringwal status").into());
    };
    let json = json!({"leader": node, "epoch": epoch});
    let text = || format!("node {node} leads in epoch {epoch}\n");
    show::print(args.client.json, &json, text).map(|()| Exit::Success)
}

/// `ringwal member`.
pub fn member(args: &MemberArgs) -> Result<Exit> {
    match &args.command {
        MemberCommand::Add { node, address, client } => {
            let ask = Ask::AddMember { node: *node, address: address.clone() };
            let is_there = |status: &Status| {
                status.members.iter().any(|line| line.node == *node && line.address == *address)
            };
            change(client, &ask, is_there, &format!("node {node} is a member, as a learner"))
        }
        MemberCommand::Promote { nodes, client } => {
            let ask = Ask::PromoteMembers { nodes: nodes.clone() };
            let are_voters = |status: &Status| {
                let is_voter =
                    |node: &u64| status.members.iter().any(|m| m.node == *node && m.is_voter);
                nodes.iter().all(is_voter)
            };
            let said = format!("voters now: {} too", show::list(nodes));
            change(client, &ask, are_voters, &said)
        }
        MemberCommand::Remove { node, client } => {
            let ask = Ask::RemoveMember { node: *node };
            let is_gone = |status: &Status| {
                !status.members.is_empty() && status.members.iter().all(|m| m.node != *node)
            };
            change(client, &ask, is_gone, &format!("node {node} is a member no more"))
        }
        MemberCommand::List { client } => members(client),
    }
}

fn change(
    client: &ClientArgs,
    ask: &Ask,
    is_done: impl Fn(&Status) -> bool,
    said: &str,
) -> Result<Exit> {
    let mut cluster = Cluster::open(client)?;
    cluster.change(ask, is_done)?;
    show::print(client.json, &json!({"done": true}), || format!("{said}\n"))?;
    Ok(Exit::Success)
}

fn members(client: &ClientArgs) -> Result<Exit> {
    let status = Cluster::open(client)?.status()?;
    let text = || {
        let mut table = Table::new(["node", "address", "part", "engine"]);
        for line in &status.members {
            let part = match (status.leader == Some(line.node), line.is_voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            };
            let engine = match &line.engine {
                engine if engine.is_empty() => "-".to_owned(),
                engine => engine.clone(),
            };
            table.row([line.node.to_string(), line.address.clone(), part.to_owned(), engine]);
        }
        table.text()
    };
    let json = json!({"leader": status.leader, "members": status.members});
    show::print(client.json, &json, text).map(|()| Exit::Success)
}

/// `ringwal fast-path`.
pub fn fast_path(args: &FastPathArgs) -> Result<Exit> {
    let ask = match args.action {
        FastPathAction::On => Ask::SetFastPath { on: true },
        FastPathAction::Off => Ask::SetFastPath { on: false },
        FastPathAction::Show => Ask::Status,
    };
    let mut cluster = Cluster::open(&args.client)?;
    let mut all = ask_all(&mut cluster, &ask);
    // Commands that are under way get their outcome first.
    let is_under_way = |said: &Said| {
        let is_old = |mode: &str| match args.action {
            FastPathAction::On => mode == "raft (switched_off)",
            FastPathAction::Off => mode == "fast",
            FastPathAction::Show => false,
        };
        said.status.as_ref().is_ok_and(|status| is_old(&status.mode))
    };
    while all.iter().any(is_under_way) && cluster.wait() {
        all = ask_all(&mut cluster, &Ask::Status);
    }
    let json: Vec<Value> = all
        .iter()
        .map(|Said { member, status }| match status {
            Ok(status) => json!({
                "node": member.node.get(), "fast_path": status.fast_path, "mode": status.mode,
            }),
            Err(why) => json!({"node": member.node.get(), "error": why}),
        })
        .collect();
    let text = || {
        let mut table = Table::new(["node", "fast path", "mode"]);
        let mut silent = String::new();
        for Said { member, status } in &all {
            let node = member.node.to_string();
            match status {
                Ok(status) => {
                    let on = if status.fast_path { "on" } else { "off" };
                    table.row([node, on.to_owned(), status.mode.clone()]);
                }
                Err(why) => {
                    silent += &format!("node {node}: {why}\n");
                    table.row([node, "no answer".to_owned()]);
                }
            }
        }
        table.text() + &silent
    };
    show::print(args.client.json, &json!({"nodes": json}), text)?;
    is_all(&all)
}
