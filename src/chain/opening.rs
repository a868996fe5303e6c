//! Opening balances as people write them down: a table of comma-separated values. Pure.

use std::borrow::Cow;

use super::delta::Delta;
use super::felt::Felt;
use super::{Kind, OpeningBalance, Text, canonical};

/// The columns, in this order; the first line names them.
pub const HEADER: &str = "token,address,amount";

/// Longest token or address that the tables hold, in bytes.
const LONGEST_TEXT: usize = 512;

/// One line that holds an opening balance, or should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpeningLine {
    /// Counted from 1, the header included.
    pub line: u64,
    /// What it says.
    pub given: Result<OpeningBalance, BadOpening>,
}

/// Why a line is no opening balance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadOpening {
    /// Bytes that are no text.
    #[error("it is not UTF-8 text")]
    NotText,
    /// Not the three columns.
    #[error("it has {found} columns, not 3 ({HEADER})")]
    Columns {
        /// How many it has.
        found: usize,
    },
    /// A quotation mark that is not closed, or not at the edge of its field.
    #[error("its quotation marks do not match")]
    Quotes,
    /// A text that no table would hold.
    #[error("its {column} {text} cannot be stored: {why}")]
    Unfit {
        /// Which column.
        column: &'static str,
        /// What it holds.
        text: String,
        /// A fixed word.
        why: &'static str,
    },
    /// A token or an address of another kind of chain.
    #[error("{column} {text} is not valid on a chain of kind {kind}")]
    NotOfKind {
        /// Which column.
        column: &'static str,
        /// What it holds.
        text: String,
        /// The chain's kind.
        kind: &'static str,
    },
    /// Not a whole number that a contract can hold.
    #[error("its amount {text} is not a whole number in decimal below 2^256")]
    Amount {
        /// What it holds.
        text: String,
    },
}

/// Whether this line names the columns.
pub fn is_header(line: &str) -> bool {
    fields(line).is_ok_and(|fields| fields.iter().map(|f| &**f).eq(HEADER.split(',')))
}

/// What a line says on a chain of this kind. Tokens and addresses are brought to their canonical form: 0x hex to lower
/// case, on Starknet without leading zeros.
///
/// # Errors
/// The first thing in it that does not fit.
pub fn read(kind: Kind, line: &str) -> Result<OpeningBalance, BadOpening> {
    let fields = fields(line)?;
    let [token, address, amount] = &fields[..] else { return Err(BadOpening::Columns { found: fields.len() }) };
    let token = side(kind, "token", token, Kind::is_token)?;
    let address = side(kind, "address", address, Kind::is_address)?;
    let amount = amount_of(amount).ok_or_else(|| BadOpening::Amount { text: short(amount) })?;
    Ok(OpeningBalance { token, address, amount })
}

/// An opening balance: a whole number in decimal, with `-` before it for a debt. None means it is no such number, or 2^256 or more,
/// which no contract holds.
pub fn amount_of(text: &str) -> Option<Delta> {
    Delta::parse(text).filter(|amount| amount.magnitude().bit_len() <= 256)
}

fn side(kind: Kind, column: &'static str, given: &str, fits: fn(Kind, &str) -> bool) -> Result<Text, BadOpening> {
    let unfit = |why| BadOpening::Unfit { column, text: short(given), why };
    let text = canonical(given).map_err(unfit)?;
    if text.len() > LONGEST_TEXT {
        return Err(unfit("too_long"));
    }
    let not_of_kind = || BadOpening::NotOfKind { column, text: short(&text), kind: kind.as_str() };
    let text: Text = match kind {
        Kind::Starknet => Felt::parse(&text).map_err(|_| not_of_kind())?.text(),
        _ => (&*text).into(),
    };
    if !fits(kind, &text) {
        return Err(BadOpening::NotOfKind { column, text: short(&text), kind: kind.as_str() });
    }
    Ok(text)
}

/// The fields of a line. Blanks around a field are not part of it, unless it is quoted; `""` within quotes is one `"`.
fn fields(line: &str) -> Result<Vec<Cow<'_, str>>, BadOpening> {
    let mut all = Vec::with_capacity(3);
    let mut rest = line;
    loop {
        let field = rest.trim_start();
        let (value, after) = match field.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = field.find(',').unwrap_or(field.len());
                let value = field[..end].trim_end();
                if value.contains('"') {
                    return Err(BadOpening::Quotes);
                }
                (Cow::Borrowed(value), &field[end..])
            }
        };
        all.push(value);
        match after.trim_start().strip_prefix(',') {
            Some(more) => rest = more,
            None if after.trim().is_empty() => return Ok(all),
            None => return Err(BadOpening::Quotes),
        }
    }
}

