//! Embedding the engine: append, read, follow, trim. Run it on any directory:
//! `cargo run --release -p ringwal-engine --example embed -- DIRECTORY`

use ringwal_engine::{Engine, StreamId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "ringwal-data-embed".into());
    let engine = Engine::options().shards(1).open(&directory)?;
    let orders = engine.stream(StreamId::new(7));

    let receipt = orders.append(b"one")?.wait()?; // blocking
    println!("durable at offset {} of stream {}", receipt.offset(), receipt.stream());

    let token = orders.append(b"two")?; // a future on any runtime; here a tiny one of our own
    println!("durable at offset {}", block_on(token)?.offset());

    let receipts = orders.append_batch([b"a", b"b"])?.wait()?; // all or none after a crash
    println!("durable at offsets {:?}", receipts.offsets());

    for record in orders.read(receipt.offset()..)? {
        let record = record?;
        println!("{}: {:?}", record.offset(), String::from_utf8_lossy(record.payload()));
    }

    let mut tail = orders.tail(receipt.offset()); // durable records only
    println!("the tail begins with {:?}", String::from_utf8_lossy(tail.next_blocking()?.payload()));

    orders.trim(receipt.offset())?;
    let stats = &engine.stats().shards[0];
    println!("{} records in {} batches", stats.records, stats.batches);
    engine.close()?;
    Ok(())
}

/// The smallest runtime: polls a future on this thread and parks in between.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
