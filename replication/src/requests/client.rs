//! Asks as a program that is no node: an operator's tool.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, timeout, timeout_at};

use super::parts::{Coming, encode};
use super::{Asking, REQUEST_BYTES_MAX, RequestError};
use crate::config::{Member, TlsConfig};
use crate::fetch::client::{FetchError, say_hello};
use crate::link::tls::{Tls, TlsError};
use crate::link::{LinkReader, LinkWriter, Received};
use crate::node_id::{ClusterId, NodeId};
use crate::wire::{ConnectionKind, Hello, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};

/// Why a node cannot be asked. Nothing was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It is not reached, or refuses.
    #[error(transparent)]
    Hello(Box<FetchError>),
    /// It took too long.
    #[error(
        "{address} has not answered within {limit:?}; see that the node runs and can be reached"
    )]
    Late {
        /// Where.
        address: String,
        /// The time that there was.
        limit: Duration,
    },
    /// No thread, no ring, or no random number.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A connection to one node, for a program that is no node. It blocks the thread that asks.
///
/// The other side knows it as a node with a random id that no node has ([`NodeId::is_client`]). After
/// an outcome that leaves the connection at an unknown place it is over: connect again. So it is, too,
/// when the other side has closed it, as it does when nothing is asked for two minutes.
///
/// Price: a thread with a ring.
#[derive(Debug)]
pub struct Client {
    member: Member,
    asks: Sender<Asking>,
}

impl Client {
    /// Connects to a node of a cluster. The certificate of `tls` has to be a member's, or to name
    /// [`OPERATOR`](super::OPERATOR).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(
        cluster: ClusterId,
        member: &Member,
        tls: Option<&TlsConfig>,
        limit: Duration,
    ) -> Result<Self, ClientError> {
        let tls = tls.map(Tls::load).transpose()?;
        let system = |what| move |source| ClientError::System { what, source };
        let run = crate::node::random_run().map_err(system("draw a random number"))?;
        let random = run.bytes()[..8].try_into().expect("8 bytes");
        let hello = Hello {
            versions: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            kind: ConnectionKind::Requests,
            cluster,
            from: NodeId::client(u64::from_le_bytes(random)),
            to: member.node,
            run,
            engine: [0; 16],
            epoch: 0,
        };
        // One is asked at a time.
        let (asks, asked) = mpsc::channel(1);
        let (told, connected) = std::sync::mpsc::sync_channel(1);
        let address = member.address.clone();
        let thread = std::thread::Builder::new().name("ringwal-client".into());
        let work = move || {
            tokio_uring::start(async move {
                let hello = say_hello(&address, tls.as_ref(), &hello);
                let connection = match timeout(limit, hello).await {
                    Ok(Ok((reader, writer, answer))) => {
                        Ok(Connection { node: answer.node, reader, writer, made: 0 })
                    }
                    Ok(Err(error)) => Err(ClientError::Hello(Box::new(error))),
                    Err(_) => Err(ClientError::Late { address, limit }),
                };
                match connection {
                    Ok(connection) => {
                        // Whoever connects waits for it.
                        let _ = told.send(Ok(()));
                        connection.serve(asked).await;
                    }
                    Err(error) => drop(told.send(Err(error))),
                }
            });
        };
        let thread = thread.spawn(work).map_err(system("start a thread"))?;
        match connected.recv() {
            Ok(outcome) => outcome.map(|()| Self { member: member.clone(), asks }),
            Err(_) => {
                // The runtime panics where there is no ring.
                let _ = thread.join();
                let source = io::Error::other("its thread has panicked; see `ringwal doctor`");
                Err(ClientError::System { what: "run the connection", source })
            }
        }
    }

    /// Which node it asks, and where.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Asks, and blocks until there is a reply, or none any more.
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::may_be_done`] says whether the node may have done it.
    ///
    /// # Panics
    /// Within an asynchronous runtime.
    pub fn ask(&mut self, bytes: impl Into<Bytes>, limit: Duration) -> Result<Bytes, RequestError> {
        let (node, bytes) = (self.member.node, bytes.into());
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLong { length: bytes.len() });
        }
        let (asking, request) = Asking::new(self.member.clone(), bytes, limit);
        match self.asks.try_send(asking) {
            Ok(()) => request.wait(),
            Err(_) => {
                let why = "the connection is over; connect again".to_owned();
                Err(RequestError::NotReached { node, why })
            }
        }
    }
}

/// The thread's side.
struct Connection {
    node: NodeId,
    reader: LinkReader,
    writer: LinkWriter,
    /// Requests so far.
    made: u64,
}

impl Connection {
    /// Until nobody asks any more, or the connection is over.
    async fn serve(mut self, mut asked: Receiver<Asking>) {
        while let Some(mut asking) = asked.recv().await {
            if asking.is_over(std::time::Instant::now()) {
                asking.finish_late();
                continue;
            }
            asking.is_sent = true;
            let bytes = std::mem::take(&mut asking.bytes);
            let deadline = Instant::from_std(asking.deadline);
            match timeout_at(deadline, self.exchange(&bytes)).await {
                Ok(Ok(Some(reply))) => asking.finish(Ok(reply)),
                Ok(Ok(None)) => asking.finish(Err(RequestError::NoReply { node: self.node })),
                // Nobody may ask on once it is told.
                Ok(Err(why)) => {
                    asked.close();
                    asking.finish(Err(RequestError::Lost { node: self.node, why }));
                }
                Err(_) => {
                    asked.close();
                    asking.finish_late();
                }
            }
        }
        let Self { reader, writer, .. } = self;
        drop(reader);
        writer.shutdown().await;
    }

    /// Sends a request and takes its reply; `None` when there will be none.
    async fn exchange(&mut self, bytes: &Bytes) -> Result<Option<Bytes>, String> {
        self.made += 1;
        let parts = encode(self.made, bytes, Message::Request);
        self.writer.write_all(parts).await.map_err(|error| error.to_string())?;
        let mut coming = Coming::default();
        loop {
            let number = match self.next().await? {
                Received::Message(Message::Reply(part)) => match coming.take(part)? {
                    Some((number, bytes)) if number == self.made => return Ok(Some(bytes)),
                    Some((number, _)) => number,
                    None => continue,
                },
                Received::Message(Message::NoReply { number }) if number == self.made => {
                    return Ok(None);
                }
                Received::Message(Message::NoReply { number }) => number,
                _ => return Err("it says what nobody says who is asked".into()),
            };
            return Err(format!("it replies to {number}, which was not asked"));
        }
    }

    async fn next(&mut self) -> Result<Received, String> {
        loop {
            // No frame is for a client.
            if let Some(item) = self.reader.next_item(0).map_err(|error| error.to_string())? {
                return Ok(item);
            }
            match self.reader.receive().await {
                Ok(0) => return Err("the other side has closed the connection".into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
