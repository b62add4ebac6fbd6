//! A trace in words: what each step does, and where the nodes are after it.

use crate::state::{Entry, Node, Record, State};
use crate::step::Action;

pub fn step(before: &State, action: Action) -> String {
    match action {
        Action::Elect { node } => format!("node {node} is elected in term {}", before.term + 1),
        Action::LoseLease { node } => format!("the lease of node {node} lapses"),
        Action::RenewLease { node } => format!("node {node} has the lease again"),
        Action::Append { node } => format!("node {node} appends a record and sends it"),
        Action::Flush { node } => format!("what is in flight on node {node} is durable"),
        Action::TakeFrame { node } => format!("node {node} takes the next frame"),
        Action::Report { node, to } => {
            format!(
                "node {node} reports its durable end {} to node {to}",
                before.nodes[node].durable
            )
        }
        Action::Commit { node } => format!("node {node} counts a majority: the watermark rises"),
        Action::LearnWatermark { node, from } => {
            format!("node {node} learns the watermark from node {from}")
        }
        Action::Answer { node } => format!("node {node} answers: done, local"),
        Action::SwitchOff { node } => format!("node {node} switches the fast path off"),
        Action::SwitchOn { node } => format!("node {node} switches the fast path on"),
        Action::QueueExtend { node } => format!("node {node} wants to propose an Extend"),
        Action::Propose { node, again } => format!(
            "node {node} proposes {}{}",
            entry(&before.nodes[node].queued),
            if again { ", and will once more" } else { "" }
        ),
        Action::Apply { node } => {
            let index = usize::from(before.nodes[node].applied);
            let logged = before.log.get(index).map(|it| (it.term, entry(&it.entry)));
            let (term, entry) = logged.unwrap_or_default();
            format!("node {node} applies {entry}, an entry of term {term}")
        }
        Action::Promise { node, to } => format!("node {node} promises, and answers node {to}"),
        Action::Fetch { node } => {
            format!("node {node} fetches what is greatest, and wants to propose its EpochStart")
        }
        Action::Crash { node, keep, replay } => format!(
            "node {node} {} and restarts{}",
            if keep { "is killed" } else { "loses power" },
            if replay { ", to apply the last entry once more" } else { "" }
        ),
        Action::LoseDisk { node } => format!("node {node} loses its disk"),
        Action::Readmit { node, by } => format!("node {by} admits node {node} again"),
        Action::Snapshot { node, from } => {
            format!("node {node} installs a Raft snapshot of node {from}")
        }
        Action::Feed { node } => format!("node {node} applies its records to its state machine"),
    }
}

fn entry(entry: &Entry) -> String {
    match entry {
        Entry::Nothing => "nothing".to_owned(),
        Entry::Blank => "a blank entry".to_owned(),
        Entry::EpochStart { epoch, start } => format!("EpochStart(epoch {epoch}, start {start})"),
        Entry::Extend { epoch, base, records: list } => {
            format!("Extend(epoch {epoch}, base {base}, {})", records(list))
        }
    }
}

pub fn nodes(state: &State) -> String {
    let nodes: Vec<String> = state.nodes.iter().enumerate().map(node).collect();
    nodes.join("; ")
}

fn node((number, node): (usize, &Node)) -> String {
    let (durable, in_flight) = node.stream.split_at(usize::from(node.durable));
    let mut text = format!("{number}: {}", records(durable));
    if !in_flight.is_empty() {
        text += &format!("+{}", records(in_flight));
    }
    text += &format!(" watermark {} epoch {}", node.watermark, node.epoch());
    if node.promised != node.epoch() {
        text += &format!(" promised {}", node.promised);
    }
    if let Some(leads) = node.leads {
        text += if leads.open { " leads in " } else { " elected in " };
        text += &leads.epoch.to_string();
    }
    if !node.votes {
        text += " without a vote";
    }
    text
}

/// `a1` is the first record that was made, in epoch 1.
fn records(records: &[Record]) -> String {
    let names = records.iter().map(|record| {
        format!("{}{}", char::from(b'a' + record.value.saturating_sub(1)), record.epoch)
    });
    format!("[{}]", names.collect::<Vec<_>>().join(" "))
}
