//! Errors of the operating system: their text, and whether this host or the target causes them.

/// Is it this host that cannot, rather than the target? Descriptors, memory, ports, its own firewall.
#[must_use]
pub fn is_local(error: &std::io::Error) -> bool {
    use nix::libc::{EACCES, EADDRNOTAVAIL, EAFNOSUPPORT, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM};
    let own = [EACCES, EADDRNOTAVAIL, EAFNOSUPPORT, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM];
    error.raw_os_error().is_some_and(|number| own.contains(&number))
}

/// A system error without its number.
#[must_use]
pub fn description(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::Error::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_refusal_is_not_this_hosts_trouble() {
        let error = std::io::Error::from_raw_os_error;
        assert!(is_local(&error(nix::libc::EMFILE)) && is_local(&error(nix::libc::EADDRNOTAVAIL)));
        assert!(!is_local(&error(nix::libc::ECONNREFUSED)) && !is_local(&error(nix::libc::EHOSTUNREACH)));
        assert_eq!(description(&error(nix::libc::ECONNREFUSED)), "Connection refused");
    }
}
