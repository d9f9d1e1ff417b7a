//! The rows: what callers do, and in which protocol.

/// What callers speak to the client's side of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Plaintext HTTP/1.1.
    Http1,
    /// Plaintext HTTP/2, with prior knowledge.
    Http2,
    /// Bytes that no proxy looks at.
    Tcp,
}

/// What is done to a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// wrk: requests on connections that are kept, in a closed loop.
    Wrk {
        /// Connections.
        connections: u32,
        /// What is asked for.
        path: &'static str,
        /// Fields beside those that wrk sends, of 68 bytes each.
        fields: u32,
    },
    /// h2load: requests on streams of connections that are kept, in a closed loop.
    H2load {
        /// Connections.
        connections: u32,
        /// Streams of each that are open at a time.
        streams: u32,
    },
    /// A connection for each request, so many at a time.
    NewHttp {
        /// Connections at a time.
        at_once: u32,
    },
    /// Requests at times that are fixed beforehand.
    Rate {
        /// Connections, which take turns.
        connections: u32,
        /// Requests per second, of all together.
        per_second: u32,
    },
    /// Bytes from the application, as fast as they come.
    Bulk {
        /// Connections.
        connections: u32,
    },
    /// A connection for each byte that is sent and comes back, so many at a time.
    NewTcp {
        /// Connections at a time.
        at_once: u32,
    },
    /// No load: what connections take that do nothing.
    Idle,
}

/// One kind of load.
#[derive(Debug)]
pub(crate) struct Row {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// What it is, in a sentence for the guide.
    pub(crate) about: &'static str,
    /// What callers speak.
    pub(crate) caller: Caller,
    /// What they do.
    pub(crate) load: Load,
}

impl Row {
    /// What processor time is divided by.
    pub(crate) fn unit(&self) -> &'static str {
        match self.load {
            Load::Bulk { .. } => "MiB",
            Load::NewTcp { .. } => "connection",
            Load::Wrk { .. }
            | Load::H2load { .. }
            | Load::NewHttp { .. }
            | Load::Rate { .. }
            | Load::Idle => "request",
        }
    }

    /// Seconds of a measured round, from those of most rows: where the rate is fixed four times as many, so
    /// that the 99.9th percentile is not that of a handful of requests.
    pub(crate) fn seconds(&self, of_most: u32) -> u32 {
        match self.load {
            Load::Rate { .. } => of_most * 4,
            Load::Wrk { .. }
            | Load::H2load { .. }
            | Load::NewHttp { .. }
            | Load::Bulk { .. }
            | Load::NewTcp { .. }
            | Load::Idle => of_most,
        }
    }

    /// Whether the variants of our pair are measured in it.
    pub(crate) fn has_variants(&self) -> bool {
        self.name == ROWS[0].name
    }
}

const fn wrk(connections: u32, path: &'static str, fields: u32) -> Load {
    Load::Wrk {
        connections,
        path,
        fields,
    }
}

/// The rows, the one of the acceptance bar first.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "h1-32",
        about: "HTTP/1.1, 32 connections in a closed loop, answers of 128 bytes.",
        caller: Caller::Http1,
        load: wrk(32, "/", 0),
    },
    Row {
        name: "h1-256",
        about: "The same with 256 connections.",
        caller: Caller::Http1,
        load: wrk(256, "/", 0),
    },
    Row {
        name: "h1-32-10k",
        about: "32 connections, answers of 10 KiB.",
        caller: Caller::Http1,
        load: wrk(32, "/10k", 0),
    },
    Row {
        name: "h1-1",
        about: "One connection: nothing can be done for several requests together.",
        caller: Caller::Http1,
        load: wrk(1, "/", 0),
    },
    Row {
        name: "h1-32-fields",
        about: "32 connections, requests with 30 fields more, of 2 KiB together.",
        caller: Caller::Http1,
        load: wrk(32, "/", 30),
    },
    Row {
        name: "h2-8x32",
        about: "Callers in HTTP/2, 8 connections with 32 streams each in a closed loop, answers of 128 bytes.",
        caller: Caller::Http2,
        load: Load::H2load {
            connections: 8,
            streams: 32,
        },
    },
    Row {
        name: "h1-new",
        about: "HTTP/1.1, a new connection of the caller for each request, 16 at a time; times are from its \
                start to the last byte. Relays open one at each hop, where proxies reuse theirs.",
        caller: Caller::Http1,
        load: Load::NewHttp { at_once: 16 },
    },
    Row {
        name: "h1-rate-1000",
        about: "1,000 requests a second at fixed times on 16 connections; times are from the moment at \
                which a request was due, whether or not its connection was free.",
        caller: Caller::Http1,
        load: Load::Rate {
            connections: 16,
            per_second: 1000,
        },
    },
    Row {
        name: "tcp-bulk",
        about: "Bytes from the application over 4 TCP connections, as fast as they come.",
        caller: Caller::Tcp,
        load: Load::Bulk { connections: 4 },
    },
    Row {
        name: "tcp-new",
        about: "A new TCP connection for each byte that is sent and comes back, 16 at a time; mutual TLS \
                is made anew for each.",
        caller: Caller::Tcp,
        load: Load::NewTcp { at_once: 16 },
    },
    Row {
        name: "memory-h1",
        about: "Memory under connections of callers in HTTP/1.1, each of which has made one request.",
        caller: Caller::Http1,
        load: Load::Idle,
    },
    Row {
        name: "memory-tcp",
        about: "Memory under TCP connections, each with a connection in mutual TLS between the sides.",
        caller: Caller::Tcp,
        load: Load::Idle,
    },
];
