//! What the tests stand on: a server of their own, a client, a network.

pub mod lab;
pub mod server;

use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

pub fn scouter() -> &'static str {
    env!("CARGO_BIN_EXE_scouter")
}

/// The folder with the hostile plugin, as `make test` builds it.
pub fn hostile() -> PathBuf {
    let folder = Path::new(scouter()).with_file_name("hostile");
    assert!(folder.join("hostile.wasm").exists(), "run `make test`: it builds the plugins first");
    folder
}

/// The built-in plugins, as `make test` builds them.
pub fn plugins() -> PathBuf {
    let folder = Path::new(scouter()).with_file_name("plugins");
    assert!(folder.join("ping.wasm").exists(), "run `make test`: it builds the plugins first");
    folder
}

/// Waits until something is so, looking often; fails after ten seconds.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("not within 10 s: {what}");
}
