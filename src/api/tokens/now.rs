//! Balances as they are now, where one statement tells: most requests by far.
//!
//! None where it does not: the caller reads a snapshot then. Each answer is the one that the caller would give.

use super::{Common, Page, account_balances_body, balances_body, invalid_token, may_name_several};
use crate::api::Context;
use crate::api::cursor::Cursor;
use crate::api::moment::{self, State};
use crate::api::reply::{Answer, Failure};
use crate::api::request;
use crate::chain::Kind;
use crate::projections::token_balances::NAME;
use crate::store::reads::Spelt;

fn spelt(text: &str) -> Spelt {
    Spelt::by(|kind| request::canonical(kind, text).into_owned())
}

/// What one account has in each token; without an account, the totals.
pub(super) async fn by_token(
    context: &Context,
    common: &Common<'_>,
    mut page: Page,
) -> Result<Option<Answer>, Failure> {
    if common.address == Some("") {
        return Ok(None);
    }
    let after = match &common.cursor {
        None => "",
        Some(Cursor::Token(_, token)) => token,
        Some(_) => return Ok(None),
    };
    let reader = context.store.walk().await?;
    let (zero, limit) = (page.zero, page.limit as i64 + 1);
    let list = match common.address {
        Some(address) => {
            reader.balances_of_account_now(common.chain, NAME, &spelt(address), after, zero, limit).await?
        }
        None => reader.totals_now(common.chain, NAME, after, zero, limit).await?,
    };
    let chain = moment::chosen(list.chain, common.chain)?;
    if let Some(address) = common.address {
        request::address(chain.kind, address)?;
    }
    match &common.cursor {
        Some(Cursor::Token(id, _)) if *id != chain.chain_id => return Err(Failure::invalid_cursor()),
        _ => {}
    }
    // Negative balances that are not shown took the place of others.
    if page.take(list.rows) {
        return Ok(None);
    }
    Ok(Some(balances_body(&page, &chain, &State::now(&chain), common.form(chain.kind))))
}

/// The accounts of one token, or one of them.
pub(super) async fn balances_of_token(
    context: &Context,
    path: &str,
    common: &Common<'_>,
    mut page: Page,
) -> Result<Option<Answer>, Failure> {
    let (zero, limit) = (page.zero, page.limit as i64 + 1);
    let address = common.address.filter(|address| !address.is_empty());
    let list = match (address, &common.cursor) {
        (Some(address), None) => {
            let reader = context.store.read().await?;
            reader.balance_now(common.chain, NAME, &spelt(path), &spelt(address)).await?
        }
        (None, None) => {
            let reader = context.store.walk().await?;
            reader.balances_of_token_now(common.chain, NAME, &spelt(path), "", zero, limit).await?
        }
        (None, Some(Cursor::Account(_, _, after))) => {
            let reader = context.store.walk().await?;
            reader.balances_of_token_now(common.chain, NAME, &spelt(path), after, zero, limit).await?
        }
        _ => return Ok(None),
    };
    let chain = moment::chosen(list.chain, common.chain)?;
    let token = request::canonical(chain.kind, path);
    if !chain.kind.is_token(&token) {
        return Err(invalid_token());
    }
    if common.address == Some("") && chain.kind != Kind::Gno {
        // It is no address there.
        return Ok(None);
    }
    if let Some(address) = address {
        request::address(chain.kind, address)?;
    }
    if !list.token_is_known && may_name_several(chain.kind, &token) {
        return Ok(None);
    }
    match &common.cursor {
        Some(Cursor::Account(id, of, _)) if *id != chain.chain_id || *of != *token => {
            return Err(Failure::invalid_cursor());
        }
        _ => {}
    }
    // Negative balances that are not shown took the place of others.
    if page.take(list.rows) {
        return Ok(None);
    }
    Ok(Some(account_balances_body(&page, &chain, &State::now(&chain), common.form(chain.kind))))
}
