//! Which autonomous system announces an address: a database of the GeoLite2-ASN layout, held in memory and replaced
//! when its file changes. It is never mapped: a file that is replaced in place would change under the reader.

mod fetch;

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, ensure};
use maxminddb::{Reader, geoip2};
use tokio::sync::watch;

pub use fetch::Source;

/// How often the file's metadata is read.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The GeoLite2-ASN database has 11 MB.
const FILE_BYTES: u64 = 512 << 20;
/// A lookup waits so long for the database to be read when the program has just started.
const FIRST_READ: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutonomousSystem {
    pub number: u32,
    pub name: Option<String>,
    pub network: String,
}

/// The database, if there is one.
pub struct Asn {
    file: Option<PathBuf>,
    state: RwLock<State>,
    first_read: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    database: Option<Arc<Database>>,
    /// Why there is no database, or why the newest file is not used.
    problem: Option<String>,
    file: Option<Fingerprint>,
}

/// Inode, size and time of change: they distinguish a file from its successor.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fingerprint(u64, u64, i64, i64);

/// A parsed database file.
pub struct Database {
    reader: Reader<Vec<u8>>,
    /// RFC 3339.
    built: String,
}

impl Database {
    /// Reads all of it once: a database that is damaged anywhere is refused here, before a test uses it.
    ///
    /// # Errors
    /// When it is not a whole database of autonomous systems.
    pub fn check(bytes: Vec<u8>) -> anyhow::Result<Self> {
        // maxminddb is not proven against every damaged file, and none may end the program.
        let checked = std::panic::catch_unwind(|| Self::parse(bytes));
        checked.unwrap_or_else(|_| Err(anyhow::anyhow!("it is not a MaxMind database")))
    }

    fn parse(bytes: Vec<u8>) -> anyhow::Result<Self> {
        let reader = Reader::from_source(bytes).context("it is not a whole MaxMind database")?;
        reader.verify().context("it is not a whole MaxMind database")?;
        let kind = reader.metadata().database_type.clone();
        ensure!(kind.contains("ASN"), "it is of the type '{}', not of GeoLite2-ASN's", kind.escape_debug());
        let built = i64::try_from(reader.metadata().build_epoch)?;
        let built = jiff::Timestamp::from_second(built).context("its build date makes no sense")?.to_string();
        let database = Self { reader, built };
        for sample in ["192.0.2.1", "2001:db8::1"] {
            database.lookup(sample.parse()?).context("a lookup in it fails")?;
        }
        Ok(database)
    }

    /// # Errors
    /// When the entry is damaged.
    pub fn lookup(&self, address: IpAddr) -> anyhow::Result<Option<AutonomousSystem>> {
        if address.is_ipv6() && self.reader.metadata().ip_version == 4 {
            return Ok(None);
        }
        let found = self.reader.lookup(address)?;
        let Some(entry) = found.decode::<geoip2::Asn>()? else { return Ok(None) };
        let Some(number) = entry.autonomous_system_number else { return Ok(None) };
        let name = entry.autonomous_system_organization.map(ToOwned::to_owned);
        Ok(Some(AutonomousSystem { number, name, network: found.network()?.to_string() }))
    }
}

impl Asn {
    #[must_use]
    pub fn new(file: Option<PathBuf>) -> Self {
        let (first_read, _) = watch::channel(false);
        Self { file, state: RwLock::default(), first_read }
    }

