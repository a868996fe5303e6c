//! Values that the statements of the REST interface take, each with its type: a statement that is not prepared must be told.

use tokio_postgres::Statement;
use tokio_postgres::types::{ToSql, Type};

use crate::store::numeric::Numeric;

/// A value with the type that it is sent as.
pub trait Parameter: ToSql + Sync {
    /// Its type, also where there is no value.
    fn sent_as(&self) -> Type;
}

impl<T: Typed + ToSql + Sync> Parameter for T {
    fn sent_as(&self) -> Type {
        T::SENT_AS
    }
}

/// What has one type, whatever the value.
trait Typed {
    /// That type.
    const SENT_AS: Type;
}

impl Typed for i64 {
    const SENT_AS: Type = Type::INT8;
}

impl Typed for bool {
    const SENT_AS: Type = Type::BOOL;
}

impl Typed for Numeric {
    const SENT_AS: Type = Type::NUMERIC;
}

impl Typed for str {
    const SENT_AS: Type = Type::TEXT;
}

impl Typed for String {
    const SENT_AS: Type = Type::TEXT;
}

impl Typed for Vec<i64> {
    const SENT_AS: Type = Type::INT8_ARRAY;
}

impl Typed for Vec<&str> {
    const SENT_AS: Type = Type::TEXT_ARRAY;
}

impl Typed for Vec<String> {
    const SENT_AS: Type = Type::TEXT_ARRAY;
}

impl Typed for [String] {
    const SENT_AS: Type = Type::TEXT_ARRAY;
}

impl<T: Typed + ?Sized> Typed for &T {
    const SENT_AS: Type = T::SENT_AS;
}

impl<T: Typed> Typed for Option<T> {
    const SENT_AS: Type = T::SENT_AS;
}

/// For a statement that is sent without having been prepared.
pub(super) fn typed<'a>(parameters: &[&'a dyn Parameter]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    parameters.iter().map(|parameter| (*parameter as &(dyn ToSql + Sync), parameter.sent_as())).collect()
}

/// For this statement, whose types the server has told.
pub(super) fn of_statement<'a>(statement: &Statement, parameters: &[&'a dyn Parameter]) -> Vec<&'a (dyn ToSql + Sync)> {
    // Sent with other types, it would be another statement.
    debug_assert!(
        statement.params().iter().cloned().eq(parameters.iter().map(|parameter| parameter.sent_as())),
        "the server infers {:?}",
        statement.params()
    );
    parameters.iter().map(|parameter| *parameter as &(dyn ToSql + Sync)).collect()
}
