//! A filter program laid out as a binary search over the system call's number.
//!
//! libseccomp compares the number with one rule after the other, so that a call costs more the longer the profile is. Here its
//! program is read for every number that it tells apart, what it then does is kept as a graph, and the graph is written
//! out behind a search: no call takes more than twenty instructions of Docker's profile, instead of six hundred. Nothing is decided anew: where
//! libseccomp's program answers, this one gives the same answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, bail};

use super::newer::{ENOSYS, Newer};
use crate::sys::bpf::Instruction;

// linux/bpf_common.h, as far as libseccomp uses it
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

// struct seccomp_data of linux/seccomp.h
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// No architecture (`AUDIT_ARCH_*` names a machine, and 0 is none): stands for all that a program does not name.
const OTHER_ARCH: u32 = 0;
/// `AUDIT_ARCH_*` of this machine.
pub const NATIVE_ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
/// Jumps of tests hold 8 bits; one less, because a detour moves the other target by one.
const FARTHEST: usize = 254;

type Id = usize;

/// A step of the program when the architecture and the number are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Node {
    Load { offset: u32, next: Id },
    And { mask: u32, next: Id },
    Test { code: u16, k: u32, yes: Id, no: Id },
    Return(u32),
}

/// Steps, each only once.
#[derive(Debug, Default)]
struct Graph {
    nodes: Vec<Node>,
    known: HashMap<Node, Id>,
}

impl Graph {
    fn node(&self, id: Id) -> Result<Node> {
        self.nodes.get(id).copied().context("a step that is not there")
    }

    /// A step that makes no difference is left out.
    fn add(&mut self, node: Node) -> Result<Id> {
        match node {
            Node::Test { yes, no, .. } if yes == no => return Ok(yes),
            Node::Load { next, .. } | Node::And { next, .. } => {
                if let Node::Return(_) = self.node(next)? {
                    return Ok(next);
                }
            }
            Node::Test { .. } | Node::Return(_) => {}
        }
        let nodes = &mut self.nodes;
        Ok(*self.known.entry(node).or_insert_with(|| {
            nodes.push(node);
            nodes.len() - 1
        }))
    }
}

/// What the register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Register {
    Nothing,
    Number,
    Arch,
    Argument,
}

/// Reads a program for one architecture and number.
struct Reader<'p> {
    program: &'p [Instruction],
    arch: u32,
    /// `None` stands for several, which must not matter any more.
    number: Option<u32>,
    graph: &'p mut Graph,
    /// What has been read, by place and register.
    seen: HashMap<(usize, Register), Id>,
}

impl Reader<'_> {
    fn read(&mut self, at: usize, register: Register) -> Result<Id> {
        if let Some(id) = self.seen.get(&(at, register)) {
            return Ok(*id);
        }
        let id = self.walk(at, register)?;
        self.seen.insert((at, register), id);
        Ok(id)
    }

    fn walk(&mut self, mut at: usize, mut register: Register) -> Result<Id> {
        loop {
            let instruction = instruction(self.program, at)?;
            at += 1;
            match (instruction.code, register) {
                (LOAD, _) if instruction.k == NUMBER => register = Register::Number,
                (LOAD, _) if instruction.k == ARCH => register = Register::Arch,
                (LOAD, _) => {
                    let next = self.read(at, Register::Argument)?;
                    return self.graph.add(Node::Load { offset: instruction.k, next });
                }
                (AND, Register::Argument) => {
                    let next = self.read(at, Register::Argument)?;
                    return self.graph.add(Node::And { mask: instruction.k, next });
                }
                (JUMP, _) => at += instruction.k as usize,
                (IF_EQUAL | IF_GREATER | IF_GREATER_OR_EQUAL | IF_ANY_BIT, Register::Argument) => {
                    let yes = self.read(at + jump(instruction, true), register)?;
                    let no = self.read(at + jump(instruction, false), register)?;
                    return self.graph.add(Node::Test { code: instruction.code, k: instruction.k, yes, no });
                }
                (IF_EQUAL | IF_GREATER | IF_GREATER_OR_EQUAL, Register::Number) => {
                    let number = self.number.context("libseccomp asks for the number behind an argument")?;
                    let holds = match instruction.code {
                        IF_EQUAL => number == instruction.k,
                        IF_GREATER => number > instruction.k,
                        _ => number >= instruction.k,
                    };
                    at += jump(instruction, holds);
                }
                (IF_EQUAL, Register::Arch) => at += jump(instruction, self.arch == instruction.k),
                (RETURN, _) => return self.graph.add(Node::Return(instruction.k)),
                (code, register) => bail!("libseccomp made a program with {code:#x} on {register:?}"),
            }
        }
    }
}

fn instruction(program: &[Instruction], at: usize) -> Result<Instruction> {
    program.get(at).copied().context("the filter program has no end")
}

