//! What projections must survive: reorganisations while they catch up, two processors, an ordinary role, a dump and a
//! restore, kills.

use std::process::Command;

use ebbtide::private_postgres::Search;

use crate::harness::{Mine, dump};
use crate::support::{Ebbtide, Pg, wait_until};

/// The sum of what the blocks say, worked out from the chain tables.
const TRUTH: &str = "select coalesce(sum((attributes ->> 'n')::int), 0)::int from events";

/// A table that adds up what the events say, and how often it was touched.
const SUMS: &str = "
    create table public.sums (k int primary key, n int not null, blocks int not null);
    create function public.add_up(bigint, bigint) returns void language plpgsql as $$
    begin
        insert into sums as s
        select 1, coalesce(sum((attributes ->> 'n')::int), 0), 1 from events where chain_id = $1 and height = $2
        on conflict (k) do update set n = s.n + excluded.n, blocks = s.blocks + 1;
    end $$;";
const CREATE: &str =
    "select create_projection('sums', 'public.add_up(bigint,bigint)', '{public.sums}', chain => 'main')";

async fn put(client: &tokio_postgres::Client, height: i64, parent: &str, tag: &str, n: i64) -> String {
    let hash = format!("h{height}{tag}");
    let events =
        serde_json::json!([{"tx_index": 0, "event_index": 0, "emitter": "e", "name": "n", "attributes": {"n": n}}]);
    let sql = "select put_block('main', $1, $2, $3, now(), '[]', '[]', $4)";
    client.execute(sql, &[&height, &hash, &parent, &events]).await.unwrap();
    hash
}

async fn settled(client: &tokio_postgres::Client) {
    wait_until("sums stands on the tip and is right", async || {
        let row = client
            .query_one(
                &format!(
                    "select (select hash from checkpoints where projection = 'sums')
                        = (select hash from blocks order by height desc limit 1), (select n from public.sums), ({TRUTH}),
                        (select blocks from public.sums), (select count(*)::int from blocks),
                        (select failed_reason from checkpoints where projection = 'sums')"
                ),
                &[],
            )
            .await
            .unwrap();
        if row.get::<_, Option<bool>>(0) != Some(true) {
            return None;
        }
        assert_eq!(row.get::<_, Option<i32>>(1), Some(row.get::<_, i32>(2)));
        assert_eq!(row.get::<_, Option<i32>>(3), Some(row.get::<_, i32>(4)));
        Some(())
    })
    .await;
}

#[tokio::test]
async fn a_reorganisation_while_it_catches_up_two_processors_and_kills() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    client
        .batch_execute(
            "insert into events (chain_id, height, tx_index, event_index, emitter, name, attributes)
             select 1, h, 0, 0, 'e', 'n', jsonb_build_object('n', h) from generate_series(1, 1500) h;
             insert into blocks (chain_id, height, hash, parent_hash) select 1, h, 'h' || h, 'h' || h - 1 from generate_series(1, 1500) h",
        )
        .await
        .unwrap();
    client.batch_execute(SUMS).await.unwrap();
    client.batch_execute(CREATE).await.unwrap();
    let mut running: Vec<Ebbtide> =
        (0..2).map(|_| Ebbtide::spawn(&["process", "--database-url", &pg.url], &[])).collect();
    let mut reorgs = 0;
    for round in 0..12i64 {
        // At moments of its own choosing: while blocks are applied, undone, or nothing at all.
        wait_until("it has moved on", async || {
            let sql = "select 1 from checkpoints where projection = 'sums' and height >= $1";
            client.query_opt(sql, &[&(round * 100)]).await.unwrap()
        })
        .await;
        if round % 3 == 2 {
            // Killed, not stopped, in the middle of whatever it does; another takes its place.
            let killed = running.remove(0);
            drop(killed);
            running.push(Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]));
        }
        let at = 1500 - round * 40;
        let parent: String =
            client.query_one("select hash from blocks where height = $1", &[&(at - 1)]).await.unwrap().get(0);
        let mut parent = parent;
        for height in at..at + 3 {
            parent = put(&client, height, &parent, &format!("r{round}"), -height).await;
        }
        reorgs += 1;
    }
    settled(&client).await;
    println!("{reorgs} reorganisations");
}

