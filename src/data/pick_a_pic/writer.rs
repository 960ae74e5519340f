//! [`Preference`]s to parquet.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriterImpl;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::{Column, Kind, Value};
use crate::data::Preference;
use crate::error::{Error, Result};

/// Writes one file in Pick-a-Pic v2's schema: one row group for each call of [`write`](Self::write).
///
/// The rows go to a file beside the target, which takes its name only in [`finish`](Self::finish): whoever finds the
/// target finds all of it. The same rows give the same bytes.
pub struct Writer {
    path: PathBuf,
    partial: PathBuf,
    inner: SerializedFileWriter<File>,
}

impl Writer {
    /// Starts a file, and its folder where that is missing.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let partial = path.with_extension("parquet.part");
        let file = File::create(&partial).map_err(Error::io("create", &partial))?;
        let schema = parse_message_type(&message()).expect("the schema is a constant that tests parse");
        let inner = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties()))
            .map_err(|error| refused(&path, &error))?;
        Ok(Self { path, partial, inner })
    }

    /// Appends rows as one row group.
    ///
    /// # Errors
    /// [`Error::Data`] where the file cannot take them, for example because the disk is full.
    pub fn write(&mut self, rows: &[Preference]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let path = self.path.clone();
        let fault = |error: parquet::errors::ParquetError| refused(&path, &error);
        let mut group = self.inner.next_row_group().map_err(fault)?;
        for column in Column::ALL {
            let values: Vec<Option<Value>> = rows.iter().map(|row| column.get(row)).collect();
            let mut writer =
                group.next_column().map_err(fault)?.expect("the file's schema has one leaf for each column");
            put(&mut writer, column.kind(), values).map_err(fault)?;
            writer.close().map_err(fault)?;
        }
        group.close().map_err(fault)?;
        Ok(())
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Io`] where the disk refuses.
    pub fn finish(self) -> Result<()> {
        let Self { path, partial, inner } = self;
        let file = inner.into_inner().map_err(|error| refused(&path, &error))?;
        file.sync_all().map_err(Error::io("write", &partial))?;
        std::fs::rename(&partial, &path).map_err(Error::io("write", &path))
    }
}

fn refused(path: &Path, error: &parquet::errors::ParquetError) -> Error {
    Error::data(path, format!("cannot be written ({error}); is there room on the disk?"))
}

/// The schema in parquet's own notation.
fn message() -> String {
    let field = |column: Column| {
        let (physical, logical) = match column.kind() {
            Kind::Boolean => ("boolean", ""),
            Kind::Text => ("binary", " (STRING)"),
            Kind::Bytes => ("binary", ""),
            Kind::Double => ("double", ""),
            Kind::Integer => ("int64", ""),
            Kind::Time => ("int64", " (TIMESTAMP(NANOS,false))"),
        };
        format!("  optional {physical} {}{logical};\n", column.name())
    };
    format!("message schema {{\n{}}}", Column::ALL.map(field).concat())
}

/// The column types in the words of the Hub's `datasets` library, which reads them from the file's metadata.
fn features() -> String {
    let features: serde_json::Map<String, serde_json::Value> = Column::ALL
        .iter()
        .map(|column| {
            let dtype = match column.kind() {
                Kind::Boolean => "bool",
                Kind::Text => "string",
                Kind::Bytes => "binary",
                Kind::Double => "float64",
                Kind::Integer => "int64",
                Kind::Time => "timestamp[ns]",
            };
            (column.name().to_owned(), serde_json::json!({ "dtype": dtype, "_type": "Value" }))
        })
        .collect();
    serde_json::json!({ "info": { "features": features } }).to_string()
}

fn properties() -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_created_by("ppd".into())
        .set_compression(Compression::SNAPPY)
        .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".into(), features())]));
    for column in Column::ALL.into_iter().filter(|column| column.kind() == Kind::Bytes) {
        let path = ColumnPath::from(column.name());
        // Pictures are packed already, differ from each other, and have no order.
        builder = builder
            .set_column_compression(path.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    builder.build()
}

/// Writes one column of a row group.
fn put(
    writer: &mut SerializedColumnWriter<'_>,
    kind: Kind,
    values: Vec<Option<Value>>,
) -> Result<(), parquet::errors::ParquetError> {
    match kind {
        Kind::Boolean => typed(writer.typed::<BoolType>(), values, |value| match value {
            Value::Boolean(value) => Some(value),
            _ => None,
        }),
        Kind::Text | Kind::Bytes => typed(writer.typed::<ByteArrayType>(), values, |value| match value {
            Value::Text(value) => Some(ByteArray::from(value.into_bytes())),
            Value::Bytes(value) => Some(ByteArray::from(value)),
            _ => None,
        }),
        Kind::Double => typed(writer.typed::<DoubleType>(), values, |value| match value {
            Value::Double(value) => Some(value),
            _ => None,
        }),
        Kind::Integer | Kind::Time => typed(writer.typed::<Int64Type>(), values, |value| match value {
            Value::Integer(value) => Some(value),
            _ => None,
        }),
    }
}

fn typed<T: DataType>(
    writer: &mut ColumnWriterImpl<'_, T>,
    values: Vec<Option<Value>>,
    unwrap: impl Fn(Value) -> Option<T::T>,
) -> Result<(), parquet::errors::ParquetError> {
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let present: Vec<T::T> = values
        .into_iter()
        .flatten()
        .map(|value| unwrap(value).expect("a column's values are of the column's kind"))
        .collect();
    writer.write_batch(&present, Some(&levels), None)?;
    Ok(())
}