    /// Reads the file now and whenever it changes. Must be called on a runtime.
    pub fn follow(self: &Arc<Self>) {
        let asn = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(asn) = asn.upgrade() {
                // Reading and checking blocks the thread.
                let _ = tokio::task::spawn_blocking(move || {
                    asn.reload_if_changed();
                    asn.first_read.send_replace(true);
                })
                .await;
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        });
    }

    /// The systems of these addresses. Waits for the first reading when the program has just started.
    pub async fn lookup(&self, addresses: &[IpAddr]) -> Vec<Option<AutonomousSystem>> {
        let mut first_read = self.first_read.subscribe();
        let _ = tokio::time::timeout(FIRST_READ, first_read.wait_for(|done| *done)).await;
        let database = read(&self.state).database.clone();
        let find = |address: &IpAddr| database.as_ref()?.lookup(address.to_canonical()).ok()?;
        addresses.iter().map(find).collect()
    }

    /// When the database was built (RFC 3339), and what is wrong.
    #[must_use]
    pub fn status(&self) -> (Option<String>, Option<String>) {
        let state = read(&self.state);
        (state.database.as_ref().map(|database| database.built.clone()), state.problem.clone())
    }

    /// Reads the file when it has changed. The database stays until another one has been checked.
    fn reload_if_changed(&self) {
        let Some(file) = &self.file else {
            self.set_problem("no database: set MMDB_LICENSE_KEY, SCOUTER_MMDB_URL or SCOUTER_MMDB_PATH");
            return;
        };
        let found = match std::fs::metadata(file) {
            Ok(found) => Fingerprint(found.ino(), found.len(), found.mtime(), found.mtime_nsec()),
            Err(error) => {
                let mut state = write(&self.state);
                state.file = None;
                if state.database.is_none() && state.problem.is_none() {
                    let problem = format!("no database: '{}': {error}", file.display());
                    let hint = "set MMDB_LICENSE_KEY, SCOUTER_MMDB_URL or SCOUTER_MMDB_PATH";
                    tracing::info!(problem, hint, "no ASN database: systems are not named in traces");
                    state.problem = Some(problem);
                }
                return;
            }
        };
        if write(&self.state).file.replace(found) == Some(found) {
            return;
        }
        match load(file) {
            Ok(database) => self.replace(database),
            Err(error) => self.set_problem(&format!("'{}' is not used: {error:#}", file.display())),
        }
    }

    fn replace(&self, database: Database) {
        tracing::info!(built = database.built, "ASN database");
        let mut state = write(&self.state);
        state.database = Some(Arc::new(database));
        state.problem = None;
    }

    /// The mirror has no newer database.
    fn is_current(&self) {
        write(&self.state).problem = None;
    }

    fn set_problem(&self, problem: &str) {
        let mut state = write(&self.state);
        if state.problem.as_deref() != Some(problem) {
            tracing::warn!(problem, kept = state.database.is_some(), "ASN database");
            state.problem = Some(problem.to_owned());
        }
    }
}

fn load(file: &Path) -> anyhow::Result<Database> {
    let found = std::fs::metadata(file)?;
    // A pipe would be waited for without end.
    ensure!(found.is_file(), "it is not a file");
    let size = found.len();
    ensure!(size <= FILE_BYTES, "it is larger than {} MiB", FILE_BYTES >> 20);
    Database::check(std::fs::read(file)?)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `tests/support/asn.py` writes it, with an independent writer.
    const DATABASE: &[u8] = include_bytes!("../../../tests/support/asn.mmdb");

    fn number(database: &Database, address: &str) -> Option<u32> {
        database.lookup(address.parse().expect("an address")).expect("looked up").map(|system| system.number)
    }

    #[test]
    fn addresses_are_found_in_both_families() {
        let database = Database::check(DATABASE.to_vec()).expect("a database");
        let found = database.lookup("10.80.1.77".parse().expect("an address")).expect("looked up").expect("known");
        let expected =
            AutonomousSystem { number: 64500, name: Some("Lab network 64500".into()), network: "10.80.1.0/24".into() };
        assert_eq!(found, expected);
        assert_eq!(number(&database, "fd80:0:0:7::2"), Some(64504));
        assert_eq!([number(&database, "192.0.2.127"), number(&database, "192.0.2.128")], [Some(64506), None]);
    }

    #[test]
    fn damaged_databases_are_refused_without_a_panic() {
        for cut in 0..DATABASE.len() {
            assert!(Database::check(DATABASE[..cut].to_vec()).is_err(), "cut at {cut}");
        }
        assert!(Database::check(vec![0; 4096]).is_err());
        for byte in 0..DATABASE.len() {
            let mut flipped = DATABASE.to_vec();
            flipped[byte] ^= 1 << (byte % 8);
            // A changed letter of a name cannot be detected; a lookup must end all the same.
            if let Ok(database) = Database::check(flipped) {
                for address in ["10.80.1.1", "203.0.113.5", "fd80::1", "::", "255.255.255.255"] {
                    let _ = database.lookup(address.parse().expect("an address"));
                }
            }
        }
    }

    #[test]
    fn a_database_stays_until_another_one_has_been_checked() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("asn.mmdb");
        let asn = Asn::new(Some(file.clone()));
        asn.reload_if_changed();
        assert!(matches!(asn.status(), (None, Some(problem)) if problem.contains("asn.mmdb")));
        let mut city = DATABASE.to_vec();
        let at = city.windows(12).rposition(|window| window == b"GeoLite2-ASN").expect("its type");
        city[at..at + 12].copy_from_slice(b"GeoLite2-Cit");
        for bytes in [DATABASE.to_vec(), vec![], DATABASE[..900].to_vec(), city] {
            std::fs::write(&file, bytes).expect("written");
            asn.reload_if_changed();
            assert!(asn.status().0.is_some());
        }
        assert!(asn.status().1.is_some_and(|problem| problem.contains("GeoLite2-Cit")));
        std::fs::remove_file(&file).expect("removed");
        asn.reload_if_changed();
        assert!(asn.status().0.is_some(), "the file is gone, the database stays");
        std::fs::write(&file, DATABASE).expect("written");
        asn.reload_if_changed();
        assert_eq!(asn.status().1, None);
    }
}
