//! Nothing of a browser outlives its use. A driver and its browser are a dozen processes, some of which leave the
//! process group, and drivers that are killed leave their browser behind. So each driver runs under a keeper: a child of
//! this program, by the same file, that adopts all of its descendants and ends them, down to the last, when the driver
//! ends or when its own standard input does, as it also does when this program is killed. Then it removes the folder
//! that all of them lived in.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{SigSet, Signal as SignalName};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin};

/// A driver must say where it listens within this.
const START: Duration = Duration::from_secs(20);
/// Descendants that have been killed are gone after this, or the kernel holds them.
const END: Duration = Duration::from_secs(5);

/// A running driver; dropping it ends everything that it started.
pub struct Keeper {
    child: Option<Child>,
    /// Its end is what the keeper waits for.
    leash: Option<ChildStdin>,
    group: Option<Pid>,
    folder: PathBuf,
    pub port: u16,
}

impl Keeper {
    /// Starts a driver, with a folder of its own, and waits until it listens on a port of its choice: `listens` finds it
    /// in what the driver prints.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(driver: &[&str], listens: fn(&str) -> Option<u16>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("scouter-browser-").tempdir()?.keep();
        let started = Self::start_in(&folder, driver, listens).await;
        if started.is_err() {
            let _ = std::fs::remove_dir_all(&folder);
        }
        started
    }

    async fn start_in(folder: &Path, driver: &[&str], listens: fn(&str) -> Option<u16>) -> anyhow::Result<Self> {
        // Itself, even when a newer version has taken its place in the file system meanwhile.
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg("keep").arg(folder).args(driver);
        // What the operator's environment holds (secrets, proxies) is none of a browser's business.
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        command.env_clear().env("PATH", path).env("LANG", "C.UTF-8").env("HOME", folder).env("TMPDIR", folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().context("cannot start a process")?;
        let (leash, stdout) = (child.stdin.take(), child.stdout.take());
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let mut keeper = Self { child: Some(child), leash, group, folder: folder.to_owned(), port: 0 };
        let mut lines = BufReader::new(stdout.context("no pipe")?).lines();
        let mut said = String::new();
        let find = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(port) = listens(&line) {
                    return Some(port);
                }
                said = line;
            }
            None
        };
        let found = tokio::time::timeout(START, find).await.ok().flatten();
        ensure!(found.is_some(), "{} does not start: {}", driver.first().unwrap_or(&"the driver"), said.trim());
        keeper.port = found.unwrap_or_default();
        // A pipe that nobody reads fills up, and then the driver waits.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(keeper)
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    #[must_use]
    pub fn is_there(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits until the driver has ended, with everything of it.
    pub async fn ended(&mut self) {
        match &mut self.child {
            Some(child) => drop(child.wait().await),
            None => std::future::pending().await,
        }
    }

    /// Ends it and waits for that.
    pub async fn end(mut self) {
        if let Some(end) = self.ending() {
            end.await;
        }
    }

    /// Lets go of it, and looks after what remains should the keeper have been killed or stopped itself.
    fn ending(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let (mut child, leash) = (self.child.take()?, self.leash.take());
        let (group, folder) = (self.group, self.folder.clone());
        Some(async move {
            drop(leash);
            let ended = tokio::time::timeout(END, child.wait()).await;
            if !matches!(ended, Ok(Ok(status)) if status.success()) {
                if let Some(group) = group {
                    let _ = rustix::process::kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait().await;
                // Nobody waits for the killed any more; while one of them still ends, it may still write.
                let end = tokio::time::Instant::now() + END;
                while std::fs::remove_dir_all(&folder).is_err() && folder.exists() && tokio::time::Instant::now() < end
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let (Ok(runtime), Some(end)) = (tokio::runtime::Handle::try_current(), self.ending()) {
            runtime.spawn(end);
        }
    }
}

/// The keeper: `scouter keep FOLDER DRIVER [ARGUMENT…]`.
///
/// # Errors
/// When the driver cannot be started.
pub fn keeper_main(folder: &Path, driver: &[String]) -> anyhow::Result<()> {
    // A keeper that was stopped when its parent died gets a hangup, and then goes on: it has something left to do. What
    // it starts begins without this mask.
    let ending = [SignalName::SIGHUP, SignalName::SIGTERM, SignalName::SIGINT].into_iter().collect::<SigSet>();
    ending.thread_block()?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))?;
    let (program, arguments) = driver.split_first().context("no driver")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stderr(Stdio::null());
    let driver = command.spawn().with_context(|| format!("{program} cannot be started"))?;
    let (over, wait) = mpsc::channel();
    let leash = over.clone();
    std::thread::spawn(move || {
        // Nothing is ever written to it.
        let _ = std::io::stdin().lock().read(&mut [0]);
        let _ = leash.send(());
    });
    let driver = Pid::from_child(&driver);
    std::thread::spawn(move || {
        // Of all that end, so that none of the adopted stays a zombie.
        while let Ok(ended) = rustix::process::wait(WaitOptions::empty()) {
            if ended.is_some_and(|(pid, _)| pid == driver) {
                let _ = over.send(());
            }
        }
    });
    let _ = wait.recv();
    let end = std::time::Instant::now() + END;
    // The children of the killed become ours: as often as it takes.
    loop {
        let left = children_of(own);
        if left.is_empty() || std::time::Instant::now() > end {
            break;
        }
        for child in left {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = std::fs::remove_dir_all(folder);
    Ok(())
}

/// Processes whose parent is this one, zombies included.
fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return vec![] };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |number: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        // proc_pid_stat(5): the name in parentheses may hold anything; after it come state and parent.
        let after = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().nth(1).map(str::to_owned));
        after.flatten().and_then(|text| text.parse::<i32>().ok()) == Some(parent.as_raw_nonzero().get())
    };
    numbers.filter(is_child).filter_map(Pid::from_raw).collect()
}
