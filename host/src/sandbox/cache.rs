//! Machine code of plugins, kept between starts.
//!
//! Loading machine code is running it, and wasmtime checks it only lightly (of 400 single-bit flips 389
//! loaded, 2 brought the process down). So an entry is an HMAC-SHA256 under a key of this cache folder, followed by the
//! code; it is read once, verified, and those very bytes are used. Anything else is compiled again. The key is worth what
//! the folder is: it is used only where no other user could have written it.

use std::fs::{File, Metadata};
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::compile::compile_in_child;

const MAC_BYTES: usize = 32;
/// An entry that no start has used for so long is removed: its plugin or its engine has changed.
const UNUSED: Duration = Duration::from_hours(30 * 24);
/// What another start was writing is removed after this.
const UNFINISHED: Duration = Duration::from_hours(24);

const UNFINISHED_PREFIX: &str = ".new";

/// Where compiled plugins are kept between starts. Without a folder every start compiles.
pub struct Cache {
    folder: Option<(PathBuf, [u8; 32])>,
}

impl Cache {
    /// Opens or makes the folder (mode 0700) and its key (0600). A folder that cannot be used, or that others could have
    /// written to, costs time and not the start.
    #[must_use]
    pub fn open(folder: Option<&Path>) -> Self {
        let Some(folder) = folder else { return Self { folder: None } };
        match key_of(folder) {
            Ok(key) => Self { folder: Some((folder.to_owned(), key)) },
            Err(error) => {
                tracing::warn!(folder = %folder.display(), error = format!("{error:#}"),
                    "compiled plugins are not cached: set SCOUTER_CACHE_DIR to a folder that only this user can write to");
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

    /// Removes what no start has used for 30 days. After the plugins were loaded: what was used now is new again.
    pub fn prune(&self) {
        let Some((folder, _)) = &self.folder else { return };
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let age = if path.extension().is_some_and(|extension| extension == "cwasm") {
                UNUSED
            } else if name.as_encoded_bytes().starts_with(UNFINISHED_PREFIX.as_bytes()) {
                UNFINISHED
            } else {
                continue;
            };
            let modified = entry.metadata().and_then(|meta| meta.modified());
            if modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|elapsed| elapsed > age)) {
                // A cache that belongs to an image stays as it is.
                let removed = std::fs::remove_file(&path);
                tracing::debug!(path = %path.display(), removed = removed.is_ok(), "unused compiled plugin");
            }
        }
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
    ensure_trusted(&std::fs::metadata(folder)?)?;
    let path = folder.join("key");
    match read_key(&path) {
        Ok(key) => return Ok(key),
        Err(error) if path.symlink_metadata().is_ok() => {
            tracing::warn!(path = %path.display(), error = format!("{error:#}"),
                "the key of compiled plugins is made anew, and they are compiled again");
        }
        Err(_) => {}
    }
    let key: [u8; 32] = rand::random();
    // Temporary files are made with mode 0600.
    replace(&path, &[&key])?;
    Ok(key)
}

fn read_key(path: &Path) -> anyhow::Result<[u8; 32]> {
    let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits())?;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    ensure_trusted(&meta)?;
    // An image's key is root's and readable, in a folder that only root can write to.
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    let of_others = meta.mode() & 0o077;
    ensure!(!ours || of_others == 0, "others may read it (mode {:04o}, not 0600)", meta.mode() & 0o7777);
    let mut key = vec![];
    file.take(33).read_to_end(&mut key)?;
    <[u8; 32]>::try_from(key).map_err(|_| anyhow::anyhow!("it is not of 32 bytes"))
}

/// Only this user and root could have written it.
fn ensure_trusted(meta: &Metadata) -> anyhow::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    ensure!(meta.uid() == user || meta.uid() == 0, "it belongs to user {}, not to {user} or root", meta.uid());
    ensure!(meta.mode() & 0o022 == 0, "others may write to it (mode {:04o})", meta.mode() & 0o7777);
    Ok(())
}

/// Writes beside the file and renames, so that a reader sees the old file or the new one, never half of one.
fn replace(path: &Path, parts: &[&[u8]]) -> anyhow::Result<()> {
    let folder = path.parent().context("no folder")?;
    let mut file = tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(folder)?;
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
    let mut file = File::open(path).ok()?;
    let mut bytes = vec![];
    file.read_to_end(&mut bytes).ok()?;
    let (mac, code) = bytes.split_at_checked(MAC_BYTES)?;
    let mut expected = mac_of(key, path).ok()?;
    expected.update(code);
    if expected.verify_slice(mac).is_err() {
        tracing::warn!(path = %path.display(), "cached plugin is not what this server wrote: compiling it again");
        return None;
    }
    // In use: see `prune`. Not possible, and not needed, in an image.
    let _ = file.set_modified(SystemTime::now());
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
