//! The engines that the imports drive. Sockets are opened here and nowhere else, and only towards a
//! [`Permitted`](crate::policy::Permitted) address.

pub mod dial;
pub mod dns;
pub mod http;
pub mod icmp;
pub mod packet;
pub mod resolver;
pub mod tls;

/// Which addresses of a name are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Any,
    V4,
    V6,
}

/// All engines of one process.
pub struct Net {
    pub icmp: icmp::Icmp,
    pub resolver: resolver::Resolver,
    pub tls: tls::Tls,
}

impl Net {
    /// Must be called on the runtime that the network work will happen on.
    ///
    /// # Errors
    /// When this machine has no usable resolver configuration or no trust anchors.
    pub fn open() -> anyhow::Result<Self> {
        Ok(Self { icmp: icmp::Icmp::open(), resolver: resolver::Resolver::open()?, tls: tls::Tls::open()? })
    }
}