fn jump(instruction: Instruction, holds: bool) -> usize {
    usize::from(if holds { instruction.jump_true } else { instruction.jump_false })
}

/// Numbers as ranges from the first to the last of each, in order.
type Numbers = Vec<(u32, u32)>;

/// Those for which the test holds, and the others.
fn split(mut numbers: Numbers, test: Instruction) -> (Numbers, Numbers) {
    let k = test.k;
    match test.code {
        IF_EQUAL => {
            let at = numbers.partition_point(|(_, last)| *last < k);
            let Some((first, last)) = numbers.get(at).copied().filter(|(first, _)| *first <= k) else {
                return (Vec::new(), numbers);
            };
            let below = (first < k).then(|| (first, k - 1));
            let above = (k < last).then(|| (k + 1, last));
            numbers.splice(at..=at, below.into_iter().chain(above));
            (vec![(k, k)], numbers)
        }
        IF_GREATER => match k.checked_add(1) {
            Some(edge) => split_at(numbers, edge),
            None => (Vec::new(), numbers),
        },
        _ => split_at(numbers, k),
    }
}

/// Those from `edge` on, and those below.
fn split_at(mut numbers: Numbers, edge: u32) -> (Numbers, Numbers) {
    let mut from = numbers.split_off(numbers.partition_point(|(_, last)| *last < edge));
    if let Some((first, _)) = from.first_mut()
        && *first < edge
    {
        numbers.push((*first, edge - 1));
        *first = edge;
    }
    (from, numbers)
}

/// What happens from a number on, up to the next entry.
type Ranges = Vec<(u32, Id)>;

