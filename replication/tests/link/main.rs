//! Links over real sockets of this machine.

mod authority;
mod frames;
mod nodes;
mod plain;
mod tls;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ringwal_replication::link::tls::Tls;
use ringwal_replication::link::{Link, LinkError, Listener};

const LIMIT: Duration = Duration::from_secs(20);

/// Runs a test in a runtime of its own; one that hangs fails.
fn run<F: Future>(test: F) -> F::Output {
    tokio_uring::start(async {
        tokio::time::timeout(Duration::from_secs(120), test).await.expect("done in two minutes")
    })
}

type Both = (Result<Link, LinkError>, Result<Link, LinkError>);

/// Who dials and who accepts, each with its own idea of TLS, in one runtime.
async fn connect(dials: Option<Arc<Tls>>, accepts: Option<Arc<Tls>>) -> Both {
    let listener = Listener::bind("127.0.0.1:0").expect("bound");
    let address = format!("localhost:{}", listener.local_address().port());
    let accepting = tokio_uring::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepted");
        Link::accept(stream, accepts.as_deref(), LIMIT).await
    });
    let dialled = Link::dial(&address, dials.as_deref(), LIMIT).await;
    (dialled, accepting.await.expect("no panic"))
}

#[track_caller]
fn says(error: impl std::fmt::Display, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}
