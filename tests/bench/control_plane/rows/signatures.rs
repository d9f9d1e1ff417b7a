//! Certificates signed per second: the authority alone, on this process's core.

use std::time::{Duration, Instant, SystemTime};

use weft_control_plane::identity::ca::Authority;
use weft_core::name::{SpiffeId, TrustDomain};

use super::on_disk;
use crate::enrolment::request;
use crate::fleet::empty_histogram;
use crate::table::Row;

/// Requests, made before.
const REQUESTS: usize = 200;
/// How long it signs.
const SIGNING: Duration = Duration::from_secs(3);
/// What is to be reached, per second.
pub(super) const TARGET: f64 = 2_000.0;

/// Signs what sidecars ask for, again and again.
pub(super) fn run() -> Row {
    let dir = on_disk();
    let trust_domain: TrustDomain = "weft.local".parse().expect("a trust domain");
    let authority = Authority::open(dir.path(), trust_domain.clone()).expect("an authority");
    let requests: Vec<Vec<u8>> = (0..REQUESTS)
        .map(|_| request().expect("a request").1)
        .collect();
    let identity = SpiffeId::new(&trust_domain, "bench", "p0").expect("an identity");
    let day = Duration::from_secs(24 * 3600);
    let mut times = empty_histogram();
    let began = Instant::now();
    for request in requests.iter().cycle() {
        let one = Instant::now();
        let signed = authority.sign(request, &identity, "bench.p0", day, SystemTime::now());
        signed.expect("a certificate");
        times.saturating_record(u64::try_from(one.elapsed().as_micros()).unwrap_or(u64::MAX));
        if began.elapsed() > SIGNING {
            break;
        }
    }
    let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
    Row {
        what: "certificates signed, one core, the authority alone".to_owned(),
        target: format!("≥ {TARGET:.0}/s"),
        found: format!("{per_second:.0}/s"),
        reached: Some(per_second >= TARGET),
        ..Row::default()
    }
    .percentiles(&times)
}
