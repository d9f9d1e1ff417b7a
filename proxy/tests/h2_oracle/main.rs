//! The HTTP/2 connection of core against the `h2` crate: whatever one side sends, the other gets, and
//! where a client's bytes are wrong, both see the same requests in what is left.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is a failed test"
)]

mod exchanges;
mod mutations;
mod ours;
mod plan;
mod raw;
mod shutdown;
mod streams;
mod theirs;

use std::time::Duration;

use proptest::test_runner::{Config, RngSeed};

/// How long a case may take: some stall on a busy machine, but none is to hang.
const LIMIT: Duration = Duration::from_secs(60);

/// The same cases in every run, unless `PROPTEST_RNG_SEED` or `PROPTEST_CASES` say otherwise.
fn cases(cases: u32) -> Config {
    let config = Config::default();
    Config {
        cases: match std::env::var_os("PROPTEST_CASES") {
            Some(_) => config.cases,
            None => cases,
        },
        rng_seed: match config.rng_seed {
            RngSeed::Random => RngSeed::Fixed(9113),
            seed @ RngSeed::Fixed(_) => seed,
        },
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..config
    }
}

/// Runs one case on a thread of its own making, within [`LIMIT`].
fn run<T>(case: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(LIMIT, case).await })
        .expect("the case comes to its end")
}
