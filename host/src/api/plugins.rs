//! `/plugins`: each test type, its options and what it may do.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Api;

pub fn routes() -> Router<Arc<Api>> {
    Router::new().route("/plugins", get(plugins))
}

async fn plugins(State(api): State<Arc<Api>>) -> Json<Value> {
    let loaded: Vec<Value> = api
        .plugins
        .iter()
        .map(|plugin| {
            json!({
                "name": plugin.name,
                "version": plugin.version,
                "summary": plugin.summary,
                "options": plugin.options.json(),
                "result": plugin.result.json(),
                "imports": plugin.imports,
                "sha256": plugin.sha256,
            })
        })
        .collect();
    let refused: Vec<Value> = api
        .plugins
        .refused
        .iter()
        .map(|(path, reason)| json!({ "file": path.file_name().map(|n| n.to_string_lossy()), "reason": reason }))
        .collect();
    Json(json!({ "plugins": loaded, "refused": refused }))
}
