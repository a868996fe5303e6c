//! Schemas: each is what it was when it was released; a change that is not an addition is a new version.

use std::path::Path;

use ebbtide::api::SCHEMAS;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// By sha256 of the text.
const RELEASED: &[(&str, &str)] = &[
    ("ebbtide.block.applied/1", "6f9903d33141ed4827b12f4babb727cf9e6212a7f9e6d6f20a17c81d0920be6a"),
    ("ebbtide.transfer.applied/1", "2835331817bb42a8c01eaef3b98e6f2a892437faeff32e878fc0cc0b412ff065"),
    ("ebbtide.balance.changed/1", "b0f8ccb09af2fb6b104748e226a6186b69902d72eff6dcda9dbf4cbb0f67af92"),
    ("ebbtide.row.changed/1", "78c6035fa164e9f0843c2ea57c9dcf917586c14abdd55ac85b589d711525dc13"),
    ("ebbtide.projection.rebuilt/1", "6bcd1a5bbbd2ec1989b178b9be3aed46d0e06ae89e06f49cbb9fb4e90f6690de"),
];

#[test]
fn each_schema_is_what_was_released() {
    let sum = |text: &str| Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found: Vec<(&str, String)> = SCHEMAS.iter().map(|(name, text)| (*name, sum(text))).collect();
    let released: Vec<(&str, String)> = RELEASED.iter().map(|(name, sum)| (*name, (*sum).to_owned())).collect();
    assert_eq!(found, released, "a schema that is out is not changed: make the next version of it");
    let files = std::fs::read_dir(Path::new("docs/schemas")).unwrap().count();
    assert_eq!(files, SCHEMAS.len(), "each is served");
    for (name, text) in SCHEMAS {
        let schema: Value = serde_json::from_str(text).unwrap();
        assert_eq!(schema["$id"], format!("urn:ebbtide:schema:{}", name.replace('/', ":")));
    }
}