#[tokio::test]
async fn as_an_ordinary_role() {
    let pg = Pg::empty().await;
    let admin = crate::support::pg::connect(&pg.url).await;
    let (role, name) = (format!("plain_{}", std::process::id()), pg.config().get_dbname().unwrap().to_owned());
    admin
        .batch_execute(&format!(
            "create role {role} login password 'x' nosuperuser; grant create, temporary on database {name} to {role};
             grant create on schema public to {role}"
        ))
        .await
        .unwrap();
    let at = pg.url.find('@').unwrap();
    let url = format!("postgres://{role}:x{}", &pg.url[at..]);
    Ebbtide::succeed(&["migrate", "--database-url", &url], &[]);
    let client = crate::support::pg::connect(&url).await;
    client
        .batch_execute("set search_path = ebbtide, public; insert into chains (name, kind) values ('main', 'other')")
        .await
        .unwrap();
    client.batch_execute(SUMS).await.unwrap();
    // With a trigger of its own, which rests while rows are restored.
    client
        .batch_execute(
            "create function public.same() returns trigger language plpgsql as $$ begin return new; end $$;
             create trigger same before insert or update on public.sums for each row execute function public.same()",
        )
        .await
        .unwrap();
    client.batch_execute(CREATE).await.unwrap();
    {
        let _process = Ebbtide::spawn(&["process", "--database-url", &url], &[]);
        let mut parent = "root".to_owned();
        for height in 1..=6 {
            parent = put(&client, height, &parent, "a", height).await;
        }
        settled(&client).await;
        put(&client, 3, "h2a", "b", 100).await;
        settled(&client).await;
    }
    // A table of somebody else is not taken.
    admin.batch_execute("create table public.theirs (k int primary key)").await.unwrap();
    let sql = "select create_projection('more', 'public.add_up(bigint,bigint)', '{public.theirs}', chain => 'main')";
    let refused = client.batch_execute(sql).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("its owner is"), "{refused:?}");
    drop(client);
    admin.batch_execute(&format!("drop owned by {role} cascade; drop role {role}")).await.unwrap();
}

#[tokio::test]
async fn a_dump_and_a_restore_keep_the_undo() {
    let mut mine =
        Mine::new("create table t (k int primary key, v int); create table u (k text primary key)", &["t", "u"]).await;
    mine.add(&["insert into t values (1, 1), (2, 2)", "insert into u values ('x')"]).await;
    let first = mine.dump().await;
    mine.add(&["update t set v = 9 where k = 1", "delete from t where k = 2"]).await;
    mine.add(&["delete from u", "insert into t values (3, 3)"]).await;
    let bin = Search::Installed.find().installations.first().expect("a server is installed").bin_dir.clone();
    let dumped = Command::new(bin.join("pg_dump")).args(["-d", &mine.pg.url]).output().unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    // Other objects first, so that no number of an object is what it was.
    let restored = Pg::empty().await;
    let client = crate::support::pg::connect(&restored.url).await;
    client.batch_execute("create table a1 (k int); create table a2 (k int); drop table a1, a2").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dump.sql");
    std::fs::write(&file, &dumped.stdout).unwrap();
    let loaded = Command::new(bin.join("psql"))
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", file.to_str().unwrap(), &restored.url])
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let _process = Ebbtide::spawn(&["process", "--database-url", &restored.url], &[]);
    client.batch_execute("set search_path = ebbtide, public").await.unwrap();
    let sql = "select put_block('main', 2, 'other', $1, now(), '[]', '[]', '[]')";
    client.execute(sql, &[&mine.hashes[1]]).await.unwrap();
    wait_until("the restored one stands on the other branch", async || {
        let sql = "select failed_reason from checkpoints where projection = 'mine' and hash = 'other'";
        client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    assert_eq!(dump(&client, &["t".to_owned(), "u".to_owned()]).await, first);
}

#[tokio::test]
async fn a_projection_is_paused_replayed_and_dropped_by_its_name() {
    let pg = Pg::new().await;
    let client = pg.client().await;
    client.batch_execute("insert into chains (name, kind) values ('main', 'other')").await.unwrap();
    client.batch_execute(SUMS).await.unwrap();
    client.batch_execute(CREATE).await.unwrap();
    let _process = Ebbtide::spawn(&["process", "--database-url", &pg.url], &[]);
    let mut parent = "root".to_owned();
    for height in 1..=10 {
        parent = put(&client, height, &parent, "a", height).await;
    }
    settled(&client).await;
    client.batch_execute("select pause('main', 'sums', 4)").await.unwrap();
    wait_until("it went back to 4", async || {
        let sql = "select 1 from public.sums where n = 10 and blocks = 4";
        client.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    put(&client, 11, &parent, "a", 11).await;
    wait_until("the balances go on", async || {
        client
            .query_opt("select 1 from checkpoints where projection = 'token_balances' and height = 11", &[])
            .await
            .unwrap()
    })
    .await;
    client.batch_execute("select resume('main', 'sums'); select replay('main', 7, 'sums')").await.unwrap();
    settled(&client).await;
    client.batch_execute("select drop_projection('sums')").await.unwrap();
    client.batch_execute("update public.sums set n = 0; truncate public.sums").await.unwrap();
    // And again, under the same name, while the program runs.
    client.batch_execute(CREATE).await.unwrap();
    settled(&client).await;
    client.batch_execute("select drop_chain('main')").await.unwrap();
    let left: i64 = client
        .query_one("select (select count(*) from public.sums) + (select count(*) from tracked_tables) + (select count(*) from checkpoints)", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
}
