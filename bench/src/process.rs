//! What a server uses: processor time and memory, its children included.

use std::path::Path;

use crate::support::server::children;

/// Clock ticks of `proc_pid_stat(5)` in a second: `USER_HZ`, the same on every architecture that Linux gives it to.
const TICKS: f64 = 100.0;

/// User and system time of a process, of its children, and of the children that they have waited for, in seconds.
pub fn cpu(pid: u32) -> f64 {
    own_cpu(pid) + descendants(pid).into_iter().map(own_cpu).sum::<f64>()
}

fn own_cpu(pid: u32) -> f64 {
    ticks(&std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()) / TICKS
}

/// `utime`, `stime`, `cutime` and `cstime`: the 14th to 17th field. The second, a name in brackets, may hold blanks.
fn ticks(stat: &str) -> f64 {
    let after = stat.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<f64>().ok()).sum()
}

fn descendants(pid: u32) -> Vec<u32> {
    let own: Vec<u32> = children(pid).iter().filter_map(|child| child.parse().ok()).collect();
    own.iter().flat_map(|child| std::iter::once(*child).chain(descendants(*child))).collect()
}

/// MiB in memory now.
pub fn resident(pid: u32) -> f64 {
    memory(pid, "VmRSS:")
}

/// The most MiB that were in memory since the start or since [`forget_peak`].
pub fn peak(pid: u32) -> f64 {
    memory(pid, "VmHWM:")
}

/// The peak begins anew with what is in memory now (`proc_pid_clear_refs(5)`).
pub fn forget_peak(pid: u32) {
    std::fs::write(Path::new("/proc").join(pid.to_string()).join("clear_refs"), "5").expect("the kernel resets it");
}

fn memory(pid: u32, field: &str) -> f64 {
    let of = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        kilobytes(&status, field)
    };
    (of(pid) + descendants(pid).into_iter().map(of).sum::<f64>()) / 1024.0
}

fn kilobytes(status: &str, field: &str) -> f64 {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_includes_children_and_survives_a_name_with_brackets() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 5 6 7";
        assert!((ticks(stat) - 110.0).abs() < f64::EPSILON);
        assert!(ticks("") < f64::EPSILON, "a process that is gone");
    }

    #[test]
    fn memory_is_read_in_kilobytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let of = |field| kilobytes(status, field).to_string();
        assert_eq!([of("VmHWM:"), of("VmRSS:"), of("VmSwap:")], ["2048", "1024", "0"]);
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id();
        assert!(resident(pid) > 0.1 && peak(pid) >= resident(pid) * 0.9, "{} {}", resident(pid), peak(pid));
        assert!(cpu(pid) >= 0.0);
    }
}
