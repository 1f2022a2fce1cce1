//! `/plugins`: each test type, its options and what it may do.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Refused as Errors;
use super::{Api, body};

pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default().routes(routes!(plugins))
}

/// Test types, and files that are not served.
#[derive(Serialize, ToSchema)]
#[schema(as = Plugins)]
struct Body<'a> {
    plugins: Vec<Plugin<'a>>,
    refused: Vec<Refused<'a>>,
}

#[derive(Serialize, ToSchema)]
struct Plugin<'a> {
    name: &'a str,
    version: &'a str,
    summary: &'a str,
    /// JSON Schema of the options.
    #[schema(value_type = Object)]
    options: &'a Value,
    /// JSON Schema of the result.
    #[schema(value_type = Object)]
    result: &'a Value,
    /// What the component imports: what it may do.
    imports: &'a [String],
    /// Of the file.
    sha256: &'a str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RefusedPlugin)]
struct Refused<'a> {
    #[schema(required)]
    file: Option<String>,
    reason: &'a str,
}

/// Test types
#[utoipa::path(get, path = "/plugins", responses(
    (status = 200, description = "Names, schemas, imports.", body = Body),
    Errors,
))]
async fn plugins(State(api): State<Arc<Api>>) -> Response {
    body::json(vec![api.documents.plugins.get_or_init(|| document(&api)).clone()])
}

fn document(api: &Api) -> Bytes {
    let loaded = api.plugins.iter().map(|plugin| Plugin {
        name: &plugin.name,
        version: &plugin.version,
        summary: &plugin.summary,
        options: plugin.options.json(),
        result: plugin.result.json(),
        imports: &plugin.imports,
        sha256: &plugin.sha256,
    });
    let refused = api.plugins.refused.iter().map(|(path, reason)| Refused {
        file: path.file_name().map(|name| name.to_string_lossy().into_owned()),
        reason,
    });
    let body = Body { plugins: loaded.collect(), refused: refused.collect() };
    // Texts and JSON: this cannot fail.
    serde_json::to_vec(&body).unwrap_or_default().into()
}
