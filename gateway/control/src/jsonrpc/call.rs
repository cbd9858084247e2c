//! One value from the stream: a request or a batch, and its answer.

use super::{Dispatch, INVALID_REQUEST, RpcError};
use serde_json::{Map, Value, json};

/// Requests that one batch may hold.
pub const MAX_BATCH: usize = 16_384;
/// Bytes of answers after which a batch goes no further. As many answers of a usual length as a batch may hold fit.
pub const MAX_ANSWERS_BYTES: usize = 16 << 20;

/// The JSON that answers a request or a batch; `None` if there is nothing to say (notifications only).
pub async fn answer<D: Dispatch>(dispatch: &D, value: Value) -> Option<String> {
    let refuse = |why: String| Some(failure(Value::Null, RpcError::new(INVALID_REQUEST, why)).to_string());
    match value {
        Value::Array(batch) if batch.is_empty() => refuse("an empty batch".into()),
        Value::Array(batch) if batch.len() > MAX_BATCH => {
            refuse(format!("a batch of {} requests: {MAX_BATCH} are the most", batch.len()))
        }
        Value::Array(batch) => answer_batch(dispatch, batch, MAX_ANSWERS_BYTES).await,
        request => Some(answer_one(dispatch, request).await?.to_string()),
    }
}

/// In order, one after the other: a later request may need what an earlier one made. What was carried out is always
/// answered, so the limit may be passed by one answer.
async fn answer_batch<D: Dispatch>(dispatch: &D, batch: Vec<Value>, max_bytes: usize) -> Option<String> {
    let mut answers = String::new();
    for request in batch {
        let answer = match answers.len() < max_bytes {
            true => answer_one(dispatch, request).await,
            false => left_out(request, max_bytes),
        };
        if let Some(answer) = answer {
            answers.push(if answers.is_empty() { '[' } else { ',' });
            answers.push_str(&answer.to_string());
        }
    }
    (!answers.is_empty()).then(|| answers + "]")
}

/// The answer to a request that is not carried out, as those before it said too much.
fn left_out(request: Value, max_bytes: usize) -> Option<Value> {
    let why =
        format!("not carried out: the batch's answers have reached {max_bytes} bytes; send a smaller batch");
    match parse(request) {
        Ok((id, ..)) => Some(failure(id?, RpcError::new(INVALID_REQUEST, why))),
        Err((id, error)) => Some(failure(id, error)),
    }
}

/// The answer that tells of an error.
pub fn failure(id: Value, error: RpcError) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": error })
}

async fn answer_one<D: Dispatch>(dispatch: &D, request: Value) -> Option<Value> {
    let (id, method, params) = match parse(request) {
        Ok(parts) => parts,
        Err((id, error)) => return Some(failure(id, error)),
    };
    let result = dispatch.call(method, params).await;
    let id = id?;
    Some(match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => failure(id, error),
    })
}

type Parsed = (Option<Value>, String, Value);

fn parse(request: Value) -> Result<Parsed, (Value, RpcError)> {
    let refuse = |id: &Option<Value>, what: &str| {
        (id.clone().unwrap_or_default(), RpcError::new(INVALID_REQUEST, what))
    };
    let Value::Object(mut fields) = request else {
        return Err(refuse(&None, "a request is an object"));
    };
    let id = fields.remove("id");
    if !matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_))) {
        return Err(refuse(&None, "`id` is a string, a number or null"));
    }
    // SPDK takes requests without a version; a wrong one is refused.
    if fields.remove("jsonrpc").is_some_and(|version| version != "2.0") {
        return Err(refuse(&id, "`jsonrpc` is not \"2.0\""));
    }
    let Some(Value::String(method)) = fields.remove("method") else {
        return Err(refuse(&id, "`method` is missing or not a string"));
    };
    let params = match fields.remove("params") {
        None | Some(Value::Null) => Value::Null,
        Some(params @ Value::Object(_)) => params,
        Some(Value::Array(list)) if list.is_empty() => Value::Object(Map::new()),
        Some(_) => return Err(refuse(&id, "`params` is an object: parameters have names")),
    };
    match fields.keys().next() {
        Some(key) => Err(refuse(&id, &format!("a request has no field `{key}`"))),
        None => Ok((id, method, params)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Dispatch for Echo {
        async fn call(&self, method: String, params: Value) -> Result<Value, RpcError> {
            match method.as_str() {
                "echo" => Ok(params),
                _ => Err(RpcError::new(super::super::METHOD_NOT_FOUND, "Method not found")),
            }
        }
    }

    fn run(request: Value) -> Option<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let text = runtime.block_on(answer(&Echo, request))?;
        Some(serde_json::from_str(&text).expect("JSON"))
    }

    #[test]
    fn requests_batches_and_notifications() {
        let one = |id: i32| json!({"jsonrpc": "2.0", "id": id, "method": "echo", "params": {"a": id}});
        let reply = |id: i32| json!({"jsonrpc": "2.0", "id": id, "result": {"a": id}});
        assert_eq!(run(one(1)), Some(reply(1)));
        let quiet = json!({"jsonrpc": "2.0", "method": "echo"});
        assert_eq!(run(json!([one(1), quiet, one(2)])), Some(json!([reply(1), reply(2)])));
        assert_eq!(run(quiet.clone()), None);
        assert_eq!(run(json!([quiet])), None);
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_id() {
        let code = |request: Value| {
            let reply = run(request).expect("an answer");
            (reply["id"].clone(), reply["error"]["code"].as_i64())
        };
        let refused = Some(i64::from(INVALID_REQUEST));
        assert_eq!(code(json!([])), (Value::Null, refused));
        assert_eq!(code(json!({"id": 3})), (json!(3), refused));
        assert_eq!(code(json!({"id": [3], "method": "echo"})), (Value::Null, refused));
        assert_eq!(code(json!({"id": 3, "method": "echo", "params": [1]})), (json!(3), refused));
        assert_eq!(code(json!({"id": 3, "method": "echo", "jsonrpc": "1.0"})), (json!(3), refused));
        assert_eq!(code(json!({"id": 3, "method": "echo", "extra": 1})), (json!(3), refused));
        assert_eq!(code(json!({"id": "x", "method": "no"})), (json!("x"), Some(-32601)));
        assert_eq!(run(json!([1, 2])).and_then(|v| v.as_array().map(Vec::len)), Some(2));
    }

    #[test]
    fn a_batch_whose_answers_are_too_long_goes_no_further() {
        let echo = |id: i32| json!({"id": id, "method": "echo", "params": {"a": "x".repeat(100)}});
        let quiet = json!({"method": "echo"});
        let batch = vec![echo(1), echo(2), echo(3), quiet, json!(4), echo(5)];
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let text = runtime.block_on(answer_batch(&Echo, batch, 150)).expect("answers");
        let answers: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
        assert_eq!(ids, [&json!(1), &json!(2), &json!(3), &Value::Null, &json!(5)]);
        assert!(answers[..2].iter().all(|answer| answer["result"]["a"].is_string()), "{text}");
        for answer in [&answers[2], &answers[4]] {
            let message = answer["error"]["message"].as_str().expect("an error");
            assert!(message.contains("not carried out") && message.contains("150 bytes"), "{message}");
        }
    }

    #[test]
    fn a_batch_of_too_many_is_refused_with_the_limit() {
        let reply = run(vec![json!({"method": "echo"}); MAX_BATCH + 1].into()).expect("an answer");
        let message = reply["error"]["message"].as_str().expect("an error");
        assert_eq!(message, "a batch of 16385 requests: 16384 are the most");
    }
}