/// Everything that the program does for one architecture: all numbers go through it together, and part where it asks for them.
/// Jumps only go forward, so whoever is at the first place waits for nobody.
fn ranges(
    program: &[Instruction],
    arch: u32,
    graph: &mut Graph,
    archs: &mut BTreeSet<u32>,
) -> Result<Ranges> {
    let mut found = Ranges::new();
    let mut under_way = BTreeMap::from([((0, Register::Nothing), vec![(0, u32::MAX)])]);
    while let Some(((at, register), mut numbers)) = under_way.pop_first() {
        let instruction = instruction(program, at)?;
        let next = at + 1;
        numbers.sort_unstable();
        let mut go = |at: usize, register: Register, mut numbers: Numbers| {
            if !numbers.is_empty() {
                under_way.entry((at, register)).or_insert_with(Vec::new).append(&mut numbers);
            }
        };
        match (instruction.code, register) {
            (LOAD, _) if instruction.k == NUMBER => go(next, Register::Number, numbers),
            (LOAD, _) if instruction.k == ARCH => go(next, Register::Arch, numbers),
            (JUMP, _) => go(next + instruction.k as usize, register, numbers),
            (IF_EQUAL, Register::Arch) => {
                archs.insert(instruction.k);
                go(next + jump(instruction, arch == instruction.k), register, numbers);
            }
            (IF_EQUAL | IF_GREATER | IF_GREATER_OR_EQUAL, Register::Number) => {
                let (yes, no) = split(numbers, instruction);
                go(next + jump(instruction, true), register, yes);
                go(next + jump(instruction, false), register, no);
            }
            _ => {
                for (first, last) in numbers {
                    let number = (first == last).then_some(first);
                    let mut reader = Reader { program, arch, number, graph, seen: HashMap::new() };
                    found.push((first, reader.walk(at, register)?));
                }
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// `ENOSYS` in place of the default answer for the numbers that the profile is too old to know.
fn answer_newer(ranges: &mut Ranges, newer: &[Newer], arch: u32, default: Id, enosys: Id) {
    for newer in newer.iter().filter(|newer| newer.arch == arch) {
        for edge in [newer.from, newer.to.saturating_add(1)] {
            let place = ranges.partition_point(|(start, _)| *start <= edge);
            if let Some((start, id)) = place.checked_sub(1).and_then(|before| ranges.get(before)).copied()
                && start < edge
            {
                ranges.insert(place, (edge, id));
            }
        }
        for (start, id) in ranges.iter_mut() {
            if (newer.from..=newer.to).contains(start) && *id == default {
                *id = enosys;
            }
        }
    }
}

/// The search: half of what is left falls away with each test.
fn search(graph: &mut Graph, ranges: &[(u32, Id)]) -> Result<Id> {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    match (low, high.first()) {
        ([], Some((_, id))) => Ok(*id),
        (_, Some((start, _))) => {
            let (no, yes) = (search(graph, low)?, search(graph, high)?);
            graph.add(Node::Test { code: IF_GREATER_OR_EQUAL, k: *start, yes, no })
        }
        (_, None) => bail!("a search among nothing"),
    }
}

/// Lays libseccomp's `program` out anew. `default` is what the kernel is answered where no rule matches (`SECCOMP_RET_*`).
/// An error for a program of another kind than libseccomp makes.
pub fn lay_out(program: &[Instruction], default: u32, newer: &[Newer]) -> Result<Vec<Instruction>> {
    let mut graph = Graph::default();
    let (default, enosys) = (graph.add(Node::Return(default))?, graph.add(Node::Return(ENOSYS))?);
    let mut archs = BTreeSet::new();
    let of_arch = |arch: u32, graph: &mut Graph, archs: &mut BTreeSet<u32>| -> Result<Id> {
        let mut ranges = ranges(program, arch, graph, archs)?;
        answer_newer(&mut ranges, newer, arch, default, enosys);
        ranges.dedup_by_key(|(_, id)| *id);
        let next = search(graph, &ranges)?;
        graph.add(Node::Load { offset: NUMBER, next })
    };
    let mut root = of_arch(OTHER_ARCH, &mut graph, &mut archs)?;
    let mut named: Vec<u32> = archs.iter().copied().collect();
    // the first question is the last that is put in front: whether it is this machine's own
    named.sort_by_key(|arch| *arch == NATIVE_ARCH);
    for arch in named {
        let yes = of_arch(arch, &mut graph, &mut archs)?;
        root = graph.add(Node::Test { code: IF_EQUAL, k: arch, yes, no: root })?;
    }
    let root = graph.add(Node::Load { offset: ARCH, next: root })?;
    let mut assembly = Assembly { graph: &graph, reversed: Vec::new(), placed: HashMap::new() };
    assembly.place(root)?;
    assembly.reversed.reverse();
    Ok(assembly.reversed)
}

/// Everything that a program may answer to a call with this number, whatever its arguments (`SECCOMP_RET_*` with data).
pub fn answers(program: &[Instruction], arch: u32, number: u32) -> Result<BTreeSet<u32>> {
    let mut graph = Graph::default();
    let mut reader = Reader { program, arch, number: Some(number), graph: &mut graph, seen: HashMap::new() };
    reader.read(0, Register::Nothing)?;
    // every step that was read can be reached
    Ok(graph
        .nodes
        .iter()
        .filter_map(|node| if let Node::Return(k) = node { Some(*k) } else { None })
        .collect())
}

/// The program from its end to its start, because jumps only go forward: a target is placed before what jumps to it.
struct Assembly<'g> {
    graph: &'g Graph,
    reversed: Vec<Instruction>,
    placed: HashMap<Id, usize>,
}

impl Assembly<'_> {
    fn push(&mut self, code: u16, k: u32, (jump_true, jump_false): (u8, u8)) {
        self.reversed.push(Instruction { code, jump_true, jump_false, k });
    }

    /// Instructions between the one that comes next and `target`.
    fn distance(&self, target: usize) -> usize {
        self.reversed.len() - 1 - target
    }

    fn place(&mut self, id: Id) -> Result<usize> {
        if let Some(place) = self.placed.get(&id) {
            return Ok(*place);
        }
        match self.graph.node(id)? {
            Node::Return(k) => self.push(RETURN, k, (0, 0)),
            Node::Load { offset, next } => {
                self.lead_to(next)?;
                self.push(LOAD, offset, (0, 0));
            }
            Node::And { mask, next } => {
                self.lead_to(next)?;
                self.push(AND, mask, (0, 0));
            }
            Node::Test { code, k, yes, no } => {
                let (yes, no) = self.place_both(yes, no)?;
                let jumps = (self.distance(yes), self.distance(no));
                let jumps = (u8::try_from(jumps.0)?, u8::try_from(jumps.1)?);
                self.push(code, k, jumps);
            }
        }
        let place = self.reversed.len() - 1;
        self.placed.insert(id, place);
        Ok(place)
    }

    /// Sees to it that what comes next runs into `id`.
    fn lead_to(&mut self, id: Id) -> Result<()> {
        let place = self.place(id)?;
        if self.distance(place) > 0 {
            self.detour(id, place)?;
        }
        Ok(())
    }

    fn place_both(&mut self, yes: Id, no: Id) -> Result<(usize, usize)> {
        let (mut far, mut near) = (self.place(yes)?, self.place(no)?);
        if self.distance(far) > FARTHEST {
            far = self.detour(yes, far)?;
        }
        if self.distance(near) > FARTHEST {
            near = self.detour(no, near)?;
        }
        Ok((far, near))
    }

    /// Something nearby that leads to `id`: itself once more where it is an end.
    fn detour(&mut self, id: Id, place: usize) -> Result<usize> {
        match self.graph.node(id)? {
            Node::Return(k) => self.push(RETURN, k, (0, 0)),
            _ => self.push(JUMP, u32::try_from(self.distance(place))?, (0, 0)),
        }
        Ok(self.reversed.len() - 1)
    }
}
