//! ABI values as JSON, read strictly and within a budget.
//!
//! alloy's decoder replaces bytes that are not UTF-8 and lets a few kilobytes of overlapping offsets unfold into
//! gigabytes; what a stranger's contract emits must neither be altered nor be able to exhaust memory.

use alloy_dyn_abi::DynSolType;
use alloy_primitives::{I256, U256, hex};
use serde_json::{Map, Value};

/// Nesting beyond which a type is refused; no signature that can be read goes that deep.
const MAX_DEPTH: usize = 80;

/// A type with the names of its parts, as a signature gives them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    /// The type.
    pub(super) ty: DynSolType,
    /// Names of the components of the tuple inside (`tuple`, `tuple[]`, …); empty for other types.
    pub(super) components: Vec<(String, Shape)>,
}

/// The bytes are not a value of this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotThisType;

type Read<T> = Result<T, NotThisType>;

/// Reads the values of a parameter list, in order.
///
/// Bytes beyond the last value mean that this is not the type, save for zeros after values without a size of their own:
/// some compilers pad those to their longest.
pub(super) fn read_sequence(shapes: &[&Shape], data: &[u8]) -> Read<Vec<Value>> {
    // Honest data says each thing once; pointing many offsets at one text is how 1 MB becomes 1 GB.
    let mut reader = Reader { whole: data.len(), budget: data.len().saturating_mul(2) + 1024, end: 0 };
    let mut at = 0;
    let mut values = Vec::with_capacity(shapes.len());
    for shape in shapes {
        values.push(reader.read(shape, data, &mut at, 0)?);
    }
    let beyond = data.get(reader.end..).unwrap_or_default();
    let padded = shapes.iter().any(|shape| is_dynamic(&shape.ty));
    if beyond.is_empty() || padded && beyond.iter().all(|b| *b == 0) { Ok(values) } else { Err(NotThisType) }
}

/// Reads an indexed parameter: its value, or the hash the chain keeps in place of text, arrays and tuples.
pub(super) fn read_topic(shape: &Shape, topic: &[u8; 32]) -> Read<Value> {
    match shape.ty {
        DynSolType::Bytes
        | DynSolType::String
        | DynSolType::Array(_)
        | DynSolType::FixedArray(..)
        | DynSolType::Tuple(_) => Ok(hex_text(topic)),
        _ => read_word(&shape.ty, topic),
    }
}

/// How far the data was read, and how much may still come out of it.
struct Reader {
    /// Size of all the data. Each frame is its rest from some point on, so a frame's own size says where it begins.
    whole: usize,
    budget: usize,
    /// End of the last word that belongs to a value.
    end: usize,
}

impl Reader {
    /// Reads one value whose head is at `at` of the frame `data`, and moves `at` past the head.
    fn read(&mut self, shape: &Shape, data: &[u8], at: &mut usize, depth: usize) -> Read<Value> {
        if depth > MAX_DEPTH {
            return Err(NotThisType);
        }
        if !is_dynamic(&shape.ty) {
            return self.read_body(shape, data, at, depth);
        }
        let start = length(self.word(data, *at)?)?;
        *at += 32;
        let frame = data.get(start..).ok_or(NotThisType)?;
        self.read_body(shape, frame, &mut 0, depth)
    }

    fn read_body(&mut self, shape: &Shape, data: &[u8], at: &mut usize, depth: usize) -> Read<Value> {
        match &shape.ty {
            DynSolType::Bytes => Ok(hex_text(self.tail(data)?)),
            DynSolType::String => Ok(text_or_hex(self.tail(data)?)),
            DynSolType::Array(item) => {
                let count = length(self.word(data, 0)?)?;
                let items = data.get(32..).ok_or(NotThisType)?;
                // An item takes at least a word, so a lie about the count is found before anything is set aside.
                if count > items.len() / 32 {
                    return Err(NotThisType);
                }
                self.read_items(&shape.with(item), count, items, &mut 0, depth)
            }
            DynSolType::FixedArray(item, count) => self.read_items(&shape.with(item), *count, data, at, depth),
            DynSolType::Tuple(types) => {
                if types.len() != shape.components.len() {
                    return Err(NotThisType);
                }
                let mut object = Map::new();
                for (name, part) in &shape.components {
                    object.insert(name.clone(), self.read(part, data, at, depth + 1)?);
                }
                Ok(Value::Object(object))
            }
            simple => {
                self.spend(32)?;
                let value = read_word(simple, self.word(data, *at)?)?;
                *at += 32;
                Ok(value)
            }
        }
    }

