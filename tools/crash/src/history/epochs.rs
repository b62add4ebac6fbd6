//! A leader that has been replaced answers nothing (I-13): who asks after somebody was answered in a later epoch
//! gets no answer of an older one, also none that died with its leader.

use super::{Asked, Outcome};

/// The answers of leaders that had been replaced before they were asked.
pub fn check<'a>(asked: impl IntoIterator<Item = &'a Asked>) -> Vec<String> {
    let of_epoch = |asked: &'a Asked| match &asked.outcome {
        Outcome::Executed { place: Some((epoch, _)), .. } => Some((*epoch, asked)),
        _ => None,
    };
    let mut by_answer: Vec<(u64, &Asked)> = asked.into_iter().filter_map(of_epoch).collect();
    let mut by_question = by_answer.clone();
    by_answer.sort_by_key(|(_, asked)| asked.answered_ns);
    by_question.sort_by_key(|(_, asked)| asked.asked_ns);
    let mut before = by_answer.into_iter().peekable();
    let (mut latest, mut wrong) = (0, Vec::new());
    for (epoch, asked) in by_question {
        while let Some((earlier, _)) = before.next_if(|(_, one)| one.answered_ns < asked.asked_ns) {
            latest = latest.max(earlier);
        }
        if epoch < latest {
            wrong.push(format!("I-13: {asked:?}, and epoch {latest} has been answered in before"));
        }
    }
    wrong
}
