//! `stats`: what containers use, as a table for people and as JSON.

use std::collections::HashMap;
use std::io::{ErrorKind, Result as IoResult};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use serde::Serialize;

use crate::cgroups::stats::{BlockEntry, Pressure, Stats};
use crate::container::{Runtime, Seen};
use crate::error::DoesNotExist;
use crate::events::interfaces;
use crate::options::{Format, StatsOptions};
use crate::sys::terminal::Size;

/// v1 says so much where there is no limit, rounded to pages.
const NO_LIMIT: u64 = 1 << 62;

/// What one container uses. The JSON keys are ours to keep.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Usage {
    /// The container's ID.
    pub id: String,
    /// Its status.
    pub status: String,
    /// Of one processor, since the reading before; `None` in the first.
    pub cpu_percent: Option<f64>,
    /// Nanoseconds.
    pub cpu_total: u64,
    /// Bytes, without file pages that the kernel can take back at once.
    pub memory: u64,
    /// Bytes; `None` without a limit.
    pub memory_limit: Option<u64>,
    /// The highest usage so far in bytes, where the kernel knows it.
    pub memory_peak: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// `None` without a limit.
    pub pids_limit: Option<u64>,
    /// Bytes.
    pub io_read: u64,
    /// Bytes.
    pub io_written: u64,
    /// Bytes.
    pub network_received: u64,
    /// Bytes.
    pub network_sent: u64,
    /// Percent of the last 10 s in which some process waited; `None` where the kernel does not tell.
    pub pressure: Option<Waits>,
}

/// Percent of the last 10 s.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Waits {
    /// For a processor.
    pub cpu: f64,
    /// For memory.
    pub memory: f64,
    /// For block devices.
    pub io: f64,
}

impl Usage {
    fn of(id: &str, status: &str, stats: &Stats) -> Self {
        let limit = |limit: u64| (limit < NO_LIMIT && limit > 0).then_some(limit);
        let memory = &stats.memory;
        let inactive = memory.raw.get("total_inactive_file").or(memory.raw.get("inactive_file"));
        let sum = |op: &str| {
            let entries = stats.blkio.io_service_bytes_recursive.iter();
            entries.filter(|entry: &&BlockEntry| entry.op == op).map(|entry| entry.value).sum()
        };
        let some = |psi: &Option<Pressure>| psi.as_ref().map(|psi| psi.some.avg10);
        let pressure = [&stats.cpu.psi, &memory.psi, &stats.blkio.psi].map(some);
        Self {
            id: id.to_owned(),
            status: status.to_owned(),
            cpu_percent: None,
            cpu_total: stats.cpu.usage.total,
            memory: memory.usage.usage.saturating_sub(inactive.copied().unwrap_or_default()),
            memory_limit: limit(memory.usage.limit),
            memory_peak: limit(memory.usage.max),
            pids: stats.pids.current,
            pids_limit: limit(stats.pids.limit),
            io_read: sum("Read"),
            io_written: sum("Write"),
            network_received: 0,
            network_sent: 0,
            pressure: pressure.iter().any(Option::is_some).then(|| {
                let [cpu, memory, io] = pressure.map(Option::unwrap_or_default);
                Waits { cpu, memory, io }
            }),
        }
    }
}

/// One reading of each container, with what is needed to compare it with the next.
#[derive(Debug, Default)]
struct Readings(HashMap<String, (Instant, u64)>);

impl Readings {
    /// Fills in what takes two readings.
    fn compare(&mut self, usage: &mut Usage) {
        let now = Instant::now();
        if let Some((before, total)) = self.0.insert(usage.id.clone(), (now, usage.cpu_total)) {
            let wall = now.duration_since(before).as_nanos() as f64;
            let used = usage.cpu_total.saturating_sub(total) as f64;
            usage.cpu_percent = (wall > 0.0).then(|| used / wall * 100.0);
        }
    }
}

