//! What becomes of a connection with a sound hello: somebody who leads, who reads
//! to repair its own, or who asks.

use super::Replica;
use super::accept::{self, Arrived};
use super::part::{Change, To};
use crate::link::tls::PeerCertificate;
use crate::node_id::NodeId;
use crate::promise::{Admission, admit, admit_driven};
use crate::requests::OPERATOR;
use crate::wire::{Answer, ConnectionKind, PROTOCOL_VERSION, Refusal};
use crate::worker::Facts;

impl Replica {
    pub(super) fn handle_arrived(&mut self, arrived: Arrived) {
        match arrived.hello.kind {
            ConnectionKind::Frames => {}
            ConnectionKind::Fetch => return self.handle_reader(arrived),
            ConnectionKind::Requests => return self.handle_asker(arrived),
        }
        let members = self.member_ids();
        let admission = match self.closing {
            Some(_) => Admission::Refuse(Refusal::NotNow, "this node is closing".into()),
            None if self.context.failed.is_some() => {
                let why = self.context.failed.clone().unwrap_or_default();
                Admission::Refuse(Refusal::NotNow, why)
            }
            None if !self.may_speak_for(&arrived) => {
                let why = format!(
                    "the certificate names {:?}; that of node {} must name node-{} or the host of its \
                     address",
                    arrived.certificate.as_ref().map(PeerCertificate::names),
                    arrived.hello.from,
                    arrived.hello.from
                );
                Admission::Refuse(Refusal::NotAMember, why)
            }
            None if self.context.is_driven => {
                let Facts { promise, begun, .. } = self.context.facts;
                admit_driven(self.context.me, promise, begun, &arrived.hello)
            }
            None => admit(self.context.me, &members, self.context.facts.promise, &arrived.hello),
        };
        let promise = match admission {
            Admission::Promise(promise) => promise,
            Admission::Follow => self.context.facts.promise.expect("it is promised"),
            Admission::Refuse(refusal, why) => return self.refuse(arrived, refusal, why),
        };
        let is_later = |change: &Change| change.promise.epoch > promise.epoch;
        if self.change.as_ref().is_some_and(is_later) {
            let why = "a later epoch is about to begin here".to_owned();
            return self.refuse(arrived, Refusal::Epoch, why);
        }
        if self.change.as_ref().is_some_and(|change| change.to.is_driven()) {
            let why = "this node does what its embedder asks for; dial again".to_owned();
            return self.refuse(arrived, Refusal::NotBegun, why);
        }
        self.begin_change(To::Follow(Box::new(arrived)), promise);
    }

    fn member_ids(&self) -> Vec<NodeId> {
        self.context.members.nodes.iter().map(|member| member.node).collect()
    }

    /// Somebody wants to read, to repair its own.
    fn handle_reader(&mut self, arrived: Arrived) {
        let members = self.member_ids();
        let refused = crate::fetch::refuse(self.context.me, &members, &arrived.hello);
        let not_now = |why: String| (Refusal::NotNow, why);
        let refused = refused.or_else(|| match self.lacking() {
            _ if !self.may_speak_for(&arrived) => {
                let names = arrived.certificate.as_ref().map(PeerCertificate::names);
                let node = arrived.hello.from;
                let why = format!("the certificate names {names:?}, which is not node {node}");
                Some((Refusal::NotAMember, why))
            }
            _ if self.closing.is_some() => Some(not_now("this node is closing".into())),
            // What it has is no measure of what there was.
            Some(lacking) => Some(not_now(format!("this node is being repaired: {lacking}"))),
            None => self.fetching.is_full().map(not_now),
        });
        match refused {
            Some((refusal, why)) => self.refuse(arrived, refusal, why),
            None => {
                let answer = self.answer(None);
                self.fetching.begin(&self.context, arrived, &answer);
                self.context.wake.wake();
            }
        }
    }

    /// Somebody wants to ask: also when the engine has failed, and whoever is of the cluster.
    fn handle_asker(&mut self, arrived: Arrived) {
        let not_now = |why: String| (Refusal::NotNow, why);
        let refused = crate::requests::refuse(self.context.me, &arrived.hello);
        let refused = refused.or_else(|| match &arrived.certificate {
            Some(certificate) if !self.may_ask(certificate, arrived.hello.from) => {
                let (names, node) = (certificate.names(), arrived.hello.from);
                let who = match node.is_client() {
                    true => format!("neither `{OPERATOR}` nor a member"),
                    false => format!("not node {node}"),
                };
                let why = format!("the certificate names {names:?}, which is {who}");
                Some((Refusal::NotAMember, why))
            }
            _ if self.closing.is_some() => Some(not_now("this node is closing".into())),
            _ => self.requesting.refusal(arrived.hello.from).map(not_now),
        });
        match refused {
            Some((refusal, why)) => self.refuse(arrived, refusal, why),
            None => {
                let answer = self.answer(None);
                self.requesting.begin(&self.context, arrived, &answer);
                self.context.wake.wake();
            }
        }
    }

    /// With TLS a certificate says who somebody is: the host of a member's address, or `node-N`.
    fn may_speak_for(&self, arrived: &Arrived) -> bool {
        let Some(certificate) = &arrived.certificate else { return true };
        let node = arrived.hello.from;
        let is_member = self.context.members.nodes.iter().any(|member| member.node == node);
        // Where somebody drives, the log names the leader, maybe before the members are told.
        (is_member || self.context.is_driven) && self.is_of(certificate, node)
    }

    fn is_of(&self, certificate: &PeerCertificate, node: NodeId) -> bool {
        let member = self.context.members.nodes.iter().find(|member| member.node == node);
        certificate.is_of(&format!("node-{node}"))
            || member.is_some_and(|member| certificate.is_of(member.host()))
    }

    /// A client is whoever has a member's certificate, or the operators'.
    fn may_ask(&self, certificate: &PeerCertificate, who: NodeId) -> bool {
        if !who.is_client() {
            return self.is_of(certificate, who);
        }
        let mut members = self.context.config.members.iter();
        certificate.is_of(OPERATOR) || members.any(|member| self.is_of(certificate, member.node))
    }

    pub(super) fn refuse(&self, arrived: Arrived, refusal: Refusal, why: String) {
        self.context.counters.note_refused(refusal);
        let (node, epoch) = (arrived.hello.from, arrived.hello.epoch);
        match refusal {
            // Its leader dials again until the epoch has begun here.
            Refusal::NotBegun => tracing::debug!(%node, epoch, %refusal, why, "refused"),
            _ => tracing::info!(%node, epoch, %refusal, why, "refused"),
        }
        let answer = self.answer(Some((refusal, why)));
        accept::refuse(arrived, &answer);
    }

    pub(super) fn answer(&self, refused: Option<(Refusal, String)>) -> Answer {
        Answer {
            version: if refused.is_some() { 0 } else { PROTOCOL_VERSION },
            refused,
            node: self.context.me.node,
            run: self.context.run,
            engine: self.context.engine.id(),
            epoch: self.context.facts.promise.map_or(0, |promise| promise.epoch),
        }
    }
}
