//! The OpenAPI document, made from the table of routes and one file of schemas.

use crate::routes::{ROUTES, Route};
use serde_json::{Map, Value, json};

const SCHEMAS: &str = include_str!("schemas.json");

/// The whole document.
pub(crate) fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let entry = paths.entry(route.path.to_owned()).or_insert_with(|| json!({}));
        if let Some(methods) = entry.as_object_mut() {
            methods.insert(route.method.to_ascii_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Rackwright",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": serde_json::from_str::<Value>(SCHEMAS).unwrap_or_default(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn operation(route: &Route) -> Value {
    let answer = match route.answer {
        Some("OpenApi") => json!({"application/json": {"schema": {"type": "object"}}}),
        Some(schema) => json!({"application/json": {"schema": reference(schema)}}),
        None => json!({"text/plain": {"schema": {"type": "string"}}}),
    };
    let problem = json!({"description": "A problem with a stable code and a hint.",
        "content": {"application/problem+json": {"schema": reference("Problem")}}});
    let success = if (route.method, route.path) == ("POST", "/v1/jobs") { "201" } else { "200" };
    let body = route.body.map(
        |schema| json!({"required": true, "content": {"application/json": {"schema": reference(schema)}}}),
    );
    let optional = [
        ("requestBody", body),
        ("security", route.role.map(|_| json!([{"token": []}]))),
        ("x-role", route.role.map(|role| json!(role.as_str()))),
    ];
    let always = [
        ("summary", json!(route.summary)),
        ("parameters", json!(parameters(route))),
        ("responses", json!({success: {"description": "Done.", "content": answer}, "default": problem})),
    ];
    let given = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
    Value::Object(always.into_iter().chain(given).map(|(name, value)| (name.to_owned(), value)).collect())
}

fn parameters(route: &Route) -> Vec<Value> {
    let names = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let text = |name: &str, place: &str, required: bool| json!({"name": name, "in": place, "required": required, "schema": {"type": "string"}});
    let mut all: Vec<Value> = names.map(|name| text(name, "path", true)).collect();
    all.extend(route.query.iter().map(|name| text(name, "query", false)));
    if (route.method, route.path) == ("POST", "/v1/jobs") {
        all.push(text("Idempotency-Key", "header", false));
    }
    all
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.push(target.clone());
                }
                map.values().for_each(|inner| references(inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| references(inner, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// What `/v1` promises: keys are only ever added; anything else would be `/v2`.
    #[test]
    fn the_interface_is_as_recorded() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&document()).unwrap());
    }

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
        }
    }
}
