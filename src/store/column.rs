//! Arrays for a statement, encoded value by value: what they were made of need not be kept until they are sent.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use postgres_types::{IsNull, Kind, ToSql, Type, to_sql_checked};

use super::numeric::Numeric;
use crate::chain::delta::Delta;

/// An array of one dimension in Postgres' binary form. Its values are of the type of the parameter it is sent as.
#[derive(Debug, Clone, Default)]
pub struct Column {
    count: i32,
    values: BytesMut,
}

/// The length of a value that is null.
const NULL: i32 = -1;

impl Column {
    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Makes room for so many values of about so many bytes, so that it need not grow to twice its size.
    pub fn reserve(&mut self, values: usize, bytes: usize) {
        self.values.reserve(values * (4 + bytes));
    }

    /// Adds a `bigint`.
    pub fn push(&mut self, number: i64) {
        self.count += 1;
        self.values.put_i32(8);
        self.values.put_i64(number);
    }

    /// Adds a `bigint`, or null.
    pub fn push_option(&mut self, number: Option<i64>) {
        match number {
            Some(number) => self.push(number),
            None => {
                self.count += 1;
                self.values.put_i32(NULL);
            }
        }
    }

    /// Adds a `text`.
    pub fn push_text(&mut self, text: &str) {
        self.count += 1;
        self.values.put_i32(text.len() as i32);
        self.values.put_slice(text.as_bytes());
    }

    /// Adds a `numeric`.
    pub fn push_numeric(&mut self, number: Delta) {
        self.count += 1;
        let at = self.values.len();
        self.values.put_i32(0);
        Numeric(number).encode(&mut self.values);
        let length = (self.values.len() - at - 4) as i32;
        self.values[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

impl ToSql for Column {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Kind::Array(member) = ty.kind() else { return Err("the parameter is no array".into()) };
        out.put_i32(i32::from(self.count > 0)); // dimensions
        out.put_i32(1); // there may be nulls
        out.put_u32(member.oid());
        if self.count > 0 {
            out.put_i32(self.count);
            out.put_i32(1); // the first index
            out.put_slice(&self.values);
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(member) if [Type::INT8, Type::TEXT, Type::NUMERIC].contains(member))
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use postgres_types::FromSql;

    use super::*;
    use crate::chain::Amount;

    fn read<T: for<'a> FromSql<'a>>(column: &Column, ty: &Type) -> Vec<T> {
        let mut raw = BytesMut::new();
        column.to_sql_checked(ty, &mut raw).expect("the type fits");
        Vec::<T>::from_sql(ty, &raw).expect("it is an array")
    }

    #[test]
    fn what_was_pushed_is_read_back() {
        let mut column = Column::default();
        assert_eq!((column.is_empty(), read::<i64>(&column, &Type::INT8_ARRAY)), (true, vec![]));
        column.push_option(Some(-7));
        column.push_option(None);
        assert_eq!(read::<Option<i64>>(&column, &Type::INT8_ARRAY), [Some(-7), None]);
        let mut column = Column::default();
        column.push_text("");
        column.push_text("gold");
        assert_eq!(read::<String>(&column, &Type::TEXT_ARRAY), ["", "gold"]);
        let mut column = Column::default();
        let numbers = [Delta::ZERO, Delta::minus(Amount::MAX), Delta::plus(Amount::from(10_000))];
        for number in numbers {
            column.push_numeric(number);
        }
        assert_eq!(read::<Numeric>(&column, &Type::NUMERIC_ARRAY), numbers.map(Numeric));
    }

    #[test]
    fn another_type_is_refused() {
        assert!(Column::default().to_sql_checked(&Type::INT8, &mut BytesMut::new()).is_err());
        assert!(Column::default().to_sql_checked(&Type::BOOL_ARRAY, &mut BytesMut::new()).is_err());
    }
}
