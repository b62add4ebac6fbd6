//! Records for somebody who repairs its own: a connection of kind
//! [`ConnectionKind::Fetch`](crate::wire::ConnectionKind::Fetch).
//!
//! ```text
//! who repairs                          who is asked
//! hello (epoch 0) ───────────────────▶ admit
//!        ◀── answer, histories, durable ends, end of histories
//! fetch (stream, from, end) ─────────▶ one read of its worker
//!        ◀── frames as they are on disk, fetched (how far, why no further)
//! ```
//!
//! It claims no epoch, and nothing is promised or deposed for it. One request is one bounded read, so
//! that what an asker costs does not depend on what it asks for; `thread/fetching.rs` serves it, and
//! [`crate::repair`] asks.

pub(crate) mod client;
pub(crate) mod from;

pub use from::FetchFromError;

use crate::node_id::NodeId;
use crate::promise::{Identity, refuse_foreign};
use crate::wire::{Hello, Refusal};

/// In a hello of this kind, as the node that is dialled: whoever answers.
pub const WHOEVER: NodeId = NodeId::new(0);

/// Why somebody may not read here, if so. Whoever may, reads what this node has durably, as every
/// member may that leads or follows.
pub(crate) fn refuse(me: Identity, members: &[NodeId], hello: &Hello) -> Option<(Refusal, String)> {
    let Hello { from, to, epoch, .. } = hello;
    if let Some(refused) = refuse_foreign(me, hello) {
        return Some(refused);
    }
    if *to != me.node && *to != WHOEVER {
        return Some((Refusal::Node, format!("this is node {}, not {to}", me.node)));
    }
    if *from == me.node {
        let what = format!("node {from} would repair itself from itself; name another node");
        return Some((Refusal::Node, what));
    }
    if !members.contains(from) {
        let what = format!("node {from} is none of the members that node {} knows", me.node);
        return Some((Refusal::NotAMember, what));
    }
    (*epoch != 0).then(|| {
        let what = format!("who only reads claims no epoch, and node {from} claims {epoch}");
        (Refusal::Kind, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_id::{ClusterId, RunId};
    use crate::wire::ConnectionKind;

    #[test]
    fn members_may_read_and_claim_nothing() {
        let me = Identity { cluster: ClusterId::new([1; 16]), node: NodeId::new(3) };
        let members = [1, 2, 3].map(NodeId::new);
        let good = Hello {
            versions: (1, 1),
            kind: ConnectionKind::Fetch,
            cluster: me.cluster,
            from: NodeId::new(2),
            to: WHOEVER,
            run: RunId::new([1; 16]),
            engine: [5; 16],
            epoch: 0,
        };
        assert_eq!(refuse(me, &members, &good), None);
        assert_eq!(refuse(me, &members, &Hello { to: me.node, ..good }), None);
        for (bad, refusal) in [
            (Hello { versions: (9, 9), ..good }, Refusal::Version),
            (Hello { cluster: ClusterId::new([2; 16]), ..good }, Refusal::Cluster),
            (Hello { to: NodeId::new(4), ..good }, Refusal::Node),
            (Hello { from: me.node, ..good }, Refusal::Node),
            (Hello { from: NodeId::new(4), ..good }, Refusal::NotAMember),
            (Hello { from: NodeId::new(0), ..good }, Refusal::NotAMember),
            (Hello { epoch: 1, ..good }, Refusal::Kind),
        ] {
            assert_eq!(refuse(me, &members, &bad).map(|(why, _)| why), Some(refusal));
        }
    }
}
