//! What a request says: query parameters, token paths, moments.

use std::borrow::Cow;

use super::cursor::Cursor;
use super::reply::{AmountForm, Failure};
use crate::chain::Kind;
use crate::store::reads::At;

/// Rows of a page, unless the request says fewer.
const LARGEST_PAGE: usize = 1000;

/// The parameters of a query, decoded: those that the route takes and no others.
#[derive(Debug)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query for a route that takes these parameters. A name that is misspelt would be answered as if it were
    /// absent: with the totals of all accounts instead of the balance of one.
    ///
    /// # Errors
    /// `invalid_parameter` for other names, for escapes that are none, and for text that is not UTF-8 or holds a NUL.
    pub(crate) fn parse(raw: &str, takes: &[&str]) -> Result<Query, Failure> {
        let decode = |text: &str| {
            percent_decode(&text.replace('+', " "))
                .ok_or_else(|| Failure::invalid_parameter("the query holds an escape that is none, or is not UTF-8"))
        };
        let parts = raw.split('&').filter(|part| !part.is_empty());
        let pairs = parts.map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = decode(name)?;
            if !takes.contains(&name.as_str()) {
                let known = takes.join(", ");
                let error = format!("{name:?} is no parameter of this route, which takes {known}");
                return Err(Failure::invalid_parameter(error));
            }
            Ok((name, decode(value)?))
        });
        pairs.collect::<Result<_, _>>().map(Query)
    }

    /// All values of a parameter that may be repeated.
    fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter, which is not empty. An empty one comes from a variable that nobody has set: taken as absent,
    /// it would be answered with something else than was asked for.
    pub(crate) fn one(&self, name: &str) -> Result<Option<&str>, Failure> {
        match self.perhaps_empty(name)? {
            Some("") => Err(Failure::invalid_parameter(format!("{name} is empty: give it a value, or leave it away"))),
            value => Ok(value),
        }
    }

    /// The value of a parameter.
    pub(crate) fn perhaps_empty(&self, name: &str) -> Result<Option<&str>, Failure> {
        let mut values = self.all(name);
        let value = values.next();
        match values.next() {
            Some(_) => Err(Failure::invalid_parameter(format!("{name} is given twice"))),
            None => Ok(value),
        }
    }

    /// `true` or `false`; absent is false.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.one(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Failure::invalid_parameter(format!("{name} is true or false"))),
        }
    }

    /// Rows of the page.
    pub(crate) fn limit(&self) -> Result<usize, Failure> {
        let Some(text) = self.perhaps_empty("limit")? else { return Ok(LARGEST_PAGE) };
        Some(text)
            .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .filter(|limit| (1..=LARGEST_PAGE).contains(limit))
            .ok_or_else(|| Failure::bad_request("invalid_limit", format!("limit is a number from 1 to {LARGEST_PAGE}")))
    }

    /// Where the page begins.
    pub(crate) fn cursor(&self) -> Result<Option<Cursor>, Failure> {
        self.one("cursor")?.map(Cursor::decode).transpose()
    }

    /// The moment asked about: digits are a height, `final` is the final block, anything else a hash, and so is what follows
    /// `hash:`, where one could be taken for either.
    pub(crate) fn at(&self) -> Result<At, Failure> {
        let Some(text) = self.one("at")? else { return Ok(At::Now) };
        if text == "final" {
            return Ok(At::Final);
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            // A number too large to be a height names a block nobody has seen.
            return text.parse().map(At::Height).or(Ok(At::Height(i64::MAX)));
        }
        // No hash holds a space, but base64 holds `+`, which clients often leave unescaped.
        Ok(At::Hash(text.strip_prefix("hash:").unwrap_or(text).replace(' ', "+")))
    }

    /// How amounts are written, if the request says so.
    pub(crate) fn amounts(&self) -> Result<Option<AmountForm>, Failure> {
        match self.one("amounts")? {
            None => Ok(None),
            Some("string") => Ok(Some(AmountForm::Text)),
            Some("number") => Ok(Some(AmountForm::Number)),
            Some(_) => Err(Failure::invalid_parameter("amounts is string or number")),
        }
    }

    /// Kinds of events asked for, without repetition; empty: all.
    pub(crate) fn kinds(&self) -> Result<Vec<String>, Failure> {
        let mut kinds: Vec<String> = self.all("kind").map(str::to_owned).collect();
        if kinds.iter().any(|kind| !matches!(kind.as_str(), "mint" | "burn" | "transfer")) {
            return Err(Failure::invalid_parameter("kind is mint, burn or transfer"));
        }
        kinds.sort();
        kinds.dedup();
        Ok(kinds)
    }
}

