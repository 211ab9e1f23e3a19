//! Compiles the probe, a static program without dependencies that the suite puts into containers and then embeds.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// The sources of the probe.
const SOURCES: [&str; 3] = ["probe/main.rs", "probe/json.rs", "probe/sys.rs"];

fn main() -> Result<(), Box<dyn Error>> {
    for source in SOURCES {
        tell(&format!("rerun-if-changed={source}"));
    }
    let out = env::var("OUT_DIR")?;
    let machine = env::var("CARGO_CFG_TARGET_ARCH")?;
    let probe = Path::new(&out).join("probe");
    let mut said = String::new();
    // glibc's static archives do as well, where Rust has no standard library for musl
    for libc in ["musl", "gnu"] {
        match compile(&format!("{machine}-unknown-linux-{libc}"), &probe)? {
            None => return Ok(()),
            Some(text) => said.push_str(&text),
        }
    }
    for line in said.lines() {
        tell(&format!("warning={line}"));
    }
    tell(&format!("error=the probe needs a static target: rustup target add {machine}-unknown-linux-musl"));
    Ok(())
}

/// Compiles the probe for `target`; what the compiler says when it cannot.
fn compile(target: &str, probe: &Path) -> Result<Option<String>, Box<dyn Error>> {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--crate-name", "probe", "--target", target, "-o"]).arg(probe);
    rustc.args([
        "-C",
        "opt-level=s",
        "-C",
        "panic=abort",
        "-C",
        "strip=symbols",
        "-C",
        "target-feature=+crt-static",
    ]);
    let said = rustc.arg(SOURCES[0]).output()?;
    Ok((!said.status.success()).then(|| String::from_utf8_lossy(&said.stderr).into_owned()))
}

/// An instruction for cargo.
#[allow(clippy::print_stdout)]
fn tell(line: &str) {
    println!("cargo::{line}");
}
