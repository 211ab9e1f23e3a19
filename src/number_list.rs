//! Lists of CPUs and memory nodes: `0-3,7` (cpuset(7), "List format").

use anyhow::{Result, bail};

/// More than any kernel is built for (`CONFIG_NR_CPUS` ends at 8192).
const MAX: usize = 16384;

/// The numbers as the kernel takes a set of them: bit `n % 64` of word `n / 64` stands for `n`. At least one word.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NumberSet(Vec<u64>);

impl NumberSet {
    /// Reads a list. An empty text is an empty set. Errors say what part is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let mut words = vec![0];
        if text.trim().is_empty() {
            return Ok(Self(words));
        }
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first, text)?, number(last, text)?);
            if first > last {
                bail!("{text:?}: {part:?} runs backwards");
            }
            for number in first..=last {
                set(&mut words, number);
            }
        }
        Ok(Self(words))
    }

    /// The words of the set.
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// True when no number is in it.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

fn number(text: &str, list: &str) -> Result<usize> {
    match text.trim().parse::<usize>() {
        Ok(number) if number < MAX && !text.trim().starts_with('+') => Ok(number),
        Ok(_) => bail!("{list:?}: {text:?} is beyond the highest number, {}", MAX - 1),
        Err(_) => bail!("{list:?} is not a list of numbers and ranges such as \"0-3,7\""),
    }
}

fn set(words: &mut Vec<u64>, number: usize) {
    let word = number / 64;
    if words.len() <= word {
        words.resize(word + 1, 0);
    }
    if let Some(word) = words.get_mut(word) {
        *word |= 1 << (number % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_bits() {
        for (text, words) in [
            ("", vec![0]),
            ("0", vec![1]),
            ("0-3,7", vec![0b1000_1111]),
            ("63-64", vec![1 << 63, 1]),
            (" 1, 3 ", vec![0b1010]),
            ("128", vec![0, 0, 1]),
        ] {
            assert_eq!(NumberSet::parse(text).unwrap().words(), words, "{text:?}");
        }
        assert!(NumberSet::parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for (text, why) in [
            ("a", "not a list"),
            ("1,,2", "not a list"),
            ("-", "not a list"),
            ("3-1", "runs backwards"),
            ("99999", "highest number"),
            ("0x1", "not a list"),
        ] {
            let error = NumberSet::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
