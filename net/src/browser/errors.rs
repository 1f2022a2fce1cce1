//! The browsers' error names, and the failure that each stands for.

use super::socks::Cause;
use super::{Failure, FailureKind};

/// The page was stopped while this was under way.
pub const STOPPED: &str = "stopped";
/// Likewise, because the page had passed a limit.
pub const CUT: &str = "cut";

/// Chrome: `net::ERR_…`; Firefox: `NS_ERROR_…`, wrapped around the words of its certificate check. The SOCKS proxy knows better
/// why there was no connection.
#[must_use]
pub fn failure(word: &str, cause: Option<&Cause>) -> Failure {
    if let Some(cause) = cause {
        let (kind, reason) = match cause {
            Cause::Denied(reason) => (FailureKind::Denied, reason.clone()),
            Cause::Name(reason) => (FailureKind::Name, reason.clone()),
            Cause::Connect(reason) => (FailureKind::Connect, reason.clone()),
            Cause::Timeout(reason) => (FailureKind::Timeout, reason.clone()),
            Cause::Unavailable(reason) => (FailureKind::Unavailable, reason.clone()),
            Cause::TooMany => (FailureKind::TooLarge, "The page has too many connections at once".into()),
        };
        return Failure { kind, reason };
    }
    let has = |words: &[&str]| words.iter().any(|part| word.contains(part));
    let kind = if word == STOPPED {
        FailureKind::Timeout
    } else if word == CUT {
        FailureKind::TooLarge
    } else if has(&["NETWORK_CHANGED"]) {
        FailureKind::Unavailable
    } else if has(&["NAME_NOT_RESOLVED", "UNKNOWN_HOST"]) {
        FailureKind::Name
    } else if has(&["ERR_CERT_", "MOZILLA_PKIX_ERROR", "SEC_ERROR_", "SSL_ERROR_BAD_CERT_DOMAIN"]) {
        FailureKind::Certificate
    } else if has(&["SSL_", "MODULE_SECURITY", "ERR_QUIC_PROTOCOL"]) {
        FailureKind::Handshake
    } else if has(&["TIMED_OUT", "NET_TIMEOUT", "TIMEOUT"]) {
        FailureKind::Timeout
    } else if has(&["EMPTY_RESPONSE"]) {
        FailureKind::EmptyReply
    } else if has(&["CONTENT_LENGTH_MISMATCH", "PARTIAL_TRANSFER", "INCOMPLETE_CHUNKED"]) {
        FailureKind::Partial
    } else if has(&["CONNECTION_RESET", "CONNECTION_CLOSED", "NET_RESET", "NET_INTERRUPT", "HTTP2_PROTOCOL"]) {
        FailureKind::Receive
    } else if has(&["INVALID_HTTP_RESPONSE", "INVALID_RESPONSE", "RESPONSE_HEADERS", "INVALID_REDIRECT"]) {
        FailureKind::InvalidResponse
    } else if has(&["REFUSED", "UNREACHABLE", "SOCKS", "PROXY"]) {
        FailureKind::Connect
    } else if has(&["BLOCKED", "UNSAFE_PORT", "ABORTED", "deniedPortAccess", "CSP", "CORS"]) {
        FailureKind::Blocked
    } else {
        FailureKind::Other
    };
    let reason = match word {
        STOPPED => "Not finished when the page's time was up".into(),
        CUT => "Not finished when the page passed a limit".into(),
        _ => word.chars().take(300).collect(),
    };
    Failure { kind, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_browsers_words_mean_the_same() {
        for (kind, words) in [
            (FailureKind::Name, ["net::ERR_NAME_NOT_RESOLVED", "NS_ERROR_UNKNOWN_HOST"]),
            (FailureKind::Connect, ["net::ERR_CONNECTION_REFUSED", "NS_ERROR_CONNECTION_REFUSED"]),
            (FailureKind::Timeout, ["net::ERR_CONNECTION_TIMED_OUT", "NS_ERROR_NET_TIMEOUT"]),
            (FailureKind::Receive, ["net::ERR_CONNECTION_RESET", "NS_ERROR_NET_RESET"]),
            (FailureKind::Partial, ["net::ERR_CONTENT_LENGTH_MISMATCH", "NS_ERROR_NET_PARTIAL_TRANSFER"]),
            (
                FailureKind::Certificate,
                [
                    "net::ERR_CERT_AUTHORITY_INVALID",
                    "NS_ERROR_GENERATE_FAILURE(NS_ERROR_MODULE_SECURITY, MOZILLA_PKIX_ERROR_SELF_SIGNED_CERT)",
                ],
            ),
            (
                FailureKind::Handshake,
                [
                    "net::ERR_SSL_PROTOCOL_ERROR",
                    "NS_ERROR_GENERATE_FAILURE(NS_ERROR_MODULE_SECURITY, SSL_ERROR_RX_RECORD_TOO_LONG)",
                ],
            ),
            (FailureKind::Blocked, ["net::ERR_ABORTED", "NS_BINDING_ABORTED"]),
        ] {
            for word in words {
                assert_eq!(failure(word, None).kind, kind, "{word}");
            }
        }
        let denied = failure("net::ERR_SOCKS_CONNECTION_FAILED", Some(&Cause::Denied("Target".into())));
        assert_eq!(denied, Failure { kind: FailureKind::Denied, reason: "Target".into() });
    }
}
