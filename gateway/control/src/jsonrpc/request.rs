//! Splits one request into its parts, without changes to them.
//!
//! An id is kept as its text, so that the answer has exactly the same digits: a JSON number can have more digits than any Rust
//! integer or float. An object that has a key twice is refused, at any depth. RFC 8259 §4 doesn't define which of the two
//! values is valid, so a proxy that checked the request may have checked the other value.

use super::{INVALID_PARAMS, INVALID_REQUEST, RpcError};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fmt;

/// A request. Without an id, it is a notification.
#[derive(Debug)]
pub struct Request<'a> {
    /// A string, a number or null, as the client sent it.
    pub id: Option<&'a RawValue>,
    /// The method's name.
    pub method: String,
    /// An object, or null.
    pub params: Value,
}

impl<'a> Request<'a> {
    /// Parses a request.
    ///
    /// # Errors
    /// The id for the answer, and an error that says what is wrong.
    pub fn parse(text: &'a RawValue) -> Result<Self, (&'a RawValue, RpcError)> {
        let refuse = |id: Option<&'a RawValue>, what: String| {
            (id.unwrap_or(RawValue::NULL), RpcError::new(INVALID_REQUEST, what))
        };
        let Ok(Fields(fields)) = serde_json::from_str::<Fields<'a>>(text.get()) else {
            return Err(refuse(None, "the request is not an object".into()));
        };
        let (mut id, mut version, mut method, mut params) = (None, None, None, None);
        let mut wrong = None;
        for (key, value) in fields {
            let place = match key.as_str() {
                "id" => &mut id,
                "jsonrpc" => &mut version,
                "method" => &mut method,
                "params" => &mut params,
                _ => {
                    wrong.get_or_insert(format!("a request has no field `{key}`"));
                    continue;
                }
            };
            if place.replace(value).is_some() {
                if key == "id" {
                    // The request has two ids, and neither can be preferred. So the refusal has the id null.
                    return Err(refuse(None, "the request has the key `id` twice".into()));
                }
                wrong.get_or_insert(format!("the request has the key `{key}` twice"));
            }
        }
        if id.is_some_and(|id| !matches!(first(id), b'"' | b'-' | b'n' | b'0'..=b'9')) {
            return Err(refuse(None, "`id` is not a string, a number or null".into()));
        }
        if let Some(wrong) = wrong {
            return Err(refuse(id, wrong));
        }
        // Like SPDK, accepts a request without a version, and refuses a request with a wrong version.
        if version.is_some_and(|version| string(version).as_deref() != Some("2.0")) {
            return Err(refuse(id, "`jsonrpc` is not \"2.0\"".into()));
        }
        let Some(method) = method.and_then(string) else {
            return Err(refuse(id, "`method` is missing or not a string".into()));
        };
        let params = params.map_or(Ok(Value::Null), |params| {
            object(params).map_err(|error| (id.unwrap_or(RawValue::NULL), error))
        })?;
        Ok(Self { id, method, params })
    }
}

fn first(value: &RawValue) -> u8 {
    value.get().bytes().next().unwrap_or_default()
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// Parses the parameters, which must be an object. An empty list or null means no parameters.
fn object(text: &RawValue) -> Result<Value, RpcError> {
    let once = serde_json::from_str::<Once>(text.get());
    // The position in the error is left out. The position is relative to the start of the parameters, so it would mislead the
    // client.
    let told = |e: serde_json::Error| {
        let message = e.to_string();
        let end = message.rfind(" at line ").unwrap_or(message.len());
        RpcError::new(INVALID_PARAMS, message.get(..end).unwrap_or_default())
    };
    match once.map_err(told)?.0 {
        params @ (Value::Null | Value::Object(_)) => Ok(params),
        Value::Array(list) if list.is_empty() => Ok(Value::Object(Map::new())),
        _ => Err(RpcError::new(INVALID_REQUEST, "`params` is not an object: give each parameter its name")),
    }
}

/// The fields of an object, in their order, with any keys.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Every;
        impl<'de> Visitor<'de> for Every {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        from.deserialize_map(Every)
    }
}

/// A value in which no object has a key twice.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        OnceSeed.deserialize(from).map(Self)
    }
}

#[derive(Clone, Copy)]
struct OnceSeed;

impl<'de> DeserializeSeed<'de> for OnceSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OnceSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, yes: bool) -> Result<Value, E> {
        Ok(yes.into())
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self)?;
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the request has the key `{key}` twice")));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (String, RpcError) {
        let raw: &RawValue = serde_json::from_str(text).expect("JSON");
        let (id, error) = Request::parse(raw).expect_err(text);
        (id.get().into(), error)
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused_at_any_depth() {
        for (text, id, key) in [
            (r#"{"id": 1, "method": "a", "method": "b"}"#, "1", "method"),
            (r#"{"id": 1, "method": "a", "params": {}, "params": null}"#, "1", "params"),
            (r#"{"id": 1, "id": 2, "method": "a"}"#, "null", "id"),
            (r#"{"id": 1, "method": "a", "params": {"x": 1, "x": 1}}"#, "1", "x"),
            (r#"{"id": 1, "method": "a", "params": {"x": 1, "\u0078": 2}}"#, "1", "x"),
            (r#"{"id": 1, "method": "a", "params": {"l": [{"y": {"z": 0, "w": 1, "z": 0}}]}}"#, "1", "z"),
        ] {
            let told = refused(text);
            assert_eq!(
                (told.0.as_str(), told.1.message),
                (id, format!("the request has the key `{key}` twice"))
            );
        }
    }

    #[test]
    fn parameters_are_what_serde_json_reads() {
        let text = r#"{"a": [null, true, -1, 18446744073709551615, 1.5, "x\n"], "b": {"a": {}}}"#;
        let raw: &RawValue = serde_json::from_str(text).expect("JSON");
        assert_eq!(object(raw), Ok(serde_json::from_str(text).expect("JSON")));
    }
}
