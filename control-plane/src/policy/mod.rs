//! What follows from the policies: what would become of a request, what a change would do.

pub mod explain;
pub mod plan;
