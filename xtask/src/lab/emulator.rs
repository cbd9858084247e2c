//! Distinguishes two kinds of failed guests: guests that failed because of a fault of the emulator, and guests that failed by
//! themselves.
//!
//! QEMU stores the condition codes apart from EFLAGS and joins the two on demand. If QEMU makes a mistake there, EFLAGS can get
//! any value. If that value has the trap flag set, the guest stops at a random place. No program can set the reserved bits of
//! EFLAGS, because the CPU ignores them. So a kernel that prints EFLAGS with reserved bits runs on a broken CPU. Nothing that we
//! send over the network can cause this.

use std::path::Path;

/// The name of a guest's QEMU log, in the guest's folder.
pub const CONSOLE: &str = "console.log";

/// The bits of EFLAGS that read as zero on every x86: bit 3, bit 5, bit 15, and all bits from 22 on.
const ZERO_BITS: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;

/// Searches the guests' consoles for a guest that ran on a broken CPU. Returns the guest's name and the line that proves it.
pub fn broken_guest(run: &Path) -> Option<(String, String)> {
    let guests = std::fs::read_dir(run).ok()?.flatten();
    guests.into_iter().find_map(|guest| {
        let console = std::fs::read(guest.path().join(CONSOLE)).ok()?;
        let line = impossible_flags(&String::from_utf8_lossy(&console))?.to_owned();
        Some((guest.file_name().to_string_lossy().into_owned(), line))
    })
}

/// Returns the first line of a kernel's register dump that shows an EFLAGS value that no CPU can have.
fn impossible_flags(console: &str) -> Option<&str> {
    console.lines().find(|line| saved_flags(line).is_some_and(|flags| flags & ZERO_BITS != 0))
}

/// Returns the flags from a line of Linux's register dump, such as `RSP: 0018:ffffc900001b7d28 EFLAGS: 00010246`.
fn saved_flags(line: &str) -> Option<u64> {
    let (before, after) = line.split_once(" EFLAGS: ")?;
    before.contains("RSP: ").then_some(())?;
    u64::from_str_radix(after.split_whitespace().next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_with_reserved_bits_are_the_emulators() {
        for line in [
            "[   57.300412] RSP: 0018:ffffc900004cbcb8 EFLAGS: 045ae302",
            "RSP: 002b:00007ffec2394cc0 EFLAGS: 00400246 ORIG_RAX: 0000000000000101\r",
            "RSP: 0018:ffffc900004cbcb8 EFLAGS: 0000800a",
            "RSP: 0018:ffffc900004cbcb8 EFLAGS: 00000022",
            "RSP: 0018:ffffc900004cbcb8 EFLAGS: ffff8880045ae302",
        ] {
            assert_eq!(impossible_flags(&format!("before\n{line}\nafter")), Some(line.trim_end()), "{line}");
        }
    }

    #[test]
    fn an_ordinary_oops_is_not() {
        let oops = "[    4.2] BUG: kernel NULL pointer dereference, address: 0000000000000028\n\
            [    4.2] #PF: supervisor read access in kernel mode\n\
            [    4.2] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI\n\
            [    4.2] RIP: 0010:nvme_tcp_recv_skb+0x1c2/0x900 [nvme_tcp]\n\
            [    4.2] RSP: 0018:ffffc900001b7d28 EFLAGS: 00010246\n\
            [    4.2] RAX: 0000000000000000 RBX: ffff8880045ae300 RCX: 00000000045ae302\n\
            [    4.2] CR2: 0000000000000028 CR3: 00000000045ae000 CR4: 00000000003506f0\n\
            [    4.2] RSP: 002b:00007ffec2394cc0 EFLAGS: 00000202 ORIG_RAX: ffffffffffffffff\n";
        assert_eq!(impossible_flags(oops), None);
        // All flags that a CPU can have, a kernel thread's frame that was never saved, and text that is not a dump.
        for line in [
            "RSP: 0018:ffffc900001b7d28 EFLAGS: 003f7fd7",
            "RSP: 0000:0000000000000000 EFLAGS: 00000000 ORIG_RAX: 0000000000000000",
            "RSP: 0018:ffffc900001b7d28 EFLAGS: garbage",
            "RSP: 0018:ffffc900001b7d28 EFLAGS:",
            "LAB the EFLAGS: 045ae302",
        ] {
            assert_eq!(impossible_flags(line), None, "{line}");
        }
    }

    #[test]
    fn a_broken_guest_is_named() {
        let run = tempfile::tempdir().unwrap();
        for (guest, flags) in [("host", "00000202"), ("nvmet", "045ae302")] {
            assert_eq!(broken_guest(run.path()), None);
            std::fs::create_dir(run.path().join(guest)).unwrap();
            let line = format!("RSP: 0018:ffffc900004cbcb8 EFLAGS: {flags}\n");
            std::fs::write(run.path().join(guest).join(CONSOLE), line).unwrap();
        }
        let (guest, line) = broken_guest(run.path()).unwrap();
        assert_eq!((guest.as_str(), line.as_str()), ("nvmet", "RSP: 0018:ffffc900004cbcb8 EFLAGS: 045ae302"));
    }
}
