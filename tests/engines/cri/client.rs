//! The client of `tests/cri-client`: one process a call, JSON in and out.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::calls::{Reply, SOON, begin, bounded, call, until};

pub struct Client {
    program: PathBuf,
    socket: PathBuf,
}

impl Client {
    pub fn new(program: PathBuf, socket: PathBuf) -> Self {
        Self { program, socket }
    }

    /// Where the program lies: `BERTH_TEST_CRI_CLIENT`, beside the runtime that cargo built, or beside this test.
    pub fn program() -> Option<PathBuf> {
        let chosen = std::env::var_os("BERTH_TEST_CRI_CLIENT").map(PathBuf::from);
        let beside = |path: &Path| Some(path.parent()?.join("cri-client"));
        let runtime = beside(Path::new(env!("CARGO_BIN_EXE_berth")));
        let test = std::env::current_exe().ok().and_then(|path| beside(&path));
        [chosen, runtime, test].into_iter().flatten().find(|path| path.is_file())
    }

    fn command(&self, method: &str, request: &Value) -> Command {
        let mut command = bounded(&self.program);
        command.arg(&self.socket).arg(method).arg(request.to_string());
        command
    }

    /// One call, whatever comes of it.
    pub fn ask(&self, method: &str, request: &Value) -> Result<Reply> {
        call(&mut self.command(method, request))
    }

    /// One call that has to succeed. Gives the answer.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value> {
        let reply = self.ask(method, request)?;
        ensure!(reply.code == 0, "{method}: {}", reply.err.trim());
        serde_json::from_str(&reply.out).with_context(|| format!("{method}: {:?}", reply.out))
    }

    /// Waits until pods can be made: the plugin begins to answer after containerd itself.
    pub fn await_ready(&self) -> Result<()> {
        until(SOON, || {
            let answer = self.call("Status", &json!({}))?;
            let conditions = answer["status"]["conditions"].as_array().context("no conditions")?;
            // others are advice
            for wanted in ["RuntimeReady", "NetworkReady"] {
                let condition = conditions.iter().find(|condition| condition["type"] == wanted);
                ensure!(condition.is_some_and(|condition| condition["status"] == true), "{condition:?}");
            }
            Ok(())
        })
    }

    /// A call that goes on: a session, or a stream of answers. Ends by itself or at its deadline.
    pub fn begin(&self, method: &str, request: &Value, stdin: Stdio, sizes: Option<&Path>) -> Result<Child> {
        begin(self.command(method, request).args(sizes), stdin)
    }
}
