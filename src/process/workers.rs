//! The connections of a processor: one to look through, shared by all tasks, and a bounded number of pairs to work with.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::store::{LedgerRead, LedgerWrite, Store, StoreError};

/// The connections that processors of one database work on: one that all look through, and a bounded number of pairs.
/// Each is opened when it is first needed and kept until the last copy of these is dropped.
#[derive(Debug, Clone)]
pub struct Connections {
    pub(super) store: Store,
    pub(super) lookout: Arc<Lookout>,
    pub(super) for_balances: Arc<Workers>,
    pub(super) for_functions: Arc<Workers>,
    /// For functions that go their own way after another projection: each keeps a replica of the balances on its session, for
    /// as long as nobody waits for it.
    pub(super) for_followers: Arc<Workers>,
}

impl Connections {
    /// At most `workers` pairs for balances, as many for functions and code and as many for followers on their own way, and one
    /// more.
    #[must_use]
    pub fn new(store: &Store, workers: usize) -> Connections {
        let [for_balances, for_functions, for_followers] =
            [false, true, true].map(|for_functions| Workers::new(store, for_functions, workers));
        Connections { store: store.clone(), lookout: Lookout::new(store), for_balances, for_functions, for_followers }
    }

    /// The database that they lead to.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }
}

/// A pair of connections: one reads ahead, one applies.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) read: LedgerRead,
    pub(super) write: LedgerWrite,
}

impl Session {
    async fn connect(store: &Store, for_functions: bool) -> Result<Session, StoreError> {
        let write = if for_functions {
            LedgerWrite::connect_for_functions(store).await?
        } else {
            LedgerWrite::connect(store).await?
        };
        Ok(Session { read: LedgerRead::connect(store).await?, write })
    }

    /// Whether one of its connections is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.read.is_closed() || self.write.is_closed()
    }
}

/// At most so many sessions, each lent to one task at a time, in the order of asking.
#[derive(Debug)]
pub(super) struct Workers {
    store: Store,
    /// Whether somebody's functions run on them, for which the planner is left as they know it.
    for_functions: bool,
    permits: Arc<Semaphore>,
    /// How many tasks wait for a session.
    waiting: watch::Sender<usize>,
    idle: Mutex<Vec<Session>>,
}

impl Workers {
    pub(super) fn new(store: &Store, for_functions: bool, most: usize) -> Arc<Workers> {
        let permits = Arc::new(Semaphore::new(most));
        let (store, waiting) = (store.clone(), watch::Sender::new(0));
        Arc::new(Workers { store, for_functions, permits, waiting, idle: Mutex::default() })
    }

    /// A session, once one is free.
    pub(super) async fn lend(self: &Arc<Workers>) -> Result<Lent, StoreError> {
        let permit = {
            let _turn = Waits::for_one_of(self);
            self.permits.clone().acquire_owned().await
        };
        let permit = permit.map_err(|closed| StoreError::NoConnection { reason: closed.to_string() })?;
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let session = match kept {
            Some(session) => session,
            None => Session::connect(&self.store, self.for_functions).await?,
        };
        Ok(Lent { session: Some(session), home: self.clone(), _permit: permit })
    }
}

/// Counts a task that waits for a session, until it is dropped.
struct Waits<'w>(&'w Workers);

impl Waits<'_> {
    fn for_one_of(workers: &Workers) -> Waits<'_> {
        workers.waiting.send_modify(|waiting| *waiting += 1);
        Waits(workers)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

/// A session on loan; goes back when dropped, unless it is [ended](Lent::end).
#[derive(Debug)]
pub(super) struct Lent {
    session: Option<Session>,
    home: Arc<Workers>,
    _permit: OwnedSemaphorePermit,
}

impl Lent {
    /// Its connections.
    pub(super) fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("it is there until it is ended or dropped")
    }

    /// Whether somebody else waits for a session.
    pub(super) fn is_wanted(&self) -> bool {
        *self.home.waiting.borrow() > 0
    }

    /// Waits until somebody else waits for a session. Cancel safe.
    pub(super) async fn wanted(&self) {
        // The sender is there for as long as this is.
        let _ = self.home.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }

    /// Closes its connections: they broke.
    pub(super) fn end(mut self) {
        self.session = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        }
    }
}

/// The connection that all tasks look through: their statements go down it one after the other, without waiting in turn.
#[derive(Debug)]
pub(super) struct Lookout {
    store: Store,
    read: tokio::sync::Mutex<Option<Arc<LedgerRead>>>,
}

impl Lookout {
    pub(super) fn new(store: &Store) -> Arc<Lookout> {
        Arc::new(Lookout { store: store.clone(), read: tokio::sync::Mutex::default() })
    }

    /// The connection, made again if it broke.
    pub(super) async fn read(&self) -> Result<Arc<LedgerRead>, StoreError> {
        let mut read = self.read.lock().await;
        if let Some(open) = read.as_ref().filter(|read| !read.is_closed()) {
            return Ok(open.clone());
        }
        let opened = LedgerRead::connect(&self.store).await?;
        // It may lead to another server by now, which was a copy.
        opened.lift_revisions().await?;
        Ok(read.insert(Arc::new(opened)).clone())
    }
}
