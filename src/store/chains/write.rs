//! Blocks on their way into the tables: a few in one statement, many by COPY.

use futures::future::{try_join, try_join3, try_join5};
use futures::try_join;
use postgres_types::{ToSql, Type};
use serde_json::{Value, json};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::{Client, GenericClient, Statement};

use super::{NewBlocks, SyncLock, Written};
use crate::chain::{Block, ChainId, Height, Link, Reject, Text, TokenEvent};
use crate::store::StoreError;
use crate::store::numeric::Numeric;

/// Up to so many rows are sent as one statement: it saves round trips, where COPY saves work for each row.
const FEW_ROWS: usize = 1_000;
/// As long as their events are no longer than this as JSON.
const FEW_BYTES: usize = 1 << 20;
/// Rejects are sent so many at a time: to write a hundred thousand of them down takes longer than the server waits for a
/// transaction that says nothing, and meanwhile nobody else would be heard.
const REJECTS_AT_ONCE: usize = FEW_ROWS;

const BEGIN: &str = "begin; set local ebbtide.bulk = 'on'; set local enable_seqscan = off";
/// A person asked for it, and it may archive the whole chain.
const BEGIN_RESET: &str =
    "begin; set local ebbtide.bulk = 'on'; set local enable_seqscan = off; set local statement_timeout = 0";

/// Prepared once a connection.
pub(super) struct Statements {
    take_turn: Statement,
    may_write: Statement,
    drop_above: Statement,
    left_over: Statement,
    put_blocks: Statement,
    pub(super) put_rejects: Statement,
    note_written: Statement,
    note_followed: Statement,
}

impl Statements {
    pub(super) async fn prepare(client: &Client) -> Result<Statements, StoreError> {
        let (take_turn, may_write, drop_above, left_over, put_blocks, put_rejects, note_written, note_followed) = try_join!(
            client.prepare(super::TAKE_TURN),
            client.prepare(include_str!("../../../sql/queries/may_write.sql")),
            client.prepare("delete from blocks where chain_id = $1 and height > $2"),
            client.prepare("select refuse_left_over($1, $2::bigint + 1)"),
            client.prepare(include_str!("../../../sql/queries/put_blocks.sql")),
            client.prepare(include_str!("../../../sql/queries/put_source_rejects.sql")),
            client.prepare(include_str!("../../../sql/queries/note_written.sql")),
            client.prepare(include_str!("../../../sql/queries/note_followed.sql")),
        )?;
        Ok(Statements {
            take_turn,
            may_write,
            drop_above,
            left_over,
            put_blocks,
            put_rejects,
            note_written,
            note_followed,
        })
    }
}

impl SyncLock {
    /// Writes blocks with all they hold, in one transaction, and rings the bell. Once this is dropped half way, the
    /// connection may be inside a transaction: drop the lock too.
    pub async fn write(&mut self, new: &NewBlocks<'_>) -> Result<Written, StoreError> {
        let written = self.write_in_transaction(new).await;
        if !matches!(written, Ok(Written::Stored { .. })) {
            // Where this fails too, the connection is gone, and the transaction with it.
            let _ = self.client.batch_execute("rollback").await;
        }
        written
    }

