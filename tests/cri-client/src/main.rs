//! `cri-client SOCKET METHOD [REQUEST]` makes one call of the Kubernetes Container Runtime Interface and prints
//! the answer, both as JSON with the field names of the interface's `runtime.v1`; only the fields that the engine
//! tests use are known. A failed call is told on stderr, and the exit status is 1.
//!
//! `Exec` and `Attach` go on as the session that they ask for: stdin, stdout and stderr are those of the container's
//! process, and the exit status is its own. With a fourth argument the terminal's size is changed by each line
//! `COLUMNSxROWS` that is written to the FIFO of that name.

mod grpc;
mod messages;
mod methods;
mod session;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::methods::Method;

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            writeln!(std::io::stderr(), "error: {error:#}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |place: usize| words.get(place).map(String::as_str);
    let usage = "usage: cri-client SOCKET METHOD [REQUEST [SIZES]]";
    let socket = Path::new(word(0).context(usage)?);
    let method = Method::named(word(1).context(usage)?)?;
    let request = method.encode(word(2).unwrap_or("{}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let code = runtime.block_on(async {
        let mut url = None;
        grpc::call(socket, &method.path(), &request, |bytes| {
            let answer = method.decode(bytes)?;
            url = session::url(&answer);
            if url.is_none() {
                writeln!(std::io::stdout(), "{answer}")?;
            }
            Ok(())
        })
        .await?;
        match url {
            Some(url) => session::play(&url, word(3)).await,
            None => Ok(0),
        }
    });
    // a read of stdin may still be waiting
    runtime.shutdown_background();
    code
}
