//! What the tests stand on: processes that never outlive a test, places for programs to run in
//! (plain namespaces, `weft run`, pods), captures, and loud skips.

mod asking;
mod bed;
mod capture;
mod family;
mod load;
mod machine;
mod mesh;
mod need;
mod net;
mod pods;
mod process;
mod programs;
mod scratch;
mod sidecar;
mod telemetry;
mod wait;

pub(crate) use asking::{Asker, Place, Received, sum, telling};
pub(crate) use bed::Bed;
pub(crate) use capture::Capture;
pub(crate) use family::descendants;
pub(crate) use load::Load;
pub(crate) use machine::Machine;
pub(crate) use mesh::{Mesh, Settings, Workload, free_port, weft_binary};
pub(crate) use need::{have, need, root};
pub(crate) use net::{Namespace, ip};
pub(crate) use pods::{PodSettings, Pods};
pub(crate) use process::{Finished, Program, Running};
pub(crate) use programs::{python, python_code, report, script};
pub(crate) use scratch::Scratch;
pub(crate) use telemetry::{CALLS, Sample, call, samples};
pub(crate) use wait::{long, scaled, wait_for};
