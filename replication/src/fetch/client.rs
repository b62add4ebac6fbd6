//! The side that asks. Runs in a tokio-uring runtime, as links do.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use ringwal_engine::StreamId;

use crate::history::Held;
use crate::link::tls::Tls;
use crate::link::{Link, LinkError, LinkReader, LinkWriter, Received};
use crate::wire::{
    Answer, HELLO_BYTES, HISTORY_ENTRIES_MAX, Hello, History, Message, Refusal, Stop, Wanted,
    WireError,
};

/// Connecting and its handshake; then each item of the other side.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest frame that any engine can hold.
const FRAME_BYTES_MAX: usize = (16 << 20) + 4096;
/// Streams of which the other side may tell.
const STREAMS_MAX: usize = 4 << 20;

/// Why nothing, or no more, can be fetched from a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// It is not reached, or the connection broke.
    #[error("{0}; see that the node runs and can be reached, and run it again")]
    Link(#[from] LinkError),
    /// It does not speak as a node does.
    #[error("{address} sends what no node sends: {source}")]
    Wire {
        /// Where.
        address: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// It refuses.
    #[error("{address} refuses ({refusal}): {why}")]
    Refused {
        /// Where.
        address: String,
        /// Why.
        refusal: Refusal,
        /// In its words.
        why: String,
    },
    /// It says nothing.
    #[error("{address} has said nothing for {LIMIT:?}; see what it does, and run it again")]
    Silent {
        /// Where.
        address: String,
    },
    /// The connection has ended.
    #[error("{address} has closed the connection; see why in its log, and run it again")]
    Closed {
        /// Where.
        address: String,
    },
}

/// A node that is asked.
pub(crate) struct Peer {
    address: String,
    reader: LinkReader,
    writer: LinkWriter,
    pub(crate) answer: Answer,
    /// What it has of every replicated stream.
    pub(crate) held: BTreeMap<StreamId, Held>,
}

impl Peer {
    /// Dials it, and learns what it has.
    pub(crate) async fn connect(
        address: &str,
        tls: Option<&Tls>,
        hello: &Hello,
    ) -> Result<Self, FetchError> {
        let (reader, writer, answer) = say_hello(address, tls, hello).await?;
        let address = address.to_owned();
        let mut peer = Self { address, reader, writer, answer, held: BTreeMap::new() };
        peer.learn().await?;
        Ok(peer)
    }

    async fn learn(&mut self) -> Result<(), FetchError> {
        let mut histories: BTreeMap<StreamId, History> = BTreeMap::new();
        let (mut entries, mut ends) = (0, BTreeMap::new());
        loop {
            match self.next().await? {
                Received::Message(Message::Histories(told)) => {
                    for history in told {
                        entries += history.epochs.entries().len();
                        if entries > HISTORY_ENTRIES_MAX {
                            return Err(self.unexpected("more epochs than any node may tell"));
                        }
                        let stream = history.stream;
                        let whole = match histories.remove(&stream) {
                            None => Some(history),
                            Some(begun) => begun.join(history),
                        };
                        let whole = whole.ok_or_else(|| {
                            self.unexpected("the pieces of a history do not fit together")
                        })?;
                        histories.insert(stream, whole);
                    }
                }
                Received::Message(Message::Durable { ends: told, .. }) => {
                    ends.extend(told);
                    if ends.len() > STREAMS_MAX {
                        return Err(self.unexpected("more streams than any node may tell of"));
                    }
                }
                Received::Message(Message::HistoriesEnd) => break,
                _ => return Err(self.unexpected("something before its histories")),
            }
        }
        self.held = histories
            .into_iter()
            .map(|(stream, History { trimmed, epochs, .. })| {
                let end = ends.get(&stream).copied().unwrap_or(trimmed).max(trimmed);
                (stream, Held { trimmed, end, epochs })
            })
            .collect();
        Ok(())
    }

    /// Asks for a range; the frames, and where they end, come by [`Peer::next_of`].
    pub(crate) async fn ask(&mut self, wanted: Wanted) -> Result<(), FetchError> {
        let message = Bytes::from(Message::Fetch(wanted).encode());
        self.writer.write_all(vec![message]).await?;
        Ok(())
    }

    /// The next frame of the answer, or its end: how far it goes, and why no further.
    pub(crate) async fn next_of(&mut self, wanted: Wanted) -> Result<Piece, FetchError> {
        match self.next().await? {
            Received::Frame(frame) if !wanted.is_check => Ok(Piece::Frame(frame)),
            Received::Message(Message::Fetched { stream, end, stop })
                if stream == wanted.stream && end >= wanted.from =>
            {
                if end == wanted.from && stop == Stop::More {
                    return Err(self.unexpected("an answer with nothing in it"));
                }
                Ok(Piece::End { end, stop })
            }
            _ => Err(self.unexpected("something that was not asked for")),
        }
    }

    /// Whether it can read a range: where that ends, and why.
    pub(crate) async fn check(&mut self, wanted: Wanted) -> Result<(u64, Stop), FetchError> {
        let mut wanted = Wanted { is_check: true, ..wanted };
        loop {
            self.ask(wanted).await?;
            match self.next_of(wanted).await? {
                Piece::End { end, stop: Stop::More } if end < wanted.end => wanted.from = end,
                Piece::End { end, stop } => return Ok((end, stop)),
                Piece::Frame(_) => return Err(self.unexpected("a frame where none was asked for")),
            }
        }
    }

    async fn next(&mut self) -> Result<Received, FetchError> {
        loop {
            let item = self.reader.next_item(FRAME_BYTES_MAX);
            let wire = |source| FetchError::Wire { address: self.address.clone(), source };
            if let Some(item) = item.map_err(wire)? {
                return Ok(item);
            }
            match tokio::time::timeout(LIMIT, self.reader.receive()).await {
                Err(_) => return Err(FetchError::Silent { address: self.address.clone() }),
                Ok(Ok(0)) => return Err(FetchError::Closed { address: self.address.clone() }),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn unexpected(&self, what: &str) -> FetchError {
        let source = WireError::Unexpected(what.to_owned());
        FetchError::Wire { address: self.address.clone(), source }
    }
}

/// A part of an answer.
pub(crate) enum Piece {
    Frame(Bytes),
    End { end: u64, stop: Stop },
}

/// What a node answers to a hello: who it is, and what it has promised.
pub(crate) async fn say_hello(
    address: &str,
    tls: Option<&Tls>,
    hello: &Hello,
) -> Result<(LinkReader, LinkWriter, Answer), FetchError> {
    let wire = |source| FetchError::Wire { address: address.to_owned(), source };
    let saying = async {
        let (mut reader, mut writer) = Link::dial(address, tls, LIMIT).await?.split();
        writer.write_all(vec![Bytes::copy_from_slice(&hello.encode())]).await?;
        let mut bytes = reader.read_exact(HELLO_BYTES).await?.to_vec();
        let reason = Answer::reason_length(&bytes).map_err(wire)?;
        bytes.extend_from_slice(&reader.read_exact(reason).await?);
        let answer = Answer::decode(&bytes).map_err(wire)?;
        match answer.refused {
            None => Ok((reader, writer, answer)),
            Some((refusal, why)) => {
                Err(FetchError::Refused { address: address.to_owned(), refusal, why })
            }
        }
    };
    let late = |_| FetchError::Silent { address: address.to_owned() };
    tokio::time::timeout(LIMIT, saying).await.map_err(late)?
}
