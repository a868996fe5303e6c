//! Event signatures as people write them: `Name(type indexed name, …)`, read once and used to decode logs.

use alloy_dyn_abi::DynSolType;
use alloy_primitives::{Address, B256};
use serde_json::{Map, Value};

use super::abi::{self, NotThisType, Shape};
use super::parse_address;
use crate::sources::SourceError;

/// One event to be taken in.
#[derive(Debug, Clone)]
pub(super) struct Signature {
    /// Its name, without parameters.
    pub(super) name: String,
    /// Hash of its canonical form: what the first topic must be. None means it is anonymous, and its topics are its indexed
    /// parameters alone.
    pub(super) topic0: Option<B256>,
    /// Who must say it; empty: anybody.
    pub(super) emitters: Vec<Address>,
    inputs: Vec<Input>,
}

#[derive(Debug, Clone, PartialEq)]
struct Input {
    name: String,
    indexed: bool,
    shape: Shape,
}

impl Signature {
    /// Reads `[event ]Name(type [indexed] [name], …)[ anonymous][ @ address[, address…]]`.
    ///
    /// # Errors
    /// A permanent error that names the setting `event` and shows the text.
    pub(super) fn parse(text: &str) -> Result<Signature, SourceError> {
        let bad = |why: String| {
            SourceError::permanent(format!(
                "event {text:?} is not usable: {why}; write it as \"Name(type indexed name, ...)\", and \" @ ADDRESS\" \
                 after it to take it from that contract alone"
            ))
        };
        let (signature, emitters) = match text.rsplit_once('@') {
            Some((signature, addresses)) => (signature, addresses.split(',').map(str::trim).collect()),
            None => (text, Vec::new()),
        };
        let emitters = emitters
            .into_iter()
            .map(|a| parse_address(a).ok_or_else(|| bad(format!("{a:?} is not an address"))))
            .collect::<Result<Vec<_>, _>>()?;
        let (name, inputs, anonymous) = Reader::new(signature).event().map_err(bad)?;
        let most = if anonymous { 4 } else { 3 };
        if inputs.iter().filter(|i| i.indexed).count() > most {
            return Err(bad(format!("at most {most} parameters can be indexed")));
        }
        if anonymous && emitters.is_empty() {
            return Err(bad("an anonymous event has no topic to know it by, so it needs its contract".into()));
        }
        // From the resolved types, not from the text: `uint` must hash as `uint256`.
        let types: Vec<String> = inputs.iter().map(|i| type_name(&i.shape.ty)).collect();
        let topic0 = (!anonymous).then(|| alloy_primitives::keccak256(format!("{name}({})", types.join(","))));
        Ok(Signature { name, topic0, emitters, inputs })
    }

    /// How many topics such a log has, its own hash included.
    pub(super) fn topic_count(&self) -> usize {
        usize::from(self.topic0.is_some()) + self.inputs.iter().filter(|i| i.indexed).count()
    }

    /// Whether a log of both could not be told apart: the same first topic, as many topics, a contract in common.
    pub(super) fn clashes(&self, other: &Signature) -> bool {
        self.topic0 == other.topic0
            && self.topic_count() == other.topic_count()
            && (self.emitters.is_empty()
                || other.emitters.is_empty()
                || self.emitters.iter().any(|emitter| other.emitters.contains(emitter)))
    }

    /// Whether both read a log alike, whoever says it.
    pub(super) fn reads_as(&self, other: &Signature) -> bool {
        self.name == other.name && self.topic0 == other.topic0 && self.inputs == other.inputs
    }

    /// The type of the parameter of this name.
    pub(super) fn parameter(&self, name: &str) -> Option<&DynSolType> {
        self.inputs.iter().find(|input| input.name == name).map(|input| &input.shape.ty)
    }

    /// The names of its parameters, in order.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| input.name.as_str())
    }

    /// Whether a log of `emitter` may be this event.
    pub(super) fn admits(&self, emitter: &Address) -> bool {
        self.emitters.is_empty() || self.emitters.contains(emitter)
    }

    /// Named values of a log whose first topic (if it has one of its own) and number of topics fit.
    pub(super) fn attributes(&self, topics: &[B256], data: &[u8]) -> Result<Value, NotThisType> {
        let plain: Vec<&Shape> = self.inputs.iter().filter(|i| !i.indexed).map(|i| &i.shape).collect();
        let mut plain = abi::read_sequence(&plain, data)?.into_iter();
        let mut indexed = topics.iter().skip(usize::from(self.topic0.is_some()));
        let mut object = Map::new();
        for input in &self.inputs {
            let value = if input.indexed {
                abi::read_topic(&input.shape, indexed.next().ok_or(NotThisType)?)?
            } else {
                plain.next().ok_or(NotThisType)?
            };
            object.insert(input.name.clone(), value);
        }
        Ok(Value::Object(object))
    }
}

