//! Option vaults: the worked example, applied by the program itself, asked for at every height and after a reorganisation.

use std::convert::Infallible;

use ebbtide::chain::Event;
use ebbtide::projections::option_vaults::Layout;
use serde_json::{Value, json};
use warp::Filter;
use warp::http::Response;

use crate::ledger::{A, Ledger, Reply, ask, get, pages};
use crate::story::{R1, V, must, said, told};
use crate::support::Ebbtide;
use crate::tables::{UDC, in_order};

const TOKEN: &str = "0x7e";
const L1_BALANCE: &str = "340282366920938463463374607431768211457";

/// A Starknet chain on which the vault of the example is registered.
async fn registered() -> Ledger {
    let ledger = Ledger::with_chain("main", "starknet").await;
    ledger.sql("insert into vault_registry (chain_id, address, layout) select chain_id, '0x11', 'a' from chains").await;
    ledger
}

/// Puts a block; 102 brings the first provider some tokens as well.
pub(crate) async fn put(ledger: &Ledger, height: u32, time: i64, hash: &str, parent: &str, events: &[Event]) {
    let events: Vec<Value> = events
        .iter()
        .map(|e| {
            json!({"tx_index": e.tx_index, "event_index": e.event_index, "emitter": e.emitter, "name": e.name,
                   "keys": e.keys, "data": e.data})
        })
        .collect();
    let mints = match height {
        102 => json!([{"tx_index": 1, "event_index": 0, "token": TOKEN, "to_address": "0xa1", "amount": L1_BALANCE}]),
        _ => json!([]),
    };
    let sql = "select put_block('main', $1, $2, $3, to_timestamp($4::bigint), '[]', $5, $6)";
    ledger.db.execute(sql, &[&i64::from(height), &hash, &parent, &time, &mints, &json!(events)]).await.unwrap();
}

/// The example: a block 0xb65 to 0xb6c for each height from 101 to 108.
async fn put_story(ledger: &Ledger) {
    for (height, time, events) in told(Layout::A, false) {
        put(ledger, height, time, &hash(height), &hash(height - 1), &events).await;
    }
}

pub(crate) fn hash(height: u32) -> String {
    format!("0xb{height:x}")
}

/// Has the program apply what is there; the deployer of the example is one it believes.
pub(crate) fn process(ledger: &Ledger) {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), format!("[projections.option_vaults]\ndeployers = [\"{UDC}\"]\n")).unwrap();
    let config = config.path().to_str().unwrap();
    Ebbtide::succeed(&["process", "--once", "--config", config, "--database-url", &ledger.pg.url], &[]);
}

pub(crate) async fn played() -> Ledger {
    let ledger = registered().await;
    put_story(&ledger).await;
    process(&ledger);
    ledger
}

/// An answer that must be one, at this block.
async fn at_block<F>(api: &F, path: &str, height: u32, hash: &str) -> Value
where
    F: Filter<Extract = (Response<String>,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let reply = get(api, path).await;
    assert_eq!(reply.status, 200, "{path}: {}", reply.text);
    let named = ["x-chain-id", "x-block-height", "x-block-hash"].map(|name| reply.header(name));
    assert_eq!(named, [Some("main"), Some(height.to_string().as_str()), Some(hash)], "{path}");
    reply.json()
}

fn triple(row: &Value) -> String {
    let text = |name: &str| row[name].as_str().unwrap().to_owned();
    format!("{}/{}/{}", text("unlockedBalance"), text("lockedBalance"), text("stashedBalance"))
}

/// What the specification says of a vault or a provider at a height: `801/10000/0`.
fn specified(height: u32, what: &str) -> Option<String> {
    let prefix = format!("{what}: ");
    let line = must(height).into_iter().find(|line| line.starts_with(&prefix))?;
    line[prefix.len()..].split(' ').next().map(str::to_owned)
}

