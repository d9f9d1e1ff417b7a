//! The tasks that the control plane cannot be without. The end of one of them is the end of the
//! process, with the reason: whoever started it starts it again, and nobody takes a control plane
//! for healthy of which a part has died.

use std::any::Any;
use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;

/// A task that has ended although it is needed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task \"{task}\" has ended: {reason}; the process ends, so that it is started anew")]
pub struct TaskEnded {
    /// Its name.
    pub task: &'static str,
    /// Its panic, or that it returned.
    pub reason: String,
}

/// Runs tasks by name. Those that are left are aborted when it is dropped.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Supervisor {
    /// Starts a task that ends only when the process does. Needs a runtime.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Waits for the first task that ends. Cancel safe.
    pub async fn ended(&mut self) -> TaskEnded {
        let Some(ended) = self.tasks.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, reason) = match ended {
            Ok((id, ())) => (id, "it returned".to_owned()),
            Err(error) => (error.id(), panic_text(error)),
        };
        TaskEnded {
            task: self.names.remove(&id).unwrap_or("unknown"),
            reason,
        }
    }

    /// Gives tasks that were told to stop this long to end, and aborts the others.
    pub async fn stop(mut self, within: Duration, stopping: &[&'static str]) {
        let waits =
            |names: &HashMap<Id, &'static str>| names.values().any(|name| stopping.contains(name));
        let ending = async {
            while waits(&self.names) {
                self.ended().await;
            }
        };
        let _others_are_aborted = timeout(within, ending).await;
    }
}

fn panic_text(error: JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else {
        return "it was cancelled".to_owned();
    };
    format!("panic: {}", text_of(&*payload))
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_task_that_ends_is_told_with_its_reason() {
        let mut tasks = Supervisor::default();
        tasks.spawn("engine", std::future::pending());
        tasks.spawn("leases", async { panic!("no {}", "books") });
        let ended = tasks.ended().await;
        assert_eq!((ended.task, &*ended.reason), ("leases", "panic: no books"));
        tasks.spawn("metrics", async {});
        let ended = tasks.ended().await;
        assert_eq!((ended.task, &*ended.reason), ("metrics", "it returned"));
        let still = timeout(Duration::from_millis(20), tasks.ended()).await;
        assert!(still.is_err(), "{still:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_waits_for_those_who_were_told_to() {
        let mut tasks = Supervisor::default();
        let (told, ends) = tokio::sync::oneshot::channel::<()>();
        let (done, ended) = tokio::sync::oneshot::channel();
        tasks.spawn("engine", std::future::pending());
        tasks.spawn("api", async move {
            let _told = ends.await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _heard = done.send(());
        });
        drop(told);
        tasks.stop(Duration::from_secs(5), &["api"]).await;
        assert_eq!(ended.await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_does_not_wait_for_ever() {
        let mut tasks = Supervisor::default();
        tasks.spawn("api", std::future::pending());
        tasks.stop(Duration::from_secs(5), &["api"]).await;
    }
}
