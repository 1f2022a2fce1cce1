//! What the tests stand on: a server of their own, a client, a network.

pub mod chain;
pub mod lab;
pub mod server;
pub mod site;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

/// The program: Cargo says where it is to tests; measurements lie beside it.
pub fn scouter() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| match option_env!("CARGO_BIN_EXE_scouter") {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().expect("a path").with_file_name("scouter").display().to_string(),
    })
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
