//! A panic ends the process, whichever task it is in. Locks that it held may guard state that is half
//! made, and a control plane that goes on with it would tell sidecars what is not so; they keep what
//! they have while it is started anew.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The exit code of a process that a panic has ended: that of any program in Rust.
const EXIT_CODE: i32 = 101;

thread_local! {
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs what panics where it should return an error, as the store's engine does over some kinds of
/// damage; `None` if it has panicked. Nothing that `run` changes may be used after that.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    let before = IS_CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    IS_CAUGHT.set(before);
    result.ok()
}

/// From now on the process ends with a panic that is not [`caught`].
pub(crate) fn end_process() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !IS_CAUGHT.get() {
            tracing::error!(%panic, "the process ends, so that it is started anew");
            std::process::exit(EXIT_CODE);
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Set in the process that panics.
    const PANICS: &str = "WEFT_TEST_PANICS";

    /// Not a test by itself: what the other one starts.
    #[test]
    fn panicking_process() {
        if std::env::var_os(PANICS).is_none() {
            return;
        }
        end_process();
        assert_eq!(caught(|| panic!("an expected one")), None::<()>);
        std::io::stdout().write_all(b"went on").unwrap();
        thread::spawn(|| panic!("an unexpected one"));
        // Nobody joins that thread, as nobody joins the task of a stream.
        let (_held, never) = mpsc::channel::<()>();
        let _timeout = never.recv_timeout(Duration::from_secs(60));
    }

    #[test]
    fn a_panic_anywhere_ends_the_process_unless_it_is_caught() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "panics::tests::panicking_process", "--nocapture"])
            .env(PANICS, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("went on"), "{said}");
        let reason = String::from_utf8_lossy(&output.stderr);
        assert!(reason.contains("an unexpected one"), "{reason}");
        assert_eq!(output.status.code(), Some(EXIT_CODE), "{said}{reason}");
    }
}
