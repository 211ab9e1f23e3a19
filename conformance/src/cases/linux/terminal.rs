//! Terminals, received over a console socket as runc's command line has it.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::json;

use crate::bundle::Bundle;
use crate::case::{Outcome, equal, failed, holds};
use crate::seen::Seen;
use crate::sys;
use crate::trial::Trial;

/// The descriptors that arrive with a first message, its bytes, and the connection.
pub fn receive(listener: &UnixListener) -> std::io::Result<(Vec<OwnedFd>, Vec<u8>, UnixStream)> {
    let (stream, _) = listener.accept()?;
    let mut buffer = vec![0; 65536];
    let mut space = cmsg_space!([RawFd; 4]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptors.extend(numbers.into_iter().map(sys::received));
        }
    }
    let length = message.bytes;
    buffer.truncate(length);
    Ok((descriptors, buffer, stream))
}

/// A started container with a terminal; what the probe in it reports, from the terminal.
fn reported(t: &Trial, mut b: Bundle<'_>) -> Outcome<(Seen, OwnedFd)> {
    let socket = t.path("tty");
    let listener = UnixListener::bind(&socket)?;
    b.options = vec!["--console-socket".to_owned(), socket.to_string_lossy().into_owned()];
    let (tell, told) = mpsc::channel();
    let limit = t.limit;
    thread::spawn(move || tell.send(receive(&listener)).ok());
    let container = b.create()?;
    let Ok(received) = told.recv_timeout(limit) else {
        return failed("no terminal arrives at the console socket");
    };
    let Some(terminal) = received?.0.pop() else { return failed("a message without a descriptor") };
    container.start()?;
    let reader = std::fs::File::from(terminal.try_clone()?);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(line_of(reader)).ok());
    let Ok(line) = told.recv_timeout(limit) else {
        return failed("the program writes nothing to its terminal");
    };
    match serde_json::from_str(line.trim()) {
        Ok(value) => Ok((Seen(value), terminal)),
        Err(_) => failed(format!("the terminal says {line:?}")),
    }
}

/// The first line of a terminal; it ends with an error when the other side is closed.
fn line_of(mut file: std::fs::File) -> String {
    use std::io::Read;
    let (mut line, mut buffer) = (Vec::new(), [0; 4096]);
    while !line.contains(&b'\n') {
        match file.read(&mut buffer) {
            Ok(read) if read > 0 => line.extend(buffer.iter().take(read)),
            Ok(_) | Err(_) => break,
        }
    }
    String::from_utf8_lossy(&line).into_owned()
}

/// stdin, stdout and stderr are the terminal, and /dev/console is it as well.
pub fn terminal(t: &Trial) -> Outcome {
    let b = t.bundle()?.set("/process/terminal", json!(true)).does(&["follow:/dev/console"]);
    let (seen, _terminal) = reported(t, b)?;
    equal("terminals", seen.0.get("terminals").cloned(), Some(json!([true, true, true])))
}

/// /dev/console is the terminal (default devices).
pub fn console(t: &Trial) -> Outcome {
    let b = t.bundle()?.set("/process/terminal", json!(true)).does(&["follow:/dev/console"]);
    let (seen, _terminal) = reported(t, b)?;
    let console = seen.stat("follow:/dev/console")?;
    holds(
        &format!("/dev/console is a pseudoterminal, {:?}", console.device),
        console.kind() == 'c' && console.device.0 == 136,
    )
}

/// The size of the terminal is what consoleSize says.
pub fn console_size(t: &Trial) -> Outcome {
    let size = json!({ "height": 33, "width": 99 });
    let b = t.bundle()?.set("/process/terminal", json!(true)).set("/process/consoleSize", size);
    let (_, terminal) = reported(t, b)?;
    let is = std::process::Command::new("stty").arg("size").stdin(std::fs::File::from(terminal)).output();
    match is {
        Ok(said) => equal("the size", String::from_utf8_lossy(&said.stdout).trim(), "33 99"),
        Err(_) => crate::case::skipped("no stty"),
    }
}
