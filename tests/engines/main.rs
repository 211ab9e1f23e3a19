//! The real engines, each started by its own test with the runtime under test registered in it, and
//! asked what users ask of them. `BERTH_TEST_RUNTIME=PATH` puts another runtime in berth's place.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(clippy::disallowed_methods, reason = "the tests play the host, with paths")]

mod buildkit;
mod calls;
mod containerd;
mod cri;
mod docker;
mod host;
mod play;
mod podman;
mod report;
