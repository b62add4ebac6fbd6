//! A connection, plain or TLS: whole items in, slices out. Nothing here knows what they mean.
//!
//! All of it belongs to the one thread that runs a tokio-uring runtime, and nothing else should
//! run there: that runtime hands operations to the kernel only when it has nothing to do.
//!
//! Plain sockets are driven through io_uring; TLS runs over tokio's own sockets in the same
//! runtime.

mod dial;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod items;
mod listener;
pub mod tls;
mod transport;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::net::sockopt;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use self::items::ItemBuffer;
use self::tls::{PeerCertificate, Tls};
use self::transport::Transport;
use crate::config::address;
use crate::wire::WireError;

pub use error::LinkError;
pub use items::Received;
pub use listener::Listener;

/// Most slices of one `writev`: the kernel's limit.
const SLICES_MAX: usize = 1024;
/// How long a shutdown waits for the other side to end its direction.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(250);
/// Unacknowledged bytes, or unanswered probes, for so long end a connection.
const USER_TIMEOUT_MS: u32 = 30_000;

/// A connection to another node. Dropping it, or both of its halves, ends it.
pub struct Link {
    shared: Rc<Shared>,
    certificate: Option<PeerCertificate>,
}

/// The half that reads; see [`Link::split`]. Price: see [`LinkReader::next_item`].
pub struct LinkReader {
    shared: Rc<Shared>,
    items: ItemBuffer,
    is_reading: bool,
}

/// Where in memory frames were that any connection wrote, with its other side.
#[cfg(test)]
pub(crate) static FRAMES_WRITTEN: std::sync::Mutex<Vec<(SocketAddr, std::ops::Range<usize>)>> =
    std::sync::Mutex::new(Vec::new());

/// The half that writes; see [`Link::split`]. Dropping it ends the connection at once, in both
/// directions.
pub struct LinkWriter {
    shared: Rc<Shared>,
    is_writing: bool,
    /// Where the slices lay that were given to `writev`.
    #[cfg(test)]
    observed: Vec<std::ops::Range<usize>>,
}

/// What a write took.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct WriteCounts {
    /// Calls: of `writev`, or of the TLS session, which may need several for each.
    pub calls: u64,
    /// Bytes that were given, without what TLS adds.
    pub bytes: u64,
}

struct Shared {
    transport: Transport,
    peer: SocketAddr,
    reader: Cell<ReaderState>,
    /// When `reader` has changed.
    reader_changed: Notify,
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum ReaderState {
    /// It may read.
    Open,
    /// It has seen the end, or an error.
    Ended,
    /// It was dropped before.
    Dropped,
}

impl Link {
    /// Connects to `host:port`, with TLS if there is one: then the certificate of the other side
    /// has to name this host. Host names are resolved by a thread of their own, and all of their
    /// addresses are tried; everything together may take as long as `limit`.
    ///
    /// With TLS, success does not say that the other side has accepted this node's certificate:
    /// only its answer to a hello does.
    ///
    /// # Errors
    /// When the address is none or has no host, nobody takes the connection, TLS finds no
    /// agreement, or the time is up.
    pub async fn dial(
        address: &str,
        tls: Option<&Tls>,
        limit: Duration,
    ) -> Result<Self, LinkError> {
        let late = |stage| LinkError::Timeout { peer: address.into(), stage, limit };
        let deadline = Instant::now() + limit;
        let stream = dial::connect(address, deadline).await?.ok_or_else(|| late("connecting"))?;
        let socket_error = |source| LinkError::Socket { peer: address.into(), source };
        set_options(&stream).map_err(socket_error)?;
        let peer = stream.peer_addr().map_err(socket_error)?;
        let Some(tls) = tls else {
            let stream = stream.into_std().map_err(socket_error)?;
            return Self::plain(stream, peer).map_err(socket_error);
        };
        let connector = TlsConnector::from(tls.client());
        let connecting = connector.connect(server_name(address)?, stream);
        let mut stream = timeout_at(deadline, connecting)
            .await
            .map_err(|_| late("the TLS handshake"))?
            .map_err(|source| LinkError::Handshake { peer: address.into(), source })?;
        let session = stream.get_mut().1;
        session.set_buffer_limit(Some(transport::TLS_BUFFER_BYTES));
        let certificate = PeerCertificate::first_of(session.peer_certificates());
        Ok(Self::new(Transport::tls(stream.into()), peer, certificate))
    }

