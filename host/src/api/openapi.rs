//! `/openapi.json`: the API as OpenAPI 3.1, with the option and result schemas of the plugins that are loaded; and
//! `/docs`, a page to try it on. Neither needs the secret, and neither shows one.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use super::{Api, body as bodies, plugins, status};
use crate::model;
use crate::plan::ID_CHARS;
use crate::plan::payload::{NAME_CHARS, OPTIONS};
use crate::sandbox::schema::components;

pub fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/openapi.json", get(document))
        .route("/api/v1.0/openapi.json", get(document))
        .route("/docs", get(docs))
}

async fn docs() -> impl IntoResponse {
    // The page runs what it brings along, and talks to this server only.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(include_str!("docs.html")))
}

async fn document(State(api): State<Arc<Api>>) -> Response {
    bodies::json(vec![api.documents.openapi.get_or_init(|| of(&api).to_string().into()).clone()])
}

fn of(api: &Api) -> Value {
    let mut schemas = schemas();
    let (mut payload, mut results) = (Map::new(), Map::new());
    for plugin in api.plugins.iter() {
        let (options, result) = (format!("{}_options", plugin.name), format!("{}_result", plugin.name));
        let mut given = plugin.options.json().clone();
        with_id(&mut given);
        schemas.extend(components(&given, &options));
        schemas.extend(components(plugin.result.json(), &result));
        let list = json!({"type": "array", "items": reference(&options), "description": plugin.summary});
        payload.insert(plugin.name.clone(), list);
        let test = json!({"allOf": [reference("Test"), {"type": "object", "properties": {"result": {"anyOf": [
            reference(&result), {"type": "object", "maxProperties": 0, "description": "It could not run at all."}]}}}]});
        results.insert(plugin.name.clone(), json!({"type": "array", "items": test}));
    }
    let list = json!({"type": "array", "items": {"type": "object"}});
    // The server takes names in any case; the document has the one spelling that cannot be given twice by accident.
    let names = json!({"maxLength": NAME_CHARS, "pattern": "^[a-z][a-z0-9_]*$"});
    let unknown =
        json!({"type": "array", "items": {"type": "object", "propertyNames": names, "maxProperties": OPTIONS}});
    schemas.insert(
        "Payload".into(),
        json!({"type": "object", "properties": payload, "additionalProperties": unknown, "propertyNames": names,
               "description": format!("Test types, each with a list of option sets; up to {} tests.", api.max_tests)}),
    );
    schemas.insert("Results".into(), json!({"type": "object", "properties": results, "additionalProperties": list}));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Scouter",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Remote network troubleshooting",
            "description": "POST tests, get a receipt, fetch the results. Option names are taken in any case, numbers as digit strings too.",
        },
        "servers": [{"url": "/"}],
        "security": [{"secret": []}, {"bearer": []}],
        "paths": paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "secret": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "The secret itself."},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "responses": errors(),
        },
    })
}