#[tokio::test]
async fn vaults_and_providers_are_answered_at_every_height() {
    let ledger = played().await;
    let api = ledger.api().await;
    let mut compared = 0;
    // Whether the journal still knows the block or the chain tables alone.
    for finality in [None, Some(104), Some(108)] {
        if let Some(height) = finality {
            ledger.sql(&format!("update chains set final_height = {height}")).await;
            process(&ledger);
            let body = at_block(&api, "/vaults/0x11?at=final", height, &hash(height)).await;
            assert_eq!(triple(&body["vault"]), specified(height, "vault 0x11").unwrap());
        }
        for height in 101..=108 {
            let hash = hash(height);
            for at in [height.to_string(), hash.clone(), format!("0x000{}", hash[2..].to_uppercase())] {
                let list = at_block(&api, &format!("/vaults?at={at}"), height, &hash).await;
                let body = at_block(&api, &format!("/vaults/{V}?at={at}"), height, &hash).await;
                assert_eq!(list, json!({"vaults": [body["vault"]]}));
                let vault = body["vault"].as_object().unwrap();
                assert_eq!(triple(&body["vault"]), specified(height, "vault 0x11").unwrap(), "{at}");
                assert!(vault["latestBlock"].as_u64().unwrap() <= u64::from(height), "{at}");
                // What has no history is not answered for the past.
                assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
                assert!(!vault.contains_key("currentRoundId") && !vault.contains_key("currentRoundAddress"));

                let path = format!("/vaults/{V}/liquidity-providers");
                let providers = at_block(&api, &format!("{path}?at={at}"), height, &hash).await;
                let mut listed = providers["liquidityProviders"].as_array().unwrap().iter();
                for address in ["0xa1", "0xa2"] {
                    let one = format!("{path}/{address}?at={at}");
                    let account = format!("/accounts/{address}?at={at}");
                    match specified(height, &format!("provider {address}")) {
                        Some(expected) => {
                            let body = at_block(&api, &one, height, &hash).await;
                            assert_eq!(triple(&body["liquidityProvider"]), expected, "{one}");
                            assert_eq!(listed.next(), Some(&body["liquidityProvider"]));
                            let account = get(&api, &account).await.json();
                            assert_eq!(account["vaults"]["items"], json!([body["liquidityProvider"]]));
                            assert_eq!(account["vaults"]["block"], json!({"height": height, "hash": hash}));
                            assert_eq!((account.get("options"), account.get("bids")), (None, None));
                            compared += 1;
                        }
                        None => {
                            assert_eq!(get(&api, &one).await.code(), (404, "unknown_liquidity_provider".into()));
                        }
                    }
                }
                assert_eq!(listed.next(), None);
                compared += 1;
            }
        }
        for at in ["100", "109", "0xdead", "99999999999999999999"] {
            for path in ["/vaults", "/vaults/0x11", "/vaults/0x11/liquidity-providers", "/accounts/0xa1"] {
                assert_eq!(get(&api, &format!("{path}?at={at}")).await.code(), (404, "unknown_block".into()), "{at}");
            }
        }
    }
    println!("{compared} rows compared");
}

