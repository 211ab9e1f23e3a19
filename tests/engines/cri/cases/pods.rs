//! Pods: their life, and the namespaces that their containers share.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Cases;
use crate::calls::{Reply, SOON, until};
use crate::cri::pod::{CONTAINER, NODE, NOT_READY, POD, READY, TARGET, namespaces};
use crate::cri::scene::{Scene, namespace, process_field};
use crate::host::{cgroups_below, ended, top_cgroups};
use crate::play::{Outcome, PASSED, skipped};

pub const CASES: Cases = &[
    ("pod: run, stop, remove", life),
    ("pod: net, ipc and uts are shared", shared),
    ("pod: pid is shared when asked for", shared_pid),
    ("pod: pid of a target container", target_pid),
    ("pod: the node's net, pid and ipc", node),
    ("pod: hostUsers: false", user_namespace),
    ("pod: sysctls, hostname, resolv.conf", settings),
    ("pod: cgroup parent", cgroup_parent),
    ("pod: lists and labels", lists),
    ("pod: 10 at once", ten),
];

fn life(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("life", json!({ "annotations": { "note": "kept" } }))?;
    let status = pod.status()?;
    ensure!(status["state"] == READY && status["runtime_handler"] == scene.runtime, "{status}");
    ensure!(status["metadata"]["name"] == "life" && status["annotations"]["note"] == "kept", "{status}");
    let address = status["network"]["ip"].as_str().context("no address")?.to_owned();
    ensure!(address.starts_with("10.177."), "the address is {address}");
    let pid = pod.pid()?;
    let container = pod.idle("c", json!({}))?;
    let first = scene.pid("Container", &container)?;
    pod.stop()?;
    ensure!(ended(pid) && ended(first), "processes of a stopped pod are there");
    ensure!(pod.status()?["state"] == NOT_READY, "a stopped pod is ready");
    scene.ends(&container, 137, "Error")?;
    // as kubelet, which asks more than once
    pod.stop()?;
    pod.remove()?;
    pod.remove()?;
    let id = json!({ "pod_sandbox_id": pod.id });
    scene.client.ask("PodSandboxStatus", &id)?.fails(1, "status 5")?;
    PASSED
}

fn shared(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("shared", json!({}))?;
    let (one, two) = (pod.idle("one", json!({}))?, pod.idle("two", json!({}))?);
    let pids = [pod.pid()?, scene.pid("Container", &one)?, scene.pid("Container", &two)?];
    for kind in ["net", "ipc", "uts"] {
        let of_pod = namespace(pids[0], kind)?;
        ensure!(of_pod != namespace(std::process::id().cast_signed(), kind)?, "{kind} is the host's");
        for pid in &pids[1..] {
            ensure!(namespace(*pid, kind)? == of_pod, "{kind} is not the pod's");
        }
    }
    for kind in ["pid", "mnt"] {
        ensure!(namespace(pids[1], kind)? != namespace(pids[2], kind)?, "{kind} is shared");
    }
    scene.sh(&one, "echo word > /dev/shm/file; hostname")?.prints("shared")?;
    scene.sh(&two, "cat /dev/shm/file; cat /sys/class/net/eth0/operstate")?.prints("word\nup")?;
    // one container reaches the other at localhost
    pod.start("server", &["nc", "-ll", "-p", "80", "-e", "echo", "hello"], json!({}))?;
    until(SOON, || scene.sh(&two, "nc 127.0.0.1 80 </dev/null")?.prints("hello").map(drop))?;
    PASSED
}

fn shared_pid(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("pid", namespaces(json!({ "pid": POD })))?;
    let (one, two) = (pod.idle("one", json!({}))?, pod.idle("two", json!({}))?);
    ensure!(
        namespace(scene.pid("Container", &one)?, "pid")? == namespace(pod.pid()?, "pid")?,
        "not the pod's"
    );
    // the pod's own process is the first one, and each sees the others
    scene
        .sh(&two, "tr '\\0' ' ' < /proc/1/cmdline; ps | grep -c '[s]leep 1000$'")?
        .prints("sleep 1000000 2")?;
    // what is not the first process of its namespace can be ended by signals that it does not await
    let killed = pod.plays("killed", "kill -TERM $$; sleep 10", json!({}))?;
    killed.exits(143)?;
    // the end of one container is not that of another
    scene.call("StopContainer", &json!({ "container_id": one, "timeout": 0 }))?;
    scene.exec(&two, &["echo", "alive"])?.prints("alive")?;
    PASSED
}

