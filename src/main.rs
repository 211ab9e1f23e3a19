//! `berth`: an OCI container runtime. The only printing and the only exit statuses are here.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use berth::cli::{self, Stop};
use berth::container::Runtime;
use berth::error;
use berth::exec_image;
use berth::log::Log;
use berth::options::{Invocation, Operation};

/// The exit status of a failed `exec`, which the program's own statuses rarely are.
const EXEC_FAILED: u8 = 255;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // before anything else, because it starts the program anew; a word too many only costs a millisecond
    let enters = args.iter().any(|arg| ["create", "run", "exec"].iter().any(|command| arg == command));
    let image = if enters { exec_image::enter() } else { Ok(()) };
    let invocation = match cli::parse(args.into_iter()) {
        Ok(invocation) => invocation,
        Err(stop) => return stopped(&stop),
    };
    let log = match Log::open(&invocation.global) {
        Ok(log) => log,
        Err(failure) => {
            eprintln!("error: {}", error::text(&failure));
            return ExitCode::FAILURE;
        }
    };
    let failed = match invocation.operation {
        Operation::Exec(_) => ExitCode::from(EXEC_FAILED),
        _ => ExitCode::FAILURE,
    };
    match image.and_then(|()| operate(&invocation, &log)) {
        Ok(code) => code,
        Err(failure) => {
            log.fatal(&failure);
            failed
        }
    }
}
