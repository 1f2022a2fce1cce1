//! What a page is loaded in, and how long the commands about it may take: the same for both browsers.

use std::time::Duration;

/// Commands that any browser answers without delay, on a busy machine too.
pub const PROMPT: Duration = Duration::from_secs(30);
/// A page's own script may be in the way of these.
pub const ASK: Duration = Duration::from_secs(3);
/// The part of a page that is seen.
pub const VIEWPORT: (u32, u32) = (1280, 720);

/// A context of a page's own, with a window in it, in which nothing has been loaded yet.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Chrome's browser context, Firefox's user context.
    pub context: String,
    /// Chrome's target, which is its main frame too; Firefox's browsing context.
    pub page: String,
    /// Chrome's session with the target.
    pub session: String,
    /// Firefox fixes it when the context is made.
    pub verify_tls: bool,
}
