//! A linearizable read of a node's own state: the same for the product, whose callers read on their own threads,
//! and for a simulation.

use std::future::Future;

use crate::metadata::{Metadata, Progress};
use crate::state::State;

/// What `look` sees of this node's state, when all of that is committed and everything is in it that was answered
/// anywhere before. It may look several times.
///
/// `confirm` gives up to where whoever reads now has to see, when this node has applied as much; all of that is
/// committed. It is asked again while the state was ahead of what it said, so it ends that, with an error, when
/// the time is over.
pub(crate) async fn read<V, E, C>(
    metadata: &Metadata,
    mut confirm: impl FnMut() -> C,
    mut look: impl FnMut(&State) -> V,
) -> Result<(Progress, V), E>
where
    C: Future<Output = Result<Progress, E>>,
{
    let mut kept: Option<(Progress, V)> = None;
    loop {
        let told = confirm().await?;
        // In one epoch all nodes have the same records, as far as they have them.
        let is_committed =
            |(of, _): &mut (Progress, V)| of.epoch == told.epoch && of.end <= told.end;
        if let Some(seen) = kept.take_if(is_committed) {
            return Ok(seen);
        }
        // The state may be ahead of what is committed: then it is asked once more.
        kept = Some(metadata.read(&mut look));
        if let Some(seen) = kept.take_if(is_committed) {
            return Ok(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::block_on;
    use crate::fakes::put;
    use crate::metadata::{Applier, Entry};

    /// One more key is applied, in this epoch.
    fn apply(applier: &mut Applier, offset: u64, epoch: u64) {
        let payload = put(&format!("key {offset}"));
        let entry = Entry { offset, epoch, payload: &payload };
        applier.apply([entry], &mut Vec::new()).unwrap();
    }

    /// Reads with these confirmations, each given when the applier has done what goes with it.
    fn read_with(
        metadata: &Metadata,
        applier: &mut Applier,
        told: &[Result<(u64, u64), &'static str>],
        mut before: impl FnMut(&mut Applier, usize),
    ) -> (usize, Result<(Progress, u64), &'static str>) {
        let mut asked = 0;
        let confirm = || {
            before(applier, asked);
            asked += 1;
            std::future::ready(told[asked - 1].map(|(epoch, end)| Progress { epoch, end }))
        };
        let read = block_on(read(metadata, confirm, State::end));
        (asked, read)
    }

    #[test]
    fn what_is_ahead_of_what_is_committed_is_read_when_it_is_committed_and_not_before() {
        let (metadata, mut applier) = Metadata::new(State::default(), 1);
        (0..3).for_each(|offset| apply(&mut applier, offset, 1));
        let at = |epoch, end| Progress { epoch, end };
        let nothing = |_: &mut Applier, _| ();
        let read = read_with(&metadata, &mut applier, &[Ok((1, 3))], nothing);
        assert_eq!(read, (1, Ok((at(1, 3), 3))));
        let told = [Ok((1, 2)), Ok((1, 2)), Ok((1, 3))];
        let read = read_with(&metadata, &mut applier, &told, nothing);
        assert_eq!(read, (3, Ok((at(1, 3), 3))));
        // The state goes on: what was seen before is given, as soon as all of that is committed.
        let told = [Ok((1, 2)), Ok((1, 3))];
        let read = read_with(&metadata, &mut applier, &told, |applier, asked| {
            if asked == 1 {
                apply(applier, 3, 1);
            }
        });
        assert_eq!(read, (2, Ok((at(1, 3), 3))));
        let told = [Ok((1, 2)), Err("the time is over")];
        let read = read_with(&metadata, &mut applier, &told, nothing);
        assert_eq!(read, (2, Err("the time is over")));
    }

    /// As far in an older epoch is another history.
    #[test]
    fn what_was_seen_in_an_older_epoch_is_not_taken_for_committed() {
        let (metadata, mut applier) = Metadata::new(State::default(), 1);
        (0..3).for_each(|offset| apply(&mut applier, offset, 1));
        let told = [Ok((1, 2)), Ok((2, 3))];
        let (asked, read) = read_with(&metadata, &mut applier, &told, |applier, asked| {
            if asked == 1 {
                applier.raise_epoch(2);
            }
        });
        assert_eq!((asked, read), (2, Ok((Progress { epoch: 2, end: 3 }, 3))));
    }
}
