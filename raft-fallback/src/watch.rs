//! A value that others see and wait for. As tokio's `watch`, of which it has what is used here, but for one
//! thing: who waits is woken in the order of waiting. Tokio's draws lots, and then a simulated run is not
//! the same twice.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::Notify;

struct Shared<T> {
    value: RwLock<T>,
    /// How often it has changed.
    version: AtomicU64,
    senders: AtomicUsize,
    changed: Notify,
}

/// Changes the value.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// Sees it.
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// Nobody changes it any more.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Closed;

/// The value. Nobody changes it while this is held.
pub(crate) struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Shared<T> {
    fn read(&self) -> Ref<'_, T> {
        Ref(self.value.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Sender<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(Shared {
            value: RwLock::new(value),
            version: AtomicU64::new(0),
            senders: AtomicUsize::new(1),
            changed: Notify::new(),
        }))
    }

    /// Sees it from now on.
    pub(crate) fn subscribe(&self) -> Receiver<T> {
        Receiver { shared: self.0.clone(), seen: self.0.version.load(Ordering::SeqCst) }
    }

    pub(crate) fn borrow(&self) -> Ref<'_, T> {
        self.0.read()
    }

    pub(crate) fn send_replace(&self, value: T) {
        self.send_modify(|present| *present = value);
    }

    pub(crate) fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Others are woken when `change` says that there is something to see.
    pub(crate) fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) {
        let has_changed = {
            let mut value = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
            let has_changed = change(&mut value);
            if has_changed {
                self.0.version.fetch_add(1, Ordering::SeqCst);
            }
            has_changed
        };
        if has_changed {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.senders.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    pub(crate) fn borrow(&self) -> Ref<'_, T> {
        self.shared.read()
    }

    pub(crate) fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = self.shared.version.load(Ordering::SeqCst);
        value
    }

    /// Comes when it is another one than was seen last.
    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let notified = self.shared.changed.notified();
            let version = self.shared.version.load(Ordering::SeqCst);
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if self.shared.senders.load(Ordering::SeqCst) == 0 {
                return Err(Closed);
            }
            notified.await;
        }
    }

    /// Comes when it is as wanted: what it was then.
    pub(crate) async fn wait_for(&mut self, is_wanted: impl Fn(&T) -> bool) -> Result<T, Closed>
    where
        T: Clone,
    {
        loop {
            let wanted = {
                let value = self.borrow_and_update();
                is_wanted(&value).then(|| value.clone())
            };
            match wanted {
                Some(value) => return Ok(value),
                None => self.changed().await?,
            }
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&*self.borrow()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&*self.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Mutex;
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;

    struct Order(usize, Arc<Mutex<Vec<usize>>>);

    impl Wake for Order {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    #[test]
    fn who_waits_is_woken_in_order_and_sees_the_last_value() {
        let (sender, receiver) = channel(1);
        let woken: Arc<Mutex<Vec<usize>>> = Arc::default();
        let mut receivers: Vec<_> = (0..20).map(|_| receiver.clone()).collect();
        let mut waiting: Vec<_> =
            receivers.iter_mut().map(|receiver| Box::pin(receiver.wait_for(|n| *n > 2))).collect();
        let wakers: Vec<Waker> =
            (0..20).map(|number| Waker::from(Arc::new(Order(number, woken.clone())))).collect();
        for (future, waker) in waiting.iter_mut().zip(&wakers) {
            assert!(future.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        sender.send_replace(2);
        assert_eq!(*woken.lock().unwrap(), (0..20).collect::<Vec<_>>());
        for (future, waker) in waiting.iter_mut().zip(&wakers) {
            assert!(future.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        sender.send_if_modified(|value| std::mem::replace(value, 3) == 3);
        assert_eq!(woken.lock().unwrap().len(), 20, "nobody was told");
        sender.send_modify(|value| *value += 1);
        for (future, waker) in waiting.iter_mut().zip(&wakers) {
            let Poll::Ready(Ok(value)) = future.as_mut().poll(&mut Context::from_waker(waker))
            else {
                panic!("it is as wanted");
            };
            assert_eq!(value, 4);
        }
    }

    #[test]
    fn a_change_is_seen_once_and_the_end_is_seen() {
        let (sender, mut receiver) = channel(0);
        sender.send_replace(1);
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(pin!(receiver.changed()).poll(&mut context), Poll::Ready(Ok(())));
        assert!(pin!(receiver.changed()).poll(&mut context).is_pending());
        assert_eq!(*receiver.borrow(), 1);
        drop(sender);
        assert_eq!(pin!(receiver.changed()).poll(&mut context), Poll::Ready(Err(Closed)));
    }
}
