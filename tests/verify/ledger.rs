//! `ebbtide verify`: finds nothing after honest work, and finds and names every kind of damage.

use tokio_postgres::Client;

use crate::support::{Ebbtide, Pg, data_dir, skip};

/// What `verify` says: whether it found nothing, and its lines.
fn verify(pg: &Pg, more: &[&str]) -> (bool, Vec<String>) {
    let args: Vec<&str> = ["verify", "--database-url", &pg.url].into_iter().chain(more.iter().copied()).collect();
    let output = Ebbtide::output(&args, &[]);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 1)), "verify ended with {code:?}: {}", String::from_utf8_lossy(&output.stderr));
    (code == Some(0), String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

fn assert_clean(pg: &Pg) -> Vec<String> {
    let (clean, lines) = verify(pg, &[]);
    assert!(clean, "{}", lines.join("\n"));
    assert!(lines.last().unwrap().ends_with("no difference."), "{lines:?}");
    lines
}

/// Does the damage, asks for a line with each of these words, mends it, and asks again.
async fn damage(pg: &Pg, db: &Client, harm: &str, mend: &str, words: &[&str]) {
    db.batch_execute(harm).await.unwrap_or_else(|e| panic!("{harm}: {e:?}"));
    let (clean, lines) = verify(pg, &[]);
    let text = lines.join("\n");
    assert!(!clean, "not found: {harm}\n{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not named after {harm}:\n{text}");
    }
    db.batch_execute(mend).await.unwrap_or_else(|e| panic!("{mend}: {e:?}"));
    let (clean, lines) = verify(pg, &[]);
    assert!(clean, "still there after {mend}:\n{}", lines.join("\n"));
}

fn process(pg: &Pg) {
    Ebbtide::succeed(&["process", "--database-url", &pg.url, "--once"], &[]);
}

