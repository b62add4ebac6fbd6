//! All that clients have asked and were told.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use ringwal_replication::Ack;

use super::lines::{Answer, Question, Told, What};
use super::outside::OUTSIDE;
use crate::history::content::Look;
use crate::history::{Asked, Outcome, Read};
use crate::report::Report;

/// A read that was answered.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who has read.
    pub client: u64,
    /// Epoch that the node was in, if it was told.
    pub progress: Option<u64>,
    /// What was seen.
    pub look: Look,
}

/// What the checker compares with the log.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Commands.
    pub asked: Vec<Asked>,
    /// Linearizable reads.
    pub reads: Vec<Read>,
    /// All reads, those of a client in their order.
    pub seen: Vec<Seen>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Record {
    questions: BTreeMap<u64, Question>,
    told: BTreeMap<u64, Told>,
    /// Commands of which a majority has the record, by whose clients were told so: each node's, and the others'.
    pub committed: [u64; OUTSIDE + 1],
}

impl Record {
    /// Takes a line of clients; whether it was one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn hear(&mut self, node: usize, line: &str) -> Result<bool> {
        if let Some(asked) = line.strip_prefix("ask ") {
            let question: Question = serde_json::from_str(asked).context("a question")?;
            self.questions.insert(question.number, question);
        } else if let Some(told) = line.strip_prefix("told ") {
            let told: Told = serde_json::from_str(told).context("an answer")?;
            if matches!(told.answer, Answer::Executed { is_quorum: true, .. }) {
                self.committed[node] += 1;
            }
            self.told.insert(told.number, told);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// For the checker; counts of all kinds go into the report.
    pub fn history(&self, report: &mut Report) -> History {
        let mut history = History::default();
        for question in self.questions.values() {
            let told = self.told.get(&question.number);
            let (asked_ns, answered_ns) =
                (question.at_ns, told.map_or(u64::MAX, |told| told.at_ns));
            let answer = told.map(|told| &told.answer);
            report.cover(kind(&question.what, answer), 1);
            if let Some(Answer::Executed { is_retry: true, .. }) = answer {
                report.cover("commands that had been executed before", 1);
            }
            match &question.what {
                What::Command(key) => {
                    let outcome = match answer {
                        Some(Answer::Executed { place, did, is_quorum, .. }) => {
                            let durable = if *is_quorum { Ack::Quorum } else { Ack::Local };
                            Outcome::Executed { place: *place, did: did.clone(), durable }
                        }
                        Some(Answer::Refused) => Outcome::Refused,
                        Some(Answer::NotDone) => Outcome::NotDone,
                        _ => Outcome::Unknown,
                    };
                    history.asked.push(Asked { key: *key, asked_ns, answered_ns, outcome });
                }
                What::Read { client, key, is_linearizable } => {
                    let Some(Answer::Saw { epochs, end, version }) = answer else {
                        continue;
                    };
                    let (progress, epoch) = epochs.unzip();
                    let end = *end;
                    if *is_linearizable {
                        history.reads.push(Read { asked_ns, answered_ns, end, epoch });
                    }
                    let key = key.as_bytes().to_vec();
                    let look = Look { end, epoch, key, version: *version };
                    history.seen.push(Seen { client: *client, progress, look });
                }
            }
        }
        history
    }
}

fn kind(what: &What, answer: Option<&Answer>) -> &'static str {
    match (what, answer) {
        (What::Command(_), Some(Answer::Executed { did: Err(_), .. })) => {
            "commands that were rejected"
        }
        (What::Command(_), Some(Answer::Executed { is_quorum: true, .. })) => {
            "commands executed, with a majority"
        }
        (What::Command(_), Some(Answer::Executed { .. })) => "commands executed, on the leader",
        (What::Command(_), Some(Answer::Refused)) => "commands refused because of their session",
        (What::Command(_), Some(Answer::NotDone)) => "commands that are certainly not done",
        (What::Command(_), Some(_)) => "commands whose outcome is unknown",
        (What::Command(_), None) => "commands whose client died",
        (What::Read { is_linearizable: false, .. }, _) => "local reads",
        (What::Read { .. }, Some(Answer::Saw { .. })) => "linearizable reads",
        (What::Read { .. }, _) => "linearizable reads that were not confirmed",
    }
}