impl Runtime<'_> {
    /// Gives texts to `print`. With a `screen` the table is drawn again and again in the same place, until the containers that
    /// were named have all ended; otherwise it is printed once, after two readings.
    pub fn stats(
        &self,
        options: &StatsOptions,
        screen: Option<&dyn Fn() -> Option<Size>>,
        print: &mut dyn FnMut(&str) -> IoResult<()>,
    ) -> Result<()> {
        let mut readings = Readings::default();
        let first = self.usages(options, &mut readings)?;
        let printed = match screen.filter(|_| options.format == Format::Table && !options.no_stream) {
            Some(size) => self.live(options, &mut readings, first, size, print)?,
            None => {
                if first.iter().any(|usage| usage.status != "stopped") {
                    pause(options.interval)?;
                }
                let usages = self.usages(options, &mut readings)?;
                print(&match options.format {
                    Format::Json => json(&usages)?,
                    Format::Table => table(&usages, None),
                })
            }
        };
        match printed {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result.context("write to standard output"),
        }
    }

    fn live(
        &self,
        options: &StatsOptions,
        readings: &mut Readings,
        mut usages: Vec<Usage>,
        size: &dyn Fn() -> Option<Size>,
        print: &mut dyn FnMut(&str) -> IoResult<()>,
    ) -> Result<IoResult<()>> {
        let mut drawn = 0;
        loop {
            let frame = table(&usages, size());
            // back to the first line of the table, and away with what is there
            let start = if drawn > 0 { format!("\x1b[{drawn}A\r\x1b[J") } else { String::new() };
            drawn = frame.lines().count();
            if let Err(error) = print(&(start + &frame)) {
                return Ok(Err(error));
            }
            if !options.ids.is_empty() && usages.iter().all(|usage| usage.status == "stopped") {
                return Ok(Ok(()));
            }
            pause(options.interval)?;
            usages = self.usages(options, readings)?;
        }
    }

    /// Those that were named, or all that have not ended.
    fn usages(&self, options: &StatsOptions, readings: &mut Readings) -> Result<Vec<Usage>> {
        let seen = if options.ids.is_empty() {
            let alive = |seen: &Seen| seen.status.is_alive();
            self.list()?.into_iter().filter(alive).collect()
        } else {
            let mut named = Vec::new();
            for id in &options.ids {
                match self.state(id) {
                    // it was there before
                    Err(error) if error.is::<DoesNotExist>() && readings.0.contains_key(id) => {
                        named.push(Seen {
                            id: id.clone(),
                            status: crate::state::Status::Stopped,
                            state: None,
                        });
                    }
                    result => named.push(result.with_context(|| format!("{id:?}"))?),
                }
            }
            named
        };
        let mut usages = Vec::new();
        for seen in seen {
            let mut usage = usage(&seen)?;
            readings.compare(&mut usage);
            usages.push(usage);
        }
        Ok(usages)
    }
}

/// A container that ends meanwhile uses nothing.
fn usage(seen: &Seen) -> Result<Usage> {
    let nothing = || Usage { id: seen.id.clone(), status: seen.status.name().to_owned(), ..Usage::default() };
    let Some(state) = seen.state.as_ref().filter(|_| seen.status.is_alive()) else { return Ok(nothing()) };
    let Some(cgroup) = &state.cgroup else { return Ok(nothing()) };
    let stats = match cgroup.stats() {
        Err(error) if matches!(crate::error::errno(&error), Some(Errno::ENOENT | Errno::ENODEV)) => {
            return Ok(Usage { status: "stopped".to_owned(), ..nothing() });
        }
        result => result.with_context(|| format!("{:?}", seen.id))?,
    };
    let mut usage = Usage::of(&seen.id, seen.status.name(), &stats);
    for interface in state.init.and_then(interfaces).unwrap_or_default() {
        if interface.name != "lo" {
            usage.network_received += interface.rx_bytes;
            usage.network_sent += interface.tx_bytes;
        }
    }
    Ok(usage)
}

fn pause(interval: Duration) -> Result<()> {
    let timeout = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
    match poll(&mut [], timeout) {
        // the terminal has another size now: a good moment to draw
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno).context("wait for the next reading"),
    }
}

/// One object a line.
fn json(usages: &[Usage]) -> Result<String> {
    let line = |usage| Ok(serde_json::to_string(usage).context("write JSON")? + "\n");
    usages.iter().map(line).collect()
}

