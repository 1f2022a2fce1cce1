//! Nothing of a browser outlives its use. A browser is a dozen processes, some of which leave the process group. So each one
//! runs under a supervisor: a child of this program, by the same file, that adopts all of their descendants and ends them,
//! down to the last, when the browser ends or when the parent pipe does, as it also does when this program is killed. Then
//! it removes the folder that all of them lived in.
//!
//! The supervisor also knows its own: over the parent pipe it is asked whether a connection was made by the browser.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal as SignalName};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr};
use tokio::sync::Mutex;

use super::folder::{self, FolderLock};
use super::owner::Descendants;
use super::{netlink, processes};

/// A supervisor that has not ended after this is stopped, or the kernel holds what it has killed.
const END: Duration = Duration::from_secs(5);
/// Between two looks at what is left: it begins so, and grows.
const LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(100);
/// A supervisor that does not answer within this never will.
const ANSWER: Duration = Duration::from_secs(5);

/// A question over the parent pipe: its number, the port that a connection was made from, and the one that it leads to.
const QUESTION_BYTES: usize = 4 + 2 + 2;
/// The number of the question, and 1 for yes.
const ANSWER_BYTES: usize = 4 + 1;

/// Between this program and a supervisor. Its end is what the supervisor waits for.
pub struct ParentPipe {
    stream: Mutex<(UnixStream, u32)>,
    /// The same one, to be closed while it is in use.
    close: StdUnixStream,
}

impl ParentPipe {
    /// Its end, and the supervisor's.
    pub(super) fn pair() -> std::io::Result<(Self, StdUnixStream)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let close = ours.try_clone()?;
        ours.set_nonblocking(true)?;
        Ok((Self { stream: Mutex::new((UnixStream::from_std(ours)?, 0)), close }, theirs))
    }

    /// Is the supervisor alive, which ends the browser?
    pub async fn answers(&self) -> bool {
        self.owns(0, 0).await.is_some()
    }

    /// Is the socket at this port of loopback, connected to the other one, the browser's? None: there is no answer.
    pub async fn owns(&self, from: u16, to: u16) -> Option<bool> {
        let mut held = self.stream.lock().await;
        let (stream, last) = &mut *held;
        *last = last.wrapping_add(1);
        let number = last.to_be_bytes();
        let ask = async {
            let question = [&number[..], &from.to_be_bytes(), &to.to_be_bytes()].concat();
            stream.write_all(&question).await?;
            // Answers to questions that were given up come first.
            loop {
                let mut answer = [0; ANSWER_BYTES];
                stream.read_exact(&mut answer).await?;
                if answer[..4] == number {
                    return Ok::<bool, std::io::Error>(answer[4] == 1);
                }
            }
        };
        tokio::time::timeout(ANSWER, ask).await.ok()?.ok()
    }

    fn close(&self) {
        let _ = self.close.shutdown(std::net::Shutdown::Both);
    }
}

/// A running browser; dropping it ends everything that it started.
pub struct Supervisor {
    child: Option<Child>,
    pipe: Arc<ParentPipe>,
    /// Its process and its process group.
    pid: Option<Pid>,
    folder: PathBuf,
    held: Option<FolderLock>,
}

impl Supervisor {
    /// Starts a program in a folder of its own, with this standard output. The other value is what it
    /// prints on its standard error.
    ///
    /// # Errors
    /// When there is no process to be had.
    pub fn start(folder: &Path, program: &[String], stdout: Stdio) -> anyhow::Result<(Self, ChildStderr)> {
        let held = folder::lock(folder)?;
        let (pipe, theirs) = ParentPipe::pair()?;
        // Itself, even when a newer version has taken its place in the file system meanwhile.
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg("supervise").arg(folder).args(program);
        // What the operator's environment holds (secrets, proxies) is none of a browser's business.
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        command.env_clear().env("PATH", path).env("LANG", "C.UTF-8").env("HOME", folder).env("TMPDIR", folder);
        command.env("MOZ_CRASHREPORTER_DISABLE", "1");
        command.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(stdout).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("cannot start a process")?;
        let stderr = child.stderr.take().context("no pipe")?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let (pipe, folder) = (Arc::new(pipe), folder.to_owned());
        Ok((Self { child: Some(child), pipe, pid, folder, held: Some(held) }, stderr))
    }

    #[must_use]
    pub fn pipe(&self) -> Arc<ParentPipe> {
        Arc::clone(&self.pipe)
    }

