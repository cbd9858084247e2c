//! Parsing of parameters, and small parameter types that several methods share.

use crate::jsonrpc::RpcError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use trefoil_config::{cut, suggest};

/// Most fields of an object in which the wrong field is searched. No method has so many fields. The search copies the whole
/// object for each field, so it is skipped for larger objects.
pub(crate) const MAX_FIELDS: usize = 64;

/// Reads parameters. The error names the field with the wrong value.
///
/// # Errors
/// -32602, naming the field.
pub fn parse<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    let params = if params.is_null() { Value::Object(Map::new()) } else { params };
    T::deserialize(&params).map_err(|error| {
        let message = error.to_string();
        let told = suggest(&message);
        match culprit::<T>(&params, &message) {
            Some(field) => RpcError::params(format!("{}: {told}", cut(&field))),
            Option::None => RpcError::params(told),
        }
    })
}

/// Returns the field with the wrong value, because serde_json doesn't name it: the field whose removal changes the error.
fn culprit<T: DeserializeOwned>(params: &Value, message: &str) -> Option<String> {
    let fields = params.as_object().filter(|fields| fields.len() <= MAX_FIELDS)?;
    let without = |key: &String| {
        let mut rest = fields.clone();
        rest.remove(key);
        T::deserialize(&Value::Object(rest)).err().is_none_or(|e| e.to_string() != message)
    };
    fields.keys().find(|key| without(key)).cloned()
}

/// No parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct None {}

/// The name of one object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// The object's name.
    pub name: String,
}

/// The name of one object. Without a name, all objects are meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaybeName {
    /// The object's name. `None` means all objects.
    #[serde(default)]
    pub name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Some2 {
        #[allow(dead_code)]
        size: u32,
    }

    fn message(params: Value) -> String {
        parse::<Some2>(params).expect_err("a mistake").message
    }

    #[test]
    fn an_address_without_a_port_is_named() {
        let params = json!({ "nqn": "nqn.2026-01.org.example:s", "listeners": ["127.0.0.1:1", "127.0.0.1"] });
        let error = parse::<trefoil_config::Subsystem>(params).expect_err("a mistake").message;
        let want = "listeners: `127.0.0.1` is not an address with a port, such as 192.0.2.1:4420";
        assert!(error.starts_with(want), "{error}");
    }

    /// The search would copy all fields once for each field, which takes too long with many fields.
    #[test]
    fn among_many_fields_none_is_blamed() {
        let mut fields: Map<String, Value> = (0..1000).map(|n| (format!("a{n}"), Value::Null)).collect();
        fields.insert("nqn".into(), 5.into());
        #[derive(Debug, Deserialize)]
        struct Lenient {
            #[allow(dead_code)]
            nqn: String,
        }
        let error = parse::<Lenient>(fields.into()).expect_err("a mistake").message;
        assert!(error.starts_with("invalid type: integer `5`"), "{error}");
    }

    #[test]
    fn the_field_is_named() {
        assert!(message(json!({"size": "x"})).starts_with("size: invalid type"));
        assert!(message(json!({"size": 1, "shape": 2})).starts_with("shape: unknown field `shape`"));
        let near = "sizes: unknown field `sizes`, did you mean `size`? expected `size`";
        assert_eq!(message(json!({"size": 1, "sizes": 2})), near);
        let long = message(json!({"size": 1, "x\n".repeat(50_000): 2}));
        assert!(long.starts_with("x\\nx\\n") && long.len() < 500 && !long.contains('\n'), "{long}");
        assert!(message(json!({})).contains("missing field `size`"));
        assert!(message(Value::Null).contains("missing field `size`"));
    }
}