/// A quoted field from after its first quotation mark, and what follows its last one.
fn unquoted(quoted: &str) -> Result<(Cow<'_, str>, &str), BadOpening> {
    let mut from = 0;
    let mut doubled = false;
    while let Some(at) = quoted[from..].find('"').map(|at| from + at) {
        if quoted[at + 1..].starts_with('"') {
            doubled = true;
            from = at + 2;
            continue;
        }
        let inner = &quoted[..at];
        let value = if doubled { Cow::Owned(inner.replace("\"\"", "\"")) } else { Cow::Borrowed(inner) };
        return Ok((value, &quoted[at + 1..]));
    }
    Err(BadOpening::Quotes)
}

/// At most 80 characters of something given, in quotes, for a message.
fn short(given: &str) -> String {
    let mut chars = given.chars();
    let start: String = chars.by_ref().take(80).collect();
    if chars.next().is_some() { format!("{start:?}…") } else { format!("{start:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "0x00000000000000000000000000000000000000Ff";

    fn said(kind: Kind, line: &str) -> String {
        match read(kind, line) {
            Ok(b) => format!("{} {} {}", b.token, b.address, b.amount),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn lines_say_who_had_how_much() {
        for (line, meaning) in [
            ("gold,alice,5", "gold alice 5"),
            ("  gold , alice,\t-7 ", "gold alice -7"),
            (r#""gold, fine"," alice","007""#, "gold, fine  alice 7"),
            (r#"a""b,c,1"#, "its quotation marks do not match"),
            (r#""a""b",c,1"#, "a\"b c 1"),
            (r#""gold"x,c,1"#, "its quotation marks do not match"),
            (r#""gold,c,1"#, "its quotation marks do not match"),
            ("0XAB,Alice,0", "0xab Alice 0"),
            ("gold,alice", "it has 2 columns, not 3 (token,address,amount)"),
            ("gold,alice,1,", "it has 4 columns, not 3 (token,address,amount)"),
            (",alice,1", "its token \"\" cannot be stored: empty_text"),
            ("gold,0xAlice,1", "its address \"0xAlice\" cannot be stored: not_canonical"),
            ("gold,alice,1.0", "its amount \"1.0\" is not a whole number in decimal below 2^256"),
            ("gold,alice,+1", "its amount \"+1\" is not a whole number in decimal below 2^256"),
            ("gold,alice,1e3", "its amount \"1e3\" is not a whole number in decimal below 2^256"),
            ("gold,alice,", "its amount \"\" is not a whole number in decimal below 2^256"),
        ] {
            assert_eq!(said(Kind::Other, line), meaning, "{line}");
        }
        let long = "x".repeat(513);
        assert!(said(Kind::Other, &format!("gold,{long},1")).ends_with("cannot be stored: too_long"));
    }

    #[test]
    fn each_kind_takes_its_own_texts_in_their_one_form() {
        let lowered = ACCOUNT.to_lowercase();
        assert_eq!(said(Kind::Evm, &format!("{ACCOUNT},{ACCOUNT},1")), format!("{lowered} {lowered} 1"));
        assert_eq!(
            said(Kind::Evm, &format!("{ACCOUNT},alice,1")),
            "address \"alice\" is not valid on a chain of kind evm"
        );
        assert_eq!(said(Kind::Starknet, "0x00Ab,0X0001,3"), "0xab 0x1 3");
        let no_felt = format!("0x{}", "f".repeat(64));
        assert!(said(Kind::Starknet, &format!("0x1,{no_felt},3")).contains("is not valid on a chain of kind starknet"));
        assert!(said(Kind::Gno, "gold,alice,1").contains("token \"gold\" is not valid on a chain of kind gno"));
    }

    #[test]
    fn amounts_are_exact_whatever_their_size_below_two_to_the_256() {
        // What events add to one stays within what the ledger counts with.
        let largest = Delta::minus(crate::chain::Amount::MAX);
        assert_eq!(said(Kind::Other, &format!("gold,alice,{largest}")), format!("gold alice {largest}"));
        let two_to_the_256 = largest.magnitude() + ruint::Uint::ONE;
        for sign in ["", "-"] {
            assert!(said(Kind::Other, &format!("gold,alice,{sign}{two_to_the_256}")).contains("below 2^256"));
        }
    }

    #[test]
    fn the_header_names_the_columns_in_their_order() {
        for good in ["token,address,amount", "\"token\", address , \"amount\""] {
            assert!(is_header(good), "{good}");
        }
        for bad in ["", "address,token,amount", "token,address", "token,address,amount,", "gold,alice,5"] {
            assert!(!is_header(bad), "{bad}");
        }
    }
}
