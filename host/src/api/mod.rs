//! The REST API. Each file owns its routes, types and handlers; this one merges them, authenticates, and serves. A route
//! comes with its description, of which the OpenAPI document is made: both are written at its handler.

mod access;
mod auth;
mod body;
mod error;
mod events;
mod health;
mod metrics;
mod openapi;
mod plugins;
mod status;
mod tests;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::receipts::Receipts;
use crate::runner::{Requests, Runner};
use crate::sandbox::Plugins;
use crate::services::Services;
use scouter_net::Net;

pub use auth::Auth;
pub use body::SharedBody;
pub use error::ApiError;
pub use tests::Costs;

/// What handlers share.
pub struct Api {
    pub auth: Auth,
    pub plugins: Arc<Plugins>,
    pub runner: Arc<Runner>,
    pub receipts: Arc<Receipts>,
    pub requests: Requests,
    pub network: Network,
    pub services: Arc<Services>,
    pub max_tests: usize,
    pub max_body: usize,
    pub costs: Costs,
    pub documents: Documents,
    pub started: Instant,
    /// No new tests: the server is on its way out.
    pub stopping: AtomicBool,
}

/// What the loaded plugins alone decide, as JSON: made once, and shared by all responses.
#[derive(Debug, Default)]
pub struct Documents {
    openapi: OnceLock<Bytes>,
    plugins: OnceLock<Bytes>,
}

/// Which socket modes are in use, as `/status` shows them.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct Network {
    pub icmp_v4: SocketMode,
    pub icmp_v6: SocketMode,
    pub nameservers: Vec<String>,
    pub trust_anchors: String,
    pub targets: String,
}

#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct SocketMode {
    /// `raw`, `datagram`, or null when there is no such socket.
    #[schema(required)]
    pub mode: Option<&'static str>,
    /// Why it is not better than it is.
    #[schema(required)]
    pub why: Option<String>,
}

impl Network {
    #[must_use]
    pub fn of(net: &Net, policy: &scouter_net::policy::Policy) -> Self {
        let [icmp_v4, icmp_v6] = net.ping.modes().map(|(mode, why)| SocketMode { mode, why: why.map(str::to_owned) });
        Self {
            icmp_v4,
            icmp_v6,
            nameservers: Self::nameservers(net),
            trust_anchors: net.tls.anchors.clone(),
            targets: policy.summary(),
        }
    }

    /// As `/etc/resolv.conf` has them now.
    fn nameservers(net: &Net) -> Vec<String> {
        net.resolver.nameservers().iter().map(ToString::to_string).collect()
    }
}

/// Where all routes are that need a secret.
const V1: &str = "/api/v1.0";

/// The routes under [`V1`], those at the root, and what all of them are.
fn routes() -> (Router<Arc<Api>>, Router<Arc<Api>>, OpenApi) {
    let v1 = OpenApiRouter::default()
        .merge(tests::routes())
        .merge(events::routes())
        .merge(status::routes())
        .merge(plugins::routes());
    let root = OpenApiRouter::with_openapi(openapi::frame())
        .merge(health::routes())
        .merge(metrics::routes())
        .merge(openapi::routes());
    let ((v1, described), (root, document)) = (v1.split_for_parts(), root.split_for_parts());
    (v1, root, document.nest(V1, described))
}

/// All routes.
pub fn router(api: Arc<Api>) -> Router {
    let (v1, root, _) = routes();
    let v1 = v1
        .fallback(|| async { ApiError::NoSuchRoute })
        .method_not_allowed_fallback(|| async { ApiError::WrongMethod })
        .layer(middleware::from_fn_with_state(Arc::clone(&api), auth::require))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), count));
    let all = root
        .nest(V1, v1)
        .fallback(|| async { ApiError::NoSuchRoute })
        .method_not_allowed_fallback(|| async { ApiError::WrongMethod });
    access::layers(all, &api).with_state(api)
}

async fn count(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    api.requests.count();
    next.run(request).await
}
