//! `docker run` and what it gives a process: streams, environment, user, network.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::docker::client::{reply, until};
use crate::docker::scene::{SOON, Scene};
use crate::host::finds;

pub const CASES: Cases = &[
    ("run --rm", run_rm),
    ("run: the exit code is the command's", exit_codes),
    ("run: killed by a signal is 128 + signal", exit_by_signal),
    ("run -i: stdin is piped", stdin),
    ("run: stdout and stderr are apart", streams),
    ("run -e, --env-file", environment),
    ("run -w", working_directory),
    ("run --entrypoint", entrypoint),
    ("run --user and --group-add", user),
    ("run --hostname, --domainname, --add-host", hostname),
    ("run --init", init),
    ("run --ulimit", ulimit),
    ("run --oom-score-adj", oom_score),
    ("run -d -p answers a request", published_port),
    ("20 containers at once", twenty),
];

fn run_rm(scene: &Scene) -> Result<Outcome> {
    scene.run(&["--rm", "--name", "gone", "busybox", "echo", "hello"])?.prints("hello")?;
    scene.docker(&["inspect", "gone"])?.exits(1)?;
    PASSED
}

fn exit_codes(scene: &Scene) -> Result<Outcome> {
    for code in [0, 1, 42, 255] {
        scene.sh(&[], &format!("exit {code}"))?.exits(code)?;
    }
    PASSED
}

fn exit_by_signal(scene: &Scene) -> Result<Outcome> {
    scene.idle("victim", &[])?;
    scene.docker(&["exec", "victim", "sh", "-c", "kill -9 $$"])?.exits(137)?;
    scene.docker(&["kill", "-s", "KILL", "victim"])?.exits(0)?;
    scene.docker(&["wait", "victim"])?.prints("137")?;
    PASSED
}

fn stdin(scene: &Scene) -> Result<Outcome> {
    let words = scene.run_words(&["--rm", "-i", "busybox", "cat"]);
    scene.daemon.client.call_with_input(&words, b"hi\nthere\n")?.prints("hi\nthere")?;
    let none = scene.run_words(&["--rm", "busybox", "cat"]);
    scene.daemon.client.call_with_input(&none, b"unread\n")?.prints("")?;
    PASSED
}

fn streams(scene: &Scene) -> Result<Outcome> {
    let reply = scene.sh(&[], "echo out; echo err >&2; echo again > /dev/stdout")?.exits(0)?;
    ensure!(reply.out == "out\nagain\n", "stdout {:?}", reply.out);
    ensure!(reply.err == "err\n", "stderr {:?}", reply.err);
    PASSED
}

fn environment(scene: &Scene) -> Result<Outcome> {
    let directory = scene.directory("environment")?;
    let file = directory.join("env").to_string_lossy().into_owned();
    std::fs::write(&file, "FROM_FILE=two words\n")?;
    let flags = ["-e", "GIVEN=a=b", "-e", "EMPTY=", "--env-file", &file, "--hostname", "named"];
    let script = r#"echo "$GIVEN|${EMPTY-unset}|$FROM_FILE|$HOME|$HOSTNAME|$PATH""#;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    scene.sh(&flags, script)?.prints(&format!("a=b||two words|/root|named|{path}"))?;
    PASSED
}

fn working_directory(scene: &Scene) -> Result<Outcome> {
    scene.sh(&["-w", "/etc"], "pwd; ls passwd")?.prints("/etc\npasswd")?;
    scene
        .sh(&["-w", "/made/on/the/way"], "pwd; ls -d /made/on/the/way")?
        .prints("/made/on/the/way\n/made/on/the/way")?;
    PASSED
}

fn entrypoint(scene: &Scene) -> Result<Outcome> {
    scene.run(&["--rm", "--entrypoint", "/bin/echo", "busybox", "-n", "one", "two"])?.prints("one two")?;
    PASSED
}