    fn read_items(&mut self, item: &Shape, count: usize, data: &[u8], at: &mut usize, depth: usize) -> Read<Value> {
        let mut items = Vec::new();
        for _ in 0..count {
            // Items without a size of their own (an empty tuple) must still cost something.
            self.spend(1)?;
            items.push(self.read(item, data, at, depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn tail<'d>(&mut self, data: &'d [u8]) -> Read<&'d [u8]> {
        let size = length(self.word(data, 0)?)?;
        self.spend(size)?;
        let rest = data.get(32..).ok_or(NotThisType)?;
        let bytes = rest.get(..size).ok_or(NotThisType)?;
        // What fills the last word up belongs to it, and need not be there: not all compilers write it.
        self.reach(rest, size.next_multiple_of(32));
        Ok(bytes)
    }

    fn word<'d>(&mut self, data: &'d [u8], at: usize) -> Read<&'d [u8; 32]> {
        let word = data.get(at..).and_then(<[u8]>::first_chunk).ok_or(NotThisType)?;
        self.reach(data, at + 32);
        Ok(word)
    }

    /// The first `size` bytes of this frame belong to values.
    fn reach(&mut self, frame: &[u8], size: usize) {
        self.end = self.end.max(self.whole - frame.len() + size);
    }

    fn spend(&mut self, bytes: usize) -> Read<()> {
        self.budget = self.budget.checked_sub(bytes).ok_or(NotThisType)?;
        Ok(())
    }
}

impl Shape {
    /// The shape of this array's items: component names pass through any number of brackets.
    fn with(&self, item: &DynSolType) -> Shape {
        Shape { ty: item.clone(), components: self.components.clone() }
    }
}

/// One word as a value; refused when a bit is set that the type does not have.
fn read_word(ty: &DynSolType, word: &[u8; 32]) -> Read<Value> {
    let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
    match ty {
        DynSolType::Bool => match (zero(&word[..31]), word[31]) {
            (true, 0) => Ok(Value::Bool(false)),
            (true, 1) => Ok(Value::Bool(true)),
            _ => Err(NotThisType),
        },
        DynSolType::Uint(bits) => {
            let number = U256::from_be_bytes(*word);
            if number.bit_len() > *bits { Err(NotThisType) } else { Ok(Value::String(number.to_string())) }
        }
        DynSolType::Int(bits) => {
            let number = I256::from_be_bytes(*word);
            // Two's complement: one bit is the sign's.
            let size = if number.is_negative() { !number } else { number };
            if size.into_raw().bit_len() >= *bits { Err(NotThisType) } else { Ok(Value::String(number.to_string())) }
        }
        DynSolType::Address => {
            if zero(&word[..12]) {
                Ok(hex_text(&word[12..]))
            } else {
                Err(NotThisType)
            }
        }
        DynSolType::Function => left_aligned(word, 24),
        DynSolType::FixedBytes(size) => left_aligned(word, *size),
        _ => Err(NotThisType),
    }
}

fn left_aligned(word: &[u8; 32], size: usize) -> Read<Value> {
    let (bytes, padding) = word.split_at_checked(size).ok_or(NotThisType)?;
    if padding.iter().all(|b| *b == 0) { Ok(hex_text(bytes)) } else { Err(NotThisType) }
}

/// A word as an offset or a count: whatever is meant must lie inside the data, so 32 bits are plenty.
fn length(word: &[u8; 32]) -> Read<usize> {
    let number = U256::from_be_bytes(*word);
    u32::try_from(number).map(|n| n as usize).map_err(|_| NotThisType)
}

fn is_dynamic(ty: &DynSolType) -> bool {
    match ty {
        DynSolType::Bytes | DynSolType::String | DynSolType::Array(_) => true,
        DynSolType::FixedArray(item, _) => is_dynamic(item),
        DynSolType::Tuple(types) => types.iter().any(is_dynamic),
        _ => false,
    }
}

pub(super) fn hex_text(bytes: &[u8]) -> Value {
    Value::String(hex::encode_prefixed(bytes))
}

