//! From a component's bytes to machine code, in a child process with limits.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, Rlimit};
use scouter_net::privilege;
use wasmtime::Engine;

use super::{budget, engine};

/// Machine code is a few times the size of the wasm; the child's output is not read past this.
const CODE_BYTES: u64 = 512 << 20;

/// Compiling a hostile component can take minutes and gigabytes, and wasmtime promises nothing about it:
/// it happens in a child of this same program, whose limits the child sets itself.
pub fn compile_in_child(wasm: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("compile")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the compiling child process")?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut code, mut complaint) = (Vec::new(), String::new());
    let timed_out = std::thread::scope(|scope| {
        // Both directions concurrently: a pipe holds 64 KiB, and two processes that wait for each other never end.
        scope.spawn(|| stdin.map(|mut pipe| pipe.write_all(wasm)));
        scope.spawn(|| stdout.map(|pipe| pipe.take(CODE_BYTES).read_to_end(&mut code)));
        scope.spawn(|| stderr.map(|pipe| pipe.take(4096).read_to_string(&mut complaint)));
        let end = Instant::now() + engine::COMPILE_WALL;
        loop {
            match child.try_wait() {
                Ok(Some(_)) | Err(_) => return false,
                Ok(None) if Instant::now() > end => {
                    let _ = child.kill();
                    return true;
                }
                Ok(None) => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
    });
    let status = child.wait()?;
    ensure!(!timed_out, "compiling takes longer than {} s", engine::COMPILE_WALL.as_secs());
    if !status.success() {
        let complaint = complaint.trim();
        if complaint.is_empty() {
            bail!(
                "compiling passes its limits ({} s of CPU, {} GiB): {status}",
                engine::COMPILE_CPU.as_secs(),
                engine::COMPILE_MEMORY >> 30
            );
        }
        bail!("{complaint}");
    }
    Ok(code)
}

/// The child: wasm on standard input, machine code on standard output.
///
/// # Errors
/// When the input is not a component, or anything cannot be read or written.
pub fn child_main() -> anyhow::Result<()> {
    let limit =
        |resource, value| rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    limit(Resource::Cpu, engine::COMPILE_CPU.as_secs())?;
    limit(Resource::As, engine::COMPILE_MEMORY)?;
    limit(Resource::Core, 0)?;
    rustix::process::nice(10)?;
    // Whatever goes wrong in here happens without raw sockets or anything else of root's.
    privilege::keep(privilege::NOTHING)?;
    let mut wasm = Vec::new();
    std::io::stdin().lock().read_to_end(&mut wasm)?;
    let code = engine::compiler()?.precompile_component(&wasm)?;
    std::io::stdout().lock().write_all(&code)?;
    Ok(())
}

/// Reads a plugin file without following a link, and only if it is a regular one of bounded size: a FIFO or a device
/// in the folder must not hang the start.
///
/// # Errors
/// Says what is wrong with the file.
pub fn read_plugin(path: &Path) -> anyhow::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits())?)
        .open(path)
        .context("cannot be opened (links are not followed)")?;
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "not a regular file");
    ensure!(meta.len() <= budget::FILE_BYTES, "larger than {} MiB", budget::FILE_BYTES >> 20);
    let mut bytes = Vec::new();
    file.take(budget::FILE_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(Engine::detect_precompiled(&bytes).is_none(), "machine code, not a component: only .wasm is taken");
    Ok(bytes)
}