/// Reads the text of a signature from left to right.
///
/// alloy's parser knows no names inside tuples, and without them a struct's values could only be numbered.
struct Reader<'t> {
    rest: &'t str,
    depth: usize,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str) -> Reader<'t> {
        Reader { rest: text.trim(), depth: 0 }
    }

    /// Name, parameters, and whether it is anonymous.
    fn event(&mut self) -> Result<(String, Vec<Input>, bool), String> {
        let mut name = self.word();
        if name == "event" {
            name = self.word();
        }
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("it has no name".into());
        }
        let inputs = self.list()?;
        let anonymous = self.take_word("anonymous");
        self.take(';');
        if !self.rest.is_empty() {
            return Err(format!("{:?} after its end is not understood", self.rest));
        }
        Ok((name.to_owned(), inputs, anonymous))
    }

    /// `( parameter, … )`
    fn list(&mut self) -> Result<Vec<Input>, String> {
        self.depth += 1;
        if self.depth > 8 {
            return Err("it is nested too deeply".into());
        }
        if !self.take('(') {
            return Err("its parameters in parentheses are missing".into());
        }
        let mut inputs: Vec<Input> = Vec::new();
        while !self.take(')') {
            if !inputs.is_empty() && !self.take(',') {
                return Err(format!("a comma or a closing parenthesis is missing before {:?}", self.rest));
            }
            let input = self.parameter(inputs.len())?;
            if inputs.iter().any(|other| other.name == input.name) {
                return Err(format!("two parameters are named {:?}", input.name));
            }
            inputs.push(input);
        }
        self.depth -= 1;
        Ok(inputs)
    }

    fn parameter(&mut self, index: usize) -> Result<Input, String> {
        let word = self.word();
        let shape = if self.rest.starts_with('(') && (word.is_empty() || word == "tuple") {
            let parts = self.list()?;
            let ty = DynSolType::Tuple(parts.iter().map(|part| part.shape.ty.clone()).collect());
            Shape { ty, components: parts.into_iter().map(|part| (part.name, part.shape)).collect() }
        } else {
            let ty = DynSolType::parse(word).map_err(|_| format!("{word:?} is not a type"))?;
            if ty == DynSolType::Address {
                self.take_word("payable");
            }
            Shape { ty, components: Vec::new() }
        };
        let shape = self.brackets(shape)?;
        let indexed = self.take_word("indexed");
        let name = self.word();
        let name = if name.is_empty() { format!("arg{index}") } else { name.to_owned() };
        Ok(Input { name, indexed, shape })
    }

    /// `[]` and `[n]`, any number of them.
    fn brackets(&mut self, mut shape: Shape) -> Result<Shape, String> {
        let mut count = 0;
        while self.take('[') {
            count += 1;
            let size = self.word();
            if !self.take(']') || count > 8 {
                return Err(format!("its brackets before {:?} are not understood", self.rest));
            }
            let item = Box::new(shape.ty);
            shape.ty = match size.parse::<u16>() {
                _ if size.is_empty() => DynSolType::Array(item),
                Ok(size) if size > 0 => DynSolType::FixedArray(item, usize::from(size)),
                _ => return Err(format!("an array of {size} items is not possible")),
            };
        }
        Ok(shape)
    }

    /// The next name or number; empty if something else comes next.
    fn word(&mut self) -> &'t str {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '$');
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        word
    }

    fn take_word(&mut self, wanted: &str) -> bool {
        let before = self.rest;
        let taken = self.word() == wanted;
        if !taken {
            self.rest = before;
        }
        taken
    }

    fn take(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }
}

