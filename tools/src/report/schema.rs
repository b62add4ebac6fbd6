//! Checks that what is written fits `report.schema.json`, and that the schema knows every
//! field of the model. Understands only the keywords that the schema uses.

use serde_json::Value;

use super::sample;

const SCHEMA: &str = include_str!("../../report.schema.json");

#[test]
fn a_report_fits_its_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let (report, _) = sample::report();
    assert_eq!(schema["properties"]["schema"]["const"], report.schema.as_str());
    let mut misfits = Vec::new();
    let report = serde_json::to_value(&report).unwrap();
    check(&schema, &schema, &report, "report", &mut misfits);
    assert!(misfits.is_empty(), "{misfits:#?}");
}

#[test]
fn misfits_are_found() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let (report, _) = sample::report();
    let mut report = serde_json::to_value(&report).unwrap();
    report["runs"][0]["response"]["p50_ns"] = Value::from(1.5);
    report["runs"][1].as_object_mut().unwrap().remove("batches");
    report["probe"]["colour"] = Value::from("red");
    let mut misfits = Vec::new();
    check(&schema, &schema, &report, "report", &mut misfits);
    assert_eq!(misfits.len(), 3, "{misfits:#?}");
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, misfits: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let definition = &root["$defs"][name.trim_start_matches("#/$defs/")];
        assert!(definition.is_object(), "{name} is not defined");
        return check(root, definition, value, at, misfits);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let fits = |choice: &Value| {
            let mut misfits = Vec::new();
            check(root, choice, value, at, &mut misfits);
            misfits.is_empty()
        };
        if !choices.iter().any(fits) {
            misfits.push(format!("{at}: fits none of anyOf"));
        }
        return;
    }
    if !has_type(&schema["type"], value) {
        misfits.push(format!("{at}: {value} is not {}", schema["type"]));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap();
        if value.get(name).is_none() {
            misfits.push(format!("{at}.{name}: missing"));
        }
    }
    if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    {
        for (name, field) in fields {
            match properties.get(name) {
                Some(property) => {
                    check(root, property, field, &format!("{at}.{name}"), misfits);
                }
                None => misfits.push(format!("{at}.{name}: not in the schema")),
            }
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (index, item) in values.iter().enumerate() {
            check(root, items, item, &format!("{at}[{index}]"), misfits);
        }
    }
}

fn has_type(kind: &Value, value: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| has_type(kind, value)),
        Value::String(kind) => match kind.as_str() {
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            "null" => value.is_null(),
            other => panic!("unknown type {other}"),
        },
        _ => true,
    }
}
