//! `ringwal recover-majority`: one node goes on alone, because the others are gone for good.

use anyhow::{Context as _, Result};
use ringwal_engine::Engine;
use ringwal_raft_fallback::{GivenUp, MajorityError, give_up_majority};
use serde_json::json;

use crate::cli::MajorityArgs;
use crate::exit::{self, Exit, Failure};
use crate::{logging, nodes};

/// Runs the subcommand.
pub fn run(args: &MajorityArgs) -> Result<Exit> {
    logging::start(args.log);
    if !args.accept_data_loss {
        return Err(Failure::usage("the majority is not given up without --accept-data-loss")
            .cause("everything that only the other nodes have would be lost, also what was acknowledged")
            .fix("start as many of the other nodes as make a majority with this one: nothing is lost then")
            .or("when they are gone for good: the directory of the node that is furthest, with --accept-data-loss")
            .into());
    }
    let config = nodes::read_store_config(&args.config)?.replication;
    let members = config.members.iter();
    let me = members.clone().find(|member| member.node == config.node);
    let me = me.context("the configuration does not name its own node among the members")?.clone();
    // Opening would make one.
    if !args.directory.is_dir() {
        let what = format!("there is no directory {}", args.directory.display());
        return Err(Failure::usage(what)
            .fix("give the directory of the node that goes on: --directory node-2")
            .into());
    }
    let engine = Engine::options().lock_wait(nodes::LOCK_WAIT);
    let engine = engine.open(&args.directory).map_err(|error| Failure::open(&error))?;
    let given_up = give_up_majority(&engine, &me);
    engine.close().context("closing the engine")?;
    let GivenUp { members, index, metadata_end } = given_up.map_err(|error| match &error {
        MajorityError::Alone(_) | MajorityError::NoCluster | MajorityError::NotAMember(_) => {
            Failure::usage(error.to_string())
        }
        _ => Failure::new(Exit::Failure, error.to_string()),
    })?;
    let others: Vec<u64> =
        members.iter().filter(|node| **node != me.node).map(|node| node.get()).collect();
    if args.json {
        let said = json!({
            "node": me.node.get(), "given_up": others, "index": index, "metadata_end": metadata_end,
        });
        exit::print(&format!("{said}\n"))?;
    } else {
        let names: Vec<String> = others.iter().map(u64::to_string).collect();
        let names = names.join(", ");
        exit::print(&format!(
            "node {} goes on alone, with {metadata_end} records of the metadata stream\n\
             given up: nodes {names}; they must never be started with their directories again\n\
             next: start it, then add new nodes (ringwal node --join, ringwal member add)\n",
            me.node
        ))?;
    }
    Ok(Exit::Success)
}
