//! What nodes mean by their errors. Codes are used freely by providers, so the wording decides. Pure.

/// What an error of a JSON-RPC call means for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Fewer heights at once; the most the node gives, if it says so.
    RangeTooLarge { at_most: Option<u64> },
    /// A limit, of results or of requests: the words do not tell.
    SomeLimit,
    /// Later.
    Busy,
    /// Not so many calls in one request; how many, if it says so.
    BatchRefused { at_most: Option<u64> },
    /// The node does not know the block, or not any more.
    UnknownBlock,
    /// The node has thrown away the data of old blocks.
    NoHistory,
    /// The node does not offer this method.
    NoMethod,
    /// Not for us.
    NoAccess,
    /// Anything else.
    Other,
}

/// Judges an error by its code and words.
pub(crate) fn judge(code: i64, message: &str) -> Verdict {
    let text = message.to_lowercase();
    certain(code, &text).unwrap_or_else(|| rest(code, &text))
}

/// As [`judge`], for a method that searches a range of heights, which may be too large.
pub(crate) fn judge_search(code: i64, message: &str) -> Verdict {
    let text = message.to_lowercase();
    certain(code, &text).or_else(|| of_range(code, &text)).unwrap_or_else(|| rest(code, &text))
}

fn has(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.contains(word))
}

/// What means the same for every method, and leaves no doubt.
fn certain(code: i64, text: &str) -> Option<Verdict> {
    if has(text, BUSY) || code == 429 {
        Some(Verdict::Busy)
    } else if has(text, &["batch"]) && !has(text, &["internal"]) {
        Some(Verdict::BatchRefused { at_most: number_near(text, &["requests", "calls", "batch", "items"]) })
    } else if has(text, NO_HISTORY) || code == 4444 {
        Some(Verdict::NoHistory)
    } else if has(text, NO_ACCESS) {
        Some(Verdict::NoAccess)
    } else if has(text, UNKNOWN_BLOCK) {
        Some(Verdict::UnknownBlock)
    } else {
        None
    }
}

fn of_range(code: i64, text: &str) -> Option<Verdict> {
    let too_many = has(text, &["more than", "too many", "exceed", "limit", "max"])
        && has(text, &["result", "logs", "block", "range", "response", "size"]);
    if too_many || has(text, RANGE) {
        Some(Verdict::RangeTooLarge { at_most: suggested_range(text) })
    } else if has(text, &["limit exceeded", "limit reached"]) || code == -32005 {
        Some(Verdict::SomeLimit)
    } else {
        None
    }
}

fn rest(code: i64, text: &str) -> Verdict {
    match code {
        -32005 => Verdict::Busy,
        -32601 => Verdict::NoMethod,
        _ if has(text, NO_METHOD) => Verdict::NoMethod,
        _ => Verdict::Other,
    }
}

const BUSY: &[&str] = &[
    "too many requests",
    "rate limit",
    "rate-limit",
    "ratelimit",
    "request rate",
    "request limit",
    "requests per second",
    "request count",
    "per second",
    "compute units",
    "throughput",
    "capacity",
    "quota",
    "credits",
    "throttle",
    "overloaded",
    "server is busy",
    "try again later",
];

const NO_HISTORY: &[&str] =
    &["pruned", "missing trie node", "historical state", "state is not available", "state not available", "archive"];

const NO_ACCESS: &[&str] = &[
    "unauthorized",
    "unauthenticated",
    "must be authenticated",
    "forbidden",
    "access denied",
    "invalid api key",
    "api key is",
    "invalid project id",
    "invalid token",
];

const UNKNOWN_BLOCK: &[&str] = &[
    "unknown block",
    "header not found",
    "header for hash not found",
    "block not found",
    "block is not found",
    "is not found",
    "cannot be found",
    "can't be found",
    "could not be found",
    "could not find block",
    "couldn't find",
    "no block with",
    "block does not exist",
    "missing block",
    "unfinalized data",
    "after last accepted block",
    "block is out of range",
    "beyond current head",
    "beyond head",
    "invalid block range params",
    "header with hash",
];

