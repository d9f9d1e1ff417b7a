//! Annotations of pods: one table of what each means and may hold, which the guide's page
//! `deploy/guide/injection.md` shows, and how it is read.

use std::collections::BTreeMap;

use weft_core::model::Cidr;

use super::Settings;
use super::quantity::{Unit, processors, thousandths};
use super::tracing::{Tracing, endpoint as otlp_endpoint, sample_ratio};
use crate::kubernetes::names::INJECTED;
use crate::kubernetes::protocols::{self, PROTOCOLS};

/// The prefix of the mesh's own annotations.
const PREFIX: &str = "weft-mesh.io/";
/// Ports, or ranges, in one annotation.
const LIST_MAX: usize = 100;
/// Threads of a sidecar.
const WORKERS_MAX: u16 = 64;
/// Characters of `log-level`.
const LOG_LEVEL_MAX: usize = 200;
/// Seconds of `pre-stop-sleep`.
const SLEEP_MAX_SECONDS: u32 = 300;
/// Annotations that are told to be wrong.
const PROBLEMS_MAX: usize = 32;
/// Of a value that is refused, so many characters are shown.
const FOUND_MAX: usize = 80;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// An annotation that a pod may have.
pub struct Annotation {
    /// Its name.
    pub name: &'static str,
    /// What it changes.
    pub meaning: &'static str,
    /// What it may hold.
    pub allowed: &'static str,
    /// What holds without it.
    pub default: &'static str,
    /// Takes a value over; whether it is allowed.
    read: fn(&str, &mut Overrides) -> bool,
}

impl std::fmt::Debug for Annotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Annotation").field(&self.name).finish()
    }
}