fn target_pid(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("target", json!({}))?;
    let app = pod.idle("app", json!({}))?;
    let options = json!({ "pid": TARGET, "target_id": app });
    let debug = pod.start("debug", &["sleep", "2000"], namespaces(options))?;
    let (app, debug_pid) = (scene.pid("Container", &app)?, scene.pid("Container", &debug)?);
    ensure!(namespace(app, "pid")? == namespace(debug_pid, "pid")?, "the PID namespace is another");
    scene.sh(&debug, "tr '\\0' ' ' < /proc/1/cmdline")?.prints("sleep 1000")?;
    PASSED
}

fn node(scene: &Scene<'_>) -> Result<Outcome> {
    // whose hostname is the node's as well
    let mut config = namespaces(json!({ "network": NODE, "pid": NODE, "ipc": NODE }));
    config["hostname"] = "".into();
    let pod = scene.pod("node", config)?;
    let container = pod.idle("c", json!({}))?;
    let pid = scene.pid("Container", &container)?;
    for kind in ["net", "pid", "ipc"] {
        let host = std::fs::read_link(format!("/proc/thread-self/ns/{kind}"))?;
        ensure!(namespace(pid, kind)? == host, "{kind} is not the host's");
    }
    scene.sh(&container, &format!("tr '\\0' ' ' < /proc/{pid}/cmdline"))?.prints("sleep 1000")?;
    pod.stop()?;
    ensure!(ended(pid), "process {pid} is still there");
    PASSED
}

fn user_namespace(scene: &Scene<'_>) -> Result<Outcome> {
    let status = scene.call("Status", &json!({}))?;
    let handlers = status["runtime_handlers"].as_array().cloned().unwrap_or_default();
    let Some(handler) = handlers.iter().find(|handler| handler["name"] == scene.runtime) else {
        return skipped("this containerd does not know user namespaces of pods");
    };
    if handler["features"]["user_namespaces"] != true {
        return skipped("containerd says that this runtime or kernel has no user namespaces for pods");
    }
    let mapping = json!([{ "host_id": 1_800_000_000_u32, "container_id": 0, "length": 65536 }]);
    let users = json!({ "mode": POD, "uids": mapping, "gids": mapping });
    let volume = scene.directory("volume")?;
    let pod = scene.pod("users", namespaces(json!({ "userns_options": users })))?;
    let mount = json!({
        "container_path": "/volume", "host_path": volume, "uidMappings": mapping, "gidMappings": mapping,
    });
    let container = pod.idle("c", json!({ "mounts": [mount] }))?;
    let pid = scene.pid("Container", &container)?;
    ensure!(namespace(pid, "user")? == namespace(pod.pid()?, "user")?, "the user namespace is not the pod's");
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    ensure!(map.split_whitespace().eq(["0", "1800000000", "65536"]), "the mapping is {map:?}");
    ensure!(process_field(pid, "Uid")?.starts_with("1800000000 "), "not root of its namespace");
    scene
        .sh(&container, "stat -c %u:%g /bin/busybox; touch /x /volume/x; stat -c %u:%g /x")?
        .prints("0:0\n0:0")?;
    use std::os::unix::fs::MetadataExt;
    ensure!(std::fs::metadata(volume.join("x"))?.uid() == 0, "a file of an id-mapped volume is not root's");
    PASSED
}

fn settings(scene: &Scene<'_>) -> Result<Outcome> {
    let config = json!({
        "dns_config": { "servers": ["192.0.2.1"], "searches": ["example.org"], "options": ["ndots:5"] },
        "linux": { "sysctls": { "kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 2048" } },
    });
    let pod = scene.pod("settings", config)?;
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range /etc/hostname; \
                  cat /etc/resolv.conf";
    let reply = pod.plays("c", script, json!({}))?.exits(0)?;
    let want =
        ["1", "1024\t2048", "settings", "search example.org", "nameserver 192.0.2.1", "options ndots:5"];
    ensure!(reply.lines() == want, "{reply:?}");
    PASSED
}

