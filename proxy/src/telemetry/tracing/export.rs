//! The thread that sends spans.
//!
//! Not the SDK's batch processor: that one cannot tell how many spans it dropped before it is shut
//! down, and needs a second thread for its runtime.

use std::io;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::{mpsc, oneshot};

use super::TracerConfig;
use crate::telemetry::metrics::Metrics;

/// Spans in one message.
const BATCH_MAX: usize = 512;

/// For one message to be taken.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why tracing could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    /// No thread or no runtime.
    #[error("the tracing thread cannot be started: {0}")]
    Thread(#[from] io::Error),
    /// The endpoint cannot be used.
    #[error("tracing.otlp_endpoint: {endpoint:?} cannot be used: {source}")]
    Endpoint {
        /// What was configured.
        endpoint: String,
        /// Why.
        source: ExporterBuildError,
    },
    /// The thread ended before it had said anything.
    #[error("the tracing thread ended while it started")]
    Ended,
}

/// The running thread.
#[derive(Debug, Clone)]
pub(super) struct Exporter(Arc<Mutex<Handles>>);

#[derive(Debug)]
struct Handles {
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    /// Disconnected when the thread has ended.
    ended: blocking::Receiver<()>,
}

impl Exporter {
    /// Starts the thread; spans that end in the processor arrive there.
    pub(super) fn start(
        config: &TracerConfig,
        metrics: Metrics,
    ) -> Result<(Self, Queue), TracingError> {
        let (queue, spans) = mpsc::channel(config.max_queued.max(1));
        let (stop, stopped) = oneshot::channel();
        let (started, starting) = blocking::sync_channel(1);
        let (end, ended) = blocking::sync_channel::<()>(0);
        let config = config.clone();
        let sender = Sender {
            interval: config.interval,
            metrics: metrics.clone(),
            reachable: true,
        };
        std::thread::Builder::new()
            .name("weft-tracing".to_owned())
            .spawn(move || {
                // Dropped at the end of the thread, however that comes.
                let _end = end;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        drop(started.send(Err(TracingError::Thread(error))));
                        return;
                    }
                };
                runtime.block_on(async move {
                    match build(&config) {
                        Ok(exporter) => {
                            drop(started.send(Ok(())));
                            sender.run(exporter, spans, stopped).await;
                        }
                        Err(error) => drop(started.send(Err(error))),
                    }
                });
                // What tonic left running does not hold up the end of the process.
                runtime.shutdown_background();
            })?;
        starting.recv().map_err(|_| TracingError::Ended)??;
        let handles = Handles {
            stop: Some(stop),
            ended,
        };
        let exporter = Self(Arc::new(Mutex::new(handles)));
        Ok((exporter, Queue { queue, metrics }))
    }

    pub(super) fn shutdown(&self, timeout: Duration) -> bool {
        let mut handles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(handles.stop.take());
        let ended = handles.ended.recv_timeout(timeout);
        matches!(ended, Err(blocking::RecvTimeoutError::Disconnected))
    }
}

fn build(config: &TracerConfig) -> Result<SpanExporter, TracingError> {
    let mut exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&config.endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|source| TracingError::Endpoint {
            endpoint: config.endpoint.clone(),
            source,
        })?;
    let attributes = [
        ("service.name", config.service_name.clone()),
        ("service.namespace", config.namespace.clone()),
        ("service.instance.id", config.instance.clone()),
        ("telemetry.sdk.language", "rust".to_owned()),
        ("telemetry.sdk.name", "opentelemetry".to_owned()),
    ];
    // Not the environment's: under `weft run` that is the program's.
    let resource = Resource::builder_empty()
        .with_attributes(attributes.map(|(key, value)| KeyValue::new(key, value)))
        .build();
    exporter.set_resource(&resource);
    Ok(exporter)
}

/// Where spans go when they end.
#[derive(Debug)]
pub(super) struct Queue {
    queue: mpsc::Sender<SpanData>,
    metrics: Metrics,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.queue.try_send(span).is_err() {
            self.metrics.totals().spans_dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// What runs on the thread.
struct Sender {
    interval: Duration,
    metrics: Metrics,
    reachable: bool,
}

impl Sender {
    async fn run(
        mut self,
        exporter: SpanExporter,
        mut spans: mpsc::Receiver<SpanData>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut running = true;
        loop {
            let mut batch = Vec::new();
            if running {
                tokio::select! {
                    n = spans.recv_many(&mut batch, BATCH_MAX) => running = n > 0,
                    _ = &mut stopped => running = false,
                }
            }
            if running {
                running = self.fill(&mut batch, &mut spans, &mut stopped).await;
            }
            if !running {
                // Takes what is queued, and no more.
                spans.close();
                let room = BATCH_MAX.saturating_sub(batch.len());
                if room > 0 {
                    spans.recv_many(&mut batch, room).await;
                }
            }
            if batch.is_empty() {
                return;
            }
            self.export(&exporter, batch).await;
        }
    }

    /// Waits until the batch is full or its time has come; false when stopped meanwhile.
    async fn fill(
        &self,
        batch: &mut Vec<SpanData>,
        spans: &mut mpsc::Receiver<SpanData>,
        stopped: &mut oneshot::Receiver<()>,
    ) -> bool {
        let due = tokio::time::sleep(self.interval);
        tokio::pin!(due);
        while batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            tokio::select! {
                n = spans.recv_many(batch, room) => if n == 0 {
                    return false;
                },
                () = &mut due => return true,
                _ = &mut *stopped => return false,
            }
        }
        true
    }

    async fn export(&mut self, exporter: &SpanExporter, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let totals = self.metrics.totals();
        match exporter.export(batch).await {
            Ok(()) => {
                totals.spans_exported.add(count);
                if !self.reachable {
                    tracing::info!("the trace collector takes spans again");
                }
                self.reachable = true;
            }
            Err(error) => {
                totals.spans_failed.add(count);
                if self.reachable {
                    tracing::warn!(%error, "the trace collector takes no spans");
                }
                self.reachable = false;
            }
        }
    }
}