/// Every annotation that a pod may have, in the guide's order.
pub const ANNOTATIONS: [Annotation; 16] = [
    Annotation {
        name: "weft-mesh.io/exclude-outbound-ports",
        meaning: "Ports that the application dials past the sidecar.",
        allowed: "ports 1 to 65535, separated by commas, at most 100",
        default: "none",
        read: |text, to| {
            ports(text).is_some_and(|ports| set(&mut to.exclude_outbound_ports, ports))
        },
    },
    Annotation {
        name: "weft-mesh.io/exclude-outbound-ranges",
        meaning: "Address ranges that the application dials past the sidecar.",
        allowed: "ADDRESS or ADDRESS/PREFIX, separated by commas, at most 100",
        default: "none",
        read: |text, to| {
            ranges(text).is_some_and(|found| set(&mut to.exclude_outbound_ranges, found))
        },
    },
    Annotation {
        name: "weft-mesh.io/exclude-inbound-ports",
        meaning: "Ports of the pod on which connections reach the application past the sidecar: \
                  nothing is enforced there. Probes of these ports are not rewritten.",
        allowed: "ports 1 to 65535, separated by commas, at most 100",
        default: "none",
        read: |text, to| ports(text).is_some_and(|ports| set(&mut to.exclude_inbound_ports, ports)),
    },
    Annotation {
        name: "weft-mesh.io/dns-capture",
        meaning: "Whether the application's DNS queries go to the sidecar, which answers names in \
                  `.mesh` and passes on all others.",
        allowed: "enabled, disabled",
        default: "enabled",
        read: |text, to| switch(text).is_some_and(|on| set(&mut to.dns_capture, on)),
    },
    Annotation {
        name: "weft-mesh.io/cpu-request",
        meaning: "Processors that are reserved for the sidecar.",
        allowed: "a positive quantity, as in 100m or 0.5",
        default: "20m, or the limit where that is less",
        read: |text, to| cpu(text).is_some_and(|cpu| set(&mut to.cpu_request, cpu)),
    },
    Annotation {
        name: "weft-mesh.io/cpu-limit",
        meaning: "Processors that the sidecar may use.",
        allowed: "a positive quantity, as in 500m or 2, and not less than the request",
        default: "unlimited",
        read: |text, to| cpu(text).is_some_and(|cpu| set(&mut to.cpu_limit, Some(cpu))),
    },
    Annotation {
        name: "weft-mesh.io/memory-request",
        meaning: "Memory that is reserved for the sidecar.",
        allowed: "a positive quantity, as in 64Mi or 128M",
        default: "32Mi, or the limit where that is less",
        read: |text, to| memory(text).is_some_and(|memory| set(&mut to.memory_request, memory)),
    },
    Annotation {
        name: "weft-mesh.io/memory-limit",
        meaning: "Memory that the sidecar may use; beyond it the kernel kills it.",
        allowed: "a positive quantity, as in 256Mi, and not less than the request",
        default: "unlimited",
        read: |text, to| memory(text).is_some_and(|memory| set(&mut to.memory_limit, Some(memory))),
    },
    Annotation {
        name: "weft-mesh.io/workers",
        meaning: "The sidecar's worker threads.",
        allowed: "1 to 64",
        default: "the CPU limit, rounded up; 2 where there is none",
        read: |text, to| {
            let workers = text.parse().ok();
            let workers = workers.filter(|workers| (1..=WORKERS_MAX).contains(workers));
            workers.is_some_and(|workers| set(&mut to.workers, Some(workers)))
        },
    },
    Annotation {
        name: "weft-mesh.io/log-level",
        meaning: "What the sidecar logs.",
        allowed: "off, error, warn, info, debug, trace, or MODULE=LEVEL, separated by commas",
        default: "info",
        read: |text, to| is_log_level(text) && set(&mut to.log_level, Some(text.to_owned())),
    },
    Annotation {
        name: "weft-mesh.io/mtls",
        meaning: "What the sidecar accepts: mesh connections only, or plaintext, too.",
        allowed: "strict, permissive",
        default: "permissive",
        read: |text, to| {
            ["strict", "permissive"].contains(&text) && set(&mut to.mtls, Some(text.to_owned()))
        },
    },
    Annotation {
        name: PROTOCOLS,
        meaning: "What is spoken on ports of the pod, for its sidecar and its callers': `tcp` and `tls` \
                  are passed on unread. What a Service declares for a port beats it. May be changed \
                  while the pod runs.",
        allowed: "PORT=PROTOCOL, separated by commas, at most 100; PROTOCOL: http, http2, grpc, tcp, tls",
        default: "what the Services say, else what the first bytes say",
        read: |text, _to| protocols::parse(text).is_some(),
    },
    Annotation {
        name: "weft-mesh.io/otlp-endpoint",
        meaning: "Where the sidecar sends its spans; `disabled` where it is to send none.",
        allowed: "disabled, or http://HOST:PORT of an OTLP/gRPC collector",
        default: "the control plane's `--otlp-endpoint`",
        read: |text, to| match text {
            "disabled" => set(&mut to.tracing.otlp_endpoint, None),
            text => otlp_endpoint(text)
                .is_some_and(|found| set(&mut to.tracing.otlp_endpoint, Some(found))),
        },
    },
    Annotation {
        name: "weft-mesh.io/trace-sample-ratio",
        meaning: "The share of the traces begun at the pod that are recorded. Traces begun elsewhere \
                  keep their decision.",
        allowed: "0 to 1, as in 0.05",
        default: "the control plane's `--trace-sample-ratio`",
        read: |text, to| {
            sample_ratio(text).is_some_and(|found| set(&mut to.tracing.sample_ratio, found))
        },
    },
    Annotation {
        name: "weft-mesh.io/metrics-merging",
        meaning: "Whether the sidecar tells the metrics of an application with annotations of \
                  Prometheus beside its own, and those annotations come to lead to it.",
        allowed: "enabled, disabled",
        default: "enabled",
        read: |text, to| switch(text).is_some_and(|on| set(&mut to.metrics_merging, on)),
    },
    Annotation {
        name: "weft-mesh.io/pre-stop-sleep",
        meaning: "How long the application's containers without a `preStop` of their own go on \
                  before they are told to stop: callers learn in this time that the pod leaves. It is \
                  part of the pod's grace period.",
        allowed: "0, or seconds up to 300 and the grace period, as in 10s",
        default: "5s, at most half of the grace period; 0 before Kubernetes 1.30",
        read: |text, to| sleep(text).is_some_and(|sleep| set(&mut to.pre_stop_sleep, Some(sleep))),
    },
];

/// What holds for one pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Overrides {
    pub(super) exclude_outbound_ports: Vec<u16>,
    pub(super) exclude_outbound_ranges: Vec<String>,
    pub(super) exclude_inbound_ports: Vec<u16>,
    pub(super) dns_capture: bool,
    pub(super) cpu_request: String,
    pub(super) cpu_limit: Option<String>,
    pub(super) memory_request: String,
    pub(super) memory_limit: Option<String>,
    pub(super) workers: Option<u16>,
    pub(super) log_level: Option<String>,
    pub(super) mtls: Option<String>,
    pub(super) metrics_merging: bool,
    pub(super) tracing: Tracing,
    pub(super) pre_stop_sleep: Option<u32>,
}

