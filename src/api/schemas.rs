//! `/schemas/{type}/{version}`: the JSON Schema of what notices of a type hold.

use warp::http::HeaderValue;
use warp::http::header::CONTENT_TYPE;
use warp::{Filter, Rejection};

use super::reading;
use super::reply::{self, Answer};

/// Every schema that was ever released, by the end of its path.
pub const SCHEMAS: [(&str, &str); 5] = [
    ("ebbtide.block.applied/1", include_str!("../../docs/schemas/ebbtide.block.applied.1.json")),
    ("ebbtide.transfer.applied/1", include_str!("../../docs/schemas/ebbtide.transfer.applied.1.json")),
    ("ebbtide.balance.changed/1", include_str!("../../docs/schemas/ebbtide.balance.changed.1.json")),
    ("ebbtide.row.changed/1", include_str!("../../docs/schemas/ebbtide.row.changed.1.json")),
    ("ebbtide.projection.rebuilt/1", include_str!("../../docs/schemas/ebbtide.projection.rebuilt.1.json")),
];

pub(super) fn routes() -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let schema = warp::path::full().and_then(|path: warp::path::FullPath| async move {
        let wanted = path.as_str().strip_prefix("/schemas/");
        SCHEMAS
            .iter()
            .find(|(name, _)| Some(*name) == wanted)
            .map(|(_, text)| *text)
            .ok_or_else(warp::reject::not_found)
    });
    schema.and(reading()).map(|text: &str| {
        let mut answer = reply::text(text.to_owned());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/schema+json"));
        answer
    })
}