/// Text where Postgres can hold it. What is not UTF-8, or holds a NUL, becomes `{"hex": "0x…"}`: an object, since a text
/// may well begin with `0x` itself.
fn text_or_hex(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Value::String(text.to_owned()),
        _ => Value::Object(Map::from_iter([("hex".to_owned(), hex_text(bytes))])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::Strategy;
    use serde_json::json;

    fn shape(ty: &str) -> Shape {
        fn parts(ty: &DynSolType) -> Vec<(String, Shape)> {
            match ty {
                DynSolType::Array(item) | DynSolType::FixedArray(item, _) => parts(item),
                DynSolType::Tuple(types) => {
                    let part = |(n, ty): (usize, &DynSolType)| {
                        (n.to_string(), Shape { ty: ty.clone(), components: parts(ty) })
                    };
                    types.iter().enumerate().map(part).collect()
                }
                _ => Vec::new(),
            }
        }
        let ty = ty.parse().expect("a type");
        Shape { components: parts(&ty), ty }
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| U256::from(*w).to_be_bytes::<32>()).collect()
    }

    #[test]
    fn numbers_keep_every_digit_and_their_sign() {
        let ones = [0xff; 32];
        assert_eq!(read_word(&DynSolType::Uint(256), &ones), Ok(json!(U256::MAX.to_string())));
        assert_eq!(read_word(&DynSolType::Int(8), &ones), Ok(json!("-1")));
        let mut min8 = ones;
        min8[31] = 0x80;
        assert_eq!(read_word(&DynSolType::Int(8), &min8), Ok(json!("-128")));
        min8[31] = 0x7f;
        assert_eq!(read_word(&DynSolType::Int(8), &min8), Err(NotThisType), "-129 does not fit int8");
        assert_eq!(read_word(&DynSolType::Uint(8), &ones), Err(NotThisType));
    }

    #[test]
    fn dirty_words_are_refused() {
        assert_eq!(read_word(&DynSolType::Address, &[1; 32]), Err(NotThisType));
        assert_eq!(read_word(&DynSolType::FixedBytes(4), &[1; 32]), Err(NotThisType));
        let two: [u8; 32] = U256::from(2).to_be_bytes();
        assert_eq!(read_word(&DynSolType::Bool, &two), Err(NotThisType));
    }

    #[test]
    fn text_that_is_no_text_stays_hex() {
        let mut data = words(&[32, 2]);
        data.extend([0xc3, 0x28]);
        data.extend([0; 30]);
        assert_eq!(read_sequence(&[&shape("string")], &data), Ok(vec![json!({"hex": "0xc328"})]));
        // A text that looks like hex is a text.
        data[63] = 4;
        data[64..68].copy_from_slice(b"0xff");
        assert_eq!(read_sequence(&[&shape("string")], &data), Ok(vec![json!("0xff")]));
        data[63] = 2;
        data[64..66].copy_from_slice(b"a\0");
        assert_eq!(read_sequence(&[&shape("string")], &data), Ok(vec![json!({"hex": "0x6100"})]));
    }

    #[test]
    fn arrays_of_arrays_are_read() {
        // uint256[][]: [[7, 8], []]
        let data = words(&[32, 2, 64, 160, 2, 7, 8, 0]);
        assert_eq!(read_sequence(&[&shape("uint256[][]")], &data), Ok(vec![json!([["7", "8"], []])]));
        // uint8[2] stands in place, the next value after it.
        assert_eq!(
            read_sequence(&[&shape("uint8[2]"), &shape("bool")], &words(&[1, 2, 1])),
            Ok(vec![json!(["1", "2"]), json!(true)])
        );
    }

    #[test]
    fn bytes_that_belong_to_no_value_are_refused_unless_they_pad() {
        let static_pair = [&shape("uint8"), &shape("bool")];
        assert_eq!(read_sequence(&static_pair, &words(&[1, 1])), Ok(vec![json!("1"), json!(true)]));
        assert_eq!(read_sequence(&static_pair, &words(&[1, 1, 0])), Err(NotThisType));
        assert_eq!(read_sequence(&static_pair, &words(&[1])), Err(NotThisType));
        assert_eq!(read_sequence(&[], &words(&[0])), Err(NotThisType), "there is nothing to pad");
        let bytes = |more: &[u64]| {
            let mut data = words(&[32, 2]);
            data.extend([0xab, 0xcd]);
            if !more.is_empty() {
                data.extend([0; 30]);
                data.extend(words(more));
            }
            read_sequence(&[&shape("bytes")], &data)
        };
        assert_eq!(bytes(&[]), Ok(vec![json!("0xabcd")]), "the last word need not be filled up");
        assert_eq!(bytes(&[0, 0]), Ok(vec![json!("0xabcd")]));
        assert_eq!(bytes(&[0, 1]), Err(NotThisType));
    }

    #[test]
    fn offsets_that_all_point_at_one_text_are_refused() {
        let count = 1_000;
        let mut numbers = vec![32, count];
        numbers.extend(std::iter::repeat_n(count * 32, count as usize));
        numbers.push(10_000);
        let mut data = words(&numbers);
        data.extend(vec![b'x'; 10_016]);
        assert_eq!(read_sequence(&[&shape("string[]")], &data), Err(NotThisType));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_strange(
            words in proptest::collection::vec(proptest::prop_oneof![0u64..6, (0u64..12).prop_map(|n| n * 32)], 0..40),
            extra: Vec<u8>,
        ) {
            let mut data = self::words(&words);
            data.extend(extra);
            let types = ["string", "bytes[]", "uint256[][]", "string[2]", "(bytes,uint8[])[]", "uint8[][3][]", "bool"];
            for ty in types {
                if let Ok(values) = read_sequence(&[&shape(ty)], &data) {
                    // Not a byte of ours for nothing: what comes out stays in proportion to what came in.
                    let size = serde_json::to_string(&values).expect("JSON").len();
                    proptest::prop_assert!(size <= 20 * data.len() + 10_000, "{ty}: {size} bytes out of {}", data.len());
                }
            }
        }
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        for data in [words(&[]), words(&[64]), words(&[32, u64::MAX]), words(&[32, 5]), words(&[u64::MAX])] {
            assert_eq!(read_sequence(&[&shape("uint256[]")], &data), Err(NotThisType), "{data:?}");
            assert_eq!(read_sequence(&[&shape("bytes")], &data), Err(NotThisType), "{data:?}");
        }
        assert!(read_sequence(&[&shape("uint256[1][]")], &words(&[32, u64::from(u32::MAX)])).is_err());
    }
}
