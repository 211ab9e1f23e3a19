//! config.md, "Process": what the program in the container is given.

use std::fs;

use serde_json::{Value, json};

use crate::case::{Case, Outcome, equal, failed, holds, skipped};
use crate::cgroup;
use crate::seen::Seen;
use crate::trial::Trial;

const APPLIES: &[&str] = &["create-applies"];

/// Each type of rlimit, its line in `/proc/PID/limits`, and limits that need no privilege.
const RLIMITS: &[(&str, &str, u64, u64)] = &[
    ("RLIMIT_AS", "Max address space", 1 << 40, 1 << 41),
    ("RLIMIT_CORE", "Max core file size", 0, 4096),
    ("RLIMIT_CPU", "Max cpu time", 1000, 2000),
    ("RLIMIT_DATA", "Max data size", 1 << 40, 1 << 41),
    ("RLIMIT_FSIZE", "Max file size", 1 << 30, 1 << 31),
    ("RLIMIT_LOCKS", "Max file locks", 100, 200),
    ("RLIMIT_MEMLOCK", "Max locked memory", 4096, 8192),
    ("RLIMIT_MSGQUEUE", "Max msgqueue size", 4096, 8192),
    ("RLIMIT_NICE", "Max nice priority", 0, 0),
    ("RLIMIT_NOFILE", "Max open files", 100, 200),
    ("RLIMIT_NPROC", "Max processes", 1000, 2000),
    ("RLIMIT_RSS", "Max resident set", 1 << 30, 1 << 31),
    ("RLIMIT_RTPRIO", "Max realtime priority", 0, 0),
    ("RLIMIT_RTTIME", "Max realtime timeout", 1_000_000, 2_000_000),
    ("RLIMIT_SIGPENDING", "Max pending signals", 100, 200),
    ("RLIMIT_STACK", "Max stack size", 1 << 22, 1 << 23),
];

