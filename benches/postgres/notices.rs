//! Notices: what they cost a block, and how fast a sink has them.

use std::time::{Duration, Instant};

use ebbtide::projections::token_balances::History;
use futures::StreamExt;
use futures::channel::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::Size;
use crate::bulk::process_once;
use crate::live::Processor;
use crate::report::{Budget, Line, percentile};
use crate::server::{Database, Final, Server, write, write_all};
use crate::workload::{EVENTS, Workload, last};

const ALL: &str = "select create_sink('all', start => 'beginning')";
const BLOCKS: &str = "select create_sink('blocks', start => 'beginning', types => '{ebbtide.block.applied}')";

pub(crate) async fn cost(server: &Server, size: &Size) -> Vec<Line> {
    let mut all =
        Line::new("notices: blocks of 100 events, all told, beside none", "blocks/s", Budget::Ratio(0.8, 0.9));
    let mut alone = Line::new("notices: the same, blocks alone told", "blocks/s", Budget::Ratio(0.9, 0.97));
    let mut pulled = Line::new("notices: by next_notices, 1,000 at a time", "notices/s", Budget::None);
    let blocks = Workload::new().blocks(None, size.of(1_500, 100), EVENTS);
    for _ in 0..size.rounds {
        let (none, database) = applied(server, &blocks, "").await;
        server.drop(database).await;
        all.floor.push(none);
        alone.floor.push(none);
        let (told, database) = applied(server, &blocks, BLOCKS).await;
        server.drop(database).await;
        alone.product.push(told);
        let (told, database) = applied(server, &blocks, ALL).await;
        all.product.push(told);
        let sizes = "select (avg(pg_column_size(o.*)))::bigint, (select count(*) from notices) / count(*),
            (select sum(length(t.data::text))::bigint from (select * from notices limit 20000) t) * (select count(*) from notices)
                / least((select count(*) from notices), 20000) / count(*)
            from outbox o";
        let row = database.client.query_one(sizes, &[]).await.unwrap();
        let (bytes, notices, as_json): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        eprintln!("a block has {notices} notices: {bytes} bytes in outbox, {as_json} of data in JSON");
        let begun = Instant::now();
        let mut count = 0;
        loop {
            let rows = next(&database.client, "all").await;
            if rows == 0 {
                break;
            }
            count += rows;
        }
        pulled.product.push(count as f64 / begun.elapsed().as_secs_f64());
        server.drop(database).await;
    }
    vec![all, alone, pulled]
}

/// Takes what there is and acknowledges it; how many.
async fn next(client: &Client, sink: &str) -> usize {
    let rows = client
        .query("select position, id, type, key, notice::text from next_notices($1, 1000)", &[&sink])
        .await
        .unwrap();
    if let Some(row) = rows.last() {
        client.execute("select ack_notices($1, $2)", &[&sink, &row.get::<_, i64>(0)]).await.unwrap();
    }
    rows.len()
}

/// Blocks a second, each in a transaction of its own, with what was asked to be told.
async fn applied(server: &Server, blocks: &[ebbtide::chain::Block], sink: &str) -> (f64, Database) {
    let database = server.database().await;
    let mut lock = database.sync_lock().await;
    write_all(&mut lock, blocks, 200, Final::Nothing).await;
    database.client.batch_execute(sink).await.unwrap();
    database.settle().await;
    let took = process_once(&database, 1, History::Full).await;
    (blocks.len() as f64 / took.as_secs_f64(), database)
}

/// From a block's commit until a client that listens has its notices.
pub(crate) async fn latency(server: &Server, size: &Size) -> Vec<Line> {
    let mut half = Line::new("notices: block committed → received, p50", "ms", Budget::AtMost(50.0, 10.0));
    let mut most = Line::new("notices: the same, p99", "ms", Budget::AtMost(200.0, 50.0));
    for _ in 0..size.rounds {
        let database = server.database().await;
        let mut work = Workload::new();
        let mut lock = database.sync_lock().await;
        let below = work.blocks(None, 200, EVENTS);
        write_all(&mut lock, &below, 200, Final::Nothing).await;
        process_once(&database, 1, History::Full).await;
        database.client.batch_execute("select create_sink('all')").await.unwrap();
        let (client, mut bell) = listener(&database.url).await;
        let processor = Processor::start(&database).await;
        let mut tip = last(&below);
        let mut figures = Vec::new();
        for _ in 0..size.of(200, 50) {
            let block = work.blocks(Some(&tip), 1, EVENTS);
            let at = tokio::time::Instant::now() + Duration::from_millis(30);
            write(&mut lock, Some(&tip), &block, Final::Deep).await;
            let committed = Instant::now();
            tip = last(&block);
            while next(&client, "all").await == 0 {
                bell.next().await.expect("it rings");
            }
            figures.push(committed.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep_until(at).await;
        }
        half.product.push(percentile(&figures, 0.5));
        most.product.push(percentile(&figures, 0.99));
        processor.end().await;
        server.drop(database).await;
    }
    vec![half, most]
}

/// A client that is woken by notices.
async fn listener(url: &str) -> (Client, mpsc::UnboundedReceiver<AsyncMessage>) {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let (tell, bell) = mpsc::unbounded();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if matches!(message, AsyncMessage::Notification(_)) && tell.unbounded_send(message).is_err() {
                break;
            }
        }
    });
    client.batch_execute("set search_path = ebbtide; listen ebbtide_notices").await.unwrap();
    (client, bell)
}
