//! Rows of a Parquet file, by the library's own record reader: only the columns that are wanted are read.
//!
//! Dates and points in time become ISO 8601 texts, so `time_format: iso` reads them.

use super::{DatasetError, rows::Value};
use chrono::{DateTime, Days, NaiveDate};
use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
    schema::types::Type,
};
use std::{fs::File, path::Path, sync::Arc};

/// Tells each row's values: a value for each of the names in `wanted`, missing where the name is empty. `None` in place of
/// one that is no text, number, date or list of them.
pub(super) fn read(
    path: &Path,
    file: File,
    wanted: &[&str],
    each: &mut dyn FnMut(usize, Vec<Option<Value>>) -> Result<(), DatasetError>,
) -> Result<(), DatasetError> {
    let unreadable = |e: ParquetError| DatasetError::Parquet { path: path.into(), source: e };
    let reader = SerializedFileReader::new(file).map_err(unreadable)?;
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    if let Some(missing) = wanted.iter().find(|name| !name.is_empty() && !names.contains(name)) {
        let found = names.join(", ");
        return Err(DatasetError::UnmappedColumn { file: path.into(), column: (*missing).into(), found });
    }
    let fields: Vec<Arc<Type>> =
        schema.get_fields().iter().filter(|field| wanted.contains(&field.name())).cloned().collect();
    let only = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(unreadable)?;
    for (number, row) in (1..).zip(reader.get_row_iter(Some(only)).map_err(unreadable)?) {
        let row = row.map_err(unreadable)?;
        let value = |name: &&str| {
            let field = row.get_column_iter().find(|(column, _)| column == name).map(|(_, field)| field);
            field.map_or(Some(Value::Missing), value)
        };
        each(number, wanted.iter().map(value).collect())?;
    }
    Ok(())
}

fn value(field: &Field) -> Option<Value> {
    match field {
        Field::Null => Some(Value::Missing),
        Field::ListInternal(list) => list.elements().iter().map(scalar).collect::<Option<_>>().map(Value::List),
        field => scalar(field).map(Value::Text),
    }
}

fn scalar(field: &Field) -> Option<String> {
    Some(match field {
        Field::Str(text) => text.clone(),
        Field::Bytes(bytes) => bytes.as_utf8().ok()?.to_owned(),
        Field::Bool(word) => word.to_string(),
        Field::Byte(n) => n.to_string(),
        Field::Short(n) => n.to_string(),
        Field::Int(n) => n.to_string(),
        Field::Long(n) => n.to_string(),
        Field::UByte(n) => n.to_string(),
        Field::UShort(n) => n.to_string(),
        Field::UInt(n) => n.to_string(),
        Field::ULong(n) => n.to_string(),
        Field::Float(x) => x.to_string(),
        Field::Double(x) => x.to_string(),
        Field::Date(days) => {
            let epoch = NaiveDate::from_ymd_opt(1970, 1, 1)?;
            let days_away = Days::new(days.unsigned_abs().into());
            let date = if *days < 0 { epoch.checked_sub_days(days_away) } else { epoch.checked_add_days(days_away) };
            date?.to_string()
        }
        Field::TimestampMillis(ms) => DateTime::from_timestamp_millis(*ms)?.to_rfc3339(),
        Field::TimestampMicros(us) => DateTime::from_timestamp_micros(*us)?.to_rfc3339(),
        _ => return None,
    })
}