const RANGE: &[&str] = &[
    "block range",
    "blocks range",
    "range is too",
    "range too",
    "too wide",
    "too big",
    "too large",
    "ranges over",
    "range exceeds",
    "exceeds the range",
    "limited to",
    "blocks distance",
    "oversized",
    "response size",
    "smaller than size",
    "timeout",
    "timed out",
    "deadline exceeded",
    "canceled",
    "cancelled",
    "took too long",
];

const NO_METHOD: &[&str] = &[
    "method not found",
    "does not exist/is not available",
    "method not supported",
    "method is not supported",
    "unsupported method",
    "not implemented",
    "method not allowed",
    "is not whitelisted",
];

/// The number of heights that a node's refusal names.
fn suggested_range(text: &str) -> Option<u64> {
    // "this block range should work: [0x1000, 0x1fff]"
    if let Some((_, rest)) = text.split_once("[0x")
        && let Some((low, rest)) = rest.split_once(',')
        && let Some((high, _)) = rest.split_once(']')
        && let Ok(low) = u64::from_str_radix(low.trim(), 16)
        && let Ok(high) = u64::from_str_radix(high.trim().trim_start_matches("0x"), 16)
    {
        return high.checked_sub(low).map(|n| n.saturating_add(1));
    }
    // "retry with the range 1000-1999"
    if let Some((_, rest)) = text.split_once("with the range ")
        && let Some((low, rest)) = rest.split_once('-')
        && let Ok(low) = low.trim().parse::<u64>()
        && let Ok(high) = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse::<u64>()
    {
        return high.checked_sub(low).map(|n| n.saturating_add(1));
    }
    number_near(text, &["block", "range"])
}

/// The smallest number that counts one of `units` ("10,000 blocks", "2k block range") or that stands behind a word
/// of limitation ("maximum is set to 2048", "block range: 50000").
fn number_near(text: &str, units: &[&str]) -> Option<u64> {
    let separator = |c: char| c.is_whitespace() || "():;[]\"'=".contains(c);
    let words: Vec<&str> =
        text.split(separator).map(|w| w.trim_end_matches([',', '.'])).filter(|w| !w.is_empty()).collect();
    let mut found: Option<u64> = None;
    for (index, word) in words.iter().enumerate() {
        let Some(number) = number(word).filter(|n| *n > 0) else { continue };
        let next = words.get(index + 1).copied().unwrap_or_default();
        let counts_units = units.iter().any(|unit| next.starts_with(unit));
        let counts_others = ["result", "log", "byte", "mb", "kb", "entr", "second", "ms", "s"];
        let filler = ["is", "set", "to", "of", "a", "the", "at", "most", "only", "are", "up", "than"];
        let before = words[..index].iter().rev().find(|w| !filler.contains(*w)).copied().unwrap_or_default();
        let limits = ["max", "maximum", "limit", "range", "distance", "over", "size", "greater", "-"].contains(&before)
            && !counts_others.iter().any(|unit| next.starts_with(unit));
        if counts_units || limits {
            found = Some(found.map_or(number, |other| other.min(number)));
        }
    }
    found
}