/// A few capabilities with their bits (capabilities(7)).
const CHOWN: (&str, u64) = ("CAP_CHOWN", 1 << 0);
const KILL: (&str, u64) = ("CAP_KILL", 1 << 5);
const NET_RAW: (&str, u64) = ("CAP_NET_RAW", 1 << 13);

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("config/process/args", APPLIES, |t| {
            let args =
                vec!["/probe".to_owned(), "with space".to_owned(), String::new(), "ünicode".to_owned()];
            let seen = t.bundle()?.set("/process/args", json!(args)).report()?;
            equal("the arguments", seen.list("args"), args)
        }),
        Case::new("config/process/args-empty", &["args-not-empty", "value-invalid"], |t| {
            t.bundle()?.set("/process/args", json!([])).refused_until_start()
        }),
        Case::new("config/process/args-missing", &["args-not-empty"], |t| {
            t.bundle()?.unset("/process/args").refused_until_start()
        }),
        Case::new("config/process/args-found-in-path", APPLIES, |t| {
            t.bundle()?
                .set("/process/args", json!(["probe"]))
                .set("/process/env", json!(["PATH=/etc:/"]))
                .report()
                .map(drop)
        }),
        Case::new("config/process/env", APPLIES, |t| {
            let env = vec!["A=1".to_owned(), "B=with = and space".to_owned(), "EMPTY=".to_owned()];
            let seen = t.bundle()?.set("/process/env", json!(env)).report()?;
            let missing: Vec<_> = env.iter().filter(|one| !seen.list("env").contains(one)).cloned().collect();
            equal("missing variables", missing, Vec::new())
        }),
        Case::new("config/process/env-of-the-runtime-stays-out", APPLIES, env_of_runtime),
        Case::new("config/process/cwd", APPLIES, |t| {
            let seen = t.bundle()?.set("/process/cwd", json!("/tmp")).report()?;
            equal("the working directory", seen.text("cwd")?, "/tmp")
        }),
        Case::new("config/process/cwd-relative", &["cwd-absolute", "value-invalid"], |t| {
            t.bundle()?.set("/process/cwd", json!("tmp")).refused_until_start()
        }),
        Case::new("config/process/terminal-false", APPLIES, |t| {
            let seen = t.bundle()?.set("/process/terminal", json!(false)).report()?;
            equal("terminals", seen.0.get("terminals").cloned(), Some(json!([false, false, false])))
        }),
        Case::new("config/process/terminal", APPLIES, super::linux::terminal::terminal),
        Case::new("config/process/console-size", APPLIES, super::linux::terminal::console_size),
        Case::new("config/process/console-size-without-terminal", &["console-size-ignored"], |t| {
            t.bundle()?.set("/process/consoleSize", json!({ "height": 25, "width": 80 })).report().map(drop)
        }),
        Case::new("config/process/rlimit-unknown", &["rlimit-unknown", "value-invalid"], |t| {
            let limit = json!([{ "type": "RLIMIT_PATIENCE", "soft": 1, "hard": 1 }]);
            t.bundle()?.set("/process/rlimits", limit).refused_until_start()
        }),
        Case::new("config/process/rlimit-twice", &["rlimit-twice"], |t| {
            let limit = json!({ "type": "RLIMIT_CORE", "soft": 1, "hard": 1 });
            t.bundle()?.set("/process/rlimits", json!([limit, limit])).refused_until_start()
        }),
        Case::new("config/process/capability-unknown", &["capability-not-granted"], |t| {
            let all = json!(["CAP_CHOWN", "CAP_FROM_THE_FUTURE"]);
            let sets = json!({ "bounding": all, "effective": all, "permitted": all });
            let seen = t.bundle()?.set("/process/capabilities", sets).report()?;
            equal("the effective set", seen.capabilities("CapEff")?, CHOWN.1)
        }),
        Case::new(
            "config/process/capability-not-granted",
            &["capability-not-granted"],
            capability_not_granted,
        ),
        Case::new("config/process/no-new-privileges", APPLIES, |t| {
            let seen = t.bundle()?.set("/process/noNewPrivileges", json!(true)).report()?;
            equal("NoNewPrivs", seen.status("NoNewPrivs")?.as_str(), "1")
        }),
        Case::new("config/process/new-privileges", APPLIES, |t| {
            let seen = t.bundle()?.set("/process/noNewPrivileges", json!(false)).report()?;
            equal("NoNewPrivs", seen.status("NoNewPrivs")?.as_str(), "0")
        }),
        Case::new("config/process/oom-score-adj", &["oom-score-set"], |t| {
            let seen = t.bundle()?.set("/process/oomScoreAdj", json!(321)).report()?;
            equal("oom_score_adj", seen.file("oom_score_adj")?.trim(), "321")
        }),
        Case::new("config/process/oom-score-adj-unset", &["oom-score-unset"], oom_score_unset),
        Case::new("config/process/user", APPLIES, |t| {
            let seen = t.bundle()?.set("/process/user", json!({ "uid": 1001, "gid": 1002 })).report()?;
            equal("Uid", seen.status("Uid")?.as_str(), "1001\t1001\t1001\t1001")?;
            equal("Gid", seen.status("Gid")?.as_str(), "1002\t1002\t1002\t1002")
        }),
        Case::new("config/process/additional-gids", APPLIES, |t| {
            let seen = t
                .bundle()?
                .set("/process/user", json!({ "uid": 0, "gid": 0, "additionalGids": [5, 77] }))
                .report()?;
            let groups = seen.status("Groups")?;
            let groups: Vec<&str> = groups.split_whitespace().filter(|group| *group != "0").collect();
            equal("the groups", groups, vec!["5", "77"])
        }),
        Case::new("config/process/no-additional-gids", APPLIES, |t| {
            let seen = t.bundle()?.report()?;
            let groups = seen.status("Groups")?;
            holds(
                &format!("no further groups in {groups:?}"),
                groups.split_whitespace().all(|group| group == "0"),
            )
        }),
        Case::new("config/process/umask", APPLIES, |t| {
            let seen =
                t.bundle()?.set("/process/user", json!({ "uid": 0, "gid": 0, "umask": 0o27 })).report()?;
            equal("the umask", seen.status("Umask")?.as_str(), "0027")
        }),
        Case::new("config/process/umask-unset", &["umask-unset"], umask_unset),
        Case::new("config/process/selinux-label", APPLIES, |t| {
            security_label(t, "selinux", "/process/selinuxLabel")
        }),
        Case::new("config/process/apparmor-profile", APPLIES, |t| {
            security_label(t, "apparmor", "/process/apparmorProfile")
        }),
        Case::new("config/process/exec-cpu-affinity", &["affinity-final"], exec_affinity),
    ];
    for (kind, line, soft, hard) in RLIMITS {
        cases.push(Case::new(
            format!("config/process/{kind}"),
            &["rlimit-soft", "rlimit-hard", "rlimit-readable"],
            move |t| rlimit(t, kind, line, *soft, *hard),
        ));
    }
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        cases.push(Case::new(format!("config/process/capabilities-{set}"), APPLIES, move |t| {
            capabilities(t, set)
        }));
    }
    cases.extend(scheduling());
    cases
}

