//! The kernel's texts of numbers.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use super::super::directory::read_file;
use super::{BlockEntry, Pressure, PressureLine};

/// The files of one directory. One that is not there, or cannot be read, counts nothing.
#[derive(Debug)]
pub struct Files(OwnedFd);

impl Files {
    pub fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    pub fn text(&self, file: &str) -> Option<String> {
        read_file(self.0.as_fd(), file).ok()
    }

    pub fn number(&self, file: &str) -> Option<u64> {
        number(self.text(file)?.trim())
    }

    pub fn pairs(&self, file: &str) -> BTreeMap<String, u64> {
        self.text(file).map(|text| pairs(&text)).unwrap_or_default()
    }

    pub fn pressure(&self, file: &str) -> Option<Pressure> {
        pressure(&self.text(file)?)
    }
}

/// `max` is the greatest number.
pub fn number(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// Lines of a name and a number.
pub fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), number(value.trim())?))
    };
    text.lines().filter_map(pair).collect()
}

/// Numbers with blanks between.
pub fn row(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(number).collect()
}

/// `0-2,5` (cpuset(7), "List format").
pub fn list(text: &str) -> Vec<u16> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            all.extend(first..=last);
        }
    }
    all
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and `full` likewise.
pub fn pressure(text: &str) -> Option<Pressure> {
    let line = |kind: &str| {
        let fields = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let field = |name: &str| {
            fields.split_whitespace().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let average = |name| field(name)?.parse().ok();
        Some(PressureLine {
            avg10: average("avg10")?,
            avg60: average("avg60")?,
            avg300: average("avg300")?,
            total: field("total")?.parse().ok()?,
        })
    };
    // kernels before 5.13 have no full line for the processors
    Some(Pressure { some: line("some ")?, full: line("full ").unwrap_or_default() })
}

/// v1's `8:0 Read 4096`; the lines of sums have no device.
pub fn block(text: &str) -> Vec<BlockEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        Some(BlockEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// A name and `key=value` fields, as in io.stat and rdma.current.
pub fn keyed(text: &str) -> Vec<(&str, BTreeMap<&str, u64>)> {
    text.lines().filter_map(keyed_line).collect()
}

fn keyed_line(line: &str) -> Option<(&str, BTreeMap<&str, u64>)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let fields = words.filter_map(|word| word.split_once('='));
    Some((name, fields.filter_map(|(key, value)| Some((key, number(value)?))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!((number("max"), number("5"), number("x")), (Some(u64::MAX), Some(5), None));
        assert_eq!(row("1 22 3\n"), [1, 22, 3]);
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert!(list("\n").is_empty());
        assert_eq!(pairs("a 1\nb max\n\nc\n")["b"], u64::MAX);
        let io = keyed("8:0 rbytes=1 wbytes=2\n8:16 rios=max\n");
        assert_eq!(io[0], ("8:0", BTreeMap::from([("rbytes", 1), ("wbytes", 2)])));
        assert_eq!(io.len(), 2);
    }

    #[test]
    fn pressure_may_have_one_line_or_two() {
        let some = "some avg10=1.50 avg60=0.20 avg300=0.00 total=77\n";
        let read = pressure(some).unwrap();
        assert_eq!((read.some.avg10, read.some.total, read.full.total), (1.5, 77, 0));
        let full = format!("{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=5\n");
        assert_eq!(pressure(&full).unwrap().full.total, 5);
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn block_counts_have_a_device() {
        let read = block("8:0 Read 5\n8:0 Write 6\n8:16 7\n8:0 Total 11\nTotal 11\n");
        assert_eq!(read.len(), 4);
        assert_eq!(read[2], BlockEntry { major: 8, minor: 16, op: String::new(), value: 7 });
    }
}
