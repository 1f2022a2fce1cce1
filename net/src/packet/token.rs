//! Authenticated payloads of echo requests: a host off the path cannot forge a reply.

use std::net::IpAddr;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Bytes of a token.
pub const TOKEN: usize = 16;

/// HMAC, keyed with the secret of this process: deriving it once saves two of four SHA-256 compressions per token.
pub struct TokenKey(Hmac<Sha256>);

impl TokenKey {
    #[must_use]
    pub fn random() -> Self {
        // A key of one block of SHA-256, which HMAC uses as it is.
        Self(Hmac::new(&rand::random::<[u8; 64]>().into()))
    }
}

/// The payloads of one series: a token for each sequence number, as much of it as fits, then a counting pattern.
pub struct EchoPayloads {
    /// Has absorbed what is the same in all tokens of the series.
    mac: Hmac<Sha256>,
    size: usize,
}

impl EchoPayloads {
    /// `series` never repeats in a process, identifiers do. `size` is in bytes.
    #[must_use]
    pub fn new(key: &TokenKey, series: u64, target: IpAddr, size: usize) -> Self {
        let mut mac = key.0.clone();
        mac.update(&series.to_be_bytes());
        match target {
            IpAddr::V4(target) => mac.update(&target.octets()),
            IpAddr::V6(target) => mac.update(&target.octets()),
        }
        Self { mac, size }
    }

    /// Can the payload hold a whole token?
    #[must_use]
    pub fn hold_whole_tokens(&self) -> bool {
        self.size >= TOKEN
    }

    fn token(&self, seq: u16) -> [u8; TOKEN] {
        let mac = self.mac.clone().chain_update(seq.to_be_bytes()).finalize().into_bytes();
        let mut token = [0; TOKEN];
        token.copy_from_slice(&mac[..TOKEN]);
        token
    }

    /// The payload of a request.
    pub fn payload(&self, seq: u16) -> impl Iterator<Item = u8> + use<> {
        let token = self.token(seq);
        #[expect(clippy::cast_possible_truncation, reason = "a pattern that wraps")]
        let pattern = (TOKEN..self.size).map(|i| i as u8);
        token.into_iter().take(self.size).chain(pattern)
    }

    /// Does the payload of a reply begin with the token?
    #[must_use]
    pub fn verify(&self, seq: u16, payload: &[u8]) -> bool {
        let token = self.token(seq);
        let expected = &token[..self.size.min(TOKEN)];
        payload.get(..expected.len()).is_some_and(|got| got.ct_eq(expected).into())
    }

    /// See [`may_quote`].
    #[must_use]
    pub fn may_be_quoted(&self, seq: u16, quoted: &[u8]) -> bool {
        may_quote(&self.token(seq)[..self.size.min(TOKEN)], quoted)
    }
}

/// Can quoted data be the beginning of what was sent? Another program's packets may have the same numbers, and forged
/// ones too. Only the first [`TOKEN`] bytes are compared. All zeros are a router's padding, and an empty quote is
/// compatible with everything.
#[must_use]
pub fn may_quote(sent: &[u8], quoted: &[u8]) -> bool {
    let common = sent.len().min(quoted.len()).min(TOKEN);
    sent[..common] == quoted[..common] || quoted.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_known_by_its_token_and_a_forged_one_is_not() {
        let (key, other) = (TokenKey::random(), TokenKey::random());
        let target: IpAddr = "192.0.2.1".parse().expect("address");
        let payloads = |key: &TokenKey, series, size| EchoPayloads::new(key, series, target, size);
        for size in [16, 56, 1472] {
            let sent: Vec<u8> = payloads(&key, 7, size).payload(3).collect();
            assert_eq!(sent.len(), size);
            assert!(payloads(&key, 7, size).verify(3, &sent));
            assert!(!payloads(&key, 8, size).verify(3, &sent), "another series");
            assert!(!payloads(&key, 7, size).verify(4, &sent), "another sequence number");
            assert!(!payloads(&other, 7, size).verify(3, &sent), "another process");
            assert!(!payloads(&key, 7, size).verify(3, &sent[..15]), "cut short");
            assert!(
                payloads(&key, 7, size).may_be_quoted(3, &sent) && !payloads(&key, 7, size).may_be_quoted(4, &sent)
            );
        }
        assert!(payloads(&key, 7, 0).verify(3, &[]), "too short for a token: identifier, sequence and source decide");
    }
}
