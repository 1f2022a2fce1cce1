//! A configuration file that is parsed again when it has changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

/// Distinguishes versions of a file, whether it was replaced or written in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Version {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

pub struct FollowedFile<T> {
    path: PathBuf,
    parse: fn(&[u8]) -> T,
    read: RwLock<(Option<Version>, Arc<T>)>,
}

impl<T: Default> FollowedFile<T> {
    /// A file that cannot be read leaves the default.
    pub fn read(path: PathBuf, parse: fn(&[u8]) -> T) -> Self {
        let file = Self { path, parse, read: RwLock::default() };
        if file.read_again().is_none() {
            tracing::warn!(path = %file.path.display(), "cannot be read");
        }
        file
    }

    pub fn last_read(&self) -> Arc<T> {
        Arc::clone(&self.read.read().1)
    }

    /// The file as it is now; as it was while it cannot be read. Costs one stat(2) when it has not changed.
    pub fn current(&self) -> Arc<T> {
        let version = Version::of(&self.path);
        {
            let read = self.read.read();
            if version.is_none() || version == read.0 {
                return Arc::clone(&read.1);
            }
        }
        self.read_again().map_or_else(
            || self.last_read(),
            |parsed| {
                tracing::info!(path = %self.path.display(), "changed and read again");
                parsed
            },
        )
    }

    fn read_again(&self) -> Option<Arc<T>> {
        // Taken before the content: a change in between is seen next time.
        let version = Version::of(&self.path)?;
        let parsed = Arc::new((self.parse)(&fs::read(&self.path).ok()?));
        *self.read.write() = (Some(version), Arc::clone(&parsed));
        Some(parsed)
    }
}

/// A file that does not exist.
impl<T: Default> Default for FollowedFile<T> {
    fn default() -> Self {
        Self { path: PathBuf::new(), parse: |_| T::default(), read: RwLock::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_and_a_missing_file_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = FollowedFile::read(path.clone(), |text| String::from_utf8_lossy(text).into_owned());
        assert_eq!(*file.current(), "");
        fs::write(&path, "first").expect("written");
        assert_eq!(*file.current(), "first");
        fs::write(&path, "longer").expect("written in place");
        assert_eq!(*file.current(), "longer");
        let replacement = folder.path().join("replacement");
        fs::write(&replacement, "other!").expect("written");
        fs::rename(&replacement, &path).expect("replaced by one of the same size");
        assert_eq!(*file.current(), "other!");
        fs::remove_file(&path).expect("removed");
        assert_eq!(*file.current(), "other!");
    }
}
