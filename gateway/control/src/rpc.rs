//! Answers calls: finds a method by its name among the gateway's own methods and SPDK's methods.

use crate::jsonrpc::{Dispatch, METHOD_NOT_FOUND, RpcError};
use crate::methods::{self, Methods, Reply};
use crate::spdk;
use serde_json::Value;

impl Dispatch for Methods {
    async fn call(&self, method: String, params: Value) -> Reply {
        let result = route(self, &method, params).await;
        if let Err(error) = &result {
            tracing::debug!(method, %error, "a method failed");
        }
        result
    }
}

async fn route(methods: &Methods, name: &str, params: Value) -> Reply {
    if spdk::TUNING.contains(&name) {
        tracing::info!(method = name, "the gateway ignores a method that tunes SPDK's internals");
        return Ok(true.into());
    }
    let reply = match spdk::NAMES.contains(&name) {
        true => spdk::route(methods, name, params).await,
        false => methods::route(methods, name, params).await,
    };
    reply.unwrap_or_else(|| {
        let text = format!("there is no method `{name}`: rpc_get_methods lists all methods");
        Err(RpcError::new(METHOD_NOT_FOUND, text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::handle::Handle;
    use crate::jsonrpc::INVALID_PARAMS;
    use serde_json::json;

    #[test]
    fn every_method_refuses_an_unknown_parameter_by_name() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        // The handle has no engine. That is enough, because a method checks its parameters before it asks the engine.
        let gateway = Methods::new(Handle::dangling());
        for name in [methods::NAMES, spdk::NAMES].concat() {
            let call = gateway.call(name.into(), json!({ "no_such_thing": 1 }));
            let error = runtime.block_on(call).expect_err(name);
            assert_eq!(error.code, INVALID_PARAMS, "{name}: {error}");
            assert!(error.message.contains("no_such_thing"), "{name}: {error}");
        }
        let call = gateway.call("backend_explode".into(), Value::Null);
        assert_eq!(runtime.block_on(call).expect_err("unknown").code, METHOD_NOT_FOUND);
    }

    #[test]
    fn names_are_unique() {
        let mut names = [methods::NAMES, spdk::NAMES, spdk::TUNING].concat();
        let listed = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), listed);
    }
}
