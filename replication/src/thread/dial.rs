//! Dials one node, again and again with a growing pause, until it answers.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::Context;
use crate::config::Member;
use crate::link::tls::Tls;
use crate::link::{Link, LinkReader, LinkWriter};
use crate::wake::Wake;
use crate::wire::{
    Answer, ConnectionKind, HELLO_BYTES, Hello, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal,
};

/// A whole attempt: look up, connect, shake hands, hello and its answer. A follower answers when
/// everything that it was appending has its outcome; the connection has to be there within
/// [`Config::session_timeout`](crate::config::Config::session_timeout), because the kernel sends
/// what was lost of it again after a second and more.
const ATTEMPT: Duration = Duration::from_secs(10);

/// What an attempt has come to.
pub(crate) enum Dialled {
    /// It follows.
    Answered { reader: LinkReader, writer: LinkWriter, version: u16, engine: [u8; 16] },
    /// It does not want to.
    Refused(Refused),
    /// It was not reached.
    Failed(String),
}

/// A refusal, and the epoch that the other node has promised.
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    pub(crate) epoch: u64,
    pub(crate) why: String,
}

/// Its owner's end; dropping it ends the attempts.
pub(crate) struct Dialler {
    member: Member,
    shared: Rc<Shared>,
}

struct Shared {
    dialled: RefCell<Option<Dialled>>,
    again: Notify,
    /// Attempts since one was good for something.
    failures: Cell<u32>,
    is_over: Cell<bool>,
    /// A session that lasts so long forgives the failures before.
    good: Duration,
}

impl Dialler {
    /// Begins to dial a node: as the leader of an epoch, or to ask it, with epoch 0.
    pub(crate) fn start(
        context: &Context,
        member: Member,
        kind: ConnectionKind,
        epoch: u64,
    ) -> Self {
        let shared = Rc::new(Shared {
            dialled: RefCell::new(None),
            again: Notify::new(),
            failures: Cell::new(0),
            is_over: Cell::new(false),
            good: context.config.session_timeout,
        });
        let hello = Hello {
            versions: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            kind,
            cluster: context.me.cluster,
            from: context.me.node,
            to: member.node,
            run: context.run,
            engine: context.engine.id(),
            epoch,
        };
        let times = Times {
            connect: context.config.session_timeout,
            pauses: (context.config.reconnect_min, context.config.reconnect_max),
        };
        let (tls, wake) = (context.tls.clone(), context.wake.clone());
        tokio_uring::spawn(dial(shared.clone(), member.address.clone(), hello, tls, times, wake));
        Self { member, shared }
    }

    pub(crate) fn member(&self) -> &Member {
        &self.member
    }

    /// What the last attempt has come to, once.
    pub(crate) fn take(&self) -> Option<Dialled> {
        self.shared.dialled.borrow_mut().take()
    }

    /// The session has ended: dial again. One that was short was good for nothing.
    pub(crate) fn again(&self, lasted: Duration) {
        if lasted >= self.shared.good {
            self.shared.failures.set(0);
        }
        self.shared.again.notify_one();
    }

    /// The other side does what it must not: the next attempt comes much later.
    pub(crate) fn punish(&self) {
        self.shared.failures.set(u32::MAX / 2);
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        self.shared.is_over.set(true);
        self.shared.again.notify_one();
    }
}

/// What an attempt may take, and what lies between two.
struct Times {
    /// Until there is a connection.
    connect: Duration,
    /// The shortest and the longest pause.
    pauses: (Duration, Duration),
}

async fn dial(
    shared: Rc<Shared>,
    address: String,
    hello: Hello,
    tls: Option<Arc<Tls>>,
    times: Times,
    wake: Arc<Wake>,
) {
    let Times { connect, pauses: (shortest, longest) } = times;
    while !shared.is_over.get() {
        let attempt =
            tokio::time::timeout(ATTEMPT, attempt(&address, &hello, tls.as_deref(), connect));
        let dialled = attempt.await.unwrap_or_else(|_| {
            Dialled::Failed(format!("{address} has not answered within {ATTEMPT:?}"))
        });
        let is_good = matches!(dialled, Dialled::Answered { .. });
        // It is there, and will follow as soon as the epoch has begun there too.
        let is_early =
            matches!(&dialled, Dialled::Refused(refused) if refused.refusal == Refusal::NotBegun);
        let failures = if is_early { 0 } else { shared.failures.get().saturating_add(1) };
        shared.failures.set(failures);
        *shared.dialled.borrow_mut() = Some(dialled);
        wake.wake();
        if is_good {
            shared.again.notified().await;
        }
        if !shared.is_over.get() {
            tokio::time::sleep(pause(shared.failures.get(), shortest, longest)).await;
        }
    }
}

/// Twice as long after each failure, and anything from half of that on, so that nodes that lost each
/// other at once do not come back at once.
fn pause(failures: u32, shortest: Duration, longest: Duration) -> Duration {
    let doubled = shortest.saturating_mul(1u32 << failures.saturating_sub(1).min(16)).min(longest);
    let random = RandomState::new().build_hasher().finish();
    doubled / 2 + doubled.mul_f64((random % 1024) as f64 / 2048.0)
}

async fn attempt(address: &str, hello: &Hello, tls: Option<&Tls>, connect: Duration) -> Dialled {
    match hello_and_answer(address, hello, tls, connect).await {
        Ok(dialled) => dialled,
        Err(error) => Dialled::Failed(error.to_string()),
    }
}

async fn hello_and_answer(
    address: &str,
    hello: &Hello,
    tls: Option<&Tls>,
    connect: Duration,
) -> Result<Dialled, Box<dyn std::error::Error>> {
    let link = Link::dial(address, tls, connect.min(ATTEMPT)).await?;
    let (mut reader, mut writer) = link.split();
    writer.write_all(vec![Bytes::copy_from_slice(&hello.encode())]).await?;
    let mut bytes = reader.read_exact(HELLO_BYTES).await?.to_vec();
    let reason = Answer::reason_length(&bytes)?;
    bytes.extend_from_slice(&reader.read_exact(reason).await?);
    let answer = Answer::decode(&bytes)?;
    if answer.node != hello.to {
        // Whatever it says is not said of this cluster's epochs.
        let (found, expected) = (answer.node, hello.to);
        let why = answer.refused.map_or(String::new(), |(_, why)| format!(", which says: {why}"));
        return Err(format!("{address} is node {found}, not node {expected}{why}").into());
    }
    if let Some((refusal, why)) = answer.refused {
        // Nobody else reads the end of it.
        drop(reader);
        writer.shutdown().await;
        return Ok(Dialled::Refused(Refused { refusal, epoch: answer.epoch, why }));
    }
    let Answer { version, engine, .. } = answer;
    Ok(Dialled::Answered { reader, writer, version, engine })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let (shortest, longest) = (Duration::from_millis(20), Duration::from_secs(2));
        for (failures, most) in [(0, 20), (1, 20), (2, 40), (4, 160), (30, 2000), (u32::MAX, 2000)]
        {
            let most = Duration::from_millis(most);
            let pause = pause(failures, shortest, longest);
            assert!(pause >= most / 2 && pause <= most, "{failures} failures: {pause:?}");
        }
    }
}
