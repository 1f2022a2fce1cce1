//! `/openapi.json`: the API as OpenAPI 3.1, made from the descriptions at the handlers, the types that are written to
//! clients, and the option and result schemas of the plugins that are loaded; and `/docs`, a page to try it on. None needs
//! the secret, and none shows one.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ComponentsBuilder, Schema};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, RefOr, Server};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Unavailable;
use super::{Api, SharedBody, body as bodies};
use crate::model;
use crate::plan::ID_CHARS;
use crate::plan::payload::{NAME_CHARS, OPTIONS};
use crate::sandbox::schema::components;

pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default().routes(routes!(document)).routes(routes!(document_of_v1)).routes(routes!(docs))
}

/// A page to try the API on
#[utoipa::path(get, path = "/docs", operation_id = "docs", security(()), responses(
    (status = 200, description = "HTML.", body = String, content_type = "text/html"),
    Unavailable,
))]
async fn docs() -> impl IntoResponse {
    // The page runs its own scripts only, and connects to this server only.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Extension(SharedBody::of(0)), Html(include_str!("docs.html")))
}

/// This document
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", security(()), responses(
    (status = 200, description = "OpenAPI 3.1.", body = Object, content_type = "application/json"),
    Unavailable,
))]
async fn document(State(api): State<Arc<Api>>) -> Response {
    bodies::json(vec![api.documents.openapi.get_or_init(|| of(&api).to_string().into()).clone()])
}

/// This document
#[utoipa::path(get, path = "/api/v1.0/openapi.json", operation_id = "openapi_v1", security(()), responses(
    (status = 200, description = "OpenAPI 3.1.", body = Object, content_type = "application/json"),
    Unavailable,
))]
async fn document_of_v1(state: State<Arc<Api>>) -> Response {
    document(state).await
}

/// What the document has besides its routes.
pub fn frame() -> OpenApi {
    let about = "Remote network troubleshooting. POST tests, get a receipt, fetch the results. Option names are taken in \
                 any case, numbers as digit strings too.";
    let info = InfoBuilder::new().title("Scouter").version(env!("CARGO_PKG_VERSION")).description(Some(about));
    let secret = ApiKeyValue::with_description("Authorization", "The secret itself.");
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let mut schemas = vec![];
    add::<model::Error>(&mut schemas);
    // Those to which no route refers: tests are in results, events are in a stream.
    add::<model::Test>(&mut schemas);
    add::<model::Event>(&mut schemas);
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme("secret", SecurityScheme::ApiKey(ApiKey::Header(secret)))
        .security_scheme("bearer", SecurityScheme::Http(bearer));
    let either = ["secret", "bearer"].map(|name| SecurityRequirement::new(name, [] as [&str; 0]));
    OpenApiBuilder::new()
        .info(info.build())
        .servers(Some([Server::new("/")]))
        .security(Some(either))
        .components(Some(components.build()))
        .build()
}

fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    all.push((T::name().into_owned(), T::schema()));
    T::schemas(all);
}

/// The whole document: with what the loaded plugins take and give.
fn of(api: &Api) -> Value {
    let (_, _, described) = super::routes();
    // Texts and numbers: this cannot fail.
    let mut document = serde_json::to_value(described).unwrap_or_default();
    if let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        schemas.extend(of_plugins(api));
    }
    document
}

fn of_plugins(api: &Api) -> Map<String, Value> {
    let (mut schemas, mut payload, mut results) = (Map::new(), Map::new(), Map::new());
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
    schemas
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
