//! JSON from outside, in a form that `jsonb` takes.

use serde_json::Value;

/// Longer evidence is cut: a reject is for a person to look at.
const LONGEST_EVIDENCE: usize = 1 << 20;

/// The value of a JSON text if `jsonb` can hold it, else the text itself as one string (cut after 1 MiB).
///
/// `jsonb` refuses what JSON allows: a NUL in a string, half a surrogate pair, numbers beyond `numeric`.
pub(super) fn evidence(raw: &str) -> Value {
    if raw.len() <= LONGEST_EVIDENCE
        && let Ok(value) = serde_json::from_str(raw)
        && fits_jsonb(&value)
    {
        return value;
    }
    let mut end = raw.len().min(LONGEST_EVIDENCE);
    while !raw.is_char_boundary(end) {
        end -= 1;
    }
    Value::String(raw[..end].to_owned())
}

/// A value from outside as `jsonb` can hold it.
pub(super) fn storable(value: Value) -> Value {
    if fits_jsonb(&value) { value } else { Value::String(value.to_string()) }
}

/// Nesting is bounded by the parser (128), so this recursion is too.
fn fits_jsonb(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) => true,
        Value::Number(number) => fits_numeric(number.as_str()),
        Value::String(text) => !text.contains('\0'),
        Value::Array(list) => list.iter().all(fits_jsonb),
        Value::Object(map) => map.iter().all(|(key, value)| !key.contains('\0') && fits_jsonb(value)),
    }
}

/// Far below the 131,072 digits of `numeric`, written out.
fn fits_numeric(number: &str) -> bool {
    let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    digits.len() <= 1000 && exponent.parse::<i64>().is_ok_and(|exponent| exponent.abs() <= 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_jsonb_refuses_is_kept_as_text() {
        assert_eq!(evidence(r#"{"a":[1e+5,"x",null]}"#)["a"][1], json!("x"));
        for raw in [r#"{"a":"\u0000"}"#, r#"{"\u0000":1}"#, r#""\ud800""#, "1e400000", r#"{"a":1e-5000}"#] {
            assert_eq!(evidence(raw), Value::String(raw.into()), "{raw}");
        }
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert_eq!(evidence(&deep), Value::String(deep.clone()));
        let long = format!("\"{}\"", "é".repeat(LONGEST_EVIDENCE));
        assert!(evidence(&long).as_str().is_some_and(|text| text.len() <= LONGEST_EVIDENCE));
    }
}