    /// Statements that need not know each other's answers are sent together. They are sent in their order, and none after
    /// one that could not be sent; the server takes none after one that failed, and commits nothing then.
    async fn write_in_transaction(&self, new: &NewBlocks<'_>) -> Result<Written, StoreError> {
        let (client, statements, chain) = (&self.client, &self.statements.write, &self.chain.0);
        let above = new.ancestor.map_or(-1, |ancestor| ancestor.height.to_sql());
        let below = new.ancestor.map(|ancestor| ancestor.hash.as_str());
        // The writer's turn (sql/triggers/10_chain.sql): only what is seen after it stays. The bulk path leaves the event
        // tables' triggers out.
        let (_, _, may_write) = try_join3(
            client.batch_execute(if new.reset { BEGIN_RESET } else { BEGIN }),
            client.execute(&statements.take_turn, &[chain]),
            client.query_one(&statements.may_write, &[chain, &above, &below, &new.replace]),
        )
        .await?;
        if !may_write.try_get::<_, bool>(0)? {
            return Ok(Written::Stale);
        }
        let mut removed = 0;
        if new.replace {
            // The same that `may_write` looks for where nothing is replaced.
            let above: [&(dyn ToSql + Sync); 2] = [chain, &above];
            let drop_above = client.execute(&statements.drop_above, &above);
            (removed, _) = try_join(drop_above, client.execute(&statements.left_over, &above)).await?;
        }
        let few = few_events(new.blocks)?;
        if few.is_none() {
            copy_blocks(client, self.chain, new.blocks).await?;
            put_rejects(client, &statements.put_rejects, self.chain, new.blocks).await?;
        }
        let ancestor = new.ancestor.map(|ancestor| ancestor.height.to_sql());
        let last = new.blocks.last().map(|block| block.link.height.to_sql());
        let put = async {
            match &few {
                Some(events) => put_blocks(client, &statements.put_blocks, self.chain, new.blocks, events).await,
                None => Ok(()),
            }
        };
        let note = async {
            let (head, is_final) = (new.head_height.to_sql(), new.final_height.map(Height::to_sql));
            let highest = last.or(ancestor);
            let row: [&(dyn ToSql + Sync); 8] =
                [chain, &head, &is_final, &new.position, &new.reset, &ancestor, &highest, &new.network_id];
            Ok::<_, StoreError>(client.execute(&statements.note_written, &row).await?)
        };
        let follow = async {
            if let Some(last) = last.filter(|_| !new.vaults.is_empty()) {
                let vaults: Vec<&str> = new.vaults.iter().map(|vault| &**vault).collect();
                client.execute(&statements.note_followed, &[chain, &last, &vaults, &ancestor]).await?;
            }
            Ok(())
        };
        let rejects = async {
            match &few {
                Some(_) => put_rejects(client, &statements.put_rejects, self.chain, new.blocks).await,
                None => Ok(()),
            }
        };
        let commit = async { Ok(client.batch_execute("commit").await?) };
        try_join5(put, rejects, note, follow, commit).await?;
        Ok(Written::Stored { removed })
    }
}

/// The events of these blocks as JSON, if all that they hold is little enough for one statement.
fn few_events(blocks: &[Block]) -> Result<Option<String>, StoreError> {
    let rows = |b: &Block| 1 + b.transactions.len() + b.token_events.len() + b.events.len() + b.rejects.len();
    if blocks.iter().map(rows).sum::<usize>() > FEW_ROWS {
        return Ok(None);
    }
    let events = Value::Array(event_rows(blocks)?).to_string();
    Ok((events.len() <= FEW_BYTES).then_some(events))
}

pub(super) fn event_rows(blocks: &[Block]) -> Result<Vec<Value>, StoreError> {
    let mut rows = Vec::new();
    for block in blocks {
        for event in &block.events {
            let texts = |texts: &[Text]| -> Vec<Value> { texts.iter().map(|text| json!(&**text)).collect() };
            rows.push(json!({
                "height": block.link.height.to_sql(), "tx_index": index(event.tx_index)?,
                "event_index": index(event.event_index)?, "emitter": &*event.emitter, "name": &*event.name,
                "keys": texts(&event.keys), "data": texts(&event.data), "attributes": event.attributes,
            }));
        }
    }
    Ok(rows)
}

async fn put_blocks(
    client: &Client,
    statement: &Statement,
    chain: ChainId,
    blocks: &[Block],
    events: &str,
) -> Result<(), StoreError> {
    let heights: Vec<i64> = blocks.iter().map(|b| b.link.height.to_sql()).collect();
    let hashes: Vec<&str> = blocks.iter().map(|b| b.link.hash.as_str()).collect();
    let parents: Vec<&str> = blocks.iter().map(|b| b.link.parent_hash.as_str()).collect();
    let times: Vec<Option<jiff::Timestamp>> = blocks.iter().map(time_of).collect();
    let mut tx = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut moved = (Vec::new(), Vec::new(), Vec::new());
    let mut movements = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        let height = block.link.height.to_sql();
        for t in &block.transactions {
            tx.0.push(height);
            tx.1.push(index(t.tx_index)?);
            tx.2.push(&*t.hash);
            tx.3.push(t.success);
        }
        for e in &block.token_events {
            refuse_misspelt(e)?;
            moved.0.push(height);
            moved.1.push(index(e.tx_index)?);
            moved.2.push(index(e.event_index)?);
            movements.0.push(&*e.token);
            movements.1.push(e.from.as_deref());
            movements.2.push(e.to.as_deref());
            movements.3.push(Numeric::from(e.amount));
        }
    }
    client
        .execute(
            statement,
            &[
                &chain.0,
                &tx.0,
                &tx.1,
                &tx.2,
                &tx.3,
                &moved.0,
                &moved.1,
                &moved.2,
                &movements.0,
                &movements.1,
                &movements.2,
                &movements.3,
                &events,
                &heights,
                &hashes,
                &parents,
                &times,
            ],
        )
        .await?;
    Ok(())
}

