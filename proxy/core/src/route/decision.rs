//! What becomes of a request that met a rule: the same for the live path and for `weft explain`.

use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Uri};

use super::fault::Abort;
use super::filter::{Backend, Filter, Mirror, Redirect, pick_backend};
use super::{Found, RequestHead, RouteTable};
use crate::path::NormalPath;

/// Everything that is decided about a request before it is sent.
#[derive(Debug, Clone)]
pub struct Decision<'a> {
    /// The rule that it met.
    pub found: Found<'a>,
    /// How long it waits first: a fault on purpose.
    pub delay: Option<Duration>,
    /// Who gets a copy.
    pub mirrors: Vec<&'a Mirror>,
    /// What happens then.
    pub outcome: Outcome<'a>,
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub enum Outcome<'a> {
    /// By a backend. Where its reference leads nowhere, there is no service in it.
    Forward(&'a Backend),
    /// The rule has no backend, or none with a weight.
    NoBackend,
    /// With another place to ask.
    Redirect(&'a Redirect),
    /// To a browser that asks whether it may ask: with these fields.
    Preflight(HeaderMap),
    /// With a failure on purpose.
    Abort(Abort),
}

impl RouteTable {
    /// Decides about a request; `None` where it meets no rule. `random` gives a new number each
    /// time.
    pub fn decide(
        &self,
        request: &RequestHead<'_>,
        mut random: impl FnMut() -> u64,
    ) -> Option<Decision<'_>> {
        let found = self.find(request)?;
        let mut decision = Decision {
            found,
            delay: None,
            mirrors: Vec::new(),
            outcome: Outcome::NoBackend,
        };
        let mut answered = None;
        for filter in &found.rule.filters {
            let own = match filter {
                Filter::Cors(cors) => cors
                    .preflight(request.method, request.headers)
                    .map(Outcome::Preflight),
                Filter::Redirect(redirect) => Some(Outcome::Redirect(redirect)),
                Filter::Fault(fault) if fault.meets(request.headers) => {
                    let delay = fault.delay.filter(|delay| delay.takes(random()));
                    if let Some(delay) = delay {
                        decision.delay = Some(delay.time);
                    }
                    let abort = fault.abort.filter(|abort| abort.takes(random()));
                    abort.map(Outcome::Abort)
                }
                Filter::Mirror(mirror) => {
                    if mirror.takes(random()) {
                        decision.mirrors.push(mirror);
                    }
                    None
                }
                Filter::Fault(_)
                | Filter::RequestHeaders(_)
                | Filter::ResponseHeaders(_)
                | Filter::Rewrite(_) => None,
            };
            answered = answered.or(own);
        }
        if let Some(outcome) = answered {
            // Answered here: nobody gets a copy of what nobody gets.
            decision.mirrors.clear();
            decision.outcome = outcome;
        } else if let Some(index) = pick_backend(&found.rule.backends, random()) {
            let backend = &found.rule.backends[index];
            decision.outcome = Outcome::Forward(backend);
            for filter in &*backend.filters {
                if let Filter::Mirror(mirror) = filter
                    && mirror.takes(random())
                {
                    decision.mirrors.push(mirror);
                }
            }
        }
        Some(decision)
    }
}

impl<'a> Decision<'a> {
    /// The rule's filters, then those of the backend.
    fn filters(&self) -> impl Iterator<Item = &'a Filter> + use<'a> {
        let of_backend: &'a [Filter] = match self.outcome {
            Outcome::Forward(backend) => &backend.filters,
            Outcome::NoBackend
            | Outcome::Redirect(_)
            | Outcome::Preflight(_)
            | Outcome::Abort(_) => &[],
        };
        self.found.rule.filters.iter().chain(of_backend)
    }

    /// Changes what is asked for: fields, host and path. `uri` is in its absolute form.
    ///
    /// # Errors
    ///
    /// When the path that takes the place of the old one is none; the old one stays.
    pub fn edit_request(&self, uri: &mut Uri, headers: &mut HeaderMap) -> Result<(), http::Error> {
        for filter in self.filters() {
            match filter {
                Filter::RequestHeaders(modifier) => modifier.apply(headers),
                Filter::Rewrite(rewrite) => {
                    let mut parts = uri.clone().into_parts();
                    if let Some(hostname) = &rewrite.hostname {
                        parts.authority = Some(Authority::try_from(&**hostname)?);
                    }
                    if let Some(path) = &rewrite.path {
                        let before = NormalPath::new(uri.path());
                        let mut path = path.apply(&before, self.found.prefix());
                        if let Some(query) = uri.query() {
                            path.push('?');
                            path.push_str(query);
                        }
                        parts.path_and_query = Some(PathAndQuery::try_from(path)?);
                    }
                    *uri = Uri::from_parts(parts)?;
                }
                Filter::ResponseHeaders(_)
                | Filter::Redirect(_)
                | Filter::Mirror(_)
                | Filter::Cors(_)
                | Filter::Fault(_) => {}
            }
        }
        Ok(())
    }

    /// Changes a response; `origin` is the field of that name in the request.
    pub fn edit_response(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for filter in self.filters() {
            match filter {
                Filter::ResponseHeaders(modifier) => modifier.apply(headers),
                Filter::Cors(cors) => cors.apply(origin, headers),
                Filter::RequestHeaders(_)
                | Filter::Rewrite(_)
                | Filter::Redirect(_)
                | Filter::Mirror(_)
                | Filter::Fault(_) => {}
            }
        }
    }

    /// Whether the response's origin has to be known.
    pub fn needs_origin(&self) -> bool {
        self.filters()
            .any(|filter| matches!(filter, Filter::Cors(_)))
    }
}
