//! `events` and `stats`: what they count is what the kernel counts, and they end when they should.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Stdio};

use berth::sys::terminal::{Size, set_size};
use serde_json::{Value, json};
use support::terminal::{Session, read_until};
use support::{
    Bundle, DEADLINE, bundle, cgroup_value, child_ended, only_berth, only_v2, unique, until, wait_exit,
};

const FOREVER: &str = "exec sleep 1000";

fn berths(script: &str) -> Option<Bundle> {
    let b = bundle(script)?;
    only_berth("the others have no events, or fewer").then_some(b)
}

fn limited(b: Bundle) -> Bundle {
    b.with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
        c["linux"]["resources"]["pids"] = json!({ "limit": 33 });
        c["linux"]["resources"]["cpu"] = json!({ "shares": 512 });
    })
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A stream of events that is being read.
struct Stream {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Stream {
    fn start(b: &Bundle, interval: &str) -> Self {
        let mut command = b.command(&["events", "--interval", interval, &b.id]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")))
    }

    fn end(mut self) -> i32 {
        assert!(child_ended(&self.child, DEADLINE), "events does not end");
        self.child.wait().unwrap().code().unwrap()
    }
}

#[test]
fn one_reading_has_runcs_keys_and_the_kernels_numbers() {
    let Some(b) = berths(FOREVER) else { return };
    let b = limited(b).namespace("network", None);
    let c = b.start();
    let said = c.say(&["events", "--stats"]).ok();
    assert_eq!(said.lines().len(), 1);
    let event = said.json();
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("stats"), Some(b.id.as_str())));
    let data = &event["data"];
    for key in ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"] {
        assert!(keys(data).contains(&key), "{key} in {data}");
    }
    for (part, wanted) in [("cpu", ["usage", "throttling"]), ("memory", ["usage", "swap"])] {
        assert!(wanted.iter().all(|key| keys(&data[part]).contains(key)), "{data}");
    }
    assert!(["kernel", "kernelTCP", "raw"].iter().all(|key| keys(&data["memory"]).contains(key)), "{data}");
    assert!(["total", "kernel", "user"].iter().all(|key| keys(&data["cpu"]["usage"]).contains(key)));
    assert!(["limit", "usage", "failcnt"].iter().all(|key| keys(&data["memory"]["usage"]).contains(key)));

    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(data["pids"], json!({ "current": 1, "limit": 33 }));
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    let usage: u64 =
        cgroup_value(c.pid, "memory", "memory.usage_in_bytes", "memory.current").parse().unwrap();
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap().abs_diff(usage) < 16 << 20);
    let names: Vec<_> = data["network_interfaces"].as_array().unwrap().iter().map(|i| &i["Name"]).collect();
    assert_eq!(names, ["lo"]);
    if only_v2() {
        assert!(data["memory"]["psi"]["some"]["total"].is_u64(), "{data}");
        assert!(data["cpu"]["psi"]["full"]["avg10"].is_f64(), "{data}");
    } else {
        assert!(!data["cpu"]["usage"]["percpu"].as_array().unwrap().is_empty());
    }
}

#[test]
fn the_network_counts_are_the_containers() {
    let Some(b) = berths(FOREVER) else { return };
    let c = b.start();
    // it shares the host's, where others come and go
    until("it has as many as the host", || {
        let data = c.say(&["events", "--stats"]).ok().json();
        let host = std::fs::read_to_string("/proc/net/dev").unwrap().lines().count() - 2;
        data["data"]["network_interfaces"].as_array().unwrap().len() == host
    });
}

#[test]
fn a_kill_for_memory_is_one_notice() {
    let Some(b) = berths("read go < /go; dd if=/dev/zero of=/dev/null bs=200M count=1; exec sleep 1000")
    else {
        return;
    };
    let go = b.fifo("go");
    let b = b.with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 20 << 20, "swap": 20 << 20 });
    });
    let c = b.start();
    let mut stream = Stream::start(&b, "20ms");
    // the watch is there before the first reading
    assert_eq!(stream.next().unwrap()["type"], "stats");
    std::fs::write(&go.path, "go\n").unwrap();
    let mut event = stream.next().unwrap();
    while event["type"] == "stats" {
        event = stream.next().unwrap();
    }
    assert_eq!(event, json!({ "type": "oom", "id": b.id }));
    c.kill("KILL").ok();
    let mut more = 0;
    while let Some(event) = stream.next() {
        more += usize::from(event["type"] == "oom");
    }
    assert_eq!(more, 0);
    assert_eq!(stream.end(), 0);
}

