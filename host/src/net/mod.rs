//! The engines that the imports drive. Sockets are opened here and nowhere else, and only towards a
//! [`Permitted`](crate::policy::Permitted) address.

pub mod dial;
pub mod dns;
pub mod http;
pub mod icmp;
pub mod packet;
pub mod resolver;
pub mod tls;

use resolver::SystemConfig;

use crate::policy::Policy;

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
    /// When there are no usable trust anchors.
    pub fn open(config: SystemConfig, policy: &Policy) -> anyhow::Result<Self> {
        Ok(Self { icmp: icmp::Icmp::open(), resolver: resolver::Resolver::new(config, policy), tls: tls::Tls::open()? })
    }
}
