//! Opening balances from outside: all of them or none, in one transaction.

use std::pin::pin;

use postgres_types::Type;
use tokio::sync::mpsc;
use tokio_postgres::binary_copy::BinaryCopyInWriter;

use super::numeric::Numeric;
use super::{Store, StoreError};
use crate::chain::Kind;
use crate::chain::opening::{BadOpening, OpeningLine};

/// How an import turned out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// They stand.
    Stored {
        /// Lines taken in.
        lines: u64,
        /// Opening balances that were there and are gone.
        removed: u64,
        /// Whether blocks were applied already, which are applied again now.
        applied: bool,
    },
    /// Nothing was changed.
    Refused {
        /// The first of the lines at fault, ascending, each with its reason.
        lines: Vec<(u64, LineFault)>,
        /// How many lines are at fault.
        count: u64,
    },
}

/// Why a line cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineFault {
    /// It is no opening balance.
    Bad(BadOpening),
    /// An earlier line has the same account.
    Second {
        /// The token.
        token: String,
        /// The account.
        address: String,
        /// The earlier line.
        first_line: i64,
    },
    /// The account has an opening balance already.
    Stored {
        /// The token.
        token: String,
        /// The account.
        address: String,
        /// What it is.
        amount: String,
    },
}

impl Store {
    /// The grammar of a chain's texts.
    ///
    /// # Errors
    /// An unknown chain, or whatever Postgres says.
    pub async fn kind_of(&self, chain: &str) -> Result<Kind, StoreError> {
        let client = self.reader().await?;
        let id: i64 = client.query_one("select chain_named($1)", &[&chain]).await?.get(0);
        let row = client.query_one("select kind from chains where chain_id = $1", &[&id]).await?;
        let kind: &str = row.try_get(0)?;
        Kind::parse(kind).ok_or_else(|| StoreError::Nonsense { what: ["chains.kind ", kind].concat() })
    }

    /// Takes in opening balances, unless a single line is at fault. `replace`: those that are there go first; without it
    /// an account that has one already is at fault. Of the faults, the first `most` are named.
    ///
    /// # Errors
    /// What reading the lines ran into (`Err` for this call to give back), an unknown chain, or whatever Postgres says.
    pub async fn import_opening_balances<E>(
        &self,
        chain: &str,
        replace: bool,
        most: usize,
        lines: &mut mpsc::Receiver<Result<Vec<OpeningLine>, E>>,
    ) -> Result<Result<Imported, E>, StoreError> {
        let mut client = self.connect().await?;
        let id: i64 = client.query_one("select chain_named($1)", &[&chain]).await?.get(0);
        // As long as it takes to be read, and to be waited for while a large write of the syncer ends.
        client.batch_execute("set statement_timeout = 0; set lock_timeout = 60000").await?;
        client.batch_execute(include_str!("../../sql/queries/opening_given.sql")).await?;
        let mut at_fault = Vec::new();
        let mut faults = 0;
        let mut count = 0;
        let tx = client.transaction().await?;
        {
            let sink = tx.copy_in("copy opening_given (line, token, address, amount) from stdin binary").await?;
            let types = [Type::INT8, Type::TEXT, Type::TEXT, Type::NUMERIC];
            let mut copy = pin!(BinaryCopyInWriter::new(sink, &types));
            while let Some(read) = lines.recv().await {
                let read = match read {
                    Ok(read) => read,
                    Err(error) => return Ok(Err(error)),
                };
                for OpeningLine { line, given } in read {
                    match given {
                        Ok(b) => {
                            count += 1;
                            let line = i64::try_from(line).unwrap_or(i64::MAX);
                            copy.as_mut().write(&[&line, &&*b.token, &&*b.address, &Numeric(b.amount)]).await?;
                        }
                        Err(fault) => {
                            faults += 1;
                            if at_fault.len() < most {
                                at_fault.push((line, LineFault::Bad(fault)));
                            }
                        }
                    }
                }
            }
            copy.as_mut().finish().await?;
        }
        // The writer's turn (sql/triggers/10_chain.sql), so that what is compared now stays.
        tx.execute("update chains set writes = writes + 1 where chain_id = $1", &[&id]).await?;
        let sql = include_str!("../../sql/queries/opening_balances_refused.sql");
        let refused = tx.query(sql, &[&id, &replace, &(most as i64)]).await?;
        for row in &refused {
            let (token, address) = (row.try_get("token")?, row.try_get("address")?);
            let why = match (row.try_get("first_line")?, row.try_get("stored")?) {
                (Some(first_line), _) => LineFault::Second { token, address, first_line },
                (None, Some(amount)) => LineFault::Stored { token, address, amount },
                (None, None) => return Err(StoreError::Nonsense { what: "a line refused without reason".to_owned() }),
            };
            at_fault.push((row.try_get::<_, i64>("line")?.unsigned_abs(), why));
        }
        faults += refused.first().map_or(0, |row| row.get::<_, i64>("refused").unsigned_abs());
        if faults > 0 {
            at_fault.sort_by_key(|(line, _)| *line);
            at_fault.truncate(most);
            return Ok(Ok(Imported::Refused { lines: at_fault, count: faults }));
        }
        let removed = match replace {
            true => tx.execute("delete from opening_balances where chain_id = $1", &[&id]).await?,
            false => 0,
        };
        let sql = "insert into opening_balances (chain_id, token, address, amount) \
                   select $1, token, address, amount from opening_given";
        tx.execute(sql, &[&id]).await?;
        let sql = "select exists (select from checkpoints where chain_id = $1 and start_height is not null)";
        let applied = tx.query_one(sql, &[&id]).await?.get(0);
        tx.commit().await?;
        Ok(Ok(Imported::Stored { lines: count, removed, applied }))
    }
}
