//! `weft breakers`: which circuit breakers have opened, where and why.

use clap::Args;
use weft_api::client::Client;
use weft_api::types::{BreakerInfo, Items};

use crate::output::{CliError, Format, OutputArgs, age, note, show, table};

/// Shows circuit breakers that have opened: by calling sidecar, service and endpoint, with their
/// state, since when, why, and when the next probe may be made.
///
/// One that has never opened is not shown. A line without an endpoint is the breaker of the whole
/// port, one with a rule that of the requests which come by it.
///
/// Examples:
///   weft breakers
///   weft breakers shop/web --open
///   weft breakers -o json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BreakersArgs {
    /// Only of calls to this service, NAMESPACE/NAME
    service: Option<String>,
    /// Only of this caller, NAMESPACE/NAME
    #[arg(long)]
    from: Option<String>,
    /// Only those that are not closed now
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft breakers`.
pub(crate) async fn breakers(client: Client, args: BreakersArgs) -> Result<(), CliError> {
    let mut all: Items<BreakerInfo> = client.get("/v1/breakers").await?;
    let is = |wanted: &Option<String>, found: &str| {
        let wanted = wanted.as_deref();
        wanted.is_none_or(|wanted| wanted == found)
    };
    all.items.retain(|breaker| {
        is(&args.service, &breaker.service)
            && is(&args.from, &breaker.caller)
            && !(args.open && breaker.state == "closed")
    });
    if all.items.is_empty() && args.output.format == Format::Table {
        let of = |what: &Option<String>, word: &str| {
            let what = what.as_ref();
            what.map(|what| format!(" {word} {what}"))
                .unwrap_or_default()
        };
        let open = if args.open { "is open" } else { "has opened" };
        let (to, from) = (of(&args.service, "towards"), of(&args.from, "of"));
        note(&format!("no breaker{from}{to} {open}"));
        return Ok(());
    }
    show(args.output.format, &all, |all| {
        let or_dash = |text: &str| match text {
            "" => "-".to_owned(),
            text => text.to_owned(),
        };
        let rows = all.items.iter().map(|breaker| {
            let endpoint = match breaker.workload.as_str() {
                "" if breaker.route.is_empty() => "-".to_owned(),
                "" => format!("rule {}", breaker.route),
                workload => format!("{workload} {}", breaker.address),
            };
            vec![
                breaker.caller.clone(),
                format!("{}:{}", breaker.service, breaker.port),
                endpoint,
                breaker.state.clone(),
                age(breaker.since / 1000),
                or_dash(&breaker.cause),
                breaker.next_probe.map_or_else(|| "-".to_owned(), in_time),
            ]
        });
        let header = [
            "CALLER",
            "SERVICE",
            "ENDPOINT",
            "STATE",
            "FOR",
            "WHY",
            "NEXT PROBE",
        ];
        table(&header, rows)
    })
}

/// How long it is until a moment, milliseconds since the Unix epoch.
fn in_time(at: i64) -> String {
    let now = jiff::Timestamp::now().as_millisecond();
    match at - now {
        left if left <= 0 => "now".to_owned(),
        left => format!("in {:.1} s", left as f64 / 1000.0),
    }
}