/// Decodes `%xx` once. None for an escape that is none, for text that is not UTF-8, and for NUL, which no name holds.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// The token path in `/tokens/{tokenPath}/balances`, still escaped: the path without one suffix.
pub(crate) fn token_path(path: &str) -> Option<&str> {
    path.strip_prefix("/tokens/")?.strip_suffix("/balances")
}

/// The chain's own spelling of an address, a token or a hash. What cannot be one stays as it is.
pub(crate) fn canonical(kind: Kind, text: &str) -> Cow<'_, str> {
    match kind {
        // Hashes are base64, which may look like hex.
        Kind::Gno => Cow::Borrowed(text),
        _ => kind.canonical(text).unwrap_or(Cow::Borrowed(text)),
    }
}

/// The account that the parameter `address` names, in the chain's own spelling. Empty, it is as good as absent on gno, to
/// the letter of that interface; elsewhere it is no address.
///
/// # Errors
/// `invalid_address` when it cannot be one.
pub(crate) fn given_address(kind: Kind, text: Option<&str>) -> Result<Option<Cow<'_, str>>, Failure> {
    text.filter(|text| kind != Kind::Gno || !text.is_empty()).map(|text| address(kind, text)).transpose()
}

/// The account a request names, in the chain's own spelling.
///
/// # Errors
/// `invalid_address` when it cannot be one.
pub(crate) fn address(kind: Kind, text: &str) -> Result<Cow<'_, str>, Failure> {
    let address = canonical(kind, text);
    if kind.is_address(&address) {
        return Ok(address);
    }
    let wanted = match kind {
        Kind::Gno => "a valid bech32 account address",
        Kind::Evm => "0x and 40 hex digits",
        Kind::Starknet => "0x and 1 to 64 hex digits",
        Kind::Other => "an account",
    };
    Err(Failure::bad_request("invalid_address", format!("address is not {wanted}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_suffix_is_cut_and_the_rest_is_the_token() {
        let cases = [
            ("/tokens/gno.land/r/demo/wugnot/balances", Some("gno.land/r/demo/wugnot")),
            ("/tokens/gno.land/r/x/balances/balances", Some("gno.land/r/x/balances")),
            ("/tokens//balances", Some("")),
            ("/tokens/balances", None),
            ("/tokens/transfer-history", None),
            ("/tokens/gno.land/r/demo/wugnot/balances/", None),
            ("/tokens/gno.land/r/demo/wugnot", None),
            ("/other/gno.land/r/demo/wugnot/balances", None),
        ];
        for (path, token) in cases {
            assert_eq!(token_path(path), token, "{path}");
        }
    }

    #[test]
    fn escapes_are_decoded_once() {
        assert_eq!(percent_decode("a%2Fb%252F").as_deref(), Some("a/b%2F"));
        for text in ["%", "%2", "%zz", "%+1", "%ff", "%00"] {
            assert_eq!(percent_decode(text), None, "{text}");
        }
    }

    #[test]
    fn hex_is_lowered_where_the_chain_writes_hex() {
        assert_eq!(canonical(Kind::Evm, "0XABcd"), "0xabcd");
        assert_eq!(canonical(Kind::Starknet, "0x00Ab"), "0xab");
        assert_eq!(canonical(Kind::Starknet, "0x000"), "0x0");
        assert_eq!(canonical(Kind::Starknet, "0x"), "0x");
        assert_eq!(canonical(Kind::Other, "Alice"), "Alice");
        assert_eq!(canonical(Kind::Other, "0xAlice"), "0xAlice");
        assert_eq!(canonical(Kind::Gno, "G1ABC"), "G1ABC");
    }

    #[test]
    fn a_moment_is_a_height_or_final_or_a_hash() {
        let at = |raw: &str| Query::parse(raw, &["at"]).and_then(|q| q.at());
        assert_eq!(at(""), Ok(At::Now));
        assert!(at("at=").is_err(), "the newest state is asked for by saying nothing");
        assert_eq!(at("at=12"), Ok(At::Height(12)));
        assert_eq!(at("at=99999999999999999999"), Ok(At::Height(i64::MAX)));
        assert_eq!(at("at=final"), Ok(At::Final));
        assert_eq!(at("at=0xab"), Ok(At::Hash("0xab".into())));
        assert_eq!(at("at=q+a/b="), Ok(At::Hash("q+a/b=".into())));
        assert_eq!(at("at=hash:12"), Ok(At::Hash("12".into())));
        assert_eq!(at("at=hash:final"), Ok(At::Hash("final".into())));
    }
}
