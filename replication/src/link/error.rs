//! Why a connection cannot be had, or is over.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::tls::TlsError;
use crate::wire::WireError;

/// Why a connection cannot be had, or is over. After any of these it is of no more use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// It is not `host:port`.
    #[error("{address:?} is no address: {problem}")]
    Address {
        /// What was given.
        address: String,
        /// What to do.
        problem: &'static str,
    },
    /// Somebody listens there already.
    #[error(
        "{address} is in use: another node, or another program, listens there ({source}); stop it, or give this node another `listen` address"
    )]
    AddressInUse {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// This machine cannot listen there.
    #[error(
        "cannot listen at {address}: {source}; `listen` has to be an address of this machine, at a port that the process may have"
    )]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The host name has no address.
    #[error("the host of {address} cannot be resolved: {source}; check its name and the resolver")]
    Resolve {
        /// Which address.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody takes the connection.
    #[error(
        "cannot connect to {address} ({tried} of its addresses were tried): {source}; check that the node runs and that no firewall is between"
    )]
    Connect {
        /// Which address.
        address: String,
        /// How many addresses its name has.
        tried: usize,
        /// What the last one said.
        source: io::Error,
    },
    /// It took too long.
    #[error("{peer}: {stage} took longer than {limit:?}; check the network and the other side")]
    Timeout {
        /// The other side.
        peer: String,
        /// What took so long.
        stage: &'static str,
        /// How long it might take.
        limit: Duration,
    },
    /// TLS cannot check a certificate against such a host.
    #[error("no certificate can name the host of {address}; use a DNS name or an IP address")]
    ServerName {
        /// Which address.
        address: String,
    },
    /// TLS found no agreement.
    #[error(
        "{peer}: the TLS handshake failed: {source}; both sides need TLS, certificates of the same authority that are valid now, and this host name or IP address among the subject alternative names"
    )]
    Handshake {
        /// The other side.
        peer: String,
        /// What TLS said.
        source: io::Error,
    },
    /// The certificates of this node cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The socket does not take its options.
    #[error("{peer}: the socket cannot be set up: {source}; check the limits of the process")]
    Socket {
        /// The other side.
        peer: String,
        /// What the system said.
        source: io::Error,
    },
    /// Reading failed.
    #[error("{peer}: the connection broke while reading: {source}; dial again")]
    Read {
        /// The other side.
        peer: SocketAddr,
        /// What the system, or TLS, said.
        source: io::Error,
    },
    /// Writing failed.
    #[error("{peer}: the connection broke while writing: {source}; dial again")]
    Write {
        /// The other side.
        peer: SocketAddr,
        /// What the system, or TLS, said.
        source: io::Error,
    },
    /// The other side ended the connection inside of something.
    #[error(
        "{peer}: the connection ended {received} bytes into something longer; the other side died, dial again"
    )]
    EndInside {
        /// The other side.
        peer: SocketAddr,
        /// Bytes of it that came.
        received: usize,
    },
    /// An earlier operation was dropped before it was done: nobody knows what of it happened.
    #[error("{peer}: an earlier {what} was cancelled, and bytes may be lost; dial again")]
    Cancelled {
        /// The other side.
        peer: SocketAddr,
        /// What was.
        what: &'static str,
    },
    /// The bytes are not what they must be.
    #[error("{0}")]
    Wire(#[from] WireError),
}
