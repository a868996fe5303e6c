//! Answers and failures: status, JSON, headers.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use warp::http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER,
};
use warp::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::store::StoreError;
use crate::store::reads::{ChainNow, NamedBlock};

/// What a handler answers.
pub(crate) type Answer = Response<String>;

/// A request that gets no data: its status, a fixed code for programs, a sentence for people.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    status: StatusCode,
    code: &'static str,
    error: String,
    header: Option<(HeaderName, &'static str)>,
}

impl Failure {
    fn new(status: StatusCode, code: &'static str, error: impl Into<String>) -> Failure {
        Failure { status, code, error: error.into(), header: None }
    }

    /// 400 with this code.
    pub(crate) fn bad_request(code: &'static str, error: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, code, error)
    }

    pub(crate) fn invalid_parameter(error: impl Into<String>) -> Failure {
        Failure::bad_request("invalid_parameter", error)
    }

    pub(crate) fn invalid_target() -> Failure {
        let error = "the target of a request is a path, such as /chains; this is neither a proxy nor a tunnel";
        Failure::bad_request("invalid_target", error)
    }

    pub(crate) fn invalid_cursor() -> Failure {
        Failure::bad_request(
            "invalid_cursor",
            "cursor is not one that this route gave out; omit it to start from the beginning",
        )
    }

    pub(crate) fn not_found() -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "not_found", "no such route")
    }

    pub(crate) fn unknown_chain(name: Option<&str>) -> Failure {
        let error = match name {
            Some(name) => format!("there is no chain named {name:?}; /chains lists them"),
            None => "there is no chain yet".to_owned(),
        };
        Failure::new(StatusCode::NOT_FOUND, "unknown_chain", error)
    }

    /// 404 with this code.
    pub(crate) fn unknown(code: &'static str, error: impl Into<String>) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, code, error)
    }

    pub(crate) fn unknown_block() -> Failure {
        let error = "no block like this is applied; /status says how far each chain is";
        Failure::new(StatusCode::NOT_FOUND, "unknown_block", error)
    }

    pub(crate) fn block_replaced() -> Failure {
        Failure::new(StatusCode::GONE, "block_replaced", "this block was replaced by another one in a reorganisation")
    }

    pub(crate) fn history_pruned(from: Option<i64>) -> Failure {
        let error = match from {
            Some(from) => format!("the history of balances is kept from block {from} on"),
            None => "the history of balances does not reach back that far".to_owned(),
        };
        Failure::new(StatusCode::GONE, "history_pruned", error)
    }

    pub(crate) fn cursor_stale() -> Failure {
        let error = "the block this cursor names was undone; start again without a cursor";
        Failure::new(StatusCode::CONFLICT, "cursor_stale", error)
    }

    pub(crate) fn method_not_allowed() -> Failure {
        let error = "this route answers GET and HEAD";
        let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", error);
        Failure { header: Some((ALLOW, "GET, HEAD")), ..failure }
    }

    pub(crate) fn uri_too_long() -> Failure {
        let error = format!("path and query may have {} bytes together", super::LONGEST_URI_BYTES);
        Failure::new(StatusCode::URI_TOO_LONG, "uri_too_long", error)
    }

    /// A fault of ours. No detail: that is in the log.
    pub(crate) fn internal() -> Failure {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "something went wrong on our side")
    }

    pub(crate) fn unavailable() -> Failure {
        let error = "the store cannot be reached or takes too long; try again";
        let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error);
        Failure { header: Some((RETRY_AFTER, "1")), ..failure }
    }

    pub(crate) fn into_answer(self) -> Answer {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'a str,
            code: &'a str,
        }
        let mut answer = json(&Body { error: &self.error, code: self.code });
        *answer.status_mut() = self.status;
        if let Some((name, value)) = self.header {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        answer
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        if matches!(error, StoreError::Busy { .. }) {
            // A flood of requests is not to be a flood of lines.
            tracing::debug!(%error, "A request found no place");
            Failure::unavailable()
        } else if error.is_unavailable() {
            tracing::warn!(%error, "Could not read from the store");
            Failure::unavailable()
        } else {
            tracing::error!(%error, "A read failed");
            Failure::internal()
        }
    }
}

/// 200 with this body, readable from any web page.
pub(crate) fn json(body: &impl Serialize) -> Answer {
    let Ok(text) = serde_json::to_string(body) else {
        // Only a map with keys that are no text, or a failing `Serialize`, comes here; we have neither.
        tracing::error!("An answer could not be written as JSON");
        let mut answer = Response::new(r#"{"error":"something went wrong on our side","code":"internal"}"#.to_owned());
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return answer;
    };
    self::text(text)
}

/// 200 with this text as JSON, readable from any web page.
pub(crate) fn text(text: String) -> Answer {
    let mut answer = Response::new(text);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("X-Chain-Id, X-Block-Height, X-Block-Hash, X-Through-Height, X-Negative-Balances"),
    );
    answer
}

/// Names the block the answer is true at.
///
/// `X-Chain-Id` is what the network calls itself, or the chain's name here while no source has asked. Where the heights
/// above the block are known to be empty, `X-Through-Height` says how far.
pub(crate) fn name_block(
    answer: &mut Answer,
    chain: &ChainNow,
    block: Option<&NamedBlock>,
    through_height: Option<i64>,
) {
    let headers = answer.headers_mut();
    insert(headers, "x-chain-id", chain.network_id.as_deref().unwrap_or(&chain.name));
    if let Some(block) = block {
        insert(headers, "x-block-height", &block.height.to_string());
        insert(headers, "x-block-hash", &block.hash);
    }
    if let Some(through) = through_height.filter(|through| block.is_none_or(|b| b.height != *through)) {
        insert(headers, "x-through-height", &through.to_string());
    }
}

/// Counts the negative balances of the answer.
pub(crate) fn count_negatives(answer: &mut Answer, negatives: usize) {
    insert(answer.headers_mut(), "x-negative-balances", &negatives.to_string());
}

/// A value that no header can hold (a hash with control characters, on a chain of any text) is left out.
fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// HEAD gets the headers of GET, its length included, and no body.
pub(crate) fn for_method(method: &Method, answer: Answer) -> Answer {
    if method != Method::HEAD {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    Response::from_parts(parts, String::new())
}

/// Whether amounts are JSON numbers or text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AmountForm {
    /// A JSON integer of any size.
    Number,
    /// Decimal digits in quotes: JavaScript reads numbers above 2^53 wrongly.
    Text,
}

/// An exact integer as decimal digits; never through a float or a machine word.
#[derive(Debug)]
pub(crate) struct AmountJson<'a>(pub(crate) &'a str, pub(crate) AmountForm);

impl Serialize for AmountJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.1 {
            AmountForm::Text => serializer.serialize_str(self.0),
            AmountForm::Number => {
                serde_json::from_str::<&RawValue>(self.0).map_err(serde::ser::Error::custom)?.serialize(serializer)
            }
        }
    }
}
