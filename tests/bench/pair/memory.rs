//! What connections take, and whether it is given back.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::contenders::{Contender, Entry, start};
use crate::generator;
use crate::load;
use crate::options::Options;
use crate::rows::{Caller, Row};
use crate::tools::Tools;
use crate::usage::pss_kib;

/// Connections with which memory is looked at, and with which again: what one takes is the slope between.
const FEW: u32 = 64;
const MANY: u32 = 256;
/// Until what a start or a request took is given back.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);

/// Memory of one contender, PSS of both halves in KiB.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The row's name.
    pub(crate) row: &'static str,
    /// The contender's name.
    pub(crate) contender: String,
    /// Before the first connection.
    pub(crate) idle: u64,
    /// With `MANY` connections that do nothing.
    pub(crate) held: u64,
    /// What one of those takes.
    pub(crate) connection: f64,
    /// Right after load over `MANY` connections.
    pub(crate) after: u64,
    /// Some time later, without a connection.
    pub(crate) later: u64,
}

impl Memory {
    /// The share of what came with connections and load that was given back; nothing where nothing came.
    pub(crate) fn returned(&self) -> Option<f64> {
        let most = self.after.max(self.held);
        let came = most.checked_sub(self.idle).filter(|came| *came > 0)?;
        Some((most as f64 - self.later as f64) / came as f64)
    }
}

/// Every contender of a row, one after the other, and all of them some time later.
pub(crate) fn run(
    row: &'static Row,
    options: &Options,
    tools: &Tools,
    dir: &Path,
    notes: &mut Vec<String>,
) -> Vec<Memory> {
    let entries = start(row, options, tools, dir);
    sleep(SETTLE);
    let mut looked = Vec::new();
    for entry in &entries {
        match look(row, entry, options, dir) {
            Ok(memory) => looked.push((entry, memory)),
            Err(text) => notes.push(format!("{}: {} failed: {text}", row.name, entry.name)),
        }
    }
    sleep(Duration::from_secs(options.wait.into()));
    let later = |(entry, memory): (&Entry, Memory)| {
        let memory = Memory {
            later: pss_kib(&entry.pair.proxies()),
            ..memory
        };
        eprintln!("{memory:?}");
        memory
    };
    looked.into_iter().map(later).collect()
}

fn look(row: &Row, entry: &Entry, options: &Options, dir: &Path) -> Result<Memory, String> {
    let pair: &dyn Contender = entry.pair.as_ref();
    let address = pair.address();
    let now = || pss_kib(&pair.proxies());
    let idle = now();
    let mut open = generator::idle(&address, FEW, row.caller)?;
    sleep(SETTLE);
    let few = now();
    open.extend(generator::idle(&address, MANY - FEW, row.caller)?);
    sleep(SETTLE);
    let held = now();
    drop(open);
    match row.caller {
        Caller::Http1 | Caller::Http2 => load::wrk(&address, MANY, "/", 0, options.seconds, dir)?,
        Caller::Tcp => generator::bulk(&address, MANY, options.seconds)?,
    };
    let after = now();
    Ok(Memory {
        row: row.name,
        contender: entry.name.clone(),
        idle,
        held,
        connection: (held as f64 - few as f64) / f64::from(MANY - FEW),
        after,
        later: after,
    })
}
