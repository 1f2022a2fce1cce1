//! From a component's bytes to machine code: compiled once in a child process with limits, then cached.
//!
//! Loading compiled code is as good as running it, and wasmtime checks it only lightly (of 400 single-bit flips 389
//! loaded, 2 brought the process down). So an entry of the cache is an HMAC-SHA256 under a key of this cache folder,
//! followed by the code; it is read once, verified, and those very bytes are used. Anything else is compiled again.

use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use hmac::{Hmac, Mac};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::engine;

const MAC_BYTES: usize = 32;
/// Machine code is a few times the size of the wasm; the child's output is not read past this.
const CODE_BYTES: u64 = 512 << 20;

/// Where compiled plugins are kept between starts. Without a folder every start compiles.
pub struct Cache {
    folder: Option<(PathBuf, [u8; 32])>,
}

impl Cache {
    /// Opens or makes the folder (mode 0700) and its key (0600). A folder that cannot be used costs time, not the start.
    #[must_use]
    pub fn open(folder: Option<&Path>) -> Self {
        let Some(folder) = folder else { return Self { folder: None } };
        match key_of(folder) {
            Ok(key) => Self { folder: Some((folder.to_owned(), key)) },
            Err(error) => {
                tracing::warn!(folder = %folder.display(), error = format!("{error:#}"),
                    "compiled plugins are not cached: set SCOUTER_CACHE_DIR to a folder that can be written");
                Self { folder: None }
            }
        }
    }

    /// The component, from the cache when it is there, compiled (and cached) when not.
    ///
    /// # Errors
    /// When the bytes are not a component that this engine takes, or compiling passes its limits.
    pub fn component(&self, engine: &Engine, wasm: &[u8]) -> anyhow::Result<Component> {
        let entry = self.folder.as_ref().map(|(folder, key)| (folder.join(entry_name(engine, wasm)), key));
        if let Some((path, key)) = &entry
            && let Some(component) = read_entry(engine, path, key)
        {
            return Ok(component);
        }
        let started = Instant::now();
        let code = compile_in_child(wasm)?;
        tracing::info!(kib = wasm.len() >> 10, ms = started.elapsed().as_millis(), "plugin compiled");
        if let Some((path, key)) = &entry
            && let Err(error) = write_entry(path, key, &code)
        {
            tracing::warn!(path = %path.display(), error = format!("{error:#}"), "compiled plugin not cached");
        }
        deserialize(engine, &code)
    }
}

/// Names the wasm and everything about the engine that its code depends on.
fn entry_name(engine: &Engine, wasm: &[u8]) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut compatibility = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut compatibility);
    let compatibility = hex::encode(compatibility.0.finalize());
    format!("{}-{}.cwasm", hex::encode(Sha256::digest(wasm)), &compatibility[..16])
}

fn key_of(folder: &Path) -> anyhow::Result<[u8; 32]> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join("key");
    if let Ok(key) = std::fs::read(&path)
        && let Ok(key) = <[u8; 32]>::try_from(key)
    {
        return Ok(key);
    }
    let key: [u8; 32] = rand::random();
    replace(&path, &[&key])?;
    Ok(key)
}

/// Writes beside the file and renames, so that a reader sees the old file or the new one, never half of one.
fn replace(path: &Path, parts: &[&[u8]]) -> anyhow::Result<()> {
    let folder = path.parent().context("no folder")?;
    let mut file = tempfile::Builder::new().prefix(".new").tempfile_in(folder)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.persist(path)?;
    Ok(())
}

fn mac_of(key: &[u8; 32], path: &Path) -> anyhow::Result<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).context("key")?;
    // The name is part of what is signed: an entry cannot be passed off as another plugin's.
    mac.update(path.file_name().context("no name")?.as_encoded_bytes());
    Ok(mac)
}

fn read_entry(engine: &Engine, path: &Path, key: &[u8; 32]) -> Option<Component> {
    let bytes = std::fs::read(path).ok()?;
    let (mac, code) = bytes.split_at_checked(MAC_BYTES)?;
    let mut expected = mac_of(key, path).ok()?;
    expected.update(code);
    if expected.verify_slice(mac).is_err() {
        tracing::warn!(path = %path.display(), "cached plugin is not what this server wrote: compiling it again");
        return None;
    }
    deserialize(engine, code)
        .inspect_err(|error| tracing::warn!(path = %path.display(), error = format!("{error:#}"), "compiling again"))
        .ok()
}

fn write_entry(path: &Path, key: &[u8; 32], code: &[u8]) -> anyhow::Result<()> {
    let mut mac = mac_of(key, path)?;
    mac.update(code);
    replace(path, &[&mac.finalize().into_bytes(), code])
}

fn deserialize(engine: &Engine, code: &[u8]) -> anyhow::Result<Component> {
    // A panic inside would take the server down with it; two of 400 damaged files panicked when that was measured.
    let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        #[expect(unsafe_code, reason = "the bytes come from our own compiler child or carry our MAC")]
        unsafe {
            Component::deserialize(engine, code)
        }
    }));
    match loaded {
        Ok(component) => Ok(component?),
        Err(_) => bail!("compiled code is damaged"),
    }
}

/// Compiling a hostile component can take minutes and gigabytes, and wasmtime promises nothing about it:
/// it happens in a child of this same program, whose limits the child sets itself.
fn compile_in_child(wasm: &[u8]) -> anyhow::Result<Vec<u8>> {
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
        // Both ways at once: a pipe holds 64 KiB, and whoever waits for the other would wait for ever.
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
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
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
    ensure!(meta.len() <= super::budget::FILE_BYTES, "larger than {} MiB", super::budget::FILE_BYTES >> 20);
    let mut bytes = Vec::new();
    file.take(super::budget::FILE_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(Engine::detect_precompiled(&bytes).is_none(), "machine code, not a component: only .wasm is taken");
    Ok(bytes)
}