/// As kubelet does it: the parent is made before, removed after, and the containers' cgroups are below it.
fn cgroup_parent(scene: &Scene<'_>) -> Result<Outcome> {
    let parent = format!("{}/pod-1", scene.daemon.cgroup_parent);
    let pod = scene.pod("parent", json!({ "linux": { "cgroup_parent": format!("/{parent}") } }))?;
    let container = pod.idle("c", json!({}))?;
    let pid = scene.pid("Container", &container)?;
    let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let place = format!(":/{parent}/{container}");
    ensure!(table.lines().any(|line| line.ends_with(&place)), "{place} is not in {table:?}");
    pod.stop()?;
    pod.remove()?;
    let parents = top_cgroups(&parent);
    ensure!(!parents.is_empty(), "the parent is gone");
    for parent in parents {
        ensure!(cgroups_below(&parent).is_empty(), "cgroups are left below {}", parent.display());
        std::fs::remove_dir(&parent)?;
    }
    PASSED
}

fn lists(scene: &Scene<'_>) -> Result<Outcome> {
    let one = scene.pod("one", json!({ "labels": { "app": "web" } }))?;
    let two = scene.pod("two", json!({ "labels": { "app": "db" } }))?;
    two.stop()?;
    let container = one.idle("c", json!({ "labels": { "tier": "front" } }))?;
    let created = one.create("later", &["true"], json!({}))?;
    let pods = |filter: serde_json::Value| -> Result<Vec<String>> {
        let answer = scene.call("ListPodSandbox", &json!({ "filter": filter }))?;
        Ok(ids(&answer["items"]))
    };
    ensure!(pods(json!({}))?.len() == 2, "not both pods");
    ensure!(pods(json!({ "state": { "state": READY } }))? == [one.id.as_str()], "by state");
    ensure!(pods(json!({ "label_selector": { "app": "db" } }))? == [two.id.as_str()], "by label");
    ensure!(pods(json!({ "id": one.id }))? == [one.id.as_str()], "by id");
    let containers = |filter: serde_json::Value| -> Result<Vec<String>> {
        let answer = scene.call("ListContainers", &json!({ "filter": filter }))?;
        Ok(ids(&answer["containers"]))
    };
    ensure!(containers(json!({ "pod_sandbox_id": one.id }))?.len() == 2, "not both containers");
    ensure!(containers(json!({ "pod_sandbox_id": two.id }))?.is_empty(), "by pod");
    ensure!(containers(json!({ "state": { "state": 0 } }))? == [created.as_str()], "created");
    ensure!(containers(json!({ "state": { "state": 1 } }))? == [container.as_str()], "running");
    ensure!(
        containers(json!({ "label_selector": { "tier": "front" } }))? == [container.as_str()],
        "by label"
    );
    // one that was never started
    scene.call("RemoveContainer", &json!({ "container_id": created }))?;
    ensure!(containers(json!({}))? == [container.as_str()], "after the removal");
    PASSED
}

fn ids(list: &serde_json::Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| item["id"].as_str().map(str::to_owned)).collect()
}

fn ten(scene: &Scene<'_>) -> Result<Outcome> {
    let calls: Vec<_> = (0..10)
        .map(|number| {
            let parent = format!("/{}", scene.daemon.cgroup_parent);
            let options = json!({ "network": if number % 2 == 0 { POD } else { NODE }, "pid": CONTAINER });
            let config = json!({
                "metadata": { "name": format!("pod{number}"), "uid": number.to_string(), "namespace": "default" },
                "linux": { "cgroup_parent": parent, "security_context": { "namespace_options": options } },
            });
            let request = json!({ "config": config, "runtime_handler": scene.runtime });
            scene.client.begin("RunPodSandbox", &request, std::process::Stdio::null(), None)
        })
        .collect::<Result<_>>()?;
    let replies: Vec<Result<Reply>> =
        calls.into_iter().map(|child| crate::calls::reply(child, "RunPodSandbox")).collect();
    for reply in replies {
        reply?.exits(0)?;
    }
    until(SOON, || {
        let answer = scene.call("ListPodSandbox", &json!({ "filter": { "state": { "state": READY } } }))?;
        let count = ids(&answer["items"]).len();
        ensure!(count == 10, "{count} pods are ready");
        Ok(())
    })?;
    PASSED
}
