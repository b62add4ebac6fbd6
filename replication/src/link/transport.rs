//! Bytes through a socket, plain or TLS. Both halves of a link use it at the same time, so nothing
//! is borrowed while anything waits.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio_rustls::TlsStream;
use tokio_uring::buf::BoundedBuf;

/// Plain bytes that a TLS session takes at once, and memory that its records may take.
pub(super) const TLS_BUFFER_BYTES: usize = 256 << 10;

type TlsSocket = TlsStream<tokio::net::TcpStream>;

pub(super) enum Transport {
    Plain(tokio_uring::net::TcpStream),
    Tls(Box<TlsTransport>),
}

pub(super) struct TlsTransport {
    stream: RefCell<TlsSocket>,
    /// An error that came behind bytes, for the next read.
    failed: RefCell<Option<io::Error>>,
}

impl Transport {
    /// A connected socket that blocks.
    pub(super) fn plain(stream: std::net::TcpStream) -> Self {
        Self::Plain(tokio_uring::net::TcpStream::from_std(stream))
    }

    pub(super) fn tls(stream: TlsSocket) -> Self {
        let (stream, failed) = (RefCell::new(stream), RefCell::new(None));
        Self::Tls(Box::new(TlsTransport { stream, failed }))
    }

    /// Reads behind what is in the buffer, as far as its capacity goes. 0 at the end.
    pub(super) async fn read(&self, buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        match self {
            Self::Plain(stream) => {
                let begin = buffer.len();
                let (result, buffer) = stream.read(buffer.slice(begin..)).await;
                (result, buffer.into_inner())
            }
            Self::Tls(tls) => tls.read(buffer).await,
        }
    }

    /// Writes a part of the slices, none of which is empty; there are at most 1024.
    pub(super) async fn write(&self, slices: Vec<Bytes>) -> (io::Result<usize>, Vec<Bytes>) {
        match self {
            Self::Plain(stream) => stream.writev(slices).await,
            Self::Tls(tls) => tls.write(slices).await,
        }
    }

    /// Sends what a TLS session still holds.
    pub(super) async fn flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.with(|stream, context| stream.poll_flush(context)).await,
        }
    }

    /// Sends what there is, and then the end.
    pub(super) async fn end_writing(&self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown(Shutdown::Write),
            Self::Tls(tls) => tls.with(|stream, context| stream.poll_shutdown(context)).await,
        }
    }

    /// Ends both directions now; what waits for either of them comes back.
    pub(super) fn shutdown(&self) {
        // It fails when the other side has gone before: then there is nothing left to end.
        match self {
            Self::Plain(stream) => {
                let _ = stream.shutdown(Shutdown::Both);
            }
            Self::Tls(tls) => {
                let stream = tls.stream.borrow();
                let _ = rustix::net::shutdown(stream.get_ref().0, rustix::net::Shutdown::Both);
            }
        }
    }
}

impl TlsTransport {
    async fn with<T>(
        &self,
        mut poll: impl FnMut(Pin<&mut TlsSocket>, &mut std::task::Context<'_>) -> Poll<T>,
    ) -> T {
        poll_fn(|context| poll(Pin::new(&mut *self.stream.borrow_mut()), context)).await
    }

    async fn read(&self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        if let Some(error) = self.failed.take() {
            return (Err(error), buffer);
        }
        let before = buffer.len();
        let result = self
            .with(|mut stream, context| {
                // A record at a time, as long as there are some.
                while buffer.len() < buffer.capacity() {
                    let reading = pin!(stream.read_buf(&mut buffer));
                    match reading.poll(context) {
                        Poll::Ready(Ok(1..)) => continue,
                        Poll::Ready(Ok(_)) => break,
                        Poll::Ready(Err(error)) => {
                            self.failed.replace(Some(error));
                            break;
                        }
                        Poll::Pending if buffer.len() == before => return Poll::Pending,
                        Poll::Pending => break,
                    }
                }
                let read = buffer.len() - before;
                Poll::Ready(match self.failed.borrow_mut().take_if(|_| read == 0) {
                    Some(error) => Err(error),
                    None => Ok(read),
                })
            })
            .await;
        (result, buffer)
    }

    async fn write(&self, slices: Vec<Bytes>) -> (io::Result<usize>, Vec<Bytes>) {
        let result = self
            .with(|stream, context| {
                // Gathered into whole records; more than it takes would only be looked at.
                let mut bytes = 0;
                let some = |slice: &&Bytes| {
                    let is_wanted = bytes < TLS_BUFFER_BYTES;
                    bytes += slice.len();
                    is_wanted
                };
                let some: Vec<IoSlice<'_>> =
                    slices.iter().take_while(some).map(|slice| IoSlice::new(slice)).collect();
                stream.poll_write_vectored(context, &some)
            })
            .await;
        (result, slices)
    }
}
