//! The modules of the `berth` binary, reachable for its tests, benches and fuzz targets.
//!
//! This is not a public API: nothing here is stable, and the binary is the product.

pub mod cgroups;
pub mod channel;
pub mod cli;
pub mod config;
pub mod container;
pub mod creation;
pub mod credentials;
pub mod devices;
pub mod error;
pub mod exec;
pub mod exec_image;
pub mod executable;
pub mod features;
pub mod findings;
pub mod foreground;
pub mod gate;
pub mod hooks;
pub mod host;
pub mod init;
pub mod known;
pub mod listing;
pub mod log;
mod lost;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod notify;
pub mod options;
pub mod plan;
pub mod proc;
pub mod process;
pub mod report;
pub mod resource_limits;
pub mod rootfs;
pub mod seccomp;
pub mod seccomp_cache;
pub mod security_labels;
pub mod spec;
pub mod state;
pub mod sys;
pub mod sysctl;
pub mod terminal;
