//! What the controller sends on stdin: refused whole when it is of another version or makes no sense.

use crate::failure::Failure;
use rackwright_wire::format;
use rackwright_wire::plan::PLAN_VERSION;
use serde::de::DeserializeOwned;

/// Reads a plan or a request; `what` reads after "failed to". Another version has a code of its own.
pub(crate) fn json<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| match format::other(text, PLAN_VERSION) {
        Some(other) => Failure { code: "plan-version".to_owned(), ..Failure::bad_input(what, &other) },
        None => Failure::bad_input(what, &error),
    })
}