    #[must_use]
    pub fn is_there(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits until the browser has ended, with everything of it.
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

    /// Closes the pipe; ends and removes what remains when the supervisor itself was killed or stopped.
    fn ending(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut child = self.child.take()?;
        let (pid, folder, held) = (self.pid, self.folder.clone(), self.held.take());
        self.pipe.close();
        Some(async move {
            let ended = tokio::time::timeout(END, child.wait()).await;
            if !matches!(ended, Ok(Ok(status)) if status.success()) {
                let _ = tokio::task::spawn_blocking(move || end_in_its_place(pid, &folder)).await;
                let _ = child.kill().await;
            }
            drop(held);
        })
    }
}

/// What the supervisor has not done: it was killed, or is stopped.
fn end_in_its_place(supervisor: Option<Pid>, folder: &Path) {
    let started = |pid: Pid, supervisor: Pid| {
        processes::is_below(pid, supervisor) || processes::group_of(pid) == Some(supervisor)
    };
    if let Some(supervisor) = supervisor {
        // Before the supervisor itself: what is below it is known as long as it is there.
        processes::end(|pid| pid != supervisor && started(pid, supervisor), END);
        let _ = rustix::process::kill_process_group(supervisor, Signal::KILL);
    }
    if let Err(error) = folder::clean(folder) {
        tracing::warn!(folder = %folder.display(), %error, "folder of a browser cannot be removed");
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let (Ok(runtime), Some(end)) = (tokio::runtime::Handle::try_current(), self.ending()) {
            runtime.spawn(end);
        }
    }
}

/// What the supervisor waits for.
enum Over {
    /// The browser has ended, or its parent.
    Wanted,
    /// Nothing is below the supervisor any more.
    Alone,
}

/// The supervisor: `scouter supervise FOLDER PROGRAM [ARGUMENT…]`. Its standard output is the program's, not its own. Without a
/// program it does what is left to do in a folder whose supervisor was killed.
///
/// # Errors
/// When the program cannot be started.
pub fn supervisor_main(folder: &Path, program: &[String]) -> anyhow::Result<()> {
    let Some((file, arguments)) = program.split_first() else {
        return folder::clean_main(folder).context("the browser's folder");
    };
    // A supervisor that was stopped when its parent died gets a hangup, and then goes on: it has something left to do. What
    // it starts begins without this mask.
    let ending = [SignalName::SIGHUP, SignalName::SIGTERM, SignalName::SIGINT].into_iter().collect::<SigSet>();
    ending.thread_block()?;
    let _held = folder::lock(folder)?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))?;
    let mut command = Command::new(file);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    // On a thread of its own: the supervisor itself asks the kernel over netlink.
    let start = std::thread::spawn(move || {
        if let Err(error) = netlink::refuse() {
            eprintln!("a change of this host's network ends the requests of a page: {error:#}");
        }
        command.spawn()
    });
    let browser = start.join().map_err(|_| anyhow::anyhow!("panic"))?;
    let browser = browser.with_context(|| format!("{file} cannot be started"))?;
    let (over, wait) = mpsc::channel();
    let parent = over.clone();
    std::thread::spawn(move || {
        answer_questions(std::io::stdin(), own);
        let _ = parent.send(Over::Wanted);
    });
    let browser = Pid::from_child(&browser);
    std::thread::spawn(move || {
        // Of all that end, so that none of the adopted stays a zombie. Whatever loses its parent is adopted in the same moment:
        // when there is no child left, there is nothing below any more.
        loop {
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, _))) if pid == browser => drop(over.send(Over::Wanted)),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        let _ = over.send(Over::Alone);
    });
    let mut alone = matches!(wait.recv(), Ok(Over::Alone));
    let mut pause = LOOK;
    while !alone {
        // The children of the killed become ours: as often as it takes.
        for child in processes::all().filter(|pid| processes::parent_of(*pid) == Some(own)) {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        alone = matches!(wait.recv_timeout(pause), Ok(Over::Alone) | Err(mpsc::RecvTimeoutError::Disconnected));
        pause = (pause * 2).min(LONGEST_LOOK);
    }
    folder::remove(folder).context("the browser's folder")
}

/// Until the parent pipe ends. The browser is what is below this process.
pub(super) fn answer_questions(pipe: impl AsFd, own: Pid) {
    let mut browser = Descendants::of(own);
    let (mut question, mut length) = ([0; QUESTION_BYTES], 0);
    loop {
        match rustix::io::read(&pipe, &mut question[length..]) {
            Ok(count @ 1..) => length += count,
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
        if length == QUESTION_BYTES {
            let mut answer = [0; ANSWER_BYTES];
            answer[..4].copy_from_slice(&question[..4]);
            let port = |at: usize| u16::from_be_bytes([question[at], question[at + 1]]);
            answer[4] = browser.have(port(4), port(6)).into();
            if rustix::io::write(&pipe, &answer).is_err() {
                return;
            }
            length = 0;
        }
    }
}
