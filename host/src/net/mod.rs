//! The engines that the imports drive. Sockets are opened here and nowhere else, and only towards a
//! [`Permitted`](crate::policy::Permitted) address.

pub mod asn;
pub mod browser;
pub mod dial;
pub mod dns;
pub mod hops;
pub mod http;
pub mod icmp;
pub mod packet;
pub mod resolver;
pub mod series;
pub mod tls;

use std::path::PathBuf;
use std::sync::Arc;

use resolver::SystemConfig;
use tokio_util::sync::{CancellationToken, DropGuard};

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
    pub hops: hops::Hops,
    pub asn: Arc<asn::Asn>,
    pub resolver: Arc<resolver::Resolver>,
    pub browsers: browser::Browsers,
    pub tls: tls::Tls,
}

impl Net {
    /// Must be called on the runtime that the network work will happen on.
    ///
    /// # Errors
    /// When there are no usable trust anchors.
    pub fn open(
        config: SystemConfig,
        policy: &Policy,
        asn_file: Option<PathBuf>,
        browsers: browser::Config,
    ) -> anyhow::Result<Self> {
        let icmp = icmp::Icmp::open();
        let resolver = Arc::new(resolver::Resolver::new(config, policy));
        Ok(Self {
            hops: hops::Hops::open(&icmp),
            icmp,
            asn: Arc::new(asn::Asn::new(asn_file)),
            browsers: browser::Browsers::new(browsers, Arc::clone(&resolver), Arc::new(policy.clone())),
            resolver,
            tls: tls::Tls::open()?,
        })
    }
}

/// Tasks that end with an exchange. hyper drives an HTTP/2 connection in one of its own, which wants to say goodbye: a
/// server that does not read would keep it, and the connection, for as long as it likes.
#[derive(Clone)]
struct Tied(CancellationToken);

impl Tied {
    /// Dropping the guard ends them.
    fn new() -> (Self, DropGuard) {
        let over = CancellationToken::new();
        (Self(over.clone()), over.drop_guard())
    }
}

impl<F> hyper::rt::Executor<F> for Tied
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(future));
    }
}
