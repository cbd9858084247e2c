//! Answers one value from the stream: a request or a batch.

use super::request::Request;
use super::{Dispatch, INVALID_REQUEST, RpcError};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The most requests that one batch may hold.
pub const MAX_BATCH: usize = 16_384;
/// Once the answers to a batch have this many bytes, the rest of the batch is not carried out. The limit is high enough for a
/// batch of [`MAX_BATCH`] requests with answers of usual length.
pub const MAX_ANSWERS_BYTES: usize = 16 << 20;

/// Returns the JSON that answers a request or a batch, or `None` if it holds only notifications.
pub async fn answer<D: Dispatch>(dispatch: &D, message: &RawValue) -> Option<String> {
    if !message.get().starts_with('[') {
        return answer_one(dispatch, message).await;
    }
    let refuse = |why: String| Some(failure(RawValue::NULL, RpcError::new(INVALID_REQUEST, why)));
    match serde_json::from_str::<Vec<&RawValue>>(message.get()) {
        Ok(batch) if batch.is_empty() => refuse("the batch is empty".into()),
        Ok(batch) if batch.len() > MAX_BATCH => {
            refuse(format!("the batch has {} requests, and at most {MAX_BATCH} are allowed", batch.len()))
        }
        Ok(batch) => answer_batch(dispatch, batch, MAX_ANSWERS_BYTES).await,
        Err(error) => refuse(error.to_string()),
    }
}

/// Carries out the requests one after another, in order, because a request may need an object that an earlier request made.
/// Every request that is carried out gets its answer, so the last answer can exceed the limit.
async fn answer_batch<D: Dispatch>(dispatch: &D, batch: Vec<&RawValue>, max_bytes: usize) -> Option<String> {
    let mut answers = String::new();
    for request in batch {
        let answer = match answers.len() < max_bytes {
            true => answer_one(dispatch, request).await,
            false => left_out(request, max_bytes),
        };
        if let Some(answer) = answer {
            answers.push(if answers.is_empty() { '[' } else { ',' });
            answers.push_str(&answer);
        }
    }
    (!answers.is_empty()).then(|| answers + "]")
}

/// Returns the answer to a request that is not carried out because the answers before it have reached the limit.
fn left_out(request: &RawValue, max_bytes: usize) -> Option<String> {
    let why = format!(
        "the request was not carried out, because the batch's answers have reached {max_bytes} bytes: send a smaller batch"
    );
    match Request::parse(request) {
        Ok(request) => Some(failure(request.id?, RpcError::new(INVALID_REQUEST, why))),
        Err((id, error)) => Some(failure(id, error)),
    }
}

/// An answer with the request's id, which is unchanged.
#[derive(Serialize)]
struct Answer<'a> {
    jsonrpc: &'static str,
    id: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RpcError>,
}

impl Answer<'_> {
    fn text(&self) -> String {
        // Serialization fails only for a map whose keys are not strings, or for a failing `Serialize`. Neither occurs here.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Returns the answer that reports an error.
pub fn failure(id: &RawValue, error: RpcError) -> String {
    Answer { jsonrpc: "2.0", id, result: None, error: Some(error) }.text()
}

async fn answer_one<D: Dispatch>(dispatch: &D, request: &RawValue) -> Option<String> {
    let Request { id, method, params } = match Request::parse(request) {
        Ok(request) => request,
        Err((id, error)) => return Some(failure(id, error)),
    };
    let result = dispatch.call(method, params).await;
    let id = id?;
    Some(match result {
        Ok(result) => Answer { jsonrpc: "2.0", id, result: Some(result), error: None }.text(),
        Err(error) => failure(id, error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use serde_json::value::to_raw_value;

    struct Echo;

    impl Dispatch for Echo {
        async fn call(&self, method: String, params: Value) -> Result<Value, RpcError> {
            match method.as_str() {
                "echo" => Ok(params),
                _ => Err(RpcError::new(super::super::METHOD_NOT_FOUND, "Method not found")),
            }
        }
    }

    fn run_text(request: &str) -> Option<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(answer(&Echo, serde_json::from_str(request).expect("JSON")))
    }

    fn run(request: Value) -> Option<Value> {
        Some(serde_json::from_str(&run_text(&request.to_string())?).expect("JSON"))
    }

    #[test]
    fn an_id_comes_back_as_it_came() {
        for id in ["12345678901234567890123", "1.0", "1e2", "-0", "1E400", r#""\u0041""#, r#""""#, "null"] {
            let one = format!(r#"{{"id": {id} ,"method":"echo","params":{{}}}}"#);
            let reply = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
            assert_eq!(run_text(&one), Some(reply.clone()));
            assert_eq!(run_text(&format!("[{one},{one}]")), Some(format!("[{reply},{reply}]")));
            let wrong = run_text(&format!(r#"{{"id":{id},"method":"no"}}"#)).expect("an answer");
            assert!(
                wrong.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"#)),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_request_of_a_batch_with_a_key_twice_is_refused_alone() {
        let text = run_text(r#"[{"id":1,"method":"echo","params":{"a":1,"a":2}},{"id":2,"method":"echo"}]"#);
        let answers: Vec<Value> = serde_json::from_str(&text.expect("answers")).expect("JSON");
        assert_eq!(answers[0]["error"]["message"], json!("the request has the key `a` twice"));
        assert_eq!((&answers[1]["id"], &answers[1]["result"]), (&json!(2), &Value::Null));
        assert!(answers[1].get("result").is_some(), "a result of null is one");
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
        let batch = [echo(1), echo(2), echo(3), quiet, json!(4), echo(5)];
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let batch: Vec<_> = batch.iter().map(|request| to_raw_value(request).expect("JSON")).collect();
        let batch = batch.iter().map(|request| &**request).collect();
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
        assert_eq!(message, "the batch has 16385 requests, and at most 16384 are allowed");
    }
}