/// `10000`, `10,000` or `10k`.
fn number(word: &str) -> Option<u64> {
    let (digits, factor) = match word.strip_suffix('k') {
        Some(digits) => (digits, 1_000),
        None => (word, 1),
    };
    let starts_well = digits.starts_with(|c: char| c.is_ascii_digit());
    let digits: String = digits.chars().filter(|c| *c != ',' && *c != '_').collect();
    if starts_well { digits.parse::<u64>().ok()?.checked_mul(factor) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_ranges_are_known_in_every_wording() {
        let some = Some;
        for (code, message, at_most) in [
            (-32005, "query returned more than 10000 results", None),
            (-32005, "query returned more than 10000 results. Try with this block range [0x64, 0xc7].", some(100)),
            (-32000, "query exceeds max block range 1000", some(1000)),
            (-32000, "query exceeds max results 20000, retry with the range 1000-1499", some(500)),
            (-32000, "exceed maximum block range: 50000", some(50_000)),
            (-32602, "eth_getLogs and eth_newFilter are limited to a 10,000 blocks range", some(10_000)),
            (-32614, "eth_getLogs is limited to a 5 range", some(5)),
            (
                -32602,
                "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range and no \
                      limit on the response size, or you can request any block range with a cap of 10K logs in the \
                      response.",
                some(2_000),
            ),
            (
                -32600,
                "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range. Based on \
                      your parameters, this block range should work: [0x10, 0x19]",
                some(10),
            ),
            (-32000, "requested too many blocks from 100 to 5000, maximum is set to 2048", some(2048)),
            (-32000, "block range is too wide (maximum 1024)", some(1024)),
            (-32000, "range is too large, max is 1k blocks", some(1_000)),
            (35, "ranges over 10000 blocks are not supported on freetier", some(10_000)),
            (-32000, "block range greater than 10000 max", some(10_000)),
            (-32000, "maximum [from, to] blocks distance: 10000", some(10_000)),
            (-32005, "Requested range exceeds maximum RPC range limit", None),
            (-32005, "Block range limit exceeded. See more details at https://docs.chainstack.com/docs/limits", None),
            (-32005, "Too many logs requested. Max logs per response is 20000.", None),
            (-32008, "Response is too big", None),
            (-32000, "response size should not greater than 10000000 bytes", None),
            (-32000, "query timeout exceeded", None),
            (-32603, "request timed out", None),
            (-32000, "context deadline exceeded", None),
            (-32016, "eth_getLogs request was canceled due to enabled timeout.", None),
            (-32062, "Block range is too large", None),
            (-32001, "backend response too large", None),
            (-32000, "query must be smaller than size 1024", some(1024)),
            (-32602, "invalid block range: 12000 blocks exceeds limit 10000", some(10_000)),
            (-32000, "Exceeded maximum block range: 1000", some(1000)),
        ] {
            assert_eq!(judge_search(code, message), Verdict::RangeTooLarge { at_most }, "{message}");
        }
    }

    #[test]
    fn a_busy_node_is_not_taken_for_a_refused_range() {
        for (code, message) in [
            (-32005, "daily request count exceeded, request rate limited"),
            (429, "Your app has exceeded its compute units per second capacity."),
            (-32007, "50/second request limit reached - reduce calls per second or upgrade your account"),
            (-32097, "rate limit exceeded"),
            (-32000, "Too many requests, please try again later"),
        ] {
            assert_eq!(judge_search(code, message), Verdict::Busy, "{message}");
        }
        assert_eq!(judge_search(-32005, "limit exceeded"), Verdict::SomeLimit);
        assert_eq!(judge(-32005, "limit exceeded"), Verdict::Busy);
    }

    #[test]
    fn other_faults_are_told_apart() {
        for (message, verdict) in [
            ("unknown block", Verdict::UnknownBlock),
            ("header not found", Verdict::UnknownBlock),
            (
                "One of the blocks specified in filter (fromBlock, toBlock or blockHash) cannot be found.",
                Verdict::UnknownBlock,
            ),
            ("invalid block range params", Verdict::UnknownBlock),
            ("pruned history unavailable", Verdict::NoHistory),
            ("missing trie node 0xabc (path )", Verdict::NoHistory),
            ("the method eth_getLogs does not exist/is not available", Verdict::NoMethod),
            ("Unauthorized", Verdict::NoAccess),
            ("batch too large", Verdict::BatchRefused { at_most: None }),
            ("Batch of more than 3 requests are not allowed on free tier", Verdict::BatchRefused { at_most: Some(3) }),
            (
                "batch limit 100 exceeded (can increase by --rpc.batch.limit)",
                Verdict::BatchRefused { at_most: Some(100) },
            ),
            ("boom", Verdict::Other),
        ] {
            assert_eq!(judge_search(-32000, message), verdict, "{message}");
        }
    }

    #[test]
    fn nonsense_numbers_do_not_matter() {
        for message in [
            "block range [0xff, 0x1]",
            "block range 0",
            "max 99999999999999999999999 blocks",
            "max range [0x, ]",
            "max k blocks",
        ] {
            assert_eq!(judge_search(-1, message), Verdict::RangeTooLarge { at_most: None }, "{message}");
        }
    }
}
