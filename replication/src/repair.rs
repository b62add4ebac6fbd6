//! Mends a directory from another node: what is damaged is given up, and fetched again into fresh
//! segments. Offline: no engine may have the directory open.
//!
//! ```text
//! verify ─▶ what would be given up ─▶ does the other node have it? ─▶ marker ─▶ copies, cut
//!                                       no: nothing is changed           │
//!        verify ◀─ marker away ◀─ all ends reached ◀─ fetch, append ◀────┘
//! ```
//!
//! A shard's journal is cut where its damage begins, as [`ringwal_engine::offline::repair()`] does it,
//! and every replicated stream of the shard is fetched up to where it ended. By I-17 equal (stream,
//! epoch, offset) means equal bytes, so the other node may be any one whose history is the same up to
//! there, a follower too. Nothing is cut before that node has read and checked all that will be asked
//! of it.
//!
//! What nothing tells of any more (the last batches of an unsealed segment) cannot be asked for. Then
//! the node has to follow a leader before it may lead: see [`Marker`]. A promise is never forgotten:
//! see `facts.rs`.
//!
//! Whatever ends it, running it again goes on where it was.

mod bring;
mod facts;
mod given_up;
mod local;
mod marker;
mod plan;

use std::path::{Path, PathBuf};

use ringwal_engine::offline::{self, Cut, Repair, RepairError, RepairOptions, Verification};
use ringwal_engine::{AppendError, CloseError, CommitError, OpenError, ReadError, StreamId};

use crate::config::{Config, ConfigError};
use crate::fetch::WHOEVER;
use crate::fetch::client::Peer;
use crate::link::tls::{Tls, TlsError};
use crate::node_id::{NodeId, RunId};
use crate::orphans::OrphanError;
use crate::promise::Promise;
use crate::wire::{ConnectionKind, Hello, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};

pub use crate::fetch::client::FetchError;
pub use bring::Brought;
pub use given_up::mark_given_up;
pub use marker::{Marker, MarkerError};
pub(crate) use plan::why_not;

/// How to repair from another node.
#[derive(Clone, Debug)]
pub struct RepairFrom {
    /// The configuration of the node whose directory it is.
    pub config: Config,
    /// `host:port` of another node, which runs.
    pub from: String,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Give up everything of these shards from these places on, also what the other node does not
    /// have.
    pub accept_loss_from: Vec<Cut>,
    /// Folder for copies of every file that changes. It must not exist yet.
    pub backup: PathBuf,
    /// Stop when so many frames have been appended, as if it had been killed: for tests.
    #[doc(hidden)]
    pub stop_after_frames: Option<u64>,
}

/// What was done, or would be.
#[derive(Clone, Debug)]
pub struct RepairedFrom {
    /// The directory before, and what was given up in it.
    pub repair: Repair,
    /// Who was asked; `None` when there was nothing to ask for.
    pub peer: Option<NodeId>,
    /// What came, or would, by stream.
    pub brought: Vec<Brought>,
    /// Streams that only a leader can bring back, and why.
    pub left: Vec<(StreamId, String)>,
    /// What this node promises from now on, if that is not what it had promised.
    pub promise: Option<Promise>,
    /// Why the node must follow a leader before it may lead itself.
    pub lacking: Option<String>,
    /// The directory afterwards; `None` when nothing was changed.
    pub after: Option<Verification>,
}

/// Something that the other node does not have as it was here.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Lacks {
    /// Which stream.
    pub stream: StreamId,
    /// The shard that would be cut.
    pub shard: u16,
    /// In words.
    pub why: String,
}

