//! Two things that a predecessor of this store got wrong, with nothing in the way: many topics that are created
//! rapidly are seen by all nodes; a topic that has just been created is used at once.

use std::time::Duration;

use anyhow::{Result, bail};

use super::operator::Operator;
use crate::nodes::topology::NODES;
use crate::report::Report;

/// Topics that are created together.
const TOPICS: u64 = 100;
/// What a node is told to do is done within this.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs both, on the leader and on a follower. What fails is in the report.
///
/// # Errors
/// When a node says nothing any more.
pub fn run(operator: &mut Operator, report: &mut Report) -> Result<()> {
    let leader = operator.leader(LIMIT)?;
    let follower = (leader + 1) % NODES;
    for (prefix, creator) in [("led", leader), ("followed", follower)] {
        let wait = format!("await {prefix} {TOPICS}");
        // Who waits before there is anything to see, sees it when it comes.
        operator.processes.tell_all(&wait);
        expect(operator.order(creator, &format!("create {prefix} {TOPICS}"), LIMIT)?)?;
        for node in 0..NODES {
            expect(operator.outcome(node, &wait, LIMIT)?)?;
            report.cover("topics created rapidly and seen by a node", TOPICS);
        }
        report.pass(1);
    }
    for (name, creator) in [("used-at-once", leader), ("created-elsewhere-0", follower)] {
        let consume = format!("consume {name} hello");
        operator.processes.tell_all(&consume);
        if creator == leader {
            expect(operator.order(leader, &format!("use {name} hello"), LIMIT)?)?;
        } else {
            let prefix = name.trim_end_matches("-0");
            expect(operator.order(follower, &format!("create {prefix} 1"), LIMIT)?)?;
            expect(operator.order(leader, &format!("produce {name} hello"), LIMIT)?)?;
        }
        for node in 0..NODES {
            expect(operator.outcome(node, &consume, LIMIT)?)?;
            report.cover("topics created and used at once, as a node has it", 1);
        }
        report.pass(1);
    }
    Ok(())
}

fn expect(outcome: Result<(), String>) -> Result<()> {
    match outcome {
        Ok(()) => Ok(()),
        Err(why) => bail!("a scenario: {why}"),
    }
}