/// Three small blocks by hand: opening balances, a mint, a transfer, a burn.
async fn small_chain() -> (Pg, Client) {
    let pg = Pg::new().await;
    let db = pg.client().await;
    db.batch_execute(
        "insert into chains (name, kind, start_height) values ('mine', 'other', 5);
         insert into opening_balances select chain_id, 'gold', 'alice', 100 from chains;
         set ebbtide.write_tracked_tables = on;
         select put_block('mine', 5, 'a', '', token_events =>
            '[{\"tx_index\":0,\"event_index\":0,\"token\":\"gold\",\"to_address\":\"bob\",\"amount\":7}]');
         select put_block('mine', 6, 'b', 'a', token_events =>
            '[{\"tx_index\":0,\"event_index\":0,\"token\":\"gold\",\"from_address\":\"alice\",\"to_address\":\"bob\",\"amount\":30}]');
         select put_block('mine', 7, 'c', 'b', token_events =>
            '[{\"tx_index\":0,\"event_index\":0,\"token\":\"gold\",\"from_address\":\"bob\",\"amount\":37},
              {\"tx_index\":0,\"event_index\":1,\"token\":\"gold\",\"from_address\":\"carol\",\"to_address\":\"carol\",\"amount\":1}]');",
    )
    .await
    .unwrap();
    process(&pg);
    (pg, db)
}

#[tokio::test]
async fn verify_finds_nothing_after_a_recorded_chain_with_its_reorgs() {
    let Some(data) = data_dir() else { return };
    let feed = data.join("anvil/erc20-depth-1-10.feed.ndjson.gz");
    if !feed.exists() {
        return skip(&format!("no {}", feed.display()));
    }
    let pg = Pg::new().await;
    let feed = feed.to_str().unwrap();
    let run = ["run", "--database-url", &pg.url, "--chain", "anvil", "--source", "file", "--file", feed, "--once"];
    Ebbtide::succeed(&run, &[]);
    let lines = assert_clean(&pg);
    let db = pg.client().await;
    let applied: i64 = db.query_one("select count(*) from balance_changes", &[]).await.unwrap().get(0);
    assert!(applied > 500, "only {applied} changes were made");
    println!("{}", lines.last().unwrap());

    // Many differences: as many lines as were asked for, and how many more there are.
    db.batch_execute("set ebbtide.write_tracked_tables = on").await.unwrap();
    let harmed = db.execute("update balances set amount = amount + 1", &[]).await.unwrap();
    assert!(harmed > 3);
    let (clean, lines) = verify(&pg, &["--limit", "2", "--chain", "anvil"]);
    assert!(!clean);
    assert_eq!(lines.iter().filter(|l| l.starts_with("anvil: balance ")).count(), 2, "{lines:?}");
    assert!(lines.contains(&format!("anvil: balance: … and {} more", harmed - 2)), "{lines:?}");
}

#[tokio::test]
async fn verify_finds_and_names_every_kind_of_damage() {
    let (pg, db) = small_chain().await;
    let lines = assert_clean(&pg);
    assert_eq!(
        lines,
        ["Recomputed 1 chains (3 blocks, 3 balances, 6 changes): no difference."],
        "alice, bob and carol; alice's opening balance is a change too"
    );
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "update balances set amount = amount + 1 where address = 'bob'",
            "update balances set amount = amount - 1 where address = 'bob'",
            &[
                "mine: balance bob in gold: ours 1, changed at 7; recomputed 0, changed at 7",
                "supply gold: ours 71; recomputed 70",
            ],
        ),
        (
            "update balances set height = 6 where address = 'bob'",
            "update balances set height = 7 where address = 'bob'",
            &["balance bob in gold: ours 0, changed at 6; recomputed 0, changed at 7"],
        ),
        (
            "update token_totals set total = total + 1",
            "update token_totals set total = total - 1",
            &["mine: total gold: ours 71; recomputed 70"],
        ),
        (
            "delete from token_totals",
            "insert into token_totals select chain_id, token, sum(amount) from balances group by chain_id, token",
            &["mine: total gold: ours 0; recomputed 70"],
        ),
        (
            "insert into token_totals select max(chain_id) + 1, 'gold', 1 from chains",
            "delete from token_totals where total = 1",
            &["no chain: token_totals chain_id"],
        ),
        // Two wrong amounts that cancel.
        (
            "update balances set amount = amount + case address when 'bob' then 5 else -5 end where address in ('alice', 'bob')",
            "update balances set amount = amount - case address when 'bob' then 5 else -5 end where address in ('alice', 'bob')",
            &["balance alice in gold", "balance bob in gold"],
        ),
        // An account with nothing, lost.
        (
            "delete from balances where address = 'carol'",
            "insert into balances (chain_id, token, address, amount, height, balance_id) overriding system value
             select chain_id, 'gold', 'carol', 0, 7, balance_id from balance_history h
             where not exists (select from balances b where b.balance_id = h.balance_id)",
            &[
                "balance carol in gold: ours no row; recomputed 0, changed at 7",
                " that is not there at 7: ours 0 to 0 after nothing; recomputed no row",
                "change carol in gold at 7: ours no row; recomputed 0 to 0 after nothing",
            ],
        ),
        // One left behind by a branch that is gone.
        (
            "insert into balances select chain_id, 'gold', 'dave', 0, 6 from chains",
            "delete from balances where address = 'dave'",
            &["balance dave in gold: ours 0, changed at 6; recomputed no row"],
        ),
        (
            "insert into balances select chain_id, 'silver', 'dave', 4, 6 from chains",
            "delete from balances where address = 'dave'",
            &["balance dave in silver", "supply silver: ours 4; recomputed no row"],
        ),
        (
            "delete from balance_history h using balances b where b.balance_id = h.balance_id and address = 'bob' and h.height = 6",
            "insert into balance_history select balance_id, 6, 5, chain_id, 30, 37 from balances where address = 'bob'",
            &["change bob in gold at 6: ours no row; recomputed 30 to 37 after 5"],
        ),
        // The opening balance has its row too.
        (
            "delete from balance_history where height = 4",
            "insert into balance_history select balance_id, 4, null, chain_id, 100, 100 from balances where address = 'alice'",
            &["change alice in gold at 4: ours no row; recomputed 100 to 100 after nothing"],
        ),
        (
            "insert into balance_history select balance_id, 8, 7, chain_id, 1, 1 from balances where address = 'bob'",
            "delete from balance_history where height = 8",
            &["change bob in gold at 8: ours 1 to 1 after 7; recomputed no row"],
        ),
        (
            "update balance_history h set prev_height = null from balances b where b.balance_id = h.balance_id and address = 'bob' and h.height = 7",
            "update balance_history h set prev_height = 6 from balances b where b.balance_id = h.balance_id and address = 'bob' and h.height = 7",
            &["change bob in gold at 7: ours -37 to 0 after nothing; recomputed -37 to 0 after 6"],
        ),
        (
            "update balance_history h set delta = 31 from balances b where b.balance_id = h.balance_id and address = 'bob' and h.height = 6",
            "update balance_history h set delta = 30 from balances b where b.balance_id = h.balance_id and address = 'bob' and h.height = 6",
            &["change bob in gold at 6: ours 31 to 37 after 5; recomputed 30 to 37 after 5"],
        ),
        (
            "update balance_history h set balance_after = 38 from balances b where b.balance_id = h.balance_id and address = 'bob' and h.height = 6",
            "update balance_history h set balance_after = 37 from balances b where b.balance_id = h.balance_id and address = 'bob' and h.height = 6",
            &["change bob in gold at 6: ours 30 to 38 after 5; recomputed 30 to 37 after 5"],
        ),
        (
            "update applied_blocks set hash = 'x' where height = 6",
            "update applied_blocks set hash = 'b' where height = 6",
            &["applied block 6: ours x, revision", "recomputed b, revision"],
        ),
        (
            "update applied_blocks set revision = -1 where height = 6",
            "update applied_blocks a set revision = b.revision from blocks b where b.height = a.height",
            &["applied block 6: ours b, revision -1; recomputed b, revision"],
        ),
        (
            "delete from applied_blocks where height = 5",
            "insert into applied_blocks select chain_id, 'token_balances', height, hash, revision from blocks where height = 5",
            &["applied block 5: ours no row; recomputed a, revision"],
        ),
        (
            "insert into applied_blocks select chain_id, 'token_balances', 8, 'd', 1 from chains",
            "delete from applied_blocks where height = 8",
            &["applied block 8: ours d, revision 1; recomputed no row"],
        ),
        (
            "update checkpoints set hash = 'x'",
            "update checkpoints set hash = 'c'",
            &["checkpoint: ours 7 is x; recomputed 7 is c"],
        ),
        (
            "update checkpoints set through_height = 9",
            "update checkpoints set through_height = 7",
            &["checkpoint: ours applied through 9; recomputed empty through none"],
        ),
        (
            "update checkpoints set start_height = 6",
            "update checkpoints set start_height = 5",
            &["checkpoint: ours begun at 6; recomputed begins at 5"],
        ),
        // Lags by a block that is in the balances already.
        (
            "update checkpoints set height = 6, through_height = 6, hash = 'b'",
            "update checkpoints set height = 7, through_height = 7, hash = 'c'",
            &[
                "balance bob in gold: ours 0, changed at 7; recomputed 37, changed at 6",
                "change bob in gold at 7",
                "1 blocks up to 7 count",
            ],
        ),
        // An event hidden as refused, though any account is good on a chain of kind other.
        (
            "insert into rejected_events select chain_id, 6, 0, 0, 'token_balances', 'b', '{}', 'bad_address' from chains",
            "delete from rejected_events",
            &["rejected event 6/0/0: ours refused in b: {}; recomputed to be taken", "balance alice in gold"],
        ),
        (
            "insert into rejected_events select chain_id, 6, 0, 9, 'token_balances', 'b', '{}', 'bad_address' from chains",
            "delete from rejected_events",
            &["rejected event 6/0/9: ours refused in b: {}; recomputed no such event"],
        ),
        (
            "insert into balances select max(chain_id) + 1, 'gold', 'dave', 1, 1 from chains",
            "delete from balances where address = 'dave'",
            &["no chain: balances chain_id"],
        ),
        // The events themselves, behind the back of their triggers.
        (
            "alter table token_events disable trigger updated, disable trigger respelt; update token_events set amount = 31 where height = 6;
             alter table token_events enable always trigger updated, enable always trigger respelt",
            "alter table token_events disable trigger updated, disable trigger respelt; update token_events set amount = 30 where height = 6;
             alter table token_events enable always trigger updated, enable always trigger respelt",
            &["balance alice in gold: ours 70, changed at 6; recomputed 69, changed at 6", "change alice in gold at 6"],
        ),
        (
            "alter table blocks disable trigger rewritten, disable trigger edited; update blocks set parent_hash = 'x' where height = 7;
             alter table blocks enable always trigger rewritten, enable always trigger edited",
            "alter table blocks disable trigger rewritten, disable trigger edited; update blocks set parent_hash = 'b' where height = 7;
             alter table blocks enable always trigger rewritten, enable always trigger edited",
            &["checkpoint: ours 7 is c; recomputed 7 is no block", "applied block 7", "change bob in gold at 7"],
        ),
        (
            "alter table blocks disable trigger rewritten, disable trigger edited; update blocks set event_count = 3 where height = 7;
             alter table blocks enable always trigger rewritten, enable always trigger edited",
            "alter table blocks disable trigger rewritten, disable trigger edited; update blocks set event_count = null where height = 7;
             alter table blocks enable always trigger rewritten, enable always trigger edited",
            &["checkpoint: ours 7 is c; recomputed 7 is no block"],
        ),
    ];
    for (harm, mend, words) in cases {
        damage(&pg, &db, harm, mend, words).await;
    }
    println!("{} kinds of damage were found", cases.len());
}