/// Why a repair stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairFromError {
    /// What this node has promised is not known.
    #[error(transparent)]
    Facts(#[from] crate::worker::FactsError),
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The directory cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What is given up cannot be given up, or the copies not be made.
    #[error(transparent)]
    Repair(Box<RepairError>),
    /// The note of what has still to be done.
    #[error(transparent)]
    Marker(#[from] MarkerError),
    /// Something is to be mended first that loses nothing. Nothing was changed.
    #[error(
        "{places} of the directory can be mended without any loss; run `ringwal repair` without \
         --from first"
    )]
    RepairFirst {
        /// How many places.
        places: usize,
    },
    /// No cut would leave what is before it whole. Nothing was changed.
    #[error(
        "shard {shard} cannot be cut so that what stays is whole; restore the directory from a \
         backup, or let another disk take its place"
    )]
    NoCut {
        /// Which shard.
        shard: u16,
    },
    /// Records of a stream that only this node has would be lost. Nothing was changed.
    #[error(
        "stream {stream} is this node's own, and no other node has it: {why}; restore the directory \
         from a backup, or give its loss up with --accept-data-loss-from"
    )]
    OwnStream {
        /// Which one.
        stream: StreamId,
        /// What is the matter with it.
        why: String,
    },
    /// The other node does not have what is needed. Nothing was changed.
    #[error(
        "node {node} does not have what this directory held ({} in all): stream {}: {}; name another \
         node, or give that up with --accept-data-loss-from",
        lacks.len(), lacks[0].stream, lacks[0].why
    )]
    PeerLacks {
        /// Which node.
        node: NodeId,
        /// What; never empty.
        lacks: Vec<Lacks>,
    },
    /// What was promised may be lost, and not every other member tells what it has promised. Nothing
    /// was changed.
    #[error(
        "what this node has promised may be lost, and node {node} does not tell what it has \
         promised: {source}; every other member has to run, or give that up with \
         --accept-data-loss-from"
    )]
    Promises {
        /// Which node is silent.
        node: NodeId,
        /// Why.
        source: Box<FetchError>,
    },
    /// It is not reached, refuses, or the connection broke.
    #[error(transparent)]
    Fetch(Box<FetchError>),
    /// It is none of the members.
    #[error("{address} is node {node}, which is none of the other members; name one of them")]
    Stranger {
        /// Where.
        address: String,
        /// Who it says to be.
        node: NodeId,
    },
    /// What came cannot be appended.
    #[error("stream {stream} at {offset}: {why}; run it again")]
    Append {
        /// Which stream.
        stream: StreamId,
        /// Where.
        offset: u64,
        /// Why.
        why: String,
    },
    /// What is cut again cannot be kept.
    #[error(transparent)]
    Orphan(#[from] OrphanError),
    /// The directory cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The engine did not close in order.
    #[error("closing the mended directory: {0}; run it again")]
    Close(#[from] CloseError),
    /// No thread, no ring, or no random number.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// It was told to stop in the middle.
    #[doc(hidden)]
    #[error("stopped after {0} frames")]
    Stopped(u64),
}

impl From<RepairError> for RepairFromError {
    fn from(error: RepairError) -> Self {
        Self::Repair(Box::new(error))
    }
}

impl From<FetchError> for RepairFromError {
    fn from(error: FetchError) -> Self {
        Self::Fetch(Box::new(error))
    }
}

impl RepairFromError {
    fn change(stream: StreamId, offset: u64) -> impl Fn(CommitError) -> Self {
        move |error| Self::Append { stream, offset, why: error.to_string() }
    }

    fn append(stream: StreamId, offset: u64) -> impl Fn(AppendError) -> Self {
        move |error| Self::Append { stream, offset, why: error.to_string() }
    }
}

/// Repairs a directory from another node.
///
/// # Errors
/// See [`RepairFromError`].
pub fn repair_from(
    directory: impl AsRef<Path>,
    options: &RepairFrom,
) -> Result<RepairedFrom, RepairFromError> {
    options.config.check()?;
    let tls = options.config.tls.as_ref().map(Tls::load).transpose()?;
    let random = crate::node::random_run();
    let run = random
        .map_err(|source| RepairFromError::System { what: "draw a random number", source })?;
    let engine = offline::engine_id(directory.as_ref())?;
    let mut asking = Asking { options, directory: directory.as_ref(), tls, run, engine };
    // The runtime panics where there is no ring; the thread turns that into an error.
    let asked = std::thread::scope(|scope| {
        let work = || tokio_uring::start(asking.repair());
        let thread = std::thread::Builder::new().name("ringwal-repair".into());
        thread.spawn_scoped(scope, work).map(std::thread::ScopedJoinHandle::join)
    });
    let system = |what, source| RepairFromError::System { what, source };
    asked.map_err(|source| system("start a thread", source))?.unwrap_or_else(|_| {
        let source = std::io::Error::other("its thread has panicked; see `ringwal doctor`");
        Err(system("run the connection", source))
    })
}

/// Everything that is given.
struct Asking<'a> {
    options: &'a RepairFrom,
    directory: &'a Path,
    tls: Option<Tls>,
    run: RunId,
    engine: [u8; 16],
}

