//! A network between nodes that can lose what one sends to another: each member's address is that of a
//! forwarder, which knows from the hello who dials.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringwal_replication::wire::{ConnectionKind, HELLO_BYTES, Hello};

/// How often a forwarder looks whether it is to lose what comes, or to end.
const LOOK: Duration = Duration::from_millis(10);

/// Ends when it is dropped.
pub(super) struct Network(Arc<Links>);

#[derive(Default)]
struct Links {
    /// From whom to whom nothing comes.
    lost: Mutex<BTreeSet<(u64, u64)>>,
    /// Who gets no frames of streams.
    unfed: Mutex<BTreeSet<u64>>,
    is_over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Forwards what comes there to a node.
    pub(super) fn forward(&self, listener: TcpListener, to: u64, address: String) {
        let links = self.0.clone();
        listener.set_nonblocking(true).expect("a socket");
        std::thread::spawn(move || {
            while !links.is_over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((dialled, _)) => {
                        let (links, address) = (links.clone(), address.clone());
                        std::thread::spawn(move || links.connect(dialled, to, &address));
                    }
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
    }

    /// What one sends to the other is lost, until all is whole again.
    pub(super) fn lose(&self, from: u64, to: u64) {
        lock(&self.0.lost).insert((from, to));
    }

    /// Nobody hears a node, and it hears nobody.
    pub(super) fn isolate(&self, node: u64) {
        (1..=5).filter(|other| *other != node).for_each(|other| {
            self.lose(node, other);
            self.lose(other, node);
        });
    }

    /// Nobody's frames come to a node; requests do.
    pub(super) fn starve(&self, node: u64) {
        lock(&self.0.unfed).insert(node);
    }

    pub(super) fn heal(&self) {
        lock(&self.0.lost).clear();
        lock(&self.0.unfed).clear();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Links {
    fn loses(&self, from: u64, to: u64, kind: ConnectionKind) -> bool {
        let is_unfed = kind == ConnectionKind::Frames && lock(&self.unfed).contains(&to);
        is_unfed || lock(&self.lost).contains(&(from, to))
    }

    fn connect(self: Arc<Self>, mut dialled: TcpStream, to: u64, address: &str) {
        dialled.set_nonblocking(false).expect("a socket");
        dialled.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
        let mut hello = [0; HELLO_BYTES];
        if dialled.read_exact(&mut hello).is_err() {
            return;
        }
        let Ok(Hello { from, kind, .. }) = Hello::decode(&hello) else { return };
        let from = from.get();
        // What is lost is never answered.
        while self.loses(from, to, kind) {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let Ok(mut node) = TcpStream::connect(address) else { return };
        if node.write_all(&hello).is_err() {
            return;
        }
        for socket in [&dialled, &node] {
            socket.set_read_timeout(Some(LOOK)).expect("a socket");
            socket.set_nodelay(true).expect("a socket");
        }
        let copies = (dialled.try_clone().expect("a socket"), node.try_clone().expect("a socket"));
        let links = self.clone();
        let back = std::thread::spawn(move || links.carry(copies.1, copies.0, to, from, kind));
        self.carry(dialled, node, from, to, kind);
        let _ = back.join();
    }

    /// One direction of a connection. One of which something was lost ends when nothing is lost any more.
    fn carry(
        &self,
        mut source: TcpStream,
        mut sink: TcpStream,
        from: u64,
        to: u64,
        kind: ConnectionKind,
    ) {
        let mut bytes = vec![0; 64 << 10];
        let mut is_torn = false;
        while !self.is_over.load(Ordering::Relaxed) {
            let loses = self.loses(from, to, kind);
            if is_torn && !loses {
                break;
            }
            match source.read(&mut bytes) {
                Ok(0) => break,
                Ok(_) if loses || self.loses(from, to, kind) => is_torn = true,
                Ok(length) => {
                    if sink.write_all(&bytes[..length]).is_err() {
                        break;
                    }
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => break,
            }
        }
        let _ = source.shutdown(Shutdown::Both);
        let _ = sink.shutdown(Shutdown::Both);
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock | Interrupted)
}