    /// Takes a connection from [`Listener::accept`]; with TLS the other side has to show a
    /// certificate within `limit`.
    ///
    /// # Errors
    /// When TLS finds no agreement, which is also what becomes of a client without TLS, or the
    /// time is up. A client with TLS at a port without it ends in an unknown magic later.
    pub async fn accept(
        stream: std::net::TcpStream,
        tls: Option<&Tls>,
        limit: Duration,
    ) -> Result<Self, LinkError> {
        let unknown = |source| LinkError::Socket { peer: "a connection".into(), source };
        let peer = stream.peer_addr().map_err(unknown)?;
        let socket_error = |source| LinkError::Socket { peer: peer.to_string(), source };
        set_options(&stream).map_err(socket_error)?;
        let Some(tls) = tls else {
            return Self::plain(stream, peer).map_err(socket_error);
        };
        stream.set_nonblocking(true).map_err(socket_error)?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(socket_error)?;
        let accepting = TlsAcceptor::from(tls.server()).accept(stream);
        let late =
            |_| LinkError::Timeout { peer: peer.to_string(), stage: "the TLS handshake", limit };
        let mut stream = timeout(limit, accepting)
            .await
            .map_err(late)?
            .map_err(|source| LinkError::Handshake { peer: peer.to_string(), source })?;
        let session = stream.get_mut().1;
        session.set_buffer_limit(Some(transport::TLS_BUFFER_BYTES));
        let certificate = PeerCertificate::first_of(session.peer_certificates());
        Ok(Self::new(Transport::tls(stream.into()), peer, certificate))
    }

    fn plain(stream: std::net::TcpStream, peer: SocketAddr) -> io::Result<Self> {
        // The ring waits for it; a socket that does not block would be busy instead.
        stream.set_nonblocking(false)?;
        Ok(Self::new(Transport::plain(stream), peer, None))
    }

    fn new(transport: Transport, peer: SocketAddr, certificate: Option<PeerCertificate>) -> Self {
        let reader = Cell::new(ReaderState::Open);
        let shared = Shared { transport, peer, reader, reader_changed: Notify::new() };
        Self { shared: Rc::new(shared), certificate }
    }

    /// The address of the other side.
    pub fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    /// The certificate of the other side; `None` without TLS.
    pub fn peer_certificate(&self) -> Option<PeerCertificate> {
        self.certificate.clone()
    }

    /// The two halves, for two tasks of the same thread: both work at the same time.
    pub fn split(self) -> (LinkReader, LinkWriter) {
        let items = ItemBuffer::new();
        let reader = LinkReader { shared: self.shared.clone(), items, is_reading: false };
        let writer = LinkWriter {
            shared: self.shared,
            is_writing: false,
            #[cfg(test)]
            observed: Vec::new(),
        };
        (reader, writer)
    }
}

impl LinkReader {
    /// Reads what is there, or waits for it; then [`LinkReader::next_item`] until that has no more.
    /// 0 at the end of the connection. While there is something that `next_item` has not looked
    /// at, its bytes are returned at once and nothing is read.
    ///
    /// Dropping this before it is done loses bytes: it is not for a timeout or a `select` after
    /// which the connection goes on. What is called afterwards fails.
    ///
    /// # Errors
    /// [`LinkError::Read`] when the connection breaks, [`LinkError::EndInside`] when it ends inside
    /// of an item, [`LinkError::Cancelled`] when an earlier call was dropped.
    pub async fn receive(&mut self) -> Result<usize, LinkError> {
        let peer = self.shared.peer;
        if self.is_reading {
            return Err(LinkError::Cancelled { peer, what: "read" });
        }
        if self.items.is_to_be_looked_at() {
            return Ok(self.items.len());
        }
        let before = self.items.len();
        let mut buffer = self.items.take_for_read();
        self.is_reading = true;
        let result = loop {
            let (result, same) = self.shared.transport.read(buffer).await;
            buffer = same;
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
                break result;
            }
        };
        self.is_reading = false;
        self.items.put_back(buffer, *result.as_ref().unwrap_or(&0));
        if !matches!(result, Ok(1..)) {
            self.shared.reader_is(ReaderState::Ended);
        }
        match result {
            Ok(0) if before > 0 => Err(LinkError::EndInside { peer, received: before }),
            Ok(read) => Ok(read),
            Err(source) => Err(LinkError::Read { peer, source }),
        }
    }

    /// Reads exactly so many bytes: a hello, an answer. What follows them stays.
    ///
    /// As with [`LinkReader::receive`], a connection is of no use after this was dropped before it
    /// was done. The buffer grows to `bytes`, so that is not to be taken from the other side
    /// without a limit.
    ///
    /// # Errors
    /// Those of [`LinkReader::receive`], and [`LinkError::EndInside`] at the end.
    pub async fn read_exact(&mut self, bytes: usize) -> Result<Bytes, LinkError> {
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        loop {
            if let Some(bytes) = self.items.next_bytes(bytes) {
                return Ok(bytes);
            }
            if self.receive().await? == 0 {
                return Err(LinkError::EndInside { peer: self.shared.peer, received: 0 });
            }
        }
    }

    /// The next whole item of what has been received; `None` when [`LinkReader::receive`] has to
    /// bring more.
    ///
    /// A frame is not copied: it is a part of the receive buffer, and pins it. That is 256 KiB,
    /// which all frames share that came in it, or, for a frame that is longer than three quarters
    /// of that, just this frame. So receiving costs 256 KiB per connection, the longest frame while
    /// it arrives, and 256 KiB for each buffer of which a frame is kept: frames are to be appended
    /// and dropped, and those that are kept for long to be copied.
    ///
    /// # Errors
    /// When no item begins here, or one that is longer than its limit: `frame_bytes_max` for a
    /// frame, header included. Nothing is allocated for it. The connection is of no more use.
    pub fn next_item(&mut self, frame_bytes_max: usize) -> Result<Option<Received>, WireError> {
        self.items.next_item(frame_bytes_max)
    }
}