#[tokio::test]
async fn the_present_has_rounds_bids_buyers_and_the_queue() {
    let ledger = played().await;
    let api = ledger.api().await;
    let tip = hash(108);
    let body = at_block(&api, "/vaults/0x11", 108, &tip).await;
    let vault = json!({
        "address": "0x11", "layout": "a", "currentRoundId": "2", "currentRoundAddress": "0x22",
        "unlockedBalance": "5602", "lockedBalance": "0", "stashedBalance": "0", "latestBlock": 108,
        "deploymentDate": "1000", "fossilClientAddress": "0xf0", "ethAddress": "0xe7", "optionRoundClassHash": "0xc1a56",
        "alpha": "10000", "strikeLevel": "0", "auctionRunTime": "100", "optionRunTime": "200",
        "roundTransitionPeriod": "100",
    });
    assert_eq!(body["vault"], vault);
    assert_eq!(at_block(&api, "/vaults", 108, &tip).await, json!({"vaults": [vault]}));
    let first = json!({
        "vaultAddress": "0x11", "address": "0x21", "roundId": "1", "roundState": "Settled", "capLevel": "5000",
        "auctionStartDate": "1100", "auctionEndDate": "1200", "optionSettleDate": "1400",
        "startingLiquidity": "10001", "queuedLiquidity": "2000", "remainingLiquidity": "6000",
        "availableOptions": "20", "clearingPrice": "15", "settlementPrice": "1200", "reservePrice": "10",
        "strikePrice": "1000", "optionsSold": "20", "unsoldLiquidity": "1", "premiums": "300",
        "payoutPerOption": "200", "deploymentDate": "1000", "latestBlock": 108,
    });
    let rounds = body["rounds"].as_array().unwrap();
    assert_eq!((rounds.len(), &rounds[0]), (2, &first));
    assert_eq!((&rounds[1]["roundId"], &rounds[1]["roundState"]), (&json!("2"), &json!("Open")));

    let bid = |id: &str, of: &str, amount: &str, price: &str, nonce: &str| {
        json!({"vaultAddress": "0x11", "roundAddress": "0x21", "address": of, "bidId": id, "treeNonce": nonce,
               "amount": amount, "price": price})
    };
    let bids = [
        bid("0xc1", "0xb1", "12", "15", "0"),
        bid("0xc2", "0xb2", "10", "15", "2"),
        bid("0xc3", "0xb1", "5", "10", "3"),
    ];
    let buyer = |address: &str, mintable: &str, refundable: &str, refunded: bool| {
        json!({"vaultAddress": "0x11", "roundAddress": "0x21", "address": address, "mintableOptions": mintable,
               "hasMinted": true, "hasRefunded": refunded, "refundableOptions": refundable})
    };
    let buyers = [buyer("0xb1", "12", "50", false), buyer("0xb2", "8", "30", true)];
    let queued = json!({"vaultAddress": "0x11", "roundAddress": "0x21", "address": "0xa2", "bps": "5000",
                        "queuedLiquidity": "2000"});
    let expected = json!({"round": first, "bids": {"items": bids}, "buyers": {"items": buyers},
                          "queue": {"items": [queued]}});
    assert_eq!(at_block(&api, "/rounds/0x21", 108, &tip).await, expected);

    let provider = json!({"vaultAddress": "0x11", "address": "0xa1", "unlockedBalance": "4280", "lockedBalance": "0",
                          "stashedBalance": "0", "latestBlock": 108});
    let body = at_block(&api, "/vaults/0x11/liquidity-providers/0xa1", 108, &tip).await;
    assert_eq!(body, json!({"liquidityProvider": provider}));

    let block = json!({"height": 108, "hash": tip});
    let section = |items: Value| json!({"block": block, "items": items});
    let reply = get(&api, "/accounts/0xa1").await;
    assert_eq!((reply.header("x-chain-id"), reply.header("x-negative-balances")), (Some("main"), Some("0")));
    assert_eq!((reply.header("x-block-height"), reply.header("x-block-hash")), (None, None), "each list has its own");
    let held = json!([{"tokenPath": TOKEN, "amount": L1_BALANCE}]);
    let expected = json!({"address": "0xa1", "balances": section(held), "vaults": section(json!([provider])),
                          "options": section(json!([])), "bids": section(json!([]))});
    assert_eq!(reply.json(), expected);
    let expected = json!({"address": "0xb1", "balances": section(json!([])), "vaults": section(json!([])),
                          "options": section(json!([buyers[0]])), "bids": section(json!([bids[0], bids[2]]))});
    assert_eq!(get(&api, "/accounts/0xb1").await.json(), expected);
}

