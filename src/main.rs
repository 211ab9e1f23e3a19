//! `berth`: an OCI container runtime. The only printing and the only exit statuses are here.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};

use berth::cli::{self, Stop};
use berth::container::{Runtime, Seen};
use berth::exec_image;
use berth::features;
use berth::host_features;
use berth::known::known;
use berth::listing::{self, ContainerListing};
use berth::log::Log;
use berth::options::{self, Caller, CheckFormat, Format, Invocation, Operation};
use berth::report;
use berth::spec;

/// The exit status of a failed `exec`, which the program's own statuses rarely are.
const EXEC_FAILED: u8 = 255;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // before anything else, because it starts the program anew; a word too many only costs a millisecond
    let enters = args.iter().any(|arg| ["create", "run", "exec"].iter().any(|command| arg == command));
    let image = if enters { exec_image::enter() } else { Ok(()) };
    berth::sys::tasks::settle_signals();
    let invocation = match cli::parse(args.into_iter()) {
        Ok(invocation) => invocation,
        Err(stop) => return stopped(&stop),
    };
    let failed = match invocation.operation {
        Operation::Exec(_) => ExitCode::from(EXEC_FAILED),
        _ => ExitCode::FAILURE,
    };
    let log = match Log::open(&invocation.global) {
        Ok(log) => log,
        Err(failure) => {
            Log::stderr().fatal(&failure);
            return failed;
        }
    };
    match image.and_then(|()| operate(&invocation, &log)) {
        Ok(code) => code,
        Err(failure) => {
            log.fatal(&failure);
            failed
        }
    }
}

/// Help, the version, or a command line that is wrong.
fn stopped(stop: &Stop) -> ExitCode {
    let printed = print(&stop.output);
    if let Some(error) = &stop.error {
        Log::open(&stop.global).unwrap_or_else(|_| Log::stderr()).fatal(error);
    }
    if printed.is_err() { ExitCode::FAILURE } else { ExitCode::from(stop.code) }
}

fn operate(invocation: &Invocation, log: &Log) -> Result<ExitCode> {
    let global = &invocation.global;
    let root = options::state_root(global.root.as_deref(), &caller())?;
    let runtime = Runtime { root, global, log };
    match &invocation.operation {
        Operation::Create(options) => {
            runtime.create(options).with_context(|| format!("create {:?}", options.id))?;
        }
        Operation::Run(options) => {
            return runtime
                .run(options)
                .map(exit_code)
                .with_context(|| format!("run {:?}", options.create.id));
        }
        Operation::Exec(options) => {
            return runtime.exec(options).map(exit_code).with_context(|| format!("exec in {:?}", options.id));
        }
        Operation::Checkpoint(options) => {
            runtime.checkpoint(options).with_context(|| format!("checkpoint {:?}", options.id))?;
        }
        Operation::Restore(options) => {
            return runtime
                .restore(options)
                .map(exit_code)
                .with_context(|| format!("restore {:?}", options.run.create.id));
        }
        Operation::Start(id) => runtime.start(id).with_context(|| format!("start {id:?}"))?,
        Operation::Kill(options) => {
            runtime.kill(options).with_context(|| format!("kill {:?}", options.id))?
        }
        Operation::Delete(options) => {
            runtime.delete(options).with_context(|| format!("delete {:?}", options.id))?
        }
        Operation::Pause(id) => runtime.pause(id).with_context(|| format!("pause {id:?}"))?,
        Operation::Resume(id) => runtime.resume(id).with_context(|| format!("resume {id:?}"))?,
        Operation::Update(options) => {
            runtime.update(options).with_context(|| format!("update {:?}", options.id))?
        }
        Operation::State(id) => {
            let seen = runtime.state(id).with_context(|| format!("state of {id:?}"))?;
            print(&listing::state_json(&row(seen, Owner::Unsaid))?)?;
        }
        Operation::List(options) => list(&runtime, options)?,
        Operation::Ps(options) => {
            let pids = runtime.processes(&options.id).with_context(|| format!("ps of {:?}", options.id))?;
            let pids: Vec<i32> = pids.into_iter().map(nix::unistd::Pid::as_raw).collect();
            print(&match options.format {
                Format::Json => listing::ps_json(&pids)?,
                Format::Table => listing::ps_table(&listing::host_ps(&options.args)?, &pids)?,
            })?;
        }
        Operation::Events(options) => {
            runtime.events(options, &mut write).with_context(|| format!("events of {:?}", options.id))?;
        }
        Operation::Stats(options) => {
            // a terminal may not know its size
            let size = || {
                let size = berth::sys::terminal::size(std::io::stdout().as_fd()).ok();
                size.filter(|size| size.width > 0 && size.height > 0)
            };
            let terminal = std::io::stdout().is_terminal();
            runtime.stats(options, terminal.then_some(&size), &mut write).context("stats")?;
        }
        Operation::Spec(options) => {
            let ids =
                spec::Rootless { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
            spec::write(&options.bundle, options.rootless.then_some(ids))?;
        }
        Operation::Features(options) => {
            let host = options.host.then(host_features::read).transpose().context("features --host")?;
            print(&features::json(known(), host)?)?;
        }
        Operation::Check(options) => {
            let (findings, steps) = runtime.check(options).context("check")?;
            let steps = options.plan.then_some(steps.as_slice());
            print(&match options.format {
                CheckFormat::Text => report::text(&findings, steps),
                CheckFormat::Json => report::json(&findings, steps),
            })?;
            return Ok(if findings.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Operation::Completion(shell) => print(&cli::completion(*shell))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(runtime: &Runtime<'_>, options: &options::ListOptions) -> Result<()> {
    let rows: Vec<ContainerListing> =
        runtime.list().context("list")?.into_iter().map(|seen| row(seen, Owner::Name)).collect();
    print(&match options.format {
        _ if options.quiet => listing::list_ids(&rows),
        Format::Json => listing::list_json(&rows)?,
        Format::Table => listing::list_table(&rows),
    })
}

enum Owner {
    /// `state` needs no look into the user database, and its readers know the owner as empty.
    Unsaid,
    Name,
}

fn row(seen: Seen, owner: Owner) -> ContainerListing {
    let (pid, status) = (seen.pid(), seen.status.name().to_owned());
    let Some(state) = seen.state else {
        return ContainerListing { id: seen.id, status, ..ContainerListing::default() };
    };
    let uid = nix::unistd::Uid::from_raw(state.owner);
    let name = match owner {
        Owner::Unsaid => None,
        Owner::Name => nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name),
    };
    ContainerListing {
        oci_version: state.oci_version,
        id: seen.id,
        pid,
        status,
        bundle: state.bundle.display().to_string(),
        rootfs: state.rootfs.display().to_string(),
        created: state.created,
        annotations: state.annotations,
        owner: match (owner, name) {
            (Owner::Unsaid, _) => String::new(),
            (Owner::Name, Some(name)) => name,
            (Owner::Name, None) => format!("#{uid}"),
        },
    }
}

fn caller() -> Caller {
    Caller {
        euid: nix::unistd::geteuid().as_raw(),
        in_user_namespace: berth::host::in_user_namespace(),
        user: std::env::var_os("USER"),
        xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR"),
    }
}

fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
}

fn write(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Standard output; a reader that has gone is no error of ours.
fn print(text: &str) -> Result<()> {
    match write(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to standard output"),
    }
}
