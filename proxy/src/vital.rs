//! The parts of a sidecar without which it would silently serve less: threads of workers, and tasks
//! such as discovery and renewal. When one is lost, the sidecar says so and ends.

use std::future::Future;

use tokio::sync::watch;

/// Knows of parts that are lost. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vital {
    lost: watch::Sender<Option<String>>,
}

impl Default for Vital {
    fn default() -> Self {
        Self {
            lost: watch::Sender::new(None),
        }
    }
}

/// A part while it runs: one that panics is lost.
#[derive(Debug)]
pub struct Part {
    vital: Vital,
    name: String,
}

impl Vital {
    /// A part that runs until what is returned is dropped, on the same thread.
    pub fn part(&self, name: impl Into<String>) -> Part {
        Part {
            vital: self.clone(),
            name: name.into(),
        }
    }

    /// Runs a task as a part.
    pub fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        let part = self.part(name);
        tokio::spawn(async move {
            let _told_of_a_panic = part;
            task.await;
        });
    }

    /// Until a part is lost; which, and why.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        let found = lost.wait_for(Option::is_some).await;
        // The sender is ours: it cannot be gone while we wait.
        let found = found.map(|lost| lost.clone());
        found.ok().flatten().unwrap_or_default()
    }
}

impl Part {
    /// The part has ended though it should not.
    pub fn fail(&self, why: &dyn std::fmt::Display) {
        self.tell(format!("{}: {why}", self.name));
    }

    fn tell(&self, what: String) {
        tracing::error!(lost = what, "the sidecar is not whole any more");
        self.vital.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                *lost = Some(what);
            }
            first
        });
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell(format!("{} has panicked", self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_thread_or_a_task_is_told() {
        let vital = Vital::default();
        vital.spawn("discovery", async {});
        let part = vital.part("worker 1");
        let panicked = std::thread::spawn(move || {
            let _part = part;
            panic!("as the test wants it");
        });
        assert!(panicked.join().is_err());
        assert_eq!(vital.lost().await, "worker 1 has panicked");

        let vital = Vital::default();
        vital.spawn("renewal", async { panic!("as the test wants it") });
        assert_eq!(vital.lost().await, "renewal has panicked");

        let vital = Vital::default();
        vital.part("worker 0").fail(&"a listener has ended");
        assert_eq!(vital.lost().await, "worker 0: a listener has ended");
    }
}
