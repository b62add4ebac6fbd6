//! Asks the nodes of a cluster, one after the other, until one has done it or time is up.
//!
//! A command has a session, so that it executes once although several nodes are asked. What has none is
//! such that doing it twice is doing it once.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ringwal_raft_fallback::operator::{
    Answer, Ask, CommandId, Executed, Failed, Look, Place, Question, Status, VERSION, Write,
};
use ringwal_replication::config::{ClusterConfig, Member};
use ringwal_replication::node_id::NodeId;
use ringwal_replication::requests::Client;

use crate::cli::ClientArgs;
use crate::exit::{Exit, Failure};
use crate::nodes;

/// A node has so long to be reached, and then so long to answer, before another one is asked.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Between two rounds through all nodes.
const PAUSE: Duration = Duration::from_millis(100);
/// What an answer takes on its way.
const MARGIN: Duration = Duration::from_millis(50);

/// A cluster that is asked.
pub struct Cluster {
    config: ClusterConfig,
    limit: Duration,
    deadline: Instant,
    /// The nodes to ask, the next one first: at first those of the file, later also those of answers.
    order: Vec<Member>,
    clients: BTreeMap<NodeId, Client>,
    /// What nodes have said instead of doing it, for the error.
    said: BTreeMap<NodeId, String>,
}

/// Why there is no answer.
struct Unanswered {
    why: String,
    may_be_done: bool,
}

impl Cluster {
    /// The cluster of the command line.
    pub fn open(args: &ClientArgs) -> Result<Cluster> {
        Ok(Self::of(read_config(&args.config)?, args.deadline))
    }

    /// A cluster that is known.
    pub fn of(config: ClusterConfig, limit: Duration) -> Cluster {
        let order = config.members.clone();
        let deadline = Instant::now() + limit;
        let (clients, said) = (BTreeMap::new(), BTreeMap::new());
        Cluster { config, limit, deadline, order, clients, said }
    }

    /// The nodes of its file.
    pub fn members(&self) -> &[Member] {
        &self.config.members
    }

    /// Looks at the state, wherever that is answered first.
    pub fn look(&mut self, look: Look, linearizable: bool) -> Result<Answer> {
        self.ask_around(&Ask::Look { look, linearizable })
    }

    /// Executes a command, once.
    pub fn execute(&mut self, write: Write, quorum: bool) -> Result<Executed> {
        let ask = Ask::Execute { write, quorum };
        let mut command = self.begin_session()?;
        // Whether an attempt may have done it.
        let mut may_be_done = false;
        loop {
            for member in self.order.clone() {
                if self.is_late() {
                    return Err(self.late(may_be_done));
                }
                match self.attempt(&member, &ask, Some(command)) {
                    Ok(Answer::Executed(executed)) => return Ok(executed),
                    Ok(Answer::Failed(Failed::Rejected { code, why })) => {
                        // What the session began with was cut meanwhile, so that nothing is done yet.
                        if code == "session_ahead" && !may_be_done {
                            command = self.begin_session()?;
                            continue;
                        }
                        return Err(rejected(&why));
                    }
                    Ok(Answer::Failed(Failed::Refused { why })) => return Err(rejected(&why)),
                    Ok(Answer::Failed(Failed::NotLeader { leader })) => {
                        self.prefer(leader.as_ref())
                    }
                    Ok(Answer::Failed(failed)) => {
                        may_be_done |= matches!(failed, Failed::Unknown { .. });
                        self.note(&member, failed.to_string());
                    }
                    Ok(other) => return Err(unexpected(&member, &other)),
                    Err(unanswered) => {
                        may_be_done |= unanswered.may_be_done;
                        self.note(&member, unanswered.why);
                    }
                }
            }
            self.pause();
        }
    }

    /// Changes the cluster, where its leader is. `is_done` tells from a status whether an attempt without
    /// an answer has done it.
    pub fn change(&mut self, ask: &Ask, is_done: impl Fn(&Status) -> bool) -> Result<()> {
        let mut may_be_done = false;
        loop {
            for member in self.order.clone() {
                if self.is_late() {
                    return Err(self.late(may_be_done));
                }
                if may_be_done && self.status_of(&member).is_ok_and(|status| is_done(&status)) {
                    return Ok(());
                }
                let left = self.left();
                match self.attempt_within(&member, ask, None, left) {
                    Ok(Answer::Done) => return Ok(()),
                    Ok(Answer::Failed(Failed::NotLeader { leader })) => {
                        self.note(&member, "it does not lead".to_owned());
                        if leader.is_some() {
                            self.prefer(leader.as_ref());
                            // Now that one is the first.
                            break;
                        }
                    }
                    Ok(Answer::Failed(Failed::Refused { why } | Failed::Rejected { why, .. })) => {
                        return Err(rejected(&why));
                    }
                    Ok(Answer::Failed(failed)) => {
                        may_be_done |= matches!(failed, Failed::Unknown { .. });
                        self.note(&member, failed.to_string());
                    }
                    Ok(other) => return Err(unexpected(&member, &other)),
                    Err(unanswered) => {
                        may_be_done |= unanswered.may_be_done;
                        self.note(&member, unanswered.why);
                    }
                }
            }
            self.pause();
        }
    }

    /// How any node is.
    pub fn status(&mut self) -> Result<Status> {
        let answer = self.ask_around(&Ask::Status)?;
        let Answer::Status(status) = answer else {
            return Err(Failure::new(Exit::Failure, "a node answers what nobody asked").into());
        };
        Ok(*status)
    }

    /// How this node is; why that is not known.
    pub fn status_of(&mut self, member: &Member) -> Result<Status, String> {
        match self.ask_of(member, &Ask::Status)? {
            Answer::Status(status) => Ok(*status),
            other => Err(format!("it answers what nobody asked: {other:?}")),
        }
    }

