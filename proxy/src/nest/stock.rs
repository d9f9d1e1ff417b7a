//! A stock of fresh sockets made inside the namespace.
//!
//! A socket keeps the namespace that it was made in, and only a thread inside can make one there.
//! That thread keeps a few in store, so that a worker that dials the program takes one for the
//! price of a lock.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Sockets in store per address family.
const STOCK: usize = 32;

/// The thread is woken when so few are left: once for many sockets.
const LOW: usize = STOCK / 2;

/// The longest that a connection waits for a socket: on a machine that is busy the thread may not run
/// for a while. The worker serves others meanwhile.
const TAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to leave the system alone after it refused a socket (descriptors or memory used up).
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Gives out fresh TCP sockets that belong to the program's network namespace.
#[derive(Clone, Debug)]
pub struct SocketFactory {
    stock: Arc<Stock>,
}

impl SocketFactory {
    pub(super) fn new(stock: Arc<Stock>) -> Self {
        Self { stock }
    }

    /// A fresh, non-blocking, unbound TCP socket for IPv4, or for IPv6 if `v6`, inside the
    /// namespace. Waits for one for a second at most, and holds up nobody else.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the kernel has no IPv6, `NotConnected` once the [`super::Nest`] is
    /// gone, `TimedOut` when the stock is empty and refilling fails; the last reason is in it.
    pub async fn take(&self, v6: bool) -> io::Result<Socket> {
        self.stock.take(v6).await
    }
}

#[derive(Debug)]
pub(super) struct Stock {
    shelves: Mutex<Shelves>,
    /// The thread waits here until sockets are wanted.
    wanted: Condvar,
    /// Tells connections that wait that there are some.
    made: Notify,
    has_v6: bool,
}

#[derive(Debug, Default)]
struct Shelves {
    v4: Vec<Socket>,
    v6: Vec<Socket>,
    refused: Option<io::Error>,
    closed: bool,
}

impl Shelves {
    fn of(&mut self, v6: bool) -> &mut Vec<Socket> {
        if v6 { &mut self.v6 } else { &mut self.v4 }
    }
}

impl Stock {
    pub(super) fn new(has_v6: bool) -> Self {
        Self {
            shelves: Mutex::default(),
            wanted: Condvar::new(),
            made: Notify::new(),
            has_v6,
        }
    }

    /// Ends [`Stock::keep_full`].
    pub(super) fn close(&self) {
        self.shelves().closed = true;
        self.wanted.notify_all();
        self.made.notify_waiters();
    }

    /// Refills the shelves until closed. Runs in a thread inside the namespace.
    pub(super) fn keep_full(&self) {
        let mut shelves = self.shelves();
        while !shelves.closed {
            let Some(v6) = self.short(&shelves, STOCK) else {
                shelves = self
                    .wanted
                    .wait_while(shelves, |shelves| {
                        !shelves.closed && self.short(shelves, LOW).is_none()
                    })
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(shelves);
            let socket = fresh(v6);
            shelves = self.shelves();
            match socket {
                Ok(socket) => {
                    shelves.of(v6).push(socket);
                    shelves.refused = None;
                    self.made.notify_waiters();
                }
                Err(error) => {
                    shelves.refused = Some(error);
                    let rest = self.wanted.wait_timeout(shelves, RETRY_AFTER);
                    shelves = rest.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        shelves.v4.clear();
        shelves.v6.clear();
    }

    /// The family with fewer than `level` sockets; the emptier one if both have.
    fn short(&self, shelves: &Shelves, level: usize) -> Option<bool> {
        let v4 = shelves.v4.len();
        let v6 = if self.has_v6 {
            shelves.v6.len()
        } else {
            usize::MAX
        };
        (v4.min(v6) < level).then_some(v6 < v4)
    }

    async fn take(&self, v6: bool) -> io::Result<Socket> {
        let taking = async {
            loop {
                // Before it is looked: what is made from now on is told.
                let made = self.made.notified();
                if let Some(socket) = self.try_take(v6)? {
                    return Ok(socket);
                }
                made.await;
            }
        };
        let taken = timeout(TAKE_TIMEOUT, taking).await;
        taken.unwrap_or_else(|_elapsed| Err(no_socket(self.shelves().refused.as_ref())))
    }

    /// A socket, where there is one now; otherwise some are made.
    fn try_take(&self, v6: bool) -> io::Result<Option<Socket>> {
        if v6 && !self.has_v6 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel has no IPv6",
            ));
        }
        let mut shelves = self.shelves();
        if shelves.closed {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the program's namespace is closed",
            ));
        }
        let shelf = shelves.of(v6);
        let socket = shelf.pop();
        if shelf.len() < LOW {
            self.wanted.notify_one();
        }
        Ok(socket)
    }

    /// The shelves are sound after any panic: they hold whole sockets.
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh(v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

fn no_socket(refused: Option<&io::Error>) -> io::Error {
    let why = refused.map_or_else(|| "the stock is empty".to_owned(), ToString::to_string);
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no socket inside the program's namespace within {TAKE_TIMEOUT:?}: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_are_of_the_family_asked_for_and_never_run_out() {
        let stock = Arc::new(Stock::new(true));
        let keeper = Arc::clone(&stock);
        let thread = std::thread::spawn(move || keeper.keep_full());
        let factory = SocketFactory::new(Arc::clone(&stock));
        for round in 0..4 * STOCK {
            let v6 = round % 3 == 0;
            let socket = factory.take(v6).await.unwrap();
            let expected = if v6 { Domain::IPV6 } else { Domain::IPV4 };
            assert_eq!(socket.domain().unwrap(), expected);
            assert!(socket.nonblocking().unwrap());
        }
        stock.close();
        thread.join().unwrap();
        let error = factory.take(false).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_socket_is_an_error_soon() {
        let check = async |has_v6, v6, expected| {
            let error = Stock::new(has_v6).take(v6).await.unwrap_err();
            assert_eq!(error.kind(), expected);
        };
        check(true, false, io::ErrorKind::TimedOut).await;
        check(true, true, io::ErrorKind::TimedOut).await;
        check(false, true, io::ErrorKind::Unsupported).await;
    }

    /// On the thread of a worker others go on while one waits, here the one that has sockets made.
    #[tokio::test]
    async fn waiting_for_a_socket_holds_up_nobody() {
        let stock = Arc::new(Stock::new(true));
        let began = std::time::Instant::now();
        let keeper = Arc::clone(&stock);
        let (taken, thread) = tokio::join!(stock.take(false), async move {
            std::thread::spawn(move || keeper.keep_full())
        });
        assert_eq!(taken.unwrap().domain().unwrap(), Domain::IPV4);
        assert!(began.elapsed() < TAKE_TIMEOUT);
        // Those that wait when it is closed are told.
        let empty = Stock::new(true);
        let (taken, ()) = tokio::join!(empty.take(false), async { empty.close() });
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::NotConnected);
        stock.close();
        thread.join().unwrap();
    }
}