fn user(scene: &Scene) -> Result<Outcome> {
    let script =
        "id -u; id -g; id -G; grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status | tr -s '\\t ' ' '";
    let flags = ["--user", "1234:5678", "--group-add", "9999", "--group-add", "wheel"];
    let reply = scene.sh(&flags, script)?.exits(0)?;
    let lines = reply.lines();
    ensure!(lines[0] == "1234" && lines[1] == "5678", "ids {lines:?}");
    let mut groups: Vec<&str> = lines[2].split(' ').collect();
    groups.sort_unstable();
    ensure!(groups == ["10", "5678", "9999"], "groups {groups:?}");
    ensure!(lines.contains(&"Uid: 1234 1234 1234 1234"), "{lines:?}");
    ensure!(lines.contains(&"Gid: 5678 5678 5678 5678"), "{lines:?}");
    ensure!(lines.contains(&"CapEff: 0000000000000000"), "{lines:?}");
    scene.sh(&["--user", "guest"], "id -u; id -g; echo $HOME")?.prints("405\n100\n/tmp")?;
    PASSED
}

fn hostname(scene: &Scene) -> Result<Outcome> {
    let flags = ["--hostname", "box", "--domainname", "example.org", "--add-host", "other:10.1.2.3"];
    let script =
        "hostname; cat /proc/sys/kernel/domainname; cat /etc/hostname; grep other /etc/hosts | tr '\\t' ' '";
    scene.sh(&flags, script)?.prints("box\nexample.org\nbox\n10.1.2.3 other")?;
    PASSED
}

fn init(scene: &Scene) -> Result<Outcome> {
    if finds("docker-init").is_none() {
        return skipped("docker-init is not installed");
    }
    // An orphan's end has to be collected by PID 1, which is not ours.
    let script = "cat /proc/1/comm; (sh -c 'exit 0' & exec true); \
                  for i in $(seq 100); do grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null || break; usleep 20000; done; \
                  echo clean";
    let reply = scene.sh(&["--init"], script)?.exits(0)?;
    let lines = reply.lines();
    ensure!(lines.first() == Some(&"docker-init") && lines.last() == Some(&"clean"), "{lines:?}");
    scene.sh(&["--init"], "exit 9")?.exits(9)?;
    PASSED
}

fn ulimit(scene: &Scene) -> Result<Outcome> {
    let script = "ulimit -Sn; ulimit -Hn; grep 'Max core' /proc/self/limits | tr -s ' ' | cut -d' ' -f5,6";
    scene.sh(&["--ulimit", "nofile=123:456", "--ulimit", "core=0:0"], script)?.prints("123\n456\n0 0")?;
    PASSED
}

fn oom_score(scene: &Scene) -> Result<Outcome> {
    scene.sh(&["--oom-score-adj", "345"], "cat /proc/self/oom_score_adj")?.prints("345")?;
    PASSED
}

fn ask(port: u16) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.contains("hello from the box"), "the answer is {answer:?}");
    Ok(answer)
}

fn published_port(scene: &Scene) -> Result<Outcome> {
    let script = "mkdir /www && echo hello from the box > /www/index.html && exec httpd -f -p 80 -h /www";
    scene.background("web", &["-p", "127.0.0.1::80", "busybox", "sh", "-c", script])?;
    let published = scene.docker(&["port", "web", "80/tcp"])?.exits(0)?;
    let port = published.out.trim().rsplit_once(':').context("no port")?.1.parse()?;
    until(SOON, || ask(port))?;
    let ip = scene.inspect("web", "{{.NetworkSettings.IPAddress}}")?;
    scene.sh(&[], &format!("wget -q -O - http://{ip}/index.html"))?.prints("hello from the box")?;
    PASSED
}

fn twenty(scene: &Scene) -> Result<Outcome> {
    let scripts: Vec<String> = (0..20).map(|number| format!("echo {number}; exit {number}")).collect();
    let calls = scripts.iter().map(|script| scene.run_words(&["--rm", "busybox", "sh", "-c", script]));
    let calls: Vec<_> = calls
        .map(|words| Ok((scene.daemon.client.begin(&words, Stdio::null())?, words)))
        .collect::<Result<_>>()?;
    let replies: Vec<_> = calls.into_iter().map(|(child, words)| reply(child, &words)).collect();
    for (number, outcome) in (0..).zip(replies) {
        let reply = outcome?.exits(number)?;
        ensure!(reply.out.trim() == number.to_string(), "container {number} printed {:?}", reply.out);
    }
    PASSED
}
