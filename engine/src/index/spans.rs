//! The parts of a stream that segments hold.

use std::ops::Range;

/// Offsets of a stream that one segment holds.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Span {
    pub(crate) base: u64,
    pub(crate) end: u64,
    pub(crate) generation: u64,
}

/// Takes `range` out of `spans` and gives it to `generation`, if any. Returns who lost how many
/// records. Neighbours of one segment become one span: moved frames come one by one.
pub(super) fn replace_spans(
    spans: &mut Vec<Span>,
    range: Range<u64>,
    generation: Option<u64>,
) -> Vec<(u64, u64)> {
    let mut first = spans.partition_point(|span| span.end <= range.start);
    let mut until = spans.partition_point(|span| span.base < range.end).max(first);
    let touched = &spans[first..until];
    let lost = touched
        .iter()
        .map(|span| (span.generation, span.end.min(range.end) - span.base.max(range.start)));
    let lost = lost.collect();
    let before = touched.first().filter(|span| span.base < range.start);
    let before = before.map(|span| Span { end: range.start, ..*span });
    let after = touched.last().filter(|span| span.end > range.end);
    let after = after.map(|span| Span { base: range.end, ..*span });
    let mut parts: Vec<Span> = before.into_iter().collect();
    if let Some(generation) = generation {
        parts.push(Span { base: range.start, end: range.end, generation });
    }
    parts.extend(after);
    if let (Some(part), Some(left)) = (parts.first_mut(), first.checked_sub(1))
        && spans[left].end == part.base
        && spans[left].generation == part.generation
    {
        part.base = spans[left].base;
        first = left;
    }
    if let (Some(part), Some(right)) = (parts.last_mut(), spans.get(until))
        && right.base == part.end
        && right.generation == part.generation
    {
        part.end = right.end;
        until += 1;
    }
    parts.dedup_by(|next, part| {
        let joins = part.end == next.base && part.generation == next.generation;
        if joins {
            part.end = next.end;
        }
        joins
    });
    spans.splice(first..until, parts);
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn spans_are_those_of_a_plain_array(
            changes in proptest::collection::vec((0u64..40, 1u64..20, 0u64..4), 0..40)
        ) {
            let mut spans = Vec::new();
            let mut plain = [None; 64];
            for (base, length, generation) in changes {
                // 0 takes the range away.
                let generation = Some(generation).filter(|generation| *generation > 0);
                let range = base..base + length;
                let lost = replace_spans(&mut spans, range.clone(), generation);
                let held = plain[base as usize..range.end as usize].iter().flatten().count();
                assert_eq!(lost.iter().map(|(_, records)| records).sum::<u64>(), held as u64);
                plain[base as usize..range.end as usize].fill(generation);
                let mut seen = [None; 64];
                for span in &spans {
                    seen[span.base as usize..span.end as usize].fill(Some(span.generation));
                }
                assert_eq!(seen, plain);
                let joined = spans.windows(2).all(|pair| {
                    pair[0].end < pair[1].base
                        || (pair[0].end == pair[1].base && pair[0].generation != pair[1].generation)
                });
                assert!(joined, "{spans:?}");
            }
        }
    }
}