#[test]
fn a_kill_of_init_for_memory_is_told_before_the_end() {
    let Some(b) = berths("read go < /go; exec dd if=/dev/zero of=/dev/null bs=200M count=1") else { return };
    let go = b.fifo("go");
    let b = b.with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 20 << 20, "swap": 20 << 20 });
    });
    let _c = b.start();
    let mut stream = Stream::start(&b, "20ms");
    assert_eq!(stream.next().unwrap()["type"], "stats");
    std::fs::write(&go.path, "go\n").unwrap();
    let mut kinds = Vec::new();
    while let Some(event) = stream.next() {
        kinds.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds.iter().filter(|kind| *kind == "oom").count(), 1, "{kinds:?}");
    assert_eq!(stream.end(), 0);
}

#[test]
fn the_stream_ends_with_the_container() {
    let Some(b) = berths(FOREVER) else { return };
    let c = b.start();
    let mut stream = Stream::start(&b, "20ms");
    stream.next().unwrap();
    c.kill("KILL").ok();
    while stream.next().is_some() {}
    assert_eq!(stream.end(), 0);
}

#[test]
fn the_stream_ends_quietly_when_nobody_reads() {
    let Some(b) = berths(FOREVER) else { return };
    let _c = b.start();
    let mut stream = Stream::start(&b, "10ms");
    stream.next().unwrap();
    let Stream { mut child, lines } = stream;
    drop(lines);
    assert!(child_ended(&child, DEADLINE), "events does not end");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn created_and_paused_containers_are_counted_and_stopped_ones_are_not() {
    let Some(b) = berths(FOREVER) else { return };
    let c = b.create();
    c.say(&["events", "--stats"]).ok();
    c.say(&["start"]).ok();
    c.say(&["pause"]).ok();
    c.say(&["events", "--stats"]).ok();
    c.say(&["resume"]).ok();
    c.kill("KILL").ok();
    wait_exit(c.pid);
    let stopped = format!("container with id {} is not running", b.id);
    c.say(&["events", "--stats"]).fails(1, &stopped);
    c.say(&["events"]).fails(1, &stopped);
    b.say(&["events", "nobody"]).fails(1, "container does not exist");
    for interval in ["0", "0s", "-5s"] {
        c.say(&["events", "--interval", interval]).fails(1, "duration interval must be greater than 0");
    }
    c.say(&["events", "--interval", "soon"]).fails(1, "interval");
}

#[test]
fn a_container_without_a_cgroup_says_so() {
    let Some(mut b) = berths(FOREVER) else { return };
    b.maker = vec!["--cgroup-manager", "disabled"];
    let b = b.with(|c| {
        c["linux"].as_object_mut().unwrap().remove("resources");
    });
    let c = b.start();
    c.say(&["events", "--stats"]).fails(1, "no cgroup of its own");
    assert!(c.say(&["stats"]).ok().out.contains(&b.id));
}

#[test]
fn stats_is_a_table_and_json() {
    let Some(b) = berths("while :; do :; done") else { return };
    let b = limited(b);
    let c = b.start();
    let said = b.say(&["stats", "--interval", "100ms", &b.id]).ok();
    let lines: Vec<Vec<&str>> = said.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 2, "{said:?}");
    assert_eq!(lines[0][..2], ["ID", "STATUS"]);
    assert_eq!(lines[1][..2], [b.id.as_str(), "running"]);
    assert_eq!(lines[1][4..6], ["64.0MiB", "1/33"]);
    let mut usage = Value::Null;
    until("it does nothing but work", || {
        usage = b.say(&["stats", "--format", "json", "--interval", "100ms"]).ok().json();
        usage["cpu_percent"].as_f64().unwrap() > 1.0
    });
    assert_eq!((usage["id"].as_str(), usage["memory_limit"].as_u64()), (Some(b.id.as_str()), Some(64 << 20)));
    assert!(usage["cpu_total"].as_u64().unwrap() > 0);

    c.kill("KILL").ok();
    wait_exit(c.pid);
    assert_eq!(b.say(&["stats"]).ok().lines().len(), 1, "only what lives is listed");
    assert!(b.say(&["stats", &b.id]).ok().out.contains("stopped"));
    b.say(&["stats", &unique("nobody")]).fails(1, "container does not exist");
}

#[test]
fn stats_on_a_terminal_is_drawn_in_place_until_the_container_ends() {
    let Some(b) = berths(FOREVER) else { return };
    let c = b.start();
    let mut session = Session::start_alone(b.command(&["stats", "--interval", "20ms", &b.id]));
    set_size(session.master.as_fd(), Size { height: 20, width: 30 }).unwrap();
    let drawn = |text: &str| text.matches("\x1b[2A\r\x1b[J").count() > 2;
    let mut text = read_until(&mut session.master, drawn);
    assert!(drawn(&text), "{text:?}");
    c.kill("KILL").ok();
    let (rest, code) = session.end();
    text.push_str(&rest);
    assert_eq!(code, 0, "{text:?}");
    assert!(text.contains("stopped"), "{text:?}");
    let widest = text.split(['\n', '\r']).map(|line| line.replace("\x1b[J", "").replace("\x1b[2A", ""));
    assert!(widest.into_iter().all(|line| line.chars().count() <= 30), "{text:?}");
}
