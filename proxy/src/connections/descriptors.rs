//! Open files: a connection that cannot have its sockets is not admitted.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use weft_core::connections::ConnectionLimits;

/// Sockets of a connection: the accepted one and the one that it leads to.
const PER_CONNECTION: u64 = 2;
/// Open files for everything else: listeners, pooled connections, the control plane, files.
const OTHERS: u64 = 256;

/// Raises this process's limit on open files as far as it may, and returns the limits that can be
/// kept with it: what is reserved has to be there when it is needed.
pub fn within_open_files(limits: ConnectionLimits) -> ConnectionLimits {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: found.maximum,
        maximum: found.maximum,
    };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => found.maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit on open files is left as it is");
            found.current
        }
    };
    let within = fitting(limits, files);
    if within.total < limits.total {
        tracing::warn!(
            configured = limits.total,
            possible = within.total,
            open_files = files,
            "limits.max_connections is lowered to what the limit on open files (ulimit -n) allows"
        );
    }
    within
}

/// `files` is `None` where there is no limit.
fn fitting(limits: ConnectionLimits, files: Option<u64>) -> ConnectionLimits {
    let fit = files.map_or(u64::MAX, |files| {
        files.saturating_sub(OTHERS.min(files / 2)) / PER_CONNECTION
    });
    let fit = usize::try_from(fit).unwrap_or(usize::MAX).max(1);
    let total = limits.total.min(fit);
    // Each keeps its share.
    let scaled = |part: usize| {
        let part = part as u128 * total as u128 / limits.total.max(1) as u128;
        usize::try_from(part).unwrap_or(usize::MAX).max(1)
    };
    ConnectionLimits {
        total,
        unidentified: scaled(limits.unidentified),
        plaintext: scaled(limits.plaintext),
        plaintext_per_client: scaled(limits.plaintext_per_client),
        per_peer: scaled(limits.per_peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_can_be_kept() {
        let limits = crate::config::LimitConfig::default().connections();
        assert_eq!(fitting(limits, None), limits);
        assert_eq!(fitting(limits, Some(1 << 20)), limits);
        let small = fitting(limits, Some(1256));
        assert_eq!(
            (small.total, small.plaintext, small.unidentified),
            (500, 125, 50)
        );
        assert_eq!(fitting(limits, Some(1)).total, 1);
    }
}
