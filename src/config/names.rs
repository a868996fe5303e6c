//! The names of settings, taken from the structs that hold them, and which of them was meant by one that is none.

use serde::de::value::Error as NoValue;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

use super::chain;
use super::file::{ApiFile, ClassFile, File, ProjectionFile};

/// The names of a struct's fields, as serde reads them.
pub(super) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Ask<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Ask<'_> {
        type Error = NoValue;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NoValue> {
            Err(NoValue::custom("only a struct has fields"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, NoValue> {
            *self.0 = fields;
            Err(NoValue::custom("there is nothing to read"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut fields: &'static [&'static str] = &[];
    // It always fails: what was asked for is in `fields`.
    let _ = T::deserialize(Ask(&mut fields));
    fields
}

/// What may stand below a path of settings.
pub(super) enum Below {
    /// These settings.
    Settings(Vec<&'static str>),
    /// Anything that a person names: chains, projections, classes.
    Names,
    /// Nothing: there is a value.
    Nothing,
}

/// What may stand below this path.
pub(super) fn below<S: AsRef<str>>(path: &[S]) -> Below {
    let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
    match path.as_slice() {
        [] => Below::Settings(fields_of::<File>().to_vec()),
        ["chains" | "projections"] | ["projections", _, "classes"] => Below::Names,
        ["chains", _] => Below::Settings(chain::settings()),
        ["projections", _] => Below::Settings(fields_of::<ProjectionFile>().to_vec()),
        ["projections", _, "classes", _] => Below::Settings(fields_of::<ClassFile>().to_vec()),
        ["api"] => Below::Settings(fields_of::<ApiFile>().to_vec()),
        _ => Below::Nothing,
    }
}

/// Whether a value may stand at this path.
pub(super) fn is_setting(path: &[String]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let here = match below(parents) {
        Below::Settings(names) => names.contains(&last.as_str()),
        Below::Names | Below::Nothing => false,
    };
    let above = (1..path.len()).all(|n| match below(&path[..n - 1]) {
        Below::Settings(names) => names.contains(&path[n - 1].as_str()),
        Below::Names => !path[n - 1].is_empty(),
        Below::Nothing => false,
    });
    here && above && matches!(below(path), Below::Nothing)
}

/// Every setting's path; `NAME` stands for what a person names.
fn all() -> Vec<Vec<&'static str>> {
    let (mut found, mut open) = (Vec::new(), vec![Vec::new()]);
    while let Some(path) = open.pop() {
        let names = match below(&path) {
            Below::Settings(names) => names,
            Below::Names => vec!["NAME"],
            Below::Nothing => {
                found.push(path);
                continue;
            }
        };
        open.extend(names.into_iter().map(|name| [path.as_slice(), &[name]].concat()));
    }
    found
}

/// The setting that is spelled most like this path; among `others`, which are no settings, as well.
pub(super) fn nearest(path: &[String], others: &[&str]) -> String {
    let spelled = |path: &[&str]| path.join("__").to_uppercase();
    let given: Vec<&str> = path.iter().map(String::as_str).collect();
    let last = given.last().copied().unwrap_or_default().to_uppercase();
    let settings = all().into_iter().map(|known| {
        let named: Vec<&str> = (0..known.len())
            .map(|n| if known[n] == "NAME" && known.len() == given.len() { given[n] } else { known[n] })
            .collect();
        // People leave out where a setting stands more often than they misspell what it is called.
        let whole = strsim::damerau_levenshtein(&spelled(&given), &spelled(&named));
        let part = strsim::damerau_levenshtein(&last, &known.last().copied().unwrap_or_default().to_uppercase());
        (whole.min(part + usize::from(known.len() != given.len())), spelled(&named))
    });
    let others = others.iter().map(|other| (strsim::damerau_levenshtein(&spelled(&given), other), (*other).to_owned()));
    settings.chain(others).min().map(|(_, name)| name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_found_by_a_slip_of_it() {
        let all = all();
        assert!(all.len() > 50, "{all:?}");
        for known in all {
            let path: Vec<String> = known.iter().map(|part| (*part).to_owned()).collect();
            assert!(is_setting(&path), "{path:?}");
            let mut slip = path.clone();
            slip.last_mut().expect("a name").push('q');
            assert!(!is_setting(&slip), "{slip:?}");
            assert_eq!(nearest(&slip, &[]), path.join("__").to_uppercase());
        }
    }
}
