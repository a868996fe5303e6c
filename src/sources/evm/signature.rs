//! Event signatures as people write them: `Name(type indexed name, …)`, read once and used to decode logs.

use alloy_dyn_abi::{DynSolType, Specifier};
use alloy_json_abi::{Event as AbiEvent, Param};
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
    /// Hash of its canonical form: what the first topic must be.
    pub(super) topic0: B256,
    /// Who must say it; empty: anybody.
    pub(super) emitters: Vec<Address>,
    inputs: Vec<Input>,
}

#[derive(Debug, Clone)]
struct Input {
    name: String,
    indexed: bool,
    shape: Shape,
}

impl Signature {
    /// Reads `[event ]Name(type [indexed] [name], …)[ @ address[, address…]]`.
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
        let event =
            AbiEvent::parse(signature.trim().trim_end_matches(';').trim_end()).map_err(|e| bad(e.to_string()))?;
        if event.anonymous {
            return Err(bad("an anonymous event has no topic to know it by".into()));
        }
        let mut inputs = Vec::with_capacity(event.inputs.len());
        for (index, input) in event.inputs.iter().enumerate() {
            let ty = input.resolve().map_err(|e| bad(e.to_string()))?;
            let components = components(&input.components).map_err(|e| bad(e.to_string()))?;
            let name = if input.name.is_empty() { format!("arg{index}") } else { input.name.clone() };
            inputs.push(Input { name, indexed: input.indexed, shape: Shape { ty, components } });
        }
        if inputs.iter().filter(|i| i.indexed).count() > 3 {
            return Err(bad("at most three parameters can be indexed".into()));
        }
        for (index, input) in inputs.iter().enumerate() {
            if inputs[..index].iter().any(|other| other.name == input.name) {
                return Err(bad(format!("two parameters are named {:?}", input.name)));
            }
        }
        // Written by hand from the resolved types: `uint` must hash as `uint256`.
        let types: Vec<String> = inputs.iter().map(|i| type_name(&i.shape.ty)).collect();
        let topic0 = alloy_primitives::keccak256(format!("{}({})", event.name, types.join(",")));
        Ok(Signature { name: event.name, topic0, emitters, inputs })
    }

    /// How many topics such a log has, its own hash included.
    pub(super) fn topic_count(&self) -> usize {
        1 + self.inputs.iter().filter(|i| i.indexed).count()
    }

    /// Whether a log of `emitter` may be this event.
    pub(super) fn admits(&self, emitter: &Address) -> bool {
        self.emitters.is_empty() || self.emitters.contains(emitter)
    }

    /// Named values of a log whose first topic and number of topics fit.
    pub(super) fn attributes(&self, topics: &[B256], data: &[u8]) -> Result<Value, NotThisType> {
        let plain: Vec<&Shape> = self.inputs.iter().filter(|i| !i.indexed).map(|i| &i.shape).collect();
        let mut plain = abi::read_sequence(&plain, data)?.into_iter();
        let mut indexed = topics.iter().skip(1);
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

/// Names and shapes of a tuple's parts; a part without a name is called after its place.
fn components(params: &[Param]) -> Result<Vec<(String, Shape)>, alloy_dyn_abi::Error> {
    let mut parts: Vec<(String, Shape)> = Vec::with_capacity(params.len());
    for (index, param) in params.iter().enumerate() {
        let shape = Shape { ty: param.resolve()?, components: components(&param.components)? };
        let taken = parts.iter().any(|(name, _)| *name == param.name);
        let name = if param.name.is_empty() || taken { format!("arg{index}") } else { param.name.clone() };
        parts.push((name, shape));
    }
    Ok(parts)
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
        Signature::parse(text).expect("a signature").topic0
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
            "T(uint indexed a, uint indexed b, uint indexed c, uint indexed d)",
            "T(uint a) @ 0x12",
            "T(uint a) @",
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
        let topics = [signature.topic0, B256::repeat_byte(9)];
        let attributes = signature.attributes(&topics, &data).expect("decodes");
        assert_eq!(attributes, json!({"arg0": "7", "arg1": format!("0x{}", "09".repeat(32)), "named": true}));
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
        let attributes = signature.attributes(&[signature.topic0], &data).expect("decodes");
        let c = format!("0x{}ff", "00".repeat(19));
        assert_eq!(attributes, json!({"list": [{"a": "5", "d": {"b": true, "c": c}}]}));
    }
}