impl Asking<'_> {
    async fn repair(&mut self) -> Result<RepairedFrom, RepairFromError> {
        let earlier = Marker::load(self.directory)?;
        let mut found = offline::verify(self.directory)?;
        if earlier.is_some() && found.is_corrupt() && places_without_loss(&found) > 0 {
            if self.options.dry_run {
                let lacking =
                    Some("an earlier repair was ended in its cut; this one goes on".into());
                return Ok(RepairedFrom {
                    lacking,
                    ..nothing_to_ask(self.give_up(Vec::new(), true)?)
                });
            }
            // The cut was ended in the middle: files behind it have lost their headers, and nothing
            // says yet that they do not count.
            let backup = beside(&self.options.backup);
            let options = RepairOptions { dry_run: false, accept_loss_from: Vec::new(), backup };
            offline::repair(self.directory, &options)?;
            found = offline::verify(self.directory)?;
        }
        if !found.is_corrupt() {
            let repair = self.give_up(Vec::new(), self.options.dry_run)?;
            return match earlier {
                None => Ok(nothing_to_ask(repair)),
                Some(marker) => self.go_on(repair, marker).await,
            };
        }
        let places = places_without_loss(&found);
        if places > 0 {
            return Err(RepairFromError::RepairFirst { places });
        }
        let local = local::Local::read(self.directory, &found)?;
        let cuts = self.cuts(&found, &local)?;
        let would = self.give_up(cuts.clone(), true)?;
        let mut peer = self.connect().await?;
        let mut plan = plan::Plan::new(&local, &would, &peer, &self.options.accept_loss_from)?;
        plan.check(&mut peer, &self.options.accept_loss_from).await?;
        let promise = facts::settle(self, &local, &peer, &mut plan.marker).await?;
        drop(peer);
        if self.options.dry_run {
            let peer = Some(plan.peer);
            let (brought, left) = (plan.would_bring(), plan.left);
            let lacking = plan.marker.must_follow.then(|| "nothing tells how much was lost".into());
            return Ok(RepairedFrom {
                repair: would,
                peer,
                brought,
                left,
                promise,
                lacking,
                after: None,
            });
        }
        let mut marker = plan.marker;
        if let Some(earlier) = earlier {
            marker.join(earlier);
        }
        // From here on it must be brought to its end, by whomever.
        marker.store(self.directory)?;
        let repair = self.give_up(cuts, false)?;
        let mut repaired = self.go_on(repair, marker).await?;
        repaired.left.splice(0..0, plan.left);
        repaired.left.sort_by_key(|(stream, _)| *stream);
        repaired.left.dedup_by_key(|(stream, _)| *stream);
        repaired.promise = promise;
        Ok(repaired)
    }

    /// Where each damaged shard is cut.
    fn cuts(
        &self,
        found: &Verification,
        local: &local::Local,
    ) -> Result<Vec<Cut>, RepairFromError> {
        let accepted = &self.options.accept_loss_from;
        let of = |cuts: &[Cut], shard| cuts.iter().find(|cut| cut.shard == shard).copied();
        let damaged = local.damaged.keys().copied();
        damaged
            .map(|shard| {
                let cut = of(accepted, shard).or_else(|| of(&found.cuts, shard));
                cut.ok_or(RepairFromError::NoCut { shard })
            })
            .collect()
    }

    fn give_up(&self, cuts: Vec<Cut>, dry_run: bool) -> Result<Repair, RepairFromError> {
        let backup = self.options.backup.clone();
        let options = RepairOptions { dry_run, accept_loss_from: cuts, backup };
        Ok(offline::repair(self.directory, &options)?)
    }

    /// What was given up comes back.
    async fn go_on(
        &mut self,
        repair: Repair,
        mut marker: Marker,
    ) -> Result<RepairedFrom, RepairFromError> {
        let mut peer = self.connect().await?;
        let node = Some(peer.answer.node);
        if self.options.dry_run {
            let lacking =
                Some("an earlier repair has not come to its end; this one goes on".into());
            return Ok(RepairedFrom { peer: node, lacking, ..nothing_to_ask(repair) });
        }
        let bringing = bring::bring(self.directory, &mut marker, &mut peer, self.options);
        let bring::Bringing { brought, left, lacking } = bringing.await?;
        let after = offline::verify(self.directory)?;
        if lacking.is_none() && !after.is_corrupt() {
            Marker::remove(self.directory)?;
        }
        let after = Some(after);
        Ok(RepairedFrom { repair, peer: node, brought, left, promise: None, lacking, after })
    }

    fn hello(&self) -> Hello {
        Hello {
            versions: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            kind: ConnectionKind::Fetch,
            cluster: self.options.config.cluster,
            from: self.options.config.node,
            to: WHOEVER,
            run: self.run,
            engine: self.engine,
            epoch: 0,
        }
    }

    async fn connect(&self) -> Result<Peer, RepairFromError> {
        let peer = Peer::connect(&self.options.from, self.tls.as_ref(), &self.hello()).await?;
        let (node, config) = (peer.answer.node, &self.options.config);
        let is_other = node != config.node && config.members.iter().any(|m| m.node == node);
        let address = || self.options.from.clone();
        is_other
            .then_some(peer)
            .ok_or_else(|| RepairFromError::Stranger { address: address(), node })
    }
}

fn places_without_loss(found: &Verification) -> usize {
    found.findings.iter().filter(|finding| finding.remedy().is_some()).count()
}

/// A folder for further copies, which does not exist yet.
fn beside(backup: &Path) -> PathBuf {
    let named = |number: u32| PathBuf::from(format!("{}-{number}", backup.display()));
    let mut number = 1;
    while named(number).exists() {
        number += 1;
    }
    named(number)
}

fn nothing_to_ask(repair: Repair) -> RepairedFrom {
    let after = repair.after.clone();
    let (brought, left) = (Vec::new(), Vec::new());
    RepairedFrom { repair, peer: None, brought, left, promise: None, lacking: None, after }
}
