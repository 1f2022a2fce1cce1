//! Support of the tests: a server, a client, a network.

pub mod chain;
pub mod delay;
pub mod h2;
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

/// The hostile plugin with another `describe`: `imports`, `spins`. Its code is the same, and eight bytes are not.
pub fn hostile_that(describe: &str) -> Vec<u8> {
    let mut wasm = std::fs::read(hostile().join("hostile.wasm")).expect("read");
    let marker = b"describe:honest ";
    let places: Vec<usize> = (0..wasm.len()).filter(|at| wasm[*at..].starts_with(marker)).collect();
    assert_eq!(places.len(), 1, "the marker of the hostile plugin");
    wasm[places[0] + 9..places[0] + 16].copy_from_slice(format!("{describe:7}").as_bytes());
    wasm
}

/// The built-in plugins, as `make test` builds them.
pub fn plugins() -> PathBuf {
    let folder = Path::new(scouter()).with_file_name("plugins");
    assert!(folder.join("ping.wasm").exists(), "run `make test`: it builds the plugins first");
    folder
}

/// What ends immediately, or at a deadline of a second or two, has ended after this time however busy the machine is.
/// Speed is measured in `bench/`; a test only distinguishes an end from a hang.
pub const SOON: std::time::Duration = std::time::Duration::from_secs(12);

/// Waits until something is so, looking often; fails after a minute: a browser takes long to start on a busy machine.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("not within a minute: {what}");
}

/// One thread of a process.
#[derive(Debug, Clone)]
pub struct Thread {
    pub name: String,
    /// User and system time so far, in hundredths of a second (`proc_pid_stat(5)`).
    pub cpu: u64,
    /// Capabilities in effect.
    pub capabilities: u64,
}

/// The threads of a process; none when it has ended.
pub fn threads(pid: u32) -> Vec<Thread> {
    let read = |task: &Path| {
        let file = |name: &str| std::fs::read_to_string(task.join(name)).ok();
        let stat = file("stat")?;
        let times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().ok());
        let status = file("status")?;
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"))?;
        Some(Thread {
            name: file("comm")?.trim().to_owned(),
            cpu: times.sum::<Option<u64>>()?,
            capabilities: u64::from_str_radix(capabilities, 16).ok()?,
        })
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| read(&task.path())).collect()
}
