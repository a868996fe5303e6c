//! What the schema is made of, and what of it is missing or another by now.

use std::collections::BTreeMap;

use tokio_postgres::{Client, GenericClient};

use super::StoreError;

/// Most differences that are named; the others are counted.
const MOST_NAMED: usize = 10;
/// Length of an md5 digest: SQL gives one for what is long, and the definition itself for what is short.
const DIGEST_LENGTH: usize = 32;

/// Objects of the schema by their names, with what each of them is.
pub(super) type Objects = BTreeMap<String, String>;

/// What is there.
pub(super) async fn objects<C: GenericClient>(client: &C) -> Result<Objects, StoreError> {
    let rows = client.query_typed(include_str!("../../sql/queries/schema_objects.sql"), &[]).await?;
    rows.iter().map(|row| Ok((row.try_get("object")?, row.try_get("definition")?))).collect()
}

/// What `migrate` made; None means that no version that keeps a manifest ever did.
pub(super) async fn stored<C: GenericClient>(client: &C) -> Result<Option<Objects>, StoreError> {
    let there = client.query_typed_one("select to_regclass('ebbtide.schema_manifest') is not null", &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let rows = client.query_typed("select object, definition from schema_manifest", &[]).await?;
    let kept: Objects =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, StoreError>>()?;
    Ok(Some(kept).filter(|kept| !kept.is_empty()))
}

/// What these texts make where nothing is: in a schema of the same name, beside the one that is there, in a transaction
/// that is rolled back. None means this role may not create a schema here.
pub(super) async fn fresh(client: &mut Client, texts: &[&str]) -> Result<Option<Objects>, StoreError> {
    let may = "select has_database_privilege(current_database(), 'create')";
    if !client.query_one(may, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let tx = client.transaction().await?;
    tx.batch_execute("alter schema ebbtide rename to ebbtide_as_it_stands; create schema ebbtide").await?;
    for text in texts {
        tx.batch_execute(text).await?;
    }
    let made = objects(&tx).await?;
    tx.rollback().await?;
    Ok(Some(made))
}

/// Keeps the manifest in place of the one before.
pub(super) async fn keep<C: GenericClient>(client: &C, objects: &Objects) -> Result<(), StoreError> {
    let (names, definitions): (Vec<&String>, Vec<&String>) = objects.iter().unzip();
    client.batch_execute("delete from schema_manifest").await?;
    let sql = "insert into schema_manifest (object, definition) select * from unnest($1::text[], $2::text[])";
    client.execute(sql, &[&names, &definitions]).await?;
    Ok(())
}

/// Objects that should be there and are missing or another, in words.
pub(super) fn differences(should: &Objects, is: &Objects) -> Vec<String> {
    let short = |definition: &str| definition.len() != DIGEST_LENGTH;
    should
        .iter()
        .filter_map(|(object, wanted)| match is.get(object) {
            Some(found) if plain(found) == plain(wanted) => None,
            Some(found) if short(wanted) => Some(format!("the {object} is `{found}`, not `{wanted}`")),
            Some(_) => Some(format!("the {object} was changed")),
            None if short(wanted) => Some(format!("the {object} is missing: `{wanted}`")),
            None => Some(format!("the {object} is missing")),
        })
        .collect()
}

/// Without what Postgres writes in another way once a dump of it was loaded: brackets around what needs none.
fn plain(definition: &str) -> String {
    definition.chars().filter(|c| !matches!(c, '(' | ')') && !c.is_whitespace()).collect()
}

/// The first of many, and how many more there are.
pub(super) fn named(differences: &[String]) -> String {
    let mut text = differences.iter().take(MOST_NAMED).cloned().collect::<Vec<_>>().join("; ");
    if let Some(more) = differences.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_another_is_named() {
        let objects = |list: &[(&str, &str)]| -> Objects {
            list.iter().map(|(name, definition)| ((*name).to_owned(), (*definition).to_owned())).collect()
        };
        let digest = "0123456789abcdef0123456789abcdef";
        let should =
            objects(&[("view a", digest), ("index b of t", "on t"), ("trigger c of t", "before"), ("view d", digest)]);
        let is =
            objects(&[("view a", digest), ("trigger c of t", "after"), ("view d", "another"), ("view theirs", "x")]);
        assert_eq!(
            differences(&should, &is),
            [
                "the index b of t is missing: `on t`",
                "the trigger c of t is `after`, not `before`",
                "the view d was changed"
            ]
        );
        assert!(differences(&should, &should).is_empty());
        let loaded = (
            objects(&[("constraint k of t", "CHECK (((a AND b) AND c))")]),
            objects(&[("constraint k of t", "CHECK ((a AND b AND c))")]),
        );
        assert!(differences(&loaded.0, &loaded.1).is_empty());
    }

    #[test]
    fn many_differences_are_counted() {
        let many: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        assert_eq!(named(&many), "0; 1; 2; 3; 4; 5; 6; 7; 8; 9; and 2 more");
        assert_eq!(named(&many[..2]), "0; 1");
    }
}
