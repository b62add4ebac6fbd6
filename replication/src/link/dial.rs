//! From an address to a connected socket, without blocking the runtime's thread.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::LinkError;
use crate::config::address;

/// Host names that are being resolved at once in this process: each has a thread, and a resolver
/// that hangs holds it for as long as it likes.
const RESOLVERS_MAX: usize = 16;

static RESOLVERS: AtomicUsize = AtomicUsize::new(0);

/// Connects to the first of the host's addresses that takes it. `None` when time is up.
pub(super) async fn connect(
    target: &str,
    deadline: Instant,
) -> Result<Option<tokio::net::TcpStream>, LinkError> {
    let Ok(resolved) = timeout_at(deadline, resolve(target)).await else {
        return Ok(None);
    };
    let addresses = resolved?;
    let mut last = io::Error::other("its name has no address");
    for (index, address) in addresses.iter().enumerate() {
        // An address that never answers leaves the later ones their share.
        let left = deadline.saturating_duration_since(Instant::now());
        let share = Instant::now() + left / (addresses.len() - index) as u32;
        match timeout_at(share, tokio::net::TcpStream::connect(address)).await {
            Ok(Ok(stream)) if is_itself(&stream) => last = io::ErrorKind::ConnectionRefused.into(),
            Ok(Ok(stream)) => return Ok(Some(stream)),
            Ok(Err(error)) => last = error,
            Err(_) if index + 1 == addresses.len() => return Ok(None),
            Err(_) => {}
        }
    }
    Err(LinkError::Connect { address: target.into(), tried: addresses.len(), source: last })
}

/// Where nobody listens, at a port that the kernel gives to those who dial, a socket can end up
/// connected with itself: and then nobody can listen there any more.
fn is_itself(stream: &tokio::net::TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(peer)) if own == peer)
}

async fn resolve(target: &str) -> Result<Vec<SocketAddr>, LinkError> {
    let (host, port) = address::split(target)
        .map_err(|problem| LinkError::Address { address: target.into(), problem })?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let host = host.to_owned();
    let resolved = resolve_in_thread(host, port).await;
    resolved.map_err(|source| LinkError::Resolve { address: target.into(), source })
}

/// Not in the runtime's pool of blocking threads: closing a runtime waits for those.
async fn resolve_in_thread(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    let Some(slot) = ResolverSlot::acquire() else {
        return Err(io::Error::other(format!("{RESOLVERS_MAX} other names are being resolved")));
    };
    let (reply, resolved) = oneshot::channel();
    std::thread::Builder::new().name("ringwal-resolve".into()).spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        drop(slot);
        // Nobody may wait any more.
        let _ = reply.send(addresses);
    })?;
    resolved.await.unwrap_or_else(|_| Err(io::Error::other("the thread that resolves has died")))
}

struct ResolverSlot;

impl ResolverSlot {
    fn acquire() -> Option<Self> {
        let taken = RESOLVERS.fetch_add(1, Ordering::Relaxed);
        // Dropped at once when it is one too many, which gives it back.
        let slot = Self;
        (taken < RESOLVERS_MAX).then_some(slot)
    }
}

impl Drop for ResolverSlot {
    fn drop(&mut self) {
        RESOLVERS.fetch_sub(1, Ordering::Relaxed);
    }
}