/// Events that the source brought but nobody could take in, kept as evidence.
pub(super) async fn put_rejects<C: GenericClient>(
    client: &C,
    statement: &Statement,
    chain: ChainId,
    blocks: &[Block],
) -> Result<(), StoreError> {
    let all: Vec<(&Link, &Reject)> =
        blocks.iter().flat_map(|block| block.rejects.iter().map(|reject| (&block.link, reject))).collect();
    for part in all.chunks(REJECTS_AT_ONCE) {
        let mut places = (Vec::new(), Vec::new(), Vec::new());
        let mut rejects: (Vec<&str>, Vec<&Value>, Vec<&str>) = Default::default();
        for (link, reject) in part {
            places.0.push(link.height.to_sql());
            places.1.push(index(reject.tx_index)?);
            places.2.push(index(reject.event_index)?);
            rejects.0.push(link.hash.as_str());
            rejects.1.push(&reject.raw);
            rejects.2.push(&reject.reason);
        }
        let row: [&(dyn ToSql + Sync); 7] =
            [&chain.0, &places.0, &places.1, &places.2, &rejects.0, &rejects.1, &rejects.2];
        client.execute(statement, &row).await?;
    }
    Ok(())
}

/// Indexes come from outside as u64 and are bounded there; above bigint they would be a bug of the source.
pub(super) fn index(n: u64) -> Result<i64, StoreError> {
    i64::try_from(n).map_err(|_| StoreError::Nonsense { what: format!("event or transaction index {n}") })
}

/// The bulk path passes by the trigger that looks at the texts of token events (`token_events_spelt`): the same here, with
/// the same name for what is broken. Positions are not negative by their type.
fn refuse_misspelt(event: &TokenEvent) -> Result<(), StoreError> {
    let texts = [
        ("token", "token", Some(&event.token)),
        ("from_address", "from", event.from.as_ref()),
        ("to_address", "to", event.to.as_ref()),
    ];
    for (column, short_name, text) in texts {
        let Some(text) = text else { continue };
        let broken = if !(1..=512).contains(&text.len()) {
            format!("{short_name}_is_1_to_512_bytes")
        } else if matches!(text.get(..2), Some("0x" | "0X")) && text.bytes().any(|b| b.is_ascii_uppercase()) {
            "hex_is_in_lower_case".to_owned()
        } else {
            continue;
        };
        let start: String = text.chars().take(80).collect();
        return Err(StoreError::Refused {
            reason: format!(
                "event {}/{}: the {column} {start:?} violates token_events_{broken}",
                event.tx_index, event.event_index
            ),
        });
    }
    Ok(())
}