/// Columns under headings, cut to fit a terminal of that size.
fn table(usages: &[Usage], size: Option<Size>) -> String {
    let headings = [
        "ID",
        "STATUS",
        "CPU %",
        "MEMORY",
        "LIMIT",
        "PIDS",
        "READ",
        "WRITTEN",
        "RECEIVED",
        "SENT",
        "PRESSURE cpu/mem/io",
    ];
    let mut rows = vec![headings.map(str::to_owned)];
    rows.extend(usages.iter().map(cells));
    let mut widths = [0; 11];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    // the line below the last one holds the cursor
    let height = size.map_or(usize::MAX, |size| usize::from(size.height).saturating_sub(1).max(2));
    let width = size.map_or(usize::MAX, |size| usize::from(size.width).max(1));
    let mut text = String::new();
    for row in rows.iter().take(height) {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            let gap = if index == 0 { "" } else { "  " };
            // names to the left, numbers to the right
            let cell = if index < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            line.push_str(&format!("{gap}{cell}"));
        }
        text.extend(line.trim_end().chars().take(width));
        text.push('\n');
    }
    text
}

fn cells(usage: &Usage) -> [String; 11] {
    let nothing = || "-".to_owned();
    if usage.status == "stopped" {
        let mut cells: [String; 11] = std::array::from_fn(|_| nothing());
        let [id, status, ..] = &mut cells;
        (*id, *status) = (usage.id.clone(), usage.status.clone());
        return cells;
    }
    let pids = usage.pids_limit.map_or(usage.pids.to_string(), |limit| format!("{}/{limit}", usage.pids));
    let pressure =
        usage.pressure.as_ref().map(|waits| format!("{:.1} {:.1} {:.1}", waits.cpu, waits.memory, waits.io));
    [
        usage.id.clone(),
        usage.status.clone(),
        usage.cpu_percent.map_or_else(nothing, |percent| format!("{percent:.1}")),
        bytes(usage.memory),
        usage.memory_limit.map_or_else(nothing, bytes),
        pids,
        bytes(usage.io_read),
        bytes(usage.io_written),
        bytes(usage.network_received),
        bytes(usage.network_sent),
        pressure.unwrap_or_else(nothing),
    ]
}

/// `1.5MiB`
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = units.iter();
    let mut name = unit.next().copied().unwrap_or_default();
    for next in unit {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        name = next;
    }
    if name == "B" { format!("{count}B") } else { format!("{value:.1}{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(id: &str) -> Usage {
        Usage {
            id: id.to_owned(),
            status: "running".to_owned(),
            cpu_percent: Some(12.34),
            memory: 1536 * 1024,
            memory_limit: Some(64 << 20),
            pids: 3,
            pids_limit: Some(20),
            io_read: 512,
            pressure: Some(Waits { cpu: 1.0, memory: 0.0, io: 0.25 }),
            ..Usage::default()
        }
    }

    #[test]
    fn a_table_has_a_line_for_each_container() {
        let stopped = Usage { id: "gone".to_owned(), status: "stopped".to_owned(), ..Usage::default() };
        let text = table(&[one("web"), stopped], None);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..4], ["ID", "STATUS", "CPU", "%"]);
        assert_eq!(
            lines[1],
            [
                "web", "running", "12.3", "1.5MiB", "64.0MiB", "3/20", "512B", "0B", "0B", "0B", "1.0",
                "0.0", "0.2"
            ]
        );
        assert_eq!(lines[2][..3], ["gone", "stopped", "-"]);
    }

    #[test]
    fn a_table_fits_its_terminal() {
        let usages: Vec<Usage> = (0..50).map(|number| one(&format!("container{number}"))).collect();
        let text = table(&usages, Some(Size { height: 10, width: 40 }));
        assert_eq!(text.lines().count(), 9);
        assert!(text.lines().all(|line| line.chars().count() <= 40));
    }

    #[test]
    fn what_is_used_is_told_without_what_the_kernel_can_take_back() {
        let mut stats = Stats::default();
        stats.memory.usage.usage = 1000;
        stats.memory.usage.limit = 9_223_372_036_854_771_712;
        stats.memory.raw.insert("inactive_file".to_owned(), 300);
        stats.pids.current = 2;
        let usage = Usage::of("a", "running", &stats);
        assert_eq!((usage.memory, usage.memory_limit, usage.pids_limit), (700, None, None));
        assert_eq!(usage.pressure, None);
    }

    #[test]
    fn sizes_are_short() {
        for (count, text) in [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (u64::MAX, "16.0EiB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
