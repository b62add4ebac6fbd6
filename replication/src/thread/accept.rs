//! Accepts connections and reads their hello. What they are for is decided by the loop.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::Config;
use crate::link::tls::{PeerCertificate, Tls};
use crate::link::{Link, LinkReader, LinkWriter, Listener};
use crate::stats::Counters;
use crate::wake::Wake;
use crate::wire::{Answer, HELLO_BYTES, Hello};

/// Handshake and hello together.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// A pause where accepting fails, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);
/// A refusal reaches the other side within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A connection whose hello is sound.
pub(crate) struct Arrived {
    pub(crate) reader: LinkReader,
    pub(crate) writer: LinkWriter,
    pub(crate) hello: Hello,
    /// `None` without TLS.
    pub(crate) certificate: Option<PeerCertificate>,
    /// It counts as open until this is dropped.
    pub(crate) place: Place,
}

/// One of the connections that may be open at once.
pub(crate) struct Place {
    open: Rc<Cell<usize>>,
}

impl Place {
    fn take(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self { open: open.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

/// Connections that wait for the loop.
#[derive(Clone, Default)]
pub(crate) struct Arrivals {
    waiting: Rc<RefCell<VecDeque<Arrived>>>,
    /// Connections that are open, in any stage.
    open: Rc<Cell<usize>>,
}

impl Arrivals {
    pub(crate) fn take(&self) -> Option<Arrived> {
        self.waiting.borrow_mut().pop_front()
    }
}

/// Accepts for as long as the runtime lasts.
pub(crate) fn start(
    listener: Listener,
    tls: Option<Arc<Tls>>,
    config: &Config,
    arrivals: &Arrivals,
    counters: Arc<Counters>,
    wake: Arc<Wake>,
) {
    let (arrivals, connections_max) = (arrivals.clone(), config.connections_max);
    tokio_uring::spawn(async move {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            counters.accepted.add(1);
            if arrivals.open.get() >= connections_max {
                counters.too_many.add(1);
                continue;
            }
            let place = Place::take(&arrivals.open);
            let (tls, waiting) = (tls.clone(), arrivals.waiting.clone());
            let (counters, wake) = (counters.clone(), wake.clone());
            tokio_uring::spawn(async move {
                let arriving = arrive(stream, tls.as_deref(), place);
                match tokio::time::timeout(HELLO_LIMIT, arriving).await {
                    Ok(Ok(arrived)) => {
                        waiting.borrow_mut().push_back(arrived);
                        wake.wake();
                    }
                    Ok(Err(error)) => {
                        counters.bad_hellos.add(1);
                        tracing::info!(%peer, %error, "no hello");
                    }
                    Err(_) => {
                        counters.bad_hellos.add(1);
                        tracing::info!(%peer, "no hello within {HELLO_LIMIT:?}");
                    }
                }
            });
        }
    });
}

async fn arrive(
    stream: std::net::TcpStream,
    tls: Option<&Tls>,
    place: Place,
) -> Result<Arrived, Box<dyn std::error::Error>> {
    let link = Link::accept(stream, tls, HELLO_LIMIT).await?;
    let certificate = link.peer_certificate();
    let (mut reader, writer) = link.split();
    let hello = Hello::decode(&reader.read_exact(HELLO_BYTES).await?)?;
    Ok(Arrived { reader, writer, hello, certificate, place })
}

/// Answers a hello with a refusal, and closes.
pub(crate) fn refuse(arrived: Arrived, answer: &Answer) {
    let bytes = Bytes::from(answer.encode());
    let Arrived { mut writer, place, reader, .. } = arrived;
    tokio_uring::spawn(async move {
        let _ = tokio::time::timeout(ANSWER_LIMIT, writer.write_all(vec![bytes])).await;
        // Nobody else reads the end of it.
        drop(reader);
        writer.shutdown().await;
        drop(place);
    });
}