/// What every test takes besides the plugin's own options.
fn with_id(options: &mut Value) {
    if let Some(properties) = options.get_mut("properties").and_then(Value::as_object_mut) {
        let about = "Given back with the result; 6 random hexadecimal digits when it is left out.";
        properties.entry("id").or_insert_with(
            || json!({"type": ["string", "number", "null"], "maxLength": ID_CHARS, "description": about}),
        );
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn body(schema: &str) -> Value {
    json!({"application/json": {"schema": reference(schema)}})
}

fn failing(answers: &mut Value, statuses: &[&str]) {
    for status in statuses {
        answers[status] = json!({"$ref": format!("#/components/responses/E{status}")});
    }
}

fn paths() -> Value {
    let wait = json!({"name": "wait", "in": "query", "description": "Seconds to wait for the results, at most.",
                      "schema": {"type": "number", "minimum": 0, "maximum": 300}});
    let receipt = json!({"name": "receipt", "in": "query", "required": true,
                         "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}});
    let last = json!({"name": "Last-Event-ID", "in": "header", "description": "Go on after this event.",
                      "schema": {"type": "string"}});
    let operation = |id: &str, summary: &str, parameters: Value, answers: Value, also: &[&str]| {
        let mut answers = answers;
        failing(&mut answers, also);
        json!({"operationId": id, "summary": summary, "parameters": parameters, "responses": answers})
    };
    let results = json!({"200": {"description": "The results so far.", "content": body("Receipt")}});
    let mut submit = operation(
        "submit",
        "Start tests",
        json!([wait]),
        json!({"200": {
            "description": "The receipt; the results so far when `wait` is given.",
            "headers": {"Location": {"description": "Where the results are.", "schema": {"type": "string"}}},
            "content": {"application/json": {"schema": {"anyOf": [reference("Submitted"), reference("Receipt")]}}},
        }}),
        &["400", "403", "408", "413", "415", "429", "503"],
    );
    submit["requestBody"] = json!({"required": true, "content": body("Payload")});
    let deleted = json!({"200": {"description": "It is forgotten; what still ran for it is cancelled.", "content": body("Message")}});
    let told = json!({"200": {
        "description": "Server-sent events: `partial` (a test's result so far), `test` (a finished test), `done` (the whole body). \
                        Whoever comes late is first told what has happened already.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }});
    let schema = |about: &str, name: &str| json!({"200": {"description": about, "content": body(name)}});
    let object = |about: &str| json!({"200": {"description": about, "content": {"application/json": {"schema": {"type": "object"}}}}});
    let text = |kind: &str, about: &str| json!({"200": {"description": about, "content": {kind: {"schema": {"type": "string"}}}}});
    let open = |mut operation: Value| {
        operation["security"] = json!([]);
        operation
    };
    json!({
        "/api/v1.0/tests": {
            "post": submit,
            "get": operation("results", "Fetch results", json!([receipt, wait]), results, &["400", "403", "404"]),
            "delete": operation("forget", "Cancel tests and forget the receipt", json!([receipt]), deleted, &["400", "403", "404"]),
        },
        "/api/v1.0/tests/events": {
            "get": operation("events", "Watch tests", json!([receipt, last]), told, &["400", "403", "404"]),
        },
        "/api/v1.0/status": {"get": operation("status", "How the server is", json!([]), schema("Counts, slots, modes.", "Status"), &["403"])},
        "/api/v1.0/plugins": {"get": operation("plugins", "Test types", json!([]), schema("Names, schemas, imports.", "Plugins"), &["403"])},
        "/api/v1.0/openapi.json": {"get": open(operation("openapi", "This document", json!([]), object("OpenAPI 3.1."), &[]))},
        "/metrics": {"get": open(operation("metrics", "Counters for Prometheus", json!([]), text("application/openmetrics-text", "Text exposition format."), &[]))},
        "/healthz": {"get": open(operation("health", "Does the server answer?", json!([]), text("text/plain", "It does."), &[]))},
        "/readyz": {"get": open(operation("ready", "Does the server take tests?", json!([]), text("text/plain", "It does."), &["503"]))},
    })
}

fn errors() -> Value {
    let mut all = json!({});
    for (status, about) in [
        ("400", "The request makes no sense; the text says why."),
        ("403", "The secret is missing or wrong."),
        ("404", "There is no such receipt (any more)."),
        ("408", "The body did not arrive in time."),
        ("413", "The body is too large."),
        ("415", "The body is not JSON."),
        ("429", "The queue of waiting tests is full, or too many wrong secrets came from this address."),
        ("503", "The server is shutting down, or has too many connections or unread responses."),
    ] {
        let retry = json!({"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}});
        let headers = if ["429", "503"].contains(&status) { retry } else { json!({}) };
        all[format!("E{status}")] = json!({"description": about, "headers": headers, "content": body("Error")});
    }
    all
}

/// The schemas of all bodies, made from the types that are written to clients.
fn schemas() -> Map<String, Value> {
    let mut all = vec![];
    add::<model::Error>(&mut all);
    add::<model::Message>(&mut all);
    add::<model::Submitted>(&mut all);
    add::<model::Receipt>(&mut all);
    add::<model::Test>(&mut all);
    add::<model::Event>(&mut all);
    add::<status::Body>(&mut all);
    add::<plugins::Body>(&mut all);
    all.into_iter().filter_map(|(name, schema)| Some((name, serde_json::to_value(schema).ok()?))).collect()
}

fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    all.push((T::name().into_owned(), T::schema()));
    T::schemas(all);
}