#[tokio::test]
async fn verify_takes_what_is_not_applied_yet_as_a_note() {
    let (pg, db) = small_chain().await;
    db.batch_execute(
        "select put_block('mine', 8, 'd', 'c', token_events =>
            '[{\"tx_index\":0,\"event_index\":0,\"token\":\"gold\",\"to_address\":\"bob\",\"amount\":7}]');
         select pause('mine', 'token_balances')",
    )
    .await
    .unwrap();
    let lines = assert_clean(&pg);
    assert!(lines.contains(&"mine: note: paused".to_owned()), "{lines:?}");
    assert!(lines.contains(&"mine: note: 1 blocks up to 8 count and are not applied yet".to_owned()), "{lines:?}");
    db.batch_execute("select resume('mine', 'token_balances')").await.unwrap();
    process(&pg);
    assert_eq!(assert_clean(&pg).len(), 1);
}

#[tokio::test]
async fn verify_leaves_out_refused_events_and_knows_which_those_are() {
    let pg = Pg::new().await;
    let db = pg.client().await;
    db.batch_execute(
        "insert into chains (name, kind) values ('eth', 'evm');
         select put_block('eth', 0, '0xa', '0x', token_events =>
            '[{\"tx_index\":0,\"event_index\":0,\"token\":\"0x00000000000000000000000000000000000000aa\",
               \"to_address\":\"0x00000000000000000000000000000000000000b0\",\"amount\":7},
              {\"tx_index\":0,\"event_index\":1,\"token\":\"0x00000000000000000000000000000000000000aa\",
               \"to_address\":\"bob\",\"amount\":7}]');",
    )
    .await
    .unwrap();
    process(&pg);
    assert_clean(&pg);
    let refused: i64 = db.query_one("select count(*) from rejected_events", &[]).await.unwrap().get(0);
    assert_eq!(refused, 1);
    db.batch_execute("create table kept as select * from rejected_events").await.unwrap();
    let mend = "insert into rejected_events select * from kept";
    damage(
        &pg,
        &db,
        "delete from rejected_events",
        mend,
        &["rejected event 0/0/1: ours taken; recomputed to be refused"],
    )
    .await;
}

#[tokio::test]
async fn verify_says_which_chain_is_unknown() {
    let (pg, _db) = small_chain().await;
    let output = Ebbtide::output(&["verify", "--database-url", &pg.url, "--chain", "nobody"], &[]);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("there is no chain named nobody"), "{stderr}");
}
