//! Which system calls the kernel has: each is called with arguments that it refuses before it does anything.

use nix::errno::Errno;

use super::answer;

const ALL_FLAGS: libc::c_long = 0xffff_ffff;
/// Not named by libc yet; the same number on every architecture that berth runs on.
const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// A call that is refused: for a descriptor of -1, a null pointer, a size of 0 or flags that nobody has.
#[derive(Debug)]
pub struct Probe {
    /// As in JSON: `mountSetattr`.
    pub name: &'static str,
    number: libc::c_long,
    arguments: [libc::c_long; 5],
}

const fn probe(name: &'static str, number: libc::c_long, arguments: [libc::c_long; 5]) -> Probe {
    Probe { name, number, arguments }
}

/// The calls that berth or what it runs gains from.
pub const PROBES: [Probe; 23] = [
    probe("bpf", libc::SYS_bpf, [ALL_FLAGS, 0, 0, 0, 0]),
    probe("clone3", libc::SYS_clone3, [0, 0, 0, 0, 0]),
    probe("closeRange", libc::SYS_close_range, [1, 0, 0, 0, 0]),
    probe("execveat", libc::SYS_execveat, [-1, 0, 0, 0, ALL_FLAGS]),
    probe("fsconfig", libc::SYS_fsconfig, [-1, 0, 0, 0, 0]),
    probe("fsmount", libc::SYS_fsmount, [-1, ALL_FLAGS, 0, 0, 0]),
    probe("fsopen", libc::SYS_fsopen, [0, ALL_FLAGS, 0, 0, 0]),
    probe("fspick", libc::SYS_fspick, [-1, 0, ALL_FLAGS, 0, 0]),
    probe("ioprioSet", libc::SYS_ioprio_set, [-1, 0, 0, 0, 0]),
    probe("keyctl", libc::SYS_keyctl, [ALL_FLAGS, 0, 0, 0, 0]),
    probe("listmount", SYS_LISTMOUNT, [0, 0, 0, ALL_FLAGS, 0]),
    probe("memfdCreate", libc::SYS_memfd_create, [0, 0, 0, 0, 0]),
    probe("mountSetattr", libc::SYS_mount_setattr, [-1, 0, ALL_FLAGS, 0, 0]),
    probe("moveMount", libc::SYS_move_mount, [-1, 0, -1, 0, ALL_FLAGS]),
    probe("openTree", libc::SYS_open_tree, [-1, 0, ALL_FLAGS, 0, 0]),
    probe("openTreeAttr", SYS_OPEN_TREE_ATTR, [-1, 0, ALL_FLAGS, 0, 0]),
    probe("openat2", libc::SYS_openat2, [-1, 0, 0, 0, 0]),
    probe("pidfdGetfd", libc::SYS_pidfd_getfd, [-1, -1, 0, 0, 0]),
    probe("pidfdOpen", libc::SYS_pidfd_open, [-1, 0, 0, 0, 0]),
    probe("pidfdSendSignal", libc::SYS_pidfd_send_signal, [-1, 0, 0, 0, 0]),
    probe("schedSetattr", libc::SYS_sched_setattr, [-1, 0, 0, 0, 0]),
    probe("setMempolicy", libc::SYS_set_mempolicy, [0x7fff, 0, 0, 0, 0]),
    probe("statmount", SYS_STATMOUNT, [0, 0, 0, ALL_FLAGS, 0]),
];

impl Probe {
    /// What the kernel says: `ENOSYS` where it has no such call or a filter hides it, something else where it has.
    pub fn ask(&self) -> Errno {
        let [a, b, c, d, e] = self.arguments;
        // SAFETY: the table's arguments are refused by the kernel as such, and every pointer among them is null.
        match answer(unsafe { libc::syscall(self.number, a, b, c, d, e) }) {
            Ok(_) => Errno::UnknownErrno,
            Err(errno) => errno,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_refused_and_has_one_name() {
        for probe in &PROBES {
            assert_ne!(probe.ask(), Errno::UnknownErrno, "{} was carried out", probe.name);
        }
        assert!(PROBES.is_sorted_by(|a, b| a.name < b.name));
    }

    #[test]
    fn a_number_that_is_no_call_is_told_from_one_that_is() {
        assert_eq!(probe("none", 0xffff, [0; 5]).ask(), Errno::ENOSYS);
        assert_ne!(probe("close", libc::SYS_close, [-1, 0, 0, 0, 0]).ask(), Errno::ENOSYS);
    }
}
