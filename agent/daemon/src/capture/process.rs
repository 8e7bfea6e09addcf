//! What /proc tells of a process (proc_pid_stat(5), cgroups(7)).

use std::fs;

/// When a process started, in ticks since boot: with its number it tells the process from every other.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22. The second one is the name, which may hold anything, parentheses too.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The process's cgroup in the version 2 hierarchy, as a path from the root of our own cgroup namespace.
pub(super) fn cgroup(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_start() {
        let pid = std::process::id();
        let ticks = started(pid).unwrap();
        assert!(ticks > 0 && started(pid) == Some(ticks));
        assert_eq!(started(u32::MAX), None);
    }
}
