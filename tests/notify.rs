//! NOTIFY_SOCKET: readiness reaches the service manager that started the runtime.

mod support;

use std::os::unix::net::UnixDatagram;

use support::{DEADLINE, Running, bundle, only_berth};

#[test]
fn a_notify_socket_of_the_caller_has_its_place_inside() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let path = b.scratch().join("manager");
    let _listener = UnixDatagram::bind(&path).unwrap();
    let mut command = b.launch_command("create", &[], &b.id);
    Running::start(command.env("NOTIFY_SOCKET", &path), b.scratch()).end().ok();
    let said = b.say(&["exec", &b.id, "ls", "-d", "/run/notify"]);
    assert_eq!(said.ok().out, "/run/notify\n");
}

#[test]
fn start_returns_once_the_program_is_ready_and_the_manager_knows_it() {
    let Some(b) = bundle("echo $NOTIFY_SOCKET > /told; exec sleep 1000") else { return };
    if !only_berth("where the socket lies is each runtime's own") {
        return;
    }
    let mut told = b.fifo("told");
    let path = b.scratch().join("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = b.launch_command("create", &[], &b.id);
    Running::start(command.env("NOTIFY_SOCKET", &path), b.scratch()).end().ok();
    let pid = b.say(&["state", &b.id]).ok().json()["pid"].to_string();

    let mut start = Running::start(&mut b.command(&["start", &b.id]), b.scratch());
    assert_eq!(told.line(), "/run/notify/notify.sock");
    // what the program would say there, said from outside: busybox has no datagrams
    let inside = b.state_root().join(&b.id).join("notify/notify.sock");
    let program = UnixDatagram::unbound().unwrap();
    program.send_to(b"STATUS=warming up", &inside).unwrap();
    program.send_to(b"STATUS=done\nREADY=1", &inside).unwrap();

    let mut buffer = [0; 100];
    for expected in ["READY=1".to_owned(), format!("MAINPID={pid}"), "BARRIER=1".to_owned()] {
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), expected);
    }
    // the barrier's descriptor went with its message, which has been read: it is closed
    start.end().ok();
}

#[test]
fn start_returns_when_the_program_ends_without_being_ready() {
    let Some(b) = bundle("exit 0") else { return };
    let path = b.scratch().join("manager");
    let _manager = UnixDatagram::bind(&path).unwrap();
    let mut command = b.launch_command("create", &[], &b.id);
    Running::start(command.env("NOTIFY_SOCKET", &path), b.scratch()).end().ok();
    b.say(&["start", &b.id]).ok();
}

#[test]
fn where_no_manager_listens_nobody_waits_for_the_program() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    if !only_berth("the others ignore it or fail") {
        return;
    }
    for manager in ["/nonexistent/manager", "@berth-nobody-listens", "/etc/passwd", "relative"] {
        let mut command = b.launch_command("run", &["--detach"], &b.id);
        let said = Running::start(command.env("NOTIFY_SOCKET", manager), b.scratch()).end().ok();
        let warning = format!("NOTIFY_SOCKET: {manager:?}: ");
        assert!(said.err.contains(&warning) && said.err.contains("nobody is told"), "{said:?}");
        b.say(&["delete", "--force", &b.id]).ok();
    }
    let mut command = b.launch_command("create", &[], &b.id);
    Running::start(command.env("NOTIFY_SOCKET", "/nonexistent/manager"), b.scratch()).end().ok();
    let said = b.say(&["start", &b.id]).ok();
    assert!(said.err.contains("nobody is told"), "{said:?}");
    assert_eq!(b.say(&["state", &b.id]).ok().json()["status"], "running");
}
