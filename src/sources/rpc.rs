//! JSON-RPC as nodes of several kinds of chains speak it: endpoints, fail-over between them, second opinions, and what every
//! such source does alike. What a chain's own methods and errors mean, its [`Dialect`] says.

pub(crate) mod contracts;
pub(crate) mod endpoint;
pub(crate) mod fault;
pub(crate) mod linked;
pub(crate) mod reader;

use std::time::Duration;

use serde_json::Value;

use self::fault::Verdict;
use self::linked::Form;
use super::net::bell::{Heard, Manner};
use crate::chain::Link;

/// What differs between kinds of chains.
#[derive(Debug)]
pub(crate) struct Dialect {
    /// The method that gives the network's id.
    pub(crate) network: &'static str,
    /// The id in that method's answer, as people write it.
    pub(crate) read_network: fn(&str) -> Option<String>,
    /// What an error of a method means, by its code and words.
    pub(crate) judge: fn(&str, i64, &str) -> Verdict,
    /// Most calls in one request.
    pub(crate) most_calls: usize,
    /// How blocks' names are asked for.
    pub(crate) links: Form<Link>,
}

/// New heads over a WebSocket, `subscribe` being the request for them.
pub(crate) const fn heads(subscribe: &'static str) -> Manner {
    Manner {
        subprotocol: None,
        greeting: subscribe,
        hear,
        ping: None,
        missed_pings: 3,
        // Whatever rings makes us ask: a node that never stops has us ask five times a second.
        between_wakes: Duration::from_millis(200),
    }
}

/// Whatever a node sends rings, unless it is an error. The answer to the subscription rings too, since heads may have gone by
/// while it was not there.
fn hear(text: &str) -> Result<Heard, String> {
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    match answer.get("error").filter(|error| !error.is_null()) {
        Some(error) => Err(error.get("message").and_then(Value::as_str).unwrap_or("an error").to_owned()),
        None => Ok(Heard { rings: true, ..Heard::default() }),
    }
}
