//! A stock of fresh sockets made inside the namespace.
//!
//! A socket keeps the namespace that it was made in, and only a thread inside can make one there.
//! That thread keeps a few in store, so that a worker that dials the program takes one for the
//! price of a lock.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Sockets in store per address family.
const STOCK: usize = 32;

/// The thread is woken when so few are left: once for many sockets.
const LOW: usize = STOCK / 2;

/// The longest that a worker waits for a socket.
const TAKE_TIMEOUT: Duration = Duration::from_millis(50);

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
    /// namespace. Waits at most 50 ms.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the kernel has no IPv6, `NotConnected` once the [`super::Nest`] is
    /// gone, `TimedOut` when the stock is empty and refilling fails; the last reason is in it.
    pub fn take(&self, v6: bool) -> io::Result<Socket> {
        self.stock.take(v6)
    }
}

#[derive(Debug)]
pub(super) struct Stock {
    shelves: Mutex<Shelves>,
    /// The thread waits here until sockets are wanted.
    wanted: Condvar,
    /// Workers wait here until there are some.
    made: Condvar,
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
            made: Condvar::new(),
            has_v6,
        }
    }

    /// Ends [`Stock::keep_full`].
    pub(super) fn close(&self) {
        self.shelves().closed = true;
        self.wanted.notify_all();
        self.made.notify_all();
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
                    self.made.notify_all();
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

    fn take(&self, v6: bool) -> io::Result<Socket> {
        if v6 && !self.has_v6 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel has no IPv6",
            ));
        }
        let deadline = Instant::now() + TAKE_TIMEOUT;
        let mut shelves = self.shelves();
        loop {
            if shelves.closed {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the program's namespace is closed",
                ));
            }
            let shelf = shelves.of(v6);
            if let Some(socket) = shelf.pop() {
                if shelf.len() < LOW {
                    self.wanted.notify_one();
                }
                return Ok(socket);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(no_socket(shelves.refused.as_ref()));
            }
            self.wanted.notify_one();
            let waited = self.made.wait_timeout(shelves, left);
            shelves = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
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
        format!("no socket inside the program's namespace within 50 ms: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_of_the_family_asked_for_and_never_run_out() {
        let stock = Arc::new(Stock::new(true));
        let keeper = Arc::clone(&stock);
        let thread = std::thread::spawn(move || keeper.keep_full());
        let factory = SocketFactory::new(Arc::clone(&stock));
        for round in 0..4 * STOCK {
            let v6 = round % 3 == 0;
            let socket = factory.take(v6).unwrap();
            let expected = if v6 { Domain::IPV6 } else { Domain::IPV4 };
            assert_eq!(socket.domain().unwrap(), expected);
            assert!(socket.nonblocking().unwrap());
        }
        stock.close();
        thread.join().unwrap();
        let error = factory.take(false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn a_missing_socket_is_an_error_soon() {
        let check = |has_v6, v6, expected| {
            let error = Stock::new(has_v6).take(v6).unwrap_err();
            assert_eq!(error.kind(), expected);
        };
        check(true, false, io::ErrorKind::TimedOut);
        check(true, true, io::ErrorKind::TimedOut);
        check(false, true, io::ErrorKind::Unsupported);
    }
}