impl Overrides {
    /// The settings with what a pod's annotations change, or everything that is wrong with those.
    pub(super) fn read(
        annotations: &BTreeMap<String, String>,
        settings: &Settings,
    ) -> Result<Self, Vec<String>> {
        let resources = settings.resources.clone();
        let mut overrides = Self {
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_ranges: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            dns_capture: true,
            cpu_request: resources.cpu_request,
            cpu_limit: resources.cpu_limit,
            memory_request: resources.memory_request,
            memory_limit: resources.memory_limit,
            workers: None,
            log_level: None,
            mtls: None,
            metrics_merging: true,
            tracing: settings.tracing.clone(),
            pre_stop_sleep: None,
        };
        let mut problems = Vec::new();
        for (name, value) in annotations {
            if problems.len() == PROBLEMS_MAX {
                break;
            }
            if !name.starts_with(PREFIX) || name == INJECTED {
                continue;
            }
            let Some(known) = ANNOTATIONS.iter().find(|known| known.name == name) else {
                problems.push(format!("annotation {name}: unknown; allowed: {}", names()));
                continue;
            };
            if !(known.read)(value.trim(), &mut overrides) {
                let found: String = value.chars().take(FOUND_MAX).collect();
                let allowed = known.allowed;
                problems.push(format!(
                    "annotation {name}: found {found:?}; allowed: {allowed}"
                ));
            }
        }
        let asked = |name: &str| annotations.contains_key(&format!("{PREFIX}{name}-request"));
        let both = [
            (
                "cpu",
                &mut overrides.cpu_request,
                &overrides.cpu_limit,
                Unit::Cpu,
            ),
            (
                "memory",
                &mut overrides.memory_request,
                &overrides.memory_limit,
                Unit::Memory,
            ),
        ];
        for (name, request, limit, unit) in both {
            let Some(limit) = limit else { continue };
            if thousandths(request, unit) <= thousandths(limit, unit) {
                continue;
            }
            if asked(name) {
                problems.push(format!(
                    "annotation {PREFIX}{name}-request: found {request:?}; allowed: at most the limit, {limit}"
                ));
            }
            request.clone_from(limit);
        }
        if problems.is_empty() {
            Ok(overrides)
        } else {
            Err(problems)
        }
    }

    /// How many workers the sidecar starts.
    pub(super) fn workers(&self, settings: &Settings) -> u64 {
        let limit = self.cpu_limit.as_deref().and_then(processors);
        let workers = self.workers.map(u64::from).or(limit);
        workers.unwrap_or_else(|| u64::from(settings.workers))
    }
}

fn names() -> String {
    ANNOTATIONS.map(|annotation| annotation.name).join(", ")
}

/// Always true, so that a reader is one expression.
fn set<T>(field: &mut T, value: T) -> bool {
    *field = value;
    true
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => None,
    }
}

fn list<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let read: Option<Vec<T>> = text.split(',').map(|item| read(item.trim())).collect();
    read.filter(|list| list.len() <= LIST_MAX)
}

fn ports(text: &str) -> Option<Vec<u16>> {
    list(text, |item| item.parse().ok().filter(|port| *port > 0))
}

fn ranges(text: &str) -> Option<Vec<String>> {
    list(text, |item| Cidr::parse(item).map(|_range| item.to_owned()))
}

fn cpu(text: &str) -> Option<String> {
    thousandths(text, Unit::Cpu).map(|_valid| text.to_owned())
}

fn memory(text: &str) -> Option<String> {
    thousandths(text, Unit::Memory).map(|_valid| text.to_owned())
}

fn sleep(text: &str) -> Option<u32> {
    let seconds = match text.strip_suffix('s') {
        Some(seconds) => seconds.parse().ok()?,
        None => text.parse().ok().filter(|seconds| *seconds == 0)?,
    };
    (seconds <= SLEEP_MAX_SECONDS).then_some(seconds)
}

fn is_log_level(text: &str) -> bool {
    let is_module = |text: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
    };
    let is_directive = |item: &str| match item.split_once('=') {
        Some((module, level)) => is_module(module) && LEVELS.contains(&level),
        None => LEVELS.contains(&item),
    };
    text.len() <= LOG_LEVEL_MAX && text.split(',').all(is_directive)
}
