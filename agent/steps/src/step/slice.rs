//! `slice`: a systemd slice with limits. A unit of ours whose content follows from two numbers.

use super::unit::Wanted;
use std::borrow::Cow;
use std::fmt::Write;

pub(super) fn as_unit(name: &str, memory_bytes: u64, cpu_weight: u32) -> Wanted<'_> {
    Wanted {
        name,
        content: Some(Cow::Owned(content(memory_bytes, cpu_weight))),
        drop_in: None,
        enabled: true,
        active: true,
        restart_on: None,
        no_block: false,
    }
}

fn content(memory_bytes: u64, cpu_weight: u32) -> String {
    let mut text =
        String::from("[Unit]\nDescription=Rackwright reservation\nBefore=slices.target\n\n[Slice]\n");
    // Writing to a string cannot fail.
    if memory_bytes > 0 {
        let _written = writeln!(text, "MemoryMax={memory_bytes}");
    }
    let _written = writeln!(text, "CPUWeight={cpu_weight}");
    // At every boot: a slice with nothing in it would else be gone after a restart of the server.
    text.push_str("\n[Install]\nWantedBy=slices.target\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_writes_no_line() {
        assert!(!content(0, 100).contains("MemoryMax"));
        assert!(content(1 << 30, 50).contains("MemoryMax=1073741824\nCPUWeight=50\n"));
    }
}
