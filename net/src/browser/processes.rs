//! Processes of this host, as proc(5) has them.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(2);

/// All of this host.
pub fn all() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

struct Stat {
    state: char,
    /// None: the kernel.
    parent: Option<Pid>,
    group: Option<Pid>,
}

fn stat(pid: Pid) -> Option<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in parentheses may hold anything; after it come state, parent and process group.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut process = || Some(Pid::from_raw(fields.next()?.parse().ok()?));
    Some(Stat { state, parent: process()?, group: process()? })
}

#[must_use]
pub fn parent_of(pid: Pid) -> Option<Pid> {
    stat(pid)?.parent
}

#[must_use]
pub fn group_of(pid: Pid) -> Option<Pid> {
    stat(pid)?.group
}

/// Is it more than an entry that its parent has not yet looked at?
fn is_running(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

#[must_use]
pub fn is_below(pid: Pid, ancestor: Pid) -> bool {
    let mut at = pid;
    // No family is so old.
    for _ in 0..64 {
        match parent_of(at) {
            Some(parent) if parent == ancestor => return true,
            Some(parent) => at = parent,
            None => return false,
        }
    }
    false
}

/// Was it given this folder for its temporary files? What it starts gets the same one.
#[must_use]
pub fn lives_in(pid: Pid, folder: &Path) -> bool {
    let Ok(environment) = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else { return false };
    let wanted = [b"TMPDIR=", folder.as_os_str().as_encoded_bytes()].concat();
    environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
}

/// Was it started with the path of this folder for an argument?
#[must_use]
pub fn has_argument(pid: Pid, folder: &Path) -> bool {
    let Ok(arguments) = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else { return false };
    arguments.split(|byte| *byte == 0).any(|argument| argument == folder.as_os_str().as_encoded_bytes())
}

/// Kills those that belong to it until none is left, or the time is over: those that it has started meanwhile too.
pub fn end(belongs: impl Fn(Pid) -> bool, within: Duration) {
    let deadline = Instant::now() + within;
    loop {
        let left: Vec<Pid> = all().filter(|pid| belongs(*pid) && is_running(*pid)).collect();
        for pid in &left {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_a_folder_are_ended_with_their_descendants() {
        let folder = tempfile::tempdir().expect("a folder");
        // In a session of its own, and without a known parent.
        let script = "setsid sh -c 'while :; do sleep 60 & sleep 0.01; done' >/dev/null 2>&1 &";
        let started = std::process::Command::new("sh").args(["-c", script]).env("TMPDIR", folder.path()).status();
        assert!(started.expect("a shell").success());
        let lives = |pid| lives_in(pid, folder.path());
        let since = Instant::now();
        while all().filter(|pid| lives(*pid)).count() < 5 {
            assert!(since.elapsed() < Duration::from_secs(10), "it starts processes");
            std::thread::sleep(LOOK);
        }
        end(lives, Duration::from_secs(10));
        assert_eq!(all().filter(|pid| lives(*pid) && is_running(*pid)).count(), 0);
        // Of kernel threads too, which have none.
        assert!(all().filter_map(group_of).any(|group| group == rustix::process::getpgrp()));
        assert!(is_running(rustix::process::getpid()));
    }

    #[test]
    fn a_child_is_below_its_parent_and_not_the_other_way_round() {
        let own = rustix::process::getpid();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("started");
        let pid = Pid::from_child(&child);
        assert!(is_below(pid, own) && !is_below(own, pid) && !is_below(own, own));
        assert!(is_running(pid));
        assert_eq!(group_of(pid), Some(rustix::process::getpgrp()));
        child.kill().expect("killed");
        while is_running(pid) {
            std::thread::sleep(LOOK);
        }
        assert_eq!(parent_of(pid), Some(own), "an entry that was not read before");
        child.wait().expect("ended");
        assert_eq!(parent_of(pid), None);
    }
}