#[tokio::test]
async fn the_past_is_answered_while_a_replay_or_a_registration_is_pending() {
    let ledger = played().await;
    ledger.sql("update chains set final_height = 108").await;
    process(&ledger);
    let api = ledger.api().await;
    let paths = async |at: &str| {
        let mut found = Vec::new();
        for path in ["/vaults", "/vaults/0x11", "/vaults/0x11/liquidity-providers", "/accounts/0xa1"] {
            let reply = get(&api, &format!("{path}?at={at}")).await;
            found.push((reply.status, reply.text));
        }
        found
    };
    let moments = ["105".to_owned(), hash(105), "108".to_owned(), "final".to_owned()];
    let mut before = Vec::new();
    for at in &moments {
        before.push(paths(at).await);
        assert!(before.last().unwrap().iter().all(|(status, _)| *status == 200), "{at}: {before:?}");
    }
    for pending in [
        "select replay('main', 0)",
        "update checkpoints set redo_from = null;
         insert into vault_registry (chain_id, address, layout) select chain_id, '0x77', 'a' from chains",
    ] {
        ledger.sql(pending).await;
        let redo: i64 = ledger
            .db
            .query_one("select redo_from from checkpoints where projection = 'option_vaults'", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(redo, 0, "{pending}");
        for (at, before) in moments.iter().zip(&before) {
            assert_eq!(paths(at).await, *before, "{pending}: {at}");
        }
    }
    // Where the chain itself changed, what stands there is not what was applied; also once a halt was lifted.
    for change in ["update blocks set hash = '0xf107' where height = 107", "select resume('main', 'option_vaults')"] {
        ledger.sql(change).await;
        let code = async |at: &str| get(&api, &format!("/vaults/0x11?at={at}")).await.code();
        assert_eq!(get(&api, "/vaults/0x11?at=105").await.status, 200, "{change}");
        at_block(&api, "/vaults/0x11?at=final", 106, &hash(106)).await;
        for at in ["107", "0xf107"] {
            assert_eq!(code(at).await, (404, "unknown_block".into()), "{change}: {at}");
        }
    }
    process(&ledger);
    at_block(&api, "/vaults/0x11?at=107", 107, "0xf107").await;
}

#[tokio::test]
async fn a_reorganisation_takes_back_what_is_answered() {
    let ledger = played().await;
    let api = ledger.api().await;
    let before = get(&api, "/vaults/0x11?at=105").await.text;
    let bids = in_order(vec![
        said(V, "Deposit", &[0xa2], &[250, 0, 250, 0, 750, 0]),
        said(R1, "BidPlaced", &[0xb2], &[0xc4, 3, 0, 20, 0, 5]),
    ]);
    put(&ledger, 106, 1190, "0xf106", &hash(105), &bids).await;
    // Stored and not applied: what is answered still is the old branch, though not by its replaced hashes.
    assert_eq!(get(&api, "/vaults/0x11").await.header("x-block-hash"), Some(hash(108).as_str()));
    assert_eq!(get(&api, "/vaults/0x11?at=0xf106").await.code(), (404, "unknown_block".into()));
    process(&ledger);

    let body = at_block(&api, "/vaults/0x11", 106, "0xf106").await;
    assert_eq!((triple(&body["vault"]), &body["vault"]["currentRoundId"]), ("750/10001/0".into(), &json!("1")));
    assert_eq!(body["rounds"].as_array().unwrap().len(), 1, "the second round was never deployed");
    assert_eq!(body["rounds"][0]["roundState"], json!("Auctioning"));
    let body = at_block(&api, "/vaults/0x11/liquidity-providers/0xa2", 106, "0xf106").await;
    assert_eq!(triple(&body["liquidityProvider"]), "250/4000/0");
    assert_eq!(get(&api, "/rounds/0x22").await.code(), (404, "unknown_round".into()));
    assert_eq!(get(&api, "/rounds/0x21").await.json()["bids"]["items"].as_array().unwrap().len(), 4);
    for path in ["/vaults", "/vaults/0x11", "/vaults/0x11/liquidity-providers/0xa1", "/accounts/0xa1"] {
        for height in 106..=108 {
            let at = hash(height);
            assert_eq!(get(&api, &format!("{path}?at={at}")).await.code(), (410, "block_replaced".into()), "{path}");
        }
        for at in [107, 108] {
            assert_eq!(get(&api, &format!("{path}?at={at}")).await.code(), (404, "unknown_block".into()), "{path}");
        }
    }
    assert_eq!(get(&api, "/vaults/0x11?at=105").await.text, before, "below the fork nothing changed");
    let then = at_block(&api, "/vaults/0x11?at=0xf106", 106, "0xf106").await;
    assert_eq!(triple(&then["vault"]), "750/10001/0");

    let ended = [said(R1, "AuctionEnded", &[], &[20, 0, 15, 0, 1, 0, 2])];
    put(&ledger, 107, 1200, "0xf107", "0xf106", &ended).await;
    process(&ledger);
    let body = at_block(&api, "/rounds/0x21", 107, "0xf107").await;
    let entitled = |n: usize| {
        let row = &body["buyers"]["items"][n];
        (row["mintableOptions"].as_str().unwrap().to_owned(), row["refundableOptions"].as_str().unwrap().to_owned())
    };
    assert_eq!((entitled(0), entitled(1)), (("12".into(), "50".into()), ("8".into(), "90".into())));
}

#[tokio::test]
async fn each_list_of_an_account_names_the_block_of_its_own_projection() {
    let ledger = registered().await;
    let story = told(Layout::A, false);
    for (height, time, events) in &story[..2] {
        put(&ledger, *height, *time, &hash(*height), &hash(*height - 1), events).await;
    }
    process(&ledger);
    ledger.sql("select pause('main', 'option_vaults')").await;
    for (height, time, events) in &story[2..4] {
        put(&ledger, *height, *time, &hash(*height), &hash(*height - 1), events).await;
    }
    process(&ledger);
    let api = ledger.api().await;
    let body = get(&api, "/accounts/0xa1").await.json();
    assert_eq!(body["balances"]["block"], json!({"height": 104, "hash": hash(104)}));
    for list in ["vaults", "options", "bids"] {
        assert_eq!(body[list]["block"], json!({"height": 102, "hash": hash(102)}), "{list}");
    }
    assert_eq!(triple(&body["vaults"]["items"][0]), "7001/0/0");
    at_block(&api, "/vaults/0x11", 102, &hash(102)).await;
    at_block(&api, "/tokens/balances", 104, &hash(104)).await;
    // Nobody says what one of the two has not got to yet.
    assert_eq!(get(&api, "/accounts/0xa1?at=103").await.code(), (404, "unknown_block".into()));
    assert_eq!(get(&api, "/accounts/0xa1?at=102").await.status, 200);
    assert_eq!(get(&api, "/vaults?at=103").await.code(), (404, "unknown_block".into()));
}

#[tokio::test]
async fn accounts_are_answered_on_every_kind_of_chain() {
    let ledger = Ledger::with_chain("gno", "gno").await;
    ledger.block("gno", 1, &[("gno.land/r/demo/foo", "", A, "5"), ("gno.land/r/demo/foo", "", A, "2")]).await;
    ledger.block("gno", 2, &[("gno.land/r/demo/bar", A, "", "9")]).await;
    let api = ledger.api().await;
    let none = json!({"block": null, "items": []});
    let held = json!([{"tokenPath": "gno.land/r/demo/foo", "amount": "7"}]);
    for (query, height) in [("", 2), ("?at=1", 1), ("?at=h1", 1)] {
        let reply = get(&api, &format!("/accounts/{A}{query}")).await;
        let mut expected = json!({"address": A, "vaults": none,
            "balances": {"block": {"height": height, "hash": format!("h{height}")}, "items": held}});
        if query.is_empty() {
            expected["options"] = none.clone();
            expected["bids"] = none.clone();
        }
        assert_eq!(reply.json(), expected, "{query}");
        let negatives = if query.is_empty() { "1" } else { "0" };
        assert_eq!(reply.header("x-negative-balances"), Some(negatives), "{query}");
    }
    let zero = get(&api, &format!("/accounts/{A}?zero=true&limit=1")).await.json();
    assert_eq!(zero["balances"]["items"], json!([{"tokenPath": "gno.land/r/demo/bar", "amount": "0"}]));
    let cursor = zero["balances"]["nextCursor"].as_str().unwrap();
    let rest = get(&api, &format!("/accounts/{A}?cursor={cursor}")).await.json();
    assert_eq!((rest["balances"]["items"].clone(), rest.as_object().unwrap().len()), (held, 2), "{rest}");
    assert_eq!(get(&api, "/accounts/g1none").await.code(), (400, "invalid_address".into()));

    ledger.sql("update checkpoints set history_from = 2").await;
    assert_eq!(get(&api, &format!("/accounts/{A}?at=1")).await.code(), (410, "history_pruned".into()));
    let other = Ledger::with_chain("mine", "other").await;
    other.block("mine", 1, &[("gold", "", "a/b c", "5")]).await;
    let body = get(&other.api().await, "/accounts/a%2Fb%20c").await.json();
    assert_eq!((&body["address"], &body["balances"]["items"][0]["amount"]), (&json!("a/b c"), &json!("5")));
}

/// Follows the cursors of a list inside an answer; each page after the first holds that list alone.
async fn walk<F>(api: &F, path: &str, list: &str, beside: usize) -> Vec<Value>
where
    F: Filter<Extract = (Response<String>,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let mut rows = Vec::new();
    let mut cursor = String::new();
    loop {
        let reply = get(api, &format!("{path}?limit=1{cursor}")).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        let body = reply.json();
        assert!(cursor.is_empty() || body.as_object().unwrap().len() == beside + 1, "{body}");
        rows.extend(body[list]["items"].as_array().unwrap().iter().cloned());
        match body[list]["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return rows,
        }
        assert!(rows.len() < 100, "the cursors never end");
    }
}

#[tokio::test]
async fn pages_join_without_gap_or_overlap() {
    let ledger = registered().await;
    ledger.sql("insert into vault_registry (chain_id, address, layout) select chain_id, '0x12', 'a' from chains").await;
    put_story(&ledger).await;
    let second = [
        said("0x12", "OptionRoundDeployed", &[], &[1, 0x23, 1100, 1200, 1400, 1000, 0, 5000, 10, 0]),
        said("0x12", "Deposit", &[0xa1], &[5000, 0, 5000, 0, 5000, 0]),
        said("0x23", "AuctionStarted", &[], &[5000, 0, 10, 0]),
        said("0x23", "BidPlaced", &[0xb1], &[0xc1, 1, 0, 15, 0, 1]),
    ];
    put(&ledger, 109, 1500, &hash(109), &hash(108), &in_order(second.to_vec())).await;
    process(&ledger);
    let api = ledger.api().await;
    for (path, list, rows) in [
        ("/vaults", "vaults", 2),
        ("/vaults/0x11", "rounds", 2),
        ("/vaults/0x11/liquidity-providers", "liquidityProviders", 2),
        ("/vaults?at=109", "vaults", 2),
        ("/vaults?at=108", "vaults", 1),
        ("/vaults/0x11/liquidity-providers?at=105", "liquidityProviders", 2),
    ] {
        let joint = if path.contains('?') { '&' } else { '?' };
        let whole = get(&api, path).await.json()[list].as_array().unwrap().clone();
        assert_eq!(whole.len(), rows, "{path}");
        let walked = pages(&api, &format!("{path}{joint}limit=1"), list).await;
        assert_eq!((walked.len(), walked.concat()), (rows, whole), "{path}");
    }
    for (path, list, rows, beside) in [
        ("/rounds/0x21", "bids", 3, 1),
        ("/rounds/0x21", "buyers", 2, 1),
        ("/rounds/0x21", "queue", 1, 1),
        ("/accounts/0xa1", "vaults", 2, 1),
        ("/accounts/0xb1", "options", 2, 1),
        ("/accounts/0xb1", "bids", 3, 1),
        ("/accounts/0xa1", "balances", 1, 1),
    ] {
        let whole = get(&api, path).await.json()[list]["items"].as_array().unwrap().clone();
        assert_eq!(whole.len(), rows, "{path}");
        assert_eq!(walk(&api, path, list, beside).await, whole, "{path} {list}");
    }
    // A cursor is good for its own list of its own vault, round or account.
    let next = async |path: &str, list: &str| {
        let body = get(&api, path).await.json();
        let cursor = if list.is_empty() { &body["nextCursor"] } else { &body[list]["nextCursor"] };
        cursor.as_str().unwrap_or_else(|| panic!("{path}: {body}")).to_owned()
    };
    let bids = next("/rounds/0x21?limit=1", "bids").await;
    let rounds = next("/vaults/0x11?limit=1", "").await;
    let options = next("/accounts/0xb1?limit=1", "options").await;
    for path in [
        format!("/rounds/0x22?cursor={bids}"),
        format!("/vaults/0x11?cursor={bids}"),
        format!("/vaults?cursor={rounds}"),
        format!("/vaults/0x12?cursor={rounds}"),
        format!("/vaults/0x11?at=108&cursor={rounds}"),
        format!("/vaults/0x11/liquidity-providers?cursor={rounds}"),
        format!("/accounts/0xa1?cursor={options}"),
        format!("/accounts/0xb1?at=108&cursor={options}"),
        format!("/tokens/balances?cursor={options}"),
        format!("/reorgs?cursor={bids}"),
        "/vaults?cursor=nonsense".to_owned(),
        // A round's number that is none.
        "/vaults/0x11?cursor=eyJvIjpbInIiLDEsIjB4MTEiLCJ4IiwiIl19".to_owned(),
    ] {
        assert_eq!(get(&api, &path).await.code(), (400, "invalid_cursor".into()), "{path}");
    }
}

#[tokio::test]
async fn addresses_are_felts_in_any_spelling() {
    let ledger = played().await;
    let api = ledger.api().await;
    for (path, spellings) in [
        ("/vaults/0x11", ["/vaults/0X11", "/vaults/0x0000000011", "/vaults/%30x11"]),
        (
            "/vaults/0x11/liquidity-providers/0xa1",
            [
                "/vaults/0x011/liquidity-providers/0xA1",
                "/vaults/0X0011/liquidity-providers/0x0000a1",
                "/vaults/0x11/liquidity-providers/0x00%41%31",
            ],
        ),
        ("/rounds/0x21", ["/rounds/0x0021", "/rounds/0X21", "/rounds/0x2%31"]),
        ("/accounts/0xa1", ["/accounts/0x0A1", "/accounts/0XA1", "/accounts/0x%41%31"]),
    ] {
        let canonical = get(&api, path).await;
        assert_eq!(canonical.status, 200, "{path}");
        for spelling in spellings {
            assert_eq!(get(&api, spelling).await.text, canonical.text, "{spelling}");
        }
    }
    let prime = "0x800000000000011000000000000000000000000000000000000000000000001";
    for address in ["0x", "11", "vault", "0xg", "%ff", "0x11%00", "0x11%2Frounds", prime] {
        for path in ["/vaults/", "/rounds/"] {
            let path = format!("{path}{address}");
            assert_eq!(get(&api, &path).await.code(), (400, "invalid_address".into()), "{path}");
        }
        let path = format!("/vaults/0x11/liquidity-providers/{address}");
        assert_eq!(get(&api, &path).await.code(), (400, "invalid_address".into()), "{path}");
    }
    for address in ["0x", "0xg", "%ff", "%"] {
        let path = format!("/accounts/{address}");
        assert_eq!(get(&api, &path).await.code(), (400, "invalid_address".into()), "{path}");
    }
}

#[tokio::test]
async fn a_block_is_found_by_the_name_it_was_given() {
    let ledger = registered().await;
    put(&ledger, 101, 1000, "0x00Ab", "0x00aa", &[]).await;
    put(&ledger, 102, 1001, "0xac", "0x00ab", &[]).await;
    process(&ledger);
    let api = ledger.api().await;
    for route in ["/vaults", "/tokens/balances"] {
        at_block(&api, &format!("{route}?at=0x00AB"), 101, "0x00ab").await;
        at_block(&api, &format!("{route}?at=0x00ac"), 102, "0xac").await;
        assert_eq!(get(&api, &format!("{route}?at=0x00ad")).await.code(), (404, "unknown_block".into()));
    }
}

#[tokio::test]
async fn what_is_not_there_is_named_and_other_methods_are_refused() {
    let ledger = Ledger::new().await;
    let api = ledger.api().await;
    let routes = ["/vaults", "/vaults/0x11", "/vaults/0x11/liquidity-providers", "/rounds/0x21", "/accounts/0xa1"];
    let code = async |path: &str| get(&api, path).await.code();
    for path in routes {
        assert_eq!(code(path).await, (404, "unknown_chain".into()), "{path}");
    }
    ledger.chain("main", "starknet").await;
    // No projection has begun: an empty list, and no vault at any block.
    let reply: Reply = get(&api, "/vaults").await;
    assert_eq!((reply.text.as_str(), reply.header("x-block-height")), (r#"{"vaults":[]}"#, None));
    for path in ["/vaults/0x11", "/vaults/0x11?at=1", "/vaults/0x11/liquidity-providers", "/vaults/0x11?at=final"] {
        assert_eq!(code(path).await, (404, "unknown_vault".into()), "{path}");
    }
    assert_eq!(code("/rounds/0x21").await, (404, "unknown_round".into()));
    assert_eq!(get(&api, "/accounts/0xa1").await.json()["vaults"], json!({"block": null, "items": []}));
    ledger.sql("insert into vault_registry (chain_id, address, layout) select chain_id, '0x11', 'a' from chains").await;
    put_story(&ledger).await;
    process(&ledger);
    ledger.chain("side", "starknet").await;
    ledger.chain("eth", "evm").await;
    for path in routes {
        assert_eq!(code(path).await, (400, "chain_required".into()), "{path}");
        assert_eq!(code(&format!("{path}?chain=none")).await, (404, "unknown_chain".into()), "{path}");
        assert_eq!(code(&format!("{path}?chain=main&limit=0")).await, (400, "invalid_limit".into()), "{path}");
        assert_eq!(code(&format!("{path}?chain=main&chain=side")).await, (400, "invalid_parameter".into()), "{path}");
        let found = get(&api, &format!("{path}?chain=main")).await;
        assert_eq!((found.status, found.header("access-control-allow-origin")), (200, Some("*")), "{path}");
        let head = ask(&api, "HEAD", &format!("{path}?chain=main")).await;
        assert_eq!((head.status, head.text.as_str()), (200, ""));
        assert_eq!(head.header("content-length"), Some(found.text.len().to_string().as_str()));
        assert_eq!(head.header("x-block-hash"), found.header("x-block-hash"));
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let reply = ask(&api, method, path).await;
            assert_eq!((reply.code(), reply.header("allow")), ((405, "method_not_allowed".into()), Some("GET, HEAD")));
        }
    }
    for chain in ["side", "eth"] {
        assert_eq!(code(&format!("/vaults/0x11?chain={chain}")).await, (404, "unknown_vault".into()));
    }
    for path in ["/vaults/0x12", "/vaults/0x12/liquidity-providers", "/vaults/0x12/liquidity-providers/0xa1"] {
        assert_eq!(code(&format!("{path}?chain=main")).await, (404, "unknown_vault".into()), "{path}");
    }
    let stranger = "/vaults/0x11/liquidity-providers/0xa3?chain=main";
    assert_eq!(code(stranger).await, (404, "unknown_liquidity_provider".into()));
    assert_eq!(code("/rounds/0x11?chain=main").await, (404, "unknown_round".into()), "a vault is no round");
    assert_eq!(code("/rounds/0x21?chain=main&at=105").await, (400, "invalid_parameter".into()));
    for path in [
        "/vaults/",
        "/vaults//liquidity-providers",
        "/vaults/0x11/",
        "/vaults/0x11/liquidity-providers/",
        "/vaults/0x11/liquidity-providers/0xa1/",
        "/vaults/0x11/rounds",
        "/rounds",
        "/rounds/",
        "/rounds/0x21/bids",
        "/accounts",
        "/accounts/",
        "/accounts/0xa1/",
        "/accounts/0xa1/bids",
        "/Vaults",
    ] {
        assert_eq!(code(path).await, (404, "not_found".into()), "{path}");
    }
}