/// Schedulers and I/O priorities, with what sched_getattr(2) and ioprio_get(2) say: policy, nice, priority.
fn scheduling() -> Vec<Case> {
    let mut cases = Vec::new();
    let policies: [(&str, Value, [i64; 3]); 4] = [
        ("other", json!({ "policy": "SCHED_OTHER", "nice": 5 }), [0, 5, 0]),
        ("batch", json!({ "policy": "SCHED_BATCH", "nice": 3 }), [3, 3, 0]),
        ("idle", json!({ "policy": "SCHED_IDLE" }), [5, 0, 0]),
        ("nice-unset", json!({ "policy": "SCHED_BATCH" }), [3, 0, 0]),
    ];
    for (name, value, expected) in policies {
        cases.push(Case::new(
            format!("config/process/scheduler-{name}"),
            &["create-applies", "scheduler-defaults"],
            move |t| {
                let seen = t.bundle()?.set("/process/scheduler", value.clone()).report()?;
                let is = seen.scheduler()?;
                let is: Vec<i64> = [0, 2, 3].iter().filter_map(|at| is.get(*at).copied()).collect();
                equal("policy, nice and priority", is, expected.to_vec())
            },
        ));
    }
    for (name, policy) in [("fifo", 1), ("rr", 2)] {
        cases.push(Case::new(format!("config/process/scheduler-{name}"), APPLIES, move |t| {
            real_time(t, name, policy)
        }));
    }
    cases.push(Case::new("config/process/scheduler-flags", APPLIES, |t| {
        let scheduler = json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_RESET_ON_FORK"] });
        let seen = t.bundle()?.set("/process/scheduler", scheduler).report()?;
        holds("SCHED_FLAG_RESET_ON_FORK is set", seen.scheduler()?.get(1).is_some_and(|flags| flags & 1 == 1))
    }));
    cases.push(Case::new("config/process/scheduler-deadline", APPLIES, |t| {
        let (runtime, deadline, period) = (2_000_000, 20_000_000, 40_000_000);
        let scheduler =
            json!({ "policy": "SCHED_DEADLINE", "runtime": runtime, "deadline": deadline, "period": period });
        let seen = t.bundle()?.set("/process/scheduler", scheduler).report()?;
        let is = seen.scheduler()?;
        equal("the policy", is.first().copied(), Some(6))?;
        equal(
            "runtime, deadline, period",
            is.get(4..).unwrap_or_default().to_vec(),
            vec![runtime, deadline, period],
        )
    }));
    for (class, number, priority) in [("BE", 2, 6), ("IDLE", 3, 0), ("RT", 1, 3)] {
        cases.push(Case::new(
            format!("config/process/io-priority-{}", class.to_lowercase()),
            APPLIES,
            move |t| {
                let value = json!({ "class": format!("IOPRIO_CLASS_{class}"), "priority": priority });
                let seen = t.bundle()?.set("/process/ioPriority", value).report()?;
                let is = seen.0.get("ioprio").and_then(Value::as_i64);
                equal("the I/O priority", is, Some(number << 13 | priority))
            },
        ));
    }
    cases
}

/// Where cgroup v1 shares out real time, a cgroup has none until it is given some, from what the one above has.
fn real_time(t: &Trial, name: &str, policy: i64) -> Outcome {
    let mut b = t.bundle()?;
    if let Some(share) = cgroup::real_time_share(t.layout)? {
        b = b.set("/linux/resources", json!({ "cpu": { "realtimeRuntime": share } }));
    }
    let scheduler = json!({ "policy": format!("SCHED_{}", name.to_uppercase()), "priority": 7 });
    let b =
        b.push("/process/capabilities/bounding", json!("CAP_SYS_NICE")).set("/process/scheduler", scheduler);
    let is = b.report()?.scheduler()?;
    equal("policy and priority", (is.first().copied(), is.get(3).copied()), (Some(policy), Some(7)))
}

fn rlimit(t: &Trial, kind: &str, line: &str, soft: u64, hard: u64) -> Outcome {
    let limit = json!([{ "type": kind, "soft": soft, "hard": hard }]);
    let seen = t.bundle()?.set("/process/rlimits", limit).report()?;
    equal(kind, seen.limit(line)?, (soft.to_string(), hard.to_string()))
}

