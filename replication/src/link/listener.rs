//! Listening for connections.

use std::cell::OnceCell;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use super::LinkError;
use crate::config::address;

/// A bound port. It is bound anywhere, and then moved to the runtime that accepts from it.
///
/// Not tokio-uring's own listener: that sets SO_REUSEPORT, with which a second node binds the same
/// port and takes half of the connections, and nobody is told.
#[derive(Debug)]
pub struct Listener {
    bound: std::net::TcpListener,
    local: SocketAddr,
    /// The same socket in the runtime, from the first `accept` on.
    registered: OnceCell<tokio::net::TcpListener>,
}

impl Listener {
    /// Binds `host:port`, `[::1]:9291` for IPv6; port 0 takes a free one. A host name is resolved
    /// here, blocking: this is for the start of a node.
    ///
    /// # Errors
    /// [`LinkError::AddressInUse`] when somebody listens there, [`LinkError::Address`],
    /// [`LinkError::Resolve`] or [`LinkError::Listen`] otherwise.
    pub fn bind(listen: &str) -> Result<Self, LinkError> {
        let address = || listen.to_owned();
        let host_port = address::split(listen)
            .map_err(|problem| LinkError::Address { address: address(), problem })?;
        let addresses: Vec<SocketAddr> = host_port
            .to_socket_addrs()
            .map_err(|source| LinkError::Resolve { address: address(), source })?
            .collect();
        // The standard library sets SO_REUSEADDR, so that a node can be started again at once, and
        // never SO_REUSEPORT.
        let bound =
            std::net::TcpListener::bind(&addresses[..]).map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => LinkError::AddressInUse { address: address(), source },
                _ => LinkError::Listen { address: address(), source },
            })?;
        bound
            .set_nonblocking(true)
            .and_then(|()| bound.local_addr())
            .map(|local| Self { bound, local, registered: OnceCell::new() })
            .map_err(|source| LinkError::Listen { address: address(), source })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. It may be dropped at any time; nothing is lost.
    ///
    /// # Errors
    /// Those of one connection that is gone again, and those of a process that has no file
    /// descriptor left: the latter come again at once, so wait a little after any of them.
    pub async fn accept(&self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        let listener = match self.registered.get() {
            Some(listener) => listener,
            None => {
                let listener = tokio::net::TcpListener::from_std(self.bound.try_clone()?)?;
                self.registered.get_or_init(|| listener)
            }
        };
        let (stream, peer) = listener.accept().await?;
        Ok((stream.into_std()?, peer))
    }
}
