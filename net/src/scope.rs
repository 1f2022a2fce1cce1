//! Tasks that end with their exchange.

use tokio_util::sync::{CancellationToken, DropGuard};

/// Tasks that end with an exchange. hyper drives an HTTP/2 connection in one of its own, which tries to close it
/// properly: a server that does not read would keep it, and the connection, for as long as it likes.
#[derive(Clone)]
pub struct ExchangeTasks(CancellationToken);

impl ExchangeTasks {
    /// Dropping the guard ends them.
    pub fn new() -> (Self, DropGuard) {
        let over = CancellationToken::new();
        (Self(over.clone()), over.drop_guard())
    }
}

impl<F> hyper::rt::Executor<F> for ExchangeTasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(future));
    }
}