/// Events first, blocks last: the block row is the commit mark.
async fn copy_blocks(client: &Client, chain: ChainId, blocks: &[Block]) -> Result<(), StoreError> {
    if blocks.iter().any(|b| !b.transactions.is_empty()) {
        let mut copy = Copy::begin(
            client,
            "copy transactions (chain_id, height, tx_index, hash, success) from stdin binary",
            &[Type::INT8, Type::INT8, Type::INT8, Type::TEXT, Type::BOOL],
        )
        .await?;
        for block in blocks {
            for t in &block.transactions {
                let (height, tx_index) = (block.link.height.to_sql(), index(t.tx_index)?);
                copy.row(&[&chain.0, &height, &tx_index, &&*t.hash, &t.success]).await?;
            }
        }
        copy.end().await?;
    }
    if blocks.iter().any(|b| !b.token_events.is_empty()) {
        let mut copy = Copy::begin(
            client,
            "copy token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount) \
             from stdin binary",
            &[Type::INT8, Type::INT8, Type::INT8, Type::INT8, Type::TEXT, Type::TEXT, Type::TEXT, Type::NUMERIC],
        )
        .await?;
        for block in blocks {
            let height = block.link.height.to_sql();
            for e in &block.token_events {
                refuse_misspelt(e)?;
                copy.row(&[
                    &chain.0,
                    &height,
                    &index(e.tx_index)?,
                    &index(e.event_index)?,
                    &&*e.token,
                    &e.from.as_deref(),
                    &e.to.as_deref(),
                    &Numeric::from(e.amount),
                ])
                .await?;
            }
        }
        copy.end().await?;
    }
    if blocks.iter().any(|b| !b.events.is_empty()) {
        let mut copy = Copy::begin(
            client,
            "copy events (chain_id, height, tx_index, event_index, emitter, name, keys, data, attributes) \
             from stdin binary",
            &[
                Type::INT8,
                Type::INT8,
                Type::INT8,
                Type::INT8,
                Type::TEXT,
                Type::TEXT,
                Type::TEXT_ARRAY,
                Type::TEXT_ARRAY,
                Type::JSONB,
            ],
        )
        .await?;
        for block in blocks {
            let height = block.link.height.to_sql();
            for e in &block.events {
                let keys: Vec<&str> = e.keys.iter().map(|k| &**k).collect();
                let data: Vec<&str> = e.data.iter().map(|d| &**d).collect();
                copy.row(&[
                    &chain.0,
                    &height,
                    &index(e.tx_index)?,
                    &index(e.event_index)?,
                    &&*e.emitter,
                    &&*e.name,
                    &keys,
                    &data,
                    &e.attributes,
                ])
                .await?;
            }
        }
        copy.end().await?;
    }
    if !blocks.is_empty() {
        let mut copy = Copy::begin(
            client,
            "copy blocks (chain_id, height, hash, parent_hash, time) from stdin binary",
            &[Type::INT8, Type::INT8, Type::TEXT, Type::TEXT, Type::TIMESTAMPTZ],
        )
        .await?;
        for block in blocks {
            let link = &block.link;
            let (hash, parent_hash) = (link.hash.as_str(), link.parent_hash.as_str());
            copy.row(&[&chain.0, &link.height.to_sql(), &hash, &parent_hash, &time_of(block)]).await?;
        }
        copy.end().await?;
    }
    Ok(())
}

/// A block's time in whole microseconds, if the table holds it: from the year 1 to the end of the type, which rounding may exceed.
/// None also means that the chain's clock is beyond that, which says as little as no clock at all.
fn time_of(block: &Block) -> Option<jiff::Timestamp> {
    const YEAR_1: jiff::Timestamp = jiff::Timestamp::constant(-62_135_596_800, 0);
    block.time?.round(jiff::Unit::Microsecond).ok().filter(|time| *time >= YEAR_1)
}

/// A binary COPY under way.
struct Copy {
    writer: std::pin::Pin<Box<BinaryCopyInWriter>>,
}

impl Copy {
    async fn begin(client: &Client, statement: &str, types: &[Type]) -> Result<Copy, StoreError> {
        let sink = client.copy_in(statement).await?;
        Ok(Copy { writer: Box::pin(BinaryCopyInWriter::new(sink, types)) })
    }

    async fn row(&mut self, values: &[&(dyn ToSql + Sync)]) -> Result<(), StoreError> {
        Ok(self.writer.as_mut().write(values).await?)
    }

    async fn end(mut self) -> Result<u64, StoreError> {
        Ok(self.writer.as_mut().finish().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Hash, Height, Link};

    #[test]
    fn a_time_beyond_what_the_table_holds_is_none() {
        let link =
            Link { height: Height::new(1).expect("a height"), hash: Hash::new("a"), parent_hash: Hash::new("root") };
        let kept = |text: &str| {
            let time = Some(text.parse().expect("a time"));
            let block = Block {
                link: link.clone(),
                time,
                transactions: Vec::new(),
                token_events: Vec::new(),
                events: Vec::new(),
                rejects: Vec::new(),
            };
            time_of(&block).map(|time| time.to_string())
        };
        for (text, as_kept) in [
            ("-000001-01-01T00:00:00Z", None),
            ("0000-12-31T23:59:59.999999Z", None),
            ("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z")),
            ("2026-07-01T10:00:00.1234567Z", Some("2026-07-01T10:00:00.123457Z")),
            ("9999-12-30T22:00:00.999999Z", Some("9999-12-30T22:00:00.999999Z")),
            ("9999-12-30T22:00:00.9999995Z", None),
        ] {
            assert_eq!(kept(text).as_deref(), as_kept, "{text}");
        }
    }
}