impl LinkWriter {
    /// Writes all slices, in order, without copying one (TLS encrypts them into its own records).
    ///
    /// Dropping this before it is done leaves the connection at an unknown place: further writes
    /// fail.
    ///
    /// # Errors
    /// [`LinkError::Write`] when the connection breaks, [`LinkError::Cancelled`] when an earlier
    /// call was dropped.
    pub async fn write_all(&mut self, slices: Vec<Bytes>) -> Result<WriteCounts, LinkError> {
        let peer = self.shared.peer;
        if self.is_writing {
            return Err(LinkError::Cancelled { peer, what: "write" });
        }
        self.is_writing = true;
        let counts = self.write_slices(slices).await;
        self.is_writing = false;
        counts.map_err(|source| LinkError::Write { peer, source })
    }

    #[cfg(test)]
    fn observe(&mut self, slices: &[Bytes]) {
        let range = |slice: &Bytes| {
            let start = slice.as_ptr() as usize;
            start..start + slice.len()
        };
        self.observed.extend(slices.iter().map(range));
        let frames = slices.iter().filter(|slice| slice.starts_with(b"RF"));
        FRAMES_WRITTEN.lock().unwrap().extend(frames.map(|frame| (self.shared.peer, range(frame))));
    }

    async fn write_slices(&mut self, slices: Vec<Bytes>) -> io::Result<WriteCounts> {
        let mut counts = WriteCounts::default();
        // tokio-uring panics on an empty one.
        let mut rest = slices.into_iter().filter(|slice| !slice.is_empty());
        let mut batch: Vec<Bytes> = rest.by_ref().take(SLICES_MAX).collect();
        while !batch.is_empty() {
            #[cfg(test)]
            self.observe(&batch);
            let (result, same) = self.shared.transport.write(batch).await;
            batch = same;
            counts.calls += 1;
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    counts.bytes += written as u64;
                    advance(&mut batch, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            batch.extend(rest.by_ref().take(SLICES_MAX - batch.len()));
        }
        self.shared.transport.flush().await?;
        Ok(counts)
    }

    /// Ends the connection in order: what was written is sent, then the end (with TLS, its
    /// close_notify first). Then the other side has 250 ms to end its direction as well, while the
    /// other half of this link reads what still comes, or this one when that has been dropped:
    /// unread bytes would turn the end into a reset that destroys what was written. After that
    /// both directions are shut down, and a read that waits sees the end.
    ///
    /// It has no error: the connection is over either way.
    pub async fn shutdown(self) {
        let in_order = async {
            // What it says is not of interest: reading tells whether the other side goes on.
            let _ = self.shared.transport.end_writing().await;
            self.shared.wait_for_end().await;
        };
        let _ = timeout(SHUTDOWN_TIMEOUT, in_order).await;
    }
}

/// Drops what has been written.
fn advance(batch: &mut Vec<Bytes>, mut written: usize) {
    let is_whole = |slice: &&Bytes| {
        let is_whole = slice.len() <= written;
        if is_whole {
            written -= slice.len();
        }
        is_whole
    };
    let whole = batch.iter().take_while(is_whole).count();
    batch.drain(..whole);
    if written > 0 {
        batch[0].advance(written);
    }
}

impl Shared {
    fn reader_is(&self, state: ReaderState) {
        self.reader.set(state);
        self.reader_changed.notify_one();
    }

    async fn wait_for_end(&self) {
        while self.reader.get() == ReaderState::Open {
            self.reader_changed.notified().await;
        }
        if self.reader.get() == ReaderState::Ended {
            return;
        }
        let mut buffer = BytesMut::with_capacity(64 << 10);
        loop {
            let (result, same) = self.transport.read(buffer).await;
            if !matches!(result, Ok(1..)) {
                return;
            }
            buffer = same;
            buffer.clear();
        }
    }
}

impl Drop for LinkReader {
    fn drop(&mut self) {
        if self.shared.reader.get() == ReaderState::Open {
            self.shared.reader_is(ReaderState::Dropped);
        }
    }
}

impl Drop for LinkWriter {
    fn drop(&mut self) {
        // The socket stays open as long as an operation of the ring is in flight.
        self.shared.transport.shutdown();
    }
}

/// A peer that is gone without a word is found out, and small writes go out at once.
fn set_options(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(15))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_tcp_user_timeout(socket, USER_TIMEOUT_MS)?;
    Ok(())
}

fn server_name(target: &str) -> Result<ServerName<'static>, LinkError> {
    let (host, _) = address::split(target)
        .map_err(|problem| LinkError::Address { address: target.into(), problem })?;
    ServerName::try_from(host.to_owned())
        .map_err(|_| LinkError::ServerName { address: target.into() })
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer()).finish_non_exhaustive()
    }
}

impl fmt::Debug for LinkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkReader").field("peer", &self.shared.peer).finish_non_exhaustive()
    }
}

impl fmt::Debug for LinkWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkWriter").field("peer", &self.shared.peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
