//! The folder of a browser: its profile and its temporary files.
//!
//! The supervisor removes it, or this program should the supervisor have been killed. Both hold a lock on it, so that it is
//! known to be abandoned when both are gone: the next server of this user removes it then.
//!
//! Processes that use it are found by their environment. Reading that takes the privileges of a browser's processes,
//! which the threads of this program have given up: a child of it has them, as the supervisor does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::processes;

/// How the name of each begins, in the folder for temporary files.
pub const PREFIX: &str = "scouter-browser-";
/// A younger one may just be made, and not held yet.
const YOUNG: Duration = Duration::from_secs(30);
/// What writes to a folder that is being removed is about to end.
const REMOVAL: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(20);

/// The lock on a folder; its holder removes the folder.
pub struct FolderLock(#[expect(dead_code, reason = "closing it releases the lock")] File);

/// # Errors
/// When it is not there.
pub fn lock(folder: &Path) -> io::Result<FolderLock> {
    let file = open(folder)?;
    file.lock_shared()?;
    Ok(FolderLock(file))
}

fn open(folder: &Path) -> io::Result<File> {
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(folder)
}

/// Ends the processes that use it, and removes it, in a child process. Blocks.
///
/// # Errors
/// When it is still there afterwards.
pub fn clean(folder: &Path) -> io::Result<()> {
    let mut child = std::process::Command::new("/proc/self/exe");
    child.arg("supervise").arg(folder).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match child.status() {
        Ok(status) if status.success() && !folder.exists() => Ok(()),
        // Without a process to be had, what can be done without it.
        _ => remove(folder),
    }
}

/// The child of that: `scouter supervise FOLDER`.
///
/// # Errors
/// As [`remove`].
pub fn clean_main(folder: &Path) -> io::Result<()> {
    let own = rustix::process::getpid();
    processes::end(|pid| pid != own && processes::lives_in(pid, folder), REMOVAL);
    remove(folder)
}

/// Removes it with all that is in it, as often as it takes.
///
/// # Errors
/// When it is still there after a few seconds, or this process may not remove it.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    let deadline = Instant::now() + REMOVAL;
    loop {
        match std::fs::remove_dir_all(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => return Ok(()),
            Err(error) if Instant::now() > deadline || error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(error);
            }
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}

/// Removes the folders of killed servers of this user from the folder for temporary files, and ends the processes in
/// them.
pub fn remove_abandoned(temporary: &Path) {
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        let folder = entry.path();
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // Held until it is removed.
        let Some(_lock) = abandoned(&folder) else { continue };
        match clean(&folder) {
            Ok(()) => tracing::info!(folder = %folder.display(), "folder of a browser removed: its server was killed"),
            Err(error) => tracing::warn!(folder = %folder.display(), %error, "folder of a browser cannot be removed"),
        }
    }
}

/// The lock on a folder of this user, when no process holds it.
fn abandoned(folder: &Path) -> Option<File> {
    let file = open(folder).ok()?;
    let found = file.metadata().ok()?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    let old = found.modified().ok()?.elapsed().is_ok_and(|age| age > YOUNG);
    // Supervisors of older versions hold no lock.
    let supervised = || processes::all().any(|pid| processes::has_argument(pid, folder));
    (own && old && file.try_lock().is_ok() && !supervised()).then_some(file)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_unlocked_folders_are_removed() {
        let temporary = tempfile::tempdir().expect("a folder");
        let add = |name: &str, age: u64| {
            let folder = temporary.path().join(name);
            std::fs::create_dir_all(folder.join("profile/cache")).expect("made");
            std::fs::write(folder.join("profile/cache/file"), "x").expect("written");
            let time = SystemTime::now() - Duration::from_secs(age);
            open(&folder).expect("opened").set_modified(time).expect("set");
            folder
        };
        let left = add("scouter-browser-left", 60);
        let young = add("scouter-browser-young", 0);
        let held = add("scouter-browser-held", 60);
        let unlike = add("something-else", 60);
        let target = add("target", 60);
        let link = temporary.path().join("scouter-browser-link");
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        let holds = [lock(&held).expect("held"), lock(&held).expect("by both")];
        remove_abandoned(temporary.path());
        let there = [&left, &young, &held, &unlike, &target, &link].map(|folder| folder.exists());
        assert_eq!(there, [false, true, true, true, true, true]);
        let [one, other] = holds;
        drop(other);
        remove_abandoned(temporary.path());
        assert!(held.exists(), "one of them is enough");
        drop(one);
        remove_abandoned(temporary.path());
        assert!(!held.exists());
    }
}
