//! Device rules as properties, for cgroup v1 alone, where systemd writes its own idea of them again at each `daemon-reload`
//! (systemd.resource-control(5)). On v2 berth's program stands beside systemd's, and systemd is told of none.

use super::super::devices::{Kind, MKNOD, READ, Rule, WRITE};
use super::super::property::{Property, Value};

const FIELD: &str = "linux.resources.devices";

/// `DevicePolicy` and `DeviceAllow`. `numbers` is the text of /proc/devices: systemd names the devices of a major number by
/// their driver.
///
/// systemd has no denying rules: they take back what was allowed for the same devices before.
pub fn properties(rules: &[Rule], numbers: &str) -> Vec<Property> {
    let mut allowed: Vec<Rule> = Vec::new();
    let mut everything = false;
    for rule in rules {
        if rule.names_everything() {
            allowed.clear();
            everything = rule.allow;
        } else if rule.allow {
            allowed.push(*rule);
        } else {
            for earlier in allowed.iter_mut().filter(|earlier| earlier.same_devices(rule)) {
                earlier.access &= !rule.access;
            }
        }
    }
    let policy = if everything { "auto" } else { "strict" };
    let mut list = Vec::new();
    for rule in allowed.iter().filter(|rule| !everything && rule.access != 0) {
        for name in names(rule, numbers) {
            list.push(Value::Struct(vec![Value::Text(name), Value::Text(access(rule.access))]));
        }
    }
    let property = |name: &str, value| Property { name: name.to_owned(), value, field: FIELD.to_owned() };
    vec![
        property("DevicePolicy", Value::Text(policy.to_owned())),
        property("DeviceAllow", Value::Array("(ss)".to_owned(), list)),
    ]
}

fn access(mask: u32) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .iter()
        .filter(|(bit, _)| mask & bit != 0)
        .map(|(_, letter)| letter)
        .collect()
}

fn names(rule: &Rule, numbers: &str) -> Vec<String> {
    let kinds = [(Kind::Char, "char", "Character devices:"), (Kind::Block, "block", "Block devices:")];
    let wanted = kinds.iter().filter(|(kind, ..)| rule.kind.is_none_or(|wanted| wanted == *kind));
    wanted
        .flat_map(|(_, name, heading)| match (rule.major, rule.minor) {
            (Some(major), Some(minor)) => vec![format!("/dev/{name}/{major}:{minor}")],
            (Some(major), None) => drivers(numbers, heading, major)
                .into_iter()
                .map(|driver| format!("{name}-{driver}"))
                .collect(),
            (None, _) => vec![format!("{name}-*")],
        })
        .collect()
}

/// What /proc/devices calls a major number.
fn drivers<'n>(numbers: &'n str, heading: &str, major: u32) -> Vec<&'n str> {
    let lines =
        numbers.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    let driver = |line: &'n str| {
        let (number, driver) = line.trim_start().split_once(' ')?;
        (number.parse() == Ok(major)).then_some(driver)
    };
    let mut drivers: Vec<_> = lines.filter_map(driver).collect();
    drivers.dedup();
    drivers
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: &str = "Character devices:\n  1 mem\n  4 /dev/vc/0\n  4 tty\n136 pts\n\nBlock devices:\n  1 ramdisk\n  8 sd\n";

    fn rule(allow: bool, kind: Option<Kind>, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
        Rule { allow, kind, major, minor, access }
    }

    fn listed(rules: &[Rule]) -> (String, Vec<(String, String)>) {
        let mut found = properties(rules, NUMBERS).into_iter().map(|property| property.value);
        let (Some(Value::Text(policy)), Some(Value::Array(_, list))) = (found.next(), found.next()) else {
            panic!()
        };
        let pair = |value: &Value| match value {
            Value::Struct(fields) => match fields.as_slice() {
                [Value::Text(name), Value::Text(access)] => (name.clone(), access.clone()),
                _ => panic!(),
            },
            _ => panic!(),
        };
        (policy, list.iter().map(pair).collect())
    }

    #[test]
    fn rules_become_names_of_devices() {
        let (char, block) = (Some(Kind::Char), Some(Kind::Block));
        let (policy, list) = listed(&[
            rule(false, None, None, None, 7),
            rule(true, char, Some(1), Some(3), 7),
            rule(true, char, Some(136), None, 6),
            rule(true, char, Some(4), None, 2),
            rule(true, block, Some(8), None, 2),
            rule(true, char, None, None, 1),
            rule(true, char, Some(200), None, 2),
        ]);
        assert_eq!(policy, "strict");
        let pairs = [
            ("/dev/char/1:3", "rwm"),
            ("char-pts", "rw"),
            ("char-/dev/vc/0", "r"),
            ("char-tty", "r"),
            ("block-sd", "r"),
            ("char-*", "m"),
        ];
        assert_eq!(list, pairs.map(|(name, access)| (name.to_owned(), access.to_owned())));
    }

    #[test]
    fn what_is_denied_again_is_not_listed() {
        let char = Some(Kind::Char);
        let allowed = rule(true, char, Some(1), Some(3), 7);
        assert_eq!(listed(&[allowed, rule(false, char, Some(1), Some(3), 7)]).1, []);
        let (_, list) = listed(&[allowed, rule(false, char, Some(1), Some(3), 4)]);
        assert_eq!(list, [("/dev/char/1:3".to_owned(), "rm".to_owned())]);
        let everything = rule(true, None, None, None, 7);
        assert_eq!(listed(&[allowed, everything]), ("auto".to_owned(), Vec::new()));
        assert_eq!(
            listed(&[everything, rule(false, None, None, None, 7)]),
            ("strict".to_owned(), Vec::new())
        );
    }
}