/// The type as it stands in a canonical signature.
fn type_name(ty: &DynSolType) -> String {
    match ty {
        // alloy writes a tuple of one as `(t,)`, which Solidity does not.
        DynSolType::Tuple(types) => format!("({})", types.iter().map(type_name).collect::<Vec<_>>().join(",")),
        DynSolType::Array(item) => format!("{}[]", type_name(item)),
        DynSolType::FixedArray(item, size) => format!("{}[{size}]", type_name(item)),
        simple => simple.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::keccak256;
    use serde_json::json;

    fn topic(text: &str) -> B256 {
        Signature::parse(text).expect("a signature").topic0.expect("not anonymous")
    }

    #[test]
    fn a_signature_may_be_written_in_many_ways() {
        let canonical = keccak256("Transfer(address,address,uint256)");
        for text in [
            "Transfer(address indexed from, address indexed to, uint256 value)",
            "event Transfer(address indexed from, address indexed to, uint value);",
            "  Transfer(address,address,uint)  ",
            "Transfer(address from,address indexed to,uint256) @ 0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2",
        ] {
            assert_eq!(topic(text), canonical, "{text}");
        }
        assert_eq!(
            topic("Log(tuple(uint256 a, bytes32[2] b)[] parts, int8 indexed x)"),
            keccak256("Log((uint256,bytes32[2])[],int8)")
        );
        assert_eq!(topic("Empty ( )"), keccak256("Empty()"));
        assert_eq!(
            topic("Paid(address payable indexed to, address payable[] others, function callback, int, bytes1 payable)"),
            keccak256("Paid(address,address[],function,int256,bytes1)")
        );
        assert_eq!(topic("One((uint a) x)"), keccak256("One((uint256))"));
    }

    #[test]
    fn unusable_signatures_say_why() {
        for text in [
            "",
            "Transfer",
            "Transfer(addres a)",
            "T(uint256 a, uint256 a)",
            "T(uint256 a) anonymous",
            "T(uint indexed, uint indexed, uint indexed, uint indexed, uint indexed) anonymous @ 0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2",
            "T(uint7 a)",
            "T(uint264 a)",
            "T(int0 a)",
            "T(bytes0 a)",
            "T(bytes33 a)",
            "T(fixed a)",
            "T(mapping a)",
            "T(uint payable a)",
            "T(uint indexed a, uint indexed b, uint indexed c, uint indexed d)",
            "T(uint a) @ 0x12",
            "T(uint a) @",
            "T(uint a b)",
            "T(uint a,)",
            "T(uint[0] a)",
            "T((uint a)",
            "T(uint a) B(uint c)",
            "event (uint a)",
        ] {
            let error = Signature::parse(text).expect_err(text).to_string();
            assert!(error.contains("event ") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn unnamed_parameters_are_called_after_their_place() {
        let signature = Signature::parse("Foo(uint8, string indexed, bool named)").expect("a signature");
        let mut data = vec![0; 64];
        data[31] = 7;
        data[63] = 1;
        let topics = [B256::ZERO, B256::repeat_byte(9)];
        let attributes = signature.attributes(&topics, &data).expect("decodes");
        assert_eq!(attributes, json!({"arg0": "7", "arg1": format!("0x{}", "09".repeat(32)), "named": true}));
    }

    #[test]
    fn anonymous_events_spend_no_topic_on_their_name() {
        let text = "Note(bytes4 indexed sig, address indexed a, bytes32 indexed b, bytes32 indexed c, bytes d) anonymous \
                    @ 0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2";
        let signature = Signature::parse(text).expect("a signature");
        assert_eq!((signature.topic0, signature.topic_count()), (None, 4));
        let mut sig = B256::ZERO;
        sig[..4].copy_from_slice(&[1, 2, 3, 4]);
        let topics = [sig, B256::ZERO, B256::repeat_byte(5), B256::ZERO];
        let mut data = vec![0; 64];
        data[31] = 32;
        let attributes = signature.attributes(&topics, &data).expect("decodes");
        assert_eq!((&attributes["sig"], &attributes["d"]), (&json!("0x01020304"), &json!("0x")));
        // Another event's hash is no four bytes.
        assert!(signature.attributes(&[B256::repeat_byte(7); 4], &data).is_err());
    }

    #[test]
    fn tuples_become_objects() {
        let signature = Signature::parse("Foo((uint8 a, (bool b, address c) d)[] list)").expect("a signature");
        let mut data = vec![0; 32 * 5];
        data[31] = 32;
        data[63] = 1;
        data[95] = 5;
        data[127] = 1;
        data[159] = 0xff;
        let attributes = signature.attributes(&[B256::ZERO], &data).expect("decodes");
        let c = format!("0x{}ff", "00".repeat(19));
        assert_eq!(attributes, json!({"list": [{"a": "5", "d": {"b": true, "c": c}}]}));
    }
}