    /// Asks one node once.
    pub fn ask_of(&mut self, member: &Member, ask: &Ask) -> Result<Answer, String> {
        let limit = ATTEMPT.min(self.left());
        let answer = self.attempt_within(member, ask, None, limit);
        answer.map_err(|unanswered| brief(&unanswered.why).to_owned())
    }

    /// Asks what any node can answer.
    fn ask_around(&mut self, ask: &Ask) -> Result<Answer> {
        loop {
            for member in self.order.clone() {
                if self.is_late() {
                    return Err(self.late(false));
                }
                match self.attempt(&member, ask, None) {
                    Ok(Answer::Failed(Failed::Refused { why })) => return Err(rejected(&why)),
                    Ok(Answer::Failed(failed)) => self.note(&member, failed.to_string()),
                    Ok(answer) => {
                        self.prefer(Some(&Place {
                            node: member.node.get(),
                            address: member.address,
                        }));
                        return Ok(answer);
                    }
                    Err(unanswered) => self.note(&member, unanswered.why),
                }
            }
            self.pause();
        }
    }

    fn begin_session(&mut self) -> Result<CommandId> {
        let begun = self.status()?.applied;
        let mut random = [0; 8];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .context("drawing a random number")?;
        Ok(CommandId { begun, random: u64::from_le_bytes(random).max(1), sequence: 1 })
    }

    fn attempt(
        &mut self,
        member: &Member,
        ask: &Ask,
        command: Option<CommandId>,
    ) -> Result<Answer, Unanswered> {
        let limit = ATTEMPT.min(self.left());
        self.attempt_within(member, ask, command, limit)
    }

    fn attempt_within(
        &mut self,
        member: &Member,
        ask: &Ask,
        command: Option<CommandId>,
        limit: Duration,
    ) -> Result<Answer, Unanswered> {
        let not_asked = |why: String| Unanswered { why, may_be_done: false };
        let limit_ms = limit.saturating_sub(MARGIN).as_millis().max(1) as u64;
        let question = Question { version: VERSION, limit_ms, command, ask: ask.clone() };
        let question = match question.encode() {
            Ok(question) => question,
            Err(failed) => return Ok(Answer::Failed(failed)),
        };
        let mut client = match self.clients.remove(&member.node) {
            Some(client) if client.member() == member => client,
            _ => {
                let (cluster, tls) = (self.config.cluster, self.config.tls.as_ref());
                Client::connect(cluster, member, tls, ATTEMPT.min(limit))
                    .map_err(|error| not_asked(error.to_string()))?
            }
        };
        let reply = client.ask(question, limit).map_err(|error| Unanswered {
            why: error.to_string(),
            may_be_done: error.may_be_done(),
        })?;
        let answer = Answer::decode(&reply).map_err(|error| not_asked(error.to_string()))?;
        // A connection whose outcome is not known is of no more use.
        self.clients.insert(member.node, client);
        Ok(answer)
    }

    /// Asks this node next.
    fn prefer(&mut self, place: Option<&Place>) {
        let Some(Place { node, address }) = place else { return };
        let member = Member { node: NodeId::new(*node), address: address.clone() };
        self.order.retain(|other| other.node != member.node);
        self.order.insert(0, member);
    }

    fn note(&mut self, member: &Member, why: String) {
        let (node, address, why) = (member.node, &member.address, brief(&why));
        self.said.insert(node, format!("node {node} at {address}: {why}"));
    }

    /// Waits a little, as between two rounds; false when time is up.
    pub fn wait(&self) -> bool {
        self.pause();
        !self.is_late()
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn is_late(&self) -> bool {
        self.left() < MARGIN
    }

    fn pause(&self) {
        std::thread::sleep(PAUSE.min(self.left()));
    }

    fn late(&self, may_be_done: bool) -> anyhow::Error {
        let limit = humantime::format_duration(self.limit);
        let error = match may_be_done {
            true => format!("the outcome is unknown after {limit}: it may be done"),
            false => format!("no node has done it within {limit}; it is not done"),
        };
        let mut failure = Failure::new(Exit::Failure, error);
        for said in self.said.values() {
            failure = failure.cause(said);
        }
        let fix = match may_be_done {
            true => "look whether it was done",
            false => "see that a majority of the nodes runs (ringwal status)",
        };
        failure.fix(fix).fix("try for longer: --deadline").into()
    }
}

/// Without what to do about it, which is said once.
fn brief(why: &str) -> &str {
    why.split_once("; ").map_or(why, |(why, _)| why)
}

fn rejected(why: &str) -> anyhow::Error {
    let mut parts = why.split("; ");
    let mut failure = Failure::new(Exit::Failure, parts.next().unwrap_or_default());
    for part in parts {
        failure = failure.fix(part);
    }
    failure.into()
}

fn unexpected(member: &Member, answer: &Answer) -> anyhow::Error {
    let error = format!("node {} answers what nobody asked", member.node);
    Failure::new(Exit::Failure, error).cause(format!("{answer:?}")).into()
}

/// Reads the file of a cluster.
pub fn read_config(path: &Path) -> Result<ClusterConfig> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let error = format!("there is no cluster file {}", path.display());
            return Err(Failure::environment(error)
                .fix("run it in the folder of `ringwal cluster`")
                .fix("name one: --config FILE")
                .into());
        }
        Err(error) => {
            let what = format!("reading the cluster file {}", path.display());
            return Err(anyhow::Error::new(error).context(what));
        }
    };
    ClusterConfig::from_toml(&text)
        .map_err(|error| nodes::refused(path, &text, &error, "is no file of a cluster").into())
}

#[cfg(test)]
mod tests;