fn env_of_runtime(t: &Trial) -> Outcome {
    let seen = t.bundle()?.report()?;
    let env = seen.list("env");
    // a runtime may add a HOME of the user's
    let strange: Vec<_> =
        env.iter().filter(|one| !one.starts_with("PATH=/") && !one.starts_with("HOME=")).collect();
    holds(&format!("no variables of the runtime's own: {strange:?}"), strange.is_empty())
}

/// Sets that differ where execve leaves a difference, so that they cannot be taken for each other.
fn capabilities(t: &Trial, set: &str) -> Outcome {
    let (all, some) = (json!([CHOWN.0, KILL.0, NET_RAW.0]), json!([CHOWN.0, KILL.0]));
    let sets = match set {
        "bounding" => json!({ "bounding": some }),
        "effective" => json!({ "bounding": some, "permitted": some, "effective": some }),
        "permitted" => json!({ "bounding": some, "permitted": some }),
        "inheritable" => json!({ "bounding": all, "permitted": all, "inheritable": some }),
        _ => json!({ "bounding": all, "permitted": all, "inheritable": all, "ambient": some }),
    };
    // an ordinary user's sets are not widened by execve, except by the ambient one
    let user = if set == "ambient" { 1000 } else { 0 };
    let b = t
        .bundle()?
        .set("/process/capabilities", sets)
        .set("/process/user", json!({ "uid": user, "gid": user }));
    let seen = b.report()?;
    let both = CHOWN.1 | KILL.1;
    let of = |name: &str| seen.capabilities(name);
    match set {
        "bounding" => equal("CapBnd", of("CapBnd")?, both),
        "inheritable" => equal("CapInh", of("CapInh")?, both),
        "ambient" => {
            equal("CapAmb", of("CapAmb")?, both)?;
            equal("CapEff", of("CapEff")?, both)
        }
        // execve gives root what is in the bounding set
        "effective" => equal("CapEff", of("CapEff")?, both),
        _ => equal("CapPrm", of("CapPrm")?, both),
    }
}

fn capability_not_granted(t: &Trial) -> Outcome {
    let own = fs::read_to_string("/proc/self/status")?;
    let own = Seen(json!({ "files": { "status": own } })).capabilities("CapBnd")?;
    let names = [("CAP_SYS_RESOURCE", 24), ("CAP_SYS_BOOT", 22), ("CAP_MAC_ADMIN", 33)];
    let Some((missing, _)) = names.iter().find(|(_, bit)| own & (1 << bit) == 0) else {
        return skipped("nothing is missing from the capabilities of whoever runs the suite");
    };
    let all = json!([CHOWN.0, missing]);
    let sets = json!({ "bounding": all, "effective": all, "permitted": all });
    let seen = t.bundle()?.set("/process/capabilities", sets).report()?;
    equal("the effective set", seen.capabilities("CapEff")?, CHOWN.1)
}

fn oom_score_unset(t: &Trial) -> Outcome {
    let own = fs::read_to_string("/proc/self/oom_score_adj")?;
    let seen = t.bundle()?.report()?;
    equal("oom_score_adj", seen.file("oom_score_adj")?.trim(), own.trim())
}

fn umask_unset(t: &Trial) -> Outcome {
    let own = fs::read_to_string("/proc/self/status")?;
    let own = Seen(json!({ "files": { "status": own } })).status("Umask")?;
    equal("the umask", t.bundle()?.report()?.status("Umask")?, own)
}

/// A label where the host has no such security module cannot be applied, and one of nonsense neither where it has.
fn security_label(t: &Trial, module: &str, pointer: &str) -> Outcome {
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if !modules.contains(module) {
        return skipped(format!("this kernel has no {module}"));
    }
    t.bundle()?.set(pointer, json!("no_such_label_of_the_suite")).refused_until_start()
}

fn exec_affinity(t: &Trial) -> Outcome {
    let b = t.bundle()?.set("/process/execCPUAffinity", json!({ "initial": "0" })).does(&["wait"]);
    let container = b.start()?;
    let own = container.report()?.status("Cpus_allowed_list")?;
    let said = t.say(&["exec", &container.id, "/probe"])?;
    if !said.ok {
        return failed(format!("exec: {}", said.last_line()));
    }
    let Ok(report) = serde_json::from_str(said.out.trim()) else {
        return failed("exec's program reports nothing");
    };
    let seen = Seen(report);
    // the kernel decides: a cpuset gives its CPUs back where it has been changed; else the first CPUs stay
    let is = seen.status("Cpus_allowed_list")?;
    holds(&format!("{is} is the initial list or the container's, {own}"), is == "0" || is == own)
}
