//! Whose fault a failure is. Breakers, balancers, retry budgets and health checks learn from this.

use std::fmt;

/// Who is responsible for a failure. Only [`Fault::Endpoint`] may count against an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller: its request, its deadline, or an upload that it broke off.
    Caller,
    /// The endpoint that was called, or the way to it.
    Endpoint,
    /// The mesh: its state, its policy or its configuration.
    Mesh,
    /// Nobody: what happened is no failure.
    Nobody,
}

impl Fault {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Endpoint => "endpoint",
            Self::Mesh => "mesh",
            Self::Nobody => "nobody",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
