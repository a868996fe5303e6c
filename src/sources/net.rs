//! How sources reach servers, whatever these speak: bounded HTTP, fail-over between URLs, and subscriptions as bells.

pub(crate) mod bell;
pub mod http;
pub(crate) mod pool;
pub(crate) mod server;
pub mod websocket;
