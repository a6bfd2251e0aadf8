//! Typed columns to and from Arrow, with the documentation that every artifact carries.

use crate::StageError;
use arrow_array::{
    Array, ArrayRef, BinaryArray, FixedSizeListArray, Float32Array, Float64Array, Int8Array, Int32Array, Int64Array,
    ListArray, RecordBatch, StringArray,
    builder::{Float32Builder, Int32Builder, ListBuilder, StringBuilder},
};
use arrow_schema::{DataType, Field, Schema};
use std::{collections::HashMap, sync::Arc};

/// Key of a column's description in its field metadata.
const DOC: &str = "rallrec.doc";

/// Builds one batch, column by column.
#[derive(Default)]
pub(crate) struct TableBuilder {
    fields: Vec<Field>,
    columns: Vec<ArrayRef>,
    metadata: HashMap<String, String>,
}

macro_rules! scalar_columns {
    ($($(#[doc = $doc:literal])* $name:ident($value:ty) => $array:ty),* $(,)?) => {$(
        $(#[doc = $doc])*
        pub(crate) fn $name(self, name: &str, doc: &str, values: $value) -> Self {
            self.push(name, doc, Arc::new(<$array>::from(values)))
        }
    )*};
}

impl TableBuilder {
    scalar_columns! {
        /// 8-bit integers.
        i8(Vec<i8>) => Int8Array,
        /// 32-bit integers.
        i32(Vec<i32>) => Int32Array,
        /// 32-bit integers, some missing.
        i32_opt(Vec<Option<i32>>) => Int32Array,
        /// 64-bit integers.
        i64(Vec<i64>) => Int64Array,
        /// 32-bit floats.
        f32(Vec<f32>) => Float32Array,
        /// 32-bit floats, some missing.
        f32_opt(Vec<Option<f32>>) => Float32Array,
        /// 64-bit floats, some missing.
        f64_opt(Vec<Option<f64>>) => Float64Array,
        /// Text.
        text(Vec<String>) => StringArray,
        /// Text, some missing.
        text_opt(Vec<Option<String>>) => StringArray,
    }

    /// Bytes.
    pub(crate) fn binary(self, name: &str, doc: &str, values: &[&[u8]]) -> Self {
        self.push(name, doc, Arc::new(BinaryArray::from(values.to_vec())))
    }

    /// Vectors of `dim` floats, row-major.
    pub(crate) fn vectors(self, name: &str, doc: &str, dim: usize, values: Vec<f32>) -> Result<Self, StageError> {
        let item = Arc::new(Field::new_list_field(DataType::Float32, false));
        let size = i32::try_from(dim).map_err(|_| StageError::Invalid(format!("column {name}: vectors of {dim}")))?;
        let array = FixedSizeListArray::try_new(item, size, Arc::new(Float32Array::from(values)), None)
            .map_err(|e| StageError::Invalid(format!("column {name}: {e}")))?;
        Ok(self.push(name, doc, Arc::new(array)))
    }

    /// Lists of 32-bit integers.
    pub(crate) fn i32_lists(self, name: &str, doc: &str, rows: Vec<Vec<i32>>) -> Self {
        let mut builder = ListBuilder::new(Int32Builder::new());
        for row in rows {
            builder.append_value(row.into_iter().map(Some));
        }
        self.push(name, doc, Arc::new(builder.finish()))
    }

    /// Lists of 32-bit floats.
    pub(crate) fn f32_lists(self, name: &str, doc: &str, rows: Vec<Vec<f32>>) -> Self {
        let mut builder = ListBuilder::new(Float32Builder::new());
        for row in rows {
            builder.append_value(row.into_iter().map(Some));
        }
        self.push(name, doc, Arc::new(builder.finish()))
    }

    /// Lists of text.
    pub(crate) fn text_lists(self, name: &str, doc: &str, rows: Vec<Vec<String>>) -> Self {
        let mut builder = ListBuilder::new(StringBuilder::new());
        for row in rows {
            builder.append_value(row.into_iter().map(Some));
        }
        self.push(name, doc, Arc::new(builder.finish()))
    }

    /// A named value about the whole table.
    pub(crate) fn metadata(mut self, name: &str, value: impl ToString) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    /// The batch.
    ///
    /// # Errors
    /// When columns differ in length.
    pub(crate) fn finish(self) -> Result<RecordBatch, StageError> {
        let schema = Schema::new_with_metadata(self.fields, self.metadata);
        RecordBatch::try_new(Arc::new(schema), self.columns)
            .map_err(|e| StageError::Invalid(format!("output table: {e}")))
    }

    fn push(mut self, name: &str, doc: &str, array: ArrayRef) -> Self {
        let field = Field::new(name, array.data_type().clone(), true);
        self.fields.push(field.with_metadata(HashMap::from([(DOC.to_owned(), doc.to_owned())])));
        self.columns.push(array);
        self
    }
}

/// Reads the columns of an input table. Every error names the table and the column.
pub(crate) struct Table<'a> {
    name: &'a str,
    batch: &'a RecordBatch,
}

macro_rules! scalar_readers {
    ($($(#[doc = $doc:literal])* $name:ident -> $value:ty: $array:ty),* $(,)?) => {$(
        $(#[doc = $doc])*
        pub(crate) fn $name(&self, column: &str) -> Result<&'a [$value], StageError> {
            let array: &$array = self.typed(column)?;
            if array.null_count() > 0 {
                return Err(self.wrong(column, "has missing values, and must have none"));
            }
            Ok(array.values())
        }
    )*};
}

impl<'a> Table<'a> {
    pub(crate) fn new(name: &'a str, batch: &'a RecordBatch) -> Self {
        Self { name, batch }
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    scalar_readers! {
        /// 8-bit integers.
        i8 -> i8: Int8Array,
        /// 32-bit integers.
        i32 -> i32: Int32Array,
        /// 64-bit integers.
        i64 -> i64: Int64Array,
        /// 32-bit floats.
        f32 -> f32: Float32Array,
    }

    /// 32-bit integers, some missing.
    pub(crate) fn i32_opt(&self, column: &str) -> Result<Vec<Option<i32>>, StageError> {
        Ok(self.typed::<Int32Array>(column)?.iter().collect())
    }

    /// 32-bit floats, some missing.
    pub(crate) fn f32_opt(&self, column: &str) -> Result<Vec<Option<f32>>, StageError> {
        Ok(self.typed::<Float32Array>(column)?.iter().collect())
    }

    /// 64-bit floats, some missing.
    pub(crate) fn f64_opt(&self, column: &str) -> Result<Vec<Option<f64>>, StageError> {
        Ok(self.typed::<Float64Array>(column)?.iter().collect())
    }

    /// Text; missing values are empty.
    pub(crate) fn text(&self, column: &str) -> Result<Vec<&'a str>, StageError> {
        Ok(self.typed::<StringArray>(column)?.iter().map(Option::unwrap_or_default).collect())
    }

    /// Columns of text beyond those that every such table has, by name.
    pub(crate) fn further(&self, own: &[&str]) -> Result<Vec<(&'a str, Vec<&'a str>)>, StageError> {
        let names = self.batch.schema_ref().fields().iter().map(|field| field.name().as_str());
        names.filter(|name| !own.contains(name)).map(|name| Ok((name, self.text(name)?))).collect()
    }

    /// Bytes; missing values are empty.
    pub(crate) fn binary(&self, column: &str) -> Result<Vec<&'a [u8]>, StageError> {
        Ok(self.typed::<BinaryArray>(column)?.iter().map(Option::unwrap_or_default).collect())
    }

    /// Vectors, row-major, and their dimension.
    pub(crate) fn vectors(&self, column: &str) -> Result<(&'a [f32], usize), StageError> {
        let array: &FixedSizeListArray = self.typed(column)?;
        let values = array.values().as_any().downcast_ref::<Float32Array>();
        let values = values.ok_or_else(|| self.wrong(column, "is not made of 32-bit floats"))?;
        let dim = array.value_length() as usize;
        let start = array.value_offset_at(0);
        Ok((&values.values()[start..start + dim * array.len()], dim))
    }

    /// Lists of 32-bit floats.
    pub(crate) fn f32_lists(&self, column: &str) -> Result<Vec<Vec<f32>>, StageError> {
        let array: &ListArray = self.typed(column)?;
        let row = |list: Option<ArrayRef>| match list {
            Some(list) => match list.as_any().downcast_ref::<Float32Array>() {
                Some(values) => Ok(values.values().to_vec()),
                None => Err(self.wrong(column, "is not made of lists of 32-bit floats")),
            },
            None => Ok(Vec::new()),
        };
        array.iter().map(row).collect()
    }

    /// A named value about the whole table.
    pub(crate) fn metadata(&self, name: &str) -> Result<&'a str, StageError> {
        let schema = self.batch.schema_ref();
        let found = schema.metadata().get(name);
        found.map(String::as_str).ok_or_else(|| {
            StageError::Invalid(format!(
                "input {}: its schema has no metadata {name}; make it with a stage of this version",
                self.name
            ))
        })
    }

    fn typed<T: Array + 'static>(&self, column: &str) -> Result<&'a T, StageError> {
        let array = self.batch.column_by_name(column).ok_or_else(|| self.wrong(column, "is not there"))?;
        let found = array.as_any().downcast_ref::<T>();
        found.ok_or_else(|| {
            self.wrong(column, &format!("has the type {}, which this stage cannot read", array.data_type()))
        })
    }

    fn wrong(&self, column: &str, what: &str) -> StageError {
        StageError::Invalid(format!("input {}: column {column} {what}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RecordBatch {
        TableBuilder::default()
            .i32("item", "Row position.", vec![0, 1])
            .f32_opt("p", "Probability.", vec![Some(0.5), None])
            .f32_lists("stars", "Stars.", vec![vec![1.0, 2.0], vec![]])
            .vectors("v", "Vector.", 2, vec![1.0, 2.0, 3.0, 4.0])
            .unwrap()
            .metadata("rallrec.verb", "watched")
            .finish()
            .unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let batch = sample();
        let table = Table::new("t", &batch);
        assert_eq!(table.i32("item").unwrap(), [0, 1]);
        assert_eq!(table.f32_opt("p").unwrap(), [Some(0.5), None]);
        assert_eq!(table.f32_lists("stars").unwrap(), [vec![1.0, 2.0], vec![]]);
        assert_eq!(table.vectors("v").unwrap(), (&[1.0, 2.0, 3.0, 4.0][..], 2));
        assert_eq!(table.metadata("rallrec.verb").unwrap(), "watched");
        let tail = batch.slice(1, 1);
        assert_eq!(Table::new("t", &tail).vectors("v").unwrap(), (&[3.0, 4.0][..], 2));
    }

    #[test]
    fn errors_name_table_and_column() {
        let batch = sample();
        let table = Table::new("prompts", &batch);
        assert_eq!(
            table.f32("p").unwrap_err().to_string(),
            "input prompts: column p has missing values, and must have none"
        );
        assert_eq!(
            table.i64("item").unwrap_err().to_string(),
            "input prompts: column item has the type Int32, which this stage cannot read"
        );
        assert_eq!(table.text("x").unwrap_err().to_string(), "input prompts: column x is not there");
    }
}
