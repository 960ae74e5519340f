//! Parquet to [`Preference`]s, a few hundred rows at a time.

use std::fs::File;
use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::{Compression, LogicalType, TimeUnit, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::{Column, Columns, Kind, Value};
use crate::data::Preference;
use crate::error::{Error, Result, nearest};

/// Rows decoded at once.
const BATCH: usize = 256;

/// Reads all rows of one parquet file.
///
/// # Errors
/// As [`Batches::open`] and its iteration.
pub fn read(path: impl AsRef<Path>, columns: Columns) -> Result<Vec<Preference>> {
    let batches = Batches::open(path, columns)?;
    let mut rows = Vec::with_capacity(batches.len());
    for batch in batches {
        rows.extend(batch?);
    }
    Ok(rows)
}

/// A column of the file that is read.
struct Place {
    column: Column,
    leaf: usize,
    /// The definition level at which a value is there.
    full: i16,
    /// Nanoseconds in one unit of a timestamp; 1 elsewhere.
    unit: i64,
}

/// The rows of one file as batches of at most a few hundred; only one batch and its pages are in memory.
///
/// Iteration gives [`Error::Data`], with the column and the row, where the file is damaged or a value is out of
/// range, and ends there.
pub struct Batches {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    places: Vec<Place>,
    /// The most rows of one batch.
    most: usize,
    /// The row group whose columns are open, and the next to open.
    open: Vec<ColumnReader>,
    next_group: usize,
    left_in_group: usize,
    row: usize,
}

impl Batches {
    /// Opens a file and checks its schema.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be opened; [`Error::Data`] where it is not whole, is packed in a way that this
    /// build does not read, or lacks a column or has one of another type.
    pub fn open(path: impl AsRef<Path>, columns: Columns) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io("read", path))?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let opened = guarded(|| SerializedFileReader::new(file).map_err(|error| error.to_string()));
        let reader = opened.map_err(|error| not_parquet(path, &error))?;
        let places = places(path, &reader, size, columns)?;
        Ok(Self {
            path: path.to_path_buf(),
            reader,
            places,
            most: BATCH,
            open: Vec::new(),
            next_group: 0,
            left_in_group: 0,
            row: 0,
        })
    }

    /// The same in batches of at most `most` rows, at least one: a batch of Pick-a-Pic's pictures takes 0.3 MB a row.
    #[must_use]
    pub fn with_rows(mut self, most: usize) -> Self {
        self.most = most.max(1);
        self
    }

    /// How many rows the file holds.
    pub fn len(&self) -> usize {
        self.reader.metadata().file_metadata().num_rows().max(0) as usize
    }

    /// How many of them are still to come.
    pub(super) fn left(&self) -> usize {
        self.len() - self.row
    }

    /// Whether the file holds no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn damaged(&self, column: Column, error: impl std::fmt::Display) -> Error {
        Error::data(
            &self.path,
            format!(
                "column {:?}, rows {} and on: cannot be decoded ({error}); the file is damaged: fetch or make it again",
                column.name(),
                self.row
            ),
        )
    }

    /// Opens the columns of the next row group that has rows; false at the end of the file.
    fn open_group(&mut self) -> Result<bool> {
        while self.left_in_group == 0 {
            if self.next_group == self.reader.num_row_groups() {
                return Ok(false);
            }
            let group = self.reader.get_row_group(self.next_group);
            let group = group.map_err(|error| self.damaged(Column::Caption, error))?;
            let mut open = Vec::with_capacity(self.places.len());
            for place in &self.places {
                let column =
                    guarded(|| group.get_column_reader(place.leaf).map_err(|error| error.to_string()));
                open.push(column.map_err(|error| self.damaged(place.column, error))?);
            }
            self.left_in_group = group.metadata().num_rows().max(0) as usize;
            self.open = open;
            self.next_group += 1;
        }
        Ok(true)
    }

    fn batch(&mut self) -> Result<Option<Vec<Preference>>> {
        if !self.open_group()? {
            return Ok(None);
        }
        let count = self.most.min(self.left_in_group);
        let mut rows = vec![Preference::default(); count];
        let mut seen = vec![Vec::new(); self.places.len()];
        for (index, present) in seen.iter_mut().enumerate() {
            let values = guarded(|| decode(&mut self.open[index], count, &self.places[index]));
            let values = values.map_err(|error| self.damaged(self.places[index].column, error))?;
            let column = self.places[index].column;
            for (offset, value) in values.into_iter().enumerate() {
                present.push(value.is_some());
                if let Some(value) = value {
                    column.set(&mut rows[offset], value);
                }
            }
        }
        for (offset, row) in rows.iter().enumerate() {
            for (place, seen) in self.places.iter().zip(&seen) {
                // A pair nobody chose on has no label; the other required columns are never empty.
                let needed = place.column.required() && !matches!(place.column, Column::Label(_));
                if needed && !seen[offset] {
                    return Err(self.bad_row(
                        offset,
                        place.column.name(),
                        "a value",
                        "an empty place (null)",
                    ));
                }
            }
            if let Some(label) = row.label
                && !label.iter().all(|half| (0.0..=1.0).contains(half))
            {
                let found = format!("label_0 = {}, label_1 = {}", label[0], label[1]);
                return Err(self.bad_row(offset, "label_0", "two numbers from 0 to 1", &found));
            }
        }
        self.left_in_group -= count;
        self.row += count;
        Ok(Some(rows))
    }

    /// The row of this number, which lies ahead or is the next.
    ///
    /// # Errors
    /// As [`Batches::open`], and where the file has no such row.
    pub fn at(&mut self, row: usize) -> Result<Vec<Preference>> {
        self.pass(row)?;
        let most = std::mem::replace(&mut self.most, 1);
        let rows = self.next().transpose();
        self.most = most;
        Ok(rows?.unwrap_or_default())
    }

    /// Goes on to row `start`, which lies ahead or is the next: what lies between is not decoded.
    ///
    /// # Errors
    /// Where the file has no such row, or is damaged.
    fn pass(&mut self, start: usize) -> Result<()> {
        while self.row < start {
            let ahead = start - self.row;
            if self.left_in_group == 0 && self.next_group < self.reader.num_row_groups() {
                let rows = self.reader.metadata().row_group(self.next_group).num_rows().max(0) as usize;
                if rows <= ahead {
                    self.next_group += 1;
                    self.row += rows;
                    continue;
                }
            }
            if !self.open_group()? {
                return Err(Error::data(
                    &self.path,
                    format!(
                        "row {start} is asked for, and the file has {}: rows were removed meanwhile",
                        self.row
                    ),
                ));
            }
            let count = ahead.min(self.left_in_group);
            for (open, place) in self.open.iter_mut().zip(&self.places) {
                let passed = guarded(|| skip(open, count));
                passed.map_err(|error| {
                    Error::data(
                        &self.path,
                        format!(
                            "column {:?}, rows {} and on: cannot be passed over ({error}); the file is damaged: fetch or \
                             make it again",
                            place.column.name(),
                            self.row
                        ),
                    )
                })?;
            }
            self.left_in_group -= count;
            self.row += count;
        }
        Ok(())
    }

    fn bad_row(&self, offset: usize, column: &str, expected: &str, found: &str) -> Error {
        let row = self.row + offset;
        Error::data(
            &self.path,
            format!("row {row}, column {column:?}: expected {expected}, got {found}; mend or remove the row"),
        )
    }
}

impl Iterator for Batches {
    type Item = Result<Vec<Preference>>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batch().transpose();
        if matches!(batch, Some(Err(_)) | None) {
            self.left_in_group = 0;
            self.next_group = self.reader.num_row_groups();
        }
        batch
    }
}

/// Runs the parquet library, which panics on some damaged footers and pages, and makes an error of that. What it was
/// reading is not used again.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
        Err(words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unreadable".into()))
    })
}

/// Why a file could not be opened as parquet, in words that say what to do.
fn not_parquet(path: &Path, error: &str) -> Error {
    let mut start = [0; 4];
    let begins = File::open(path).and_then(|mut file| file.read_exact(&mut start)).map(|()| &start);
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let message = match begins {
        Ok(b"PAR1") => format!(
            "the parquet file is cut short: expected its footer at the end of {size} bytes, got none ({error}); \
             fetch or make it again"
        ),
        Ok(b"vers") => {
            "expected a parquet file, got a Git LFS pointer; fetch its content with `git lfs pull`".into()
        }
        _ => format!(
            "expected a parquet file, got {size} bytes of something else ({error}); fetch or make it again"
        ),
    };
    Error::data(path, message)
}

/// Finds each wanted column among the file's leaves and checks its type.
fn places(
    path: &Path,
    reader: &SerializedFileReader<File>,
    size: u64,
    columns: Columns,
) -> Result<Vec<Place>> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let leaves = schema.columns();
    let mut places = Vec::new();
    for column in Column::ALL.into_iter().filter(|column| columns.contains(*column)) {
        let nested = format!("{}.bytes", column.name());
        let found = leaves.iter().position(|leaf| {
            let name = leaf.path().string();
            name == column.name() || (column.kind() == Kind::Bytes && name == nested)
        });
        let Some(leaf) = found else {
            if column.required() {
                return Err(missing(path, column, schema.root_schema()));
            }
            continue;
        };
        let unit = unit(&leaves[leaf], column.kind()).ok_or_else(|| {
            Error::data(
                path,
                format!(
                    "column {:?}: expected {}, got {}; write it in Pick-a-Pic v2's own type",
                    column.name(),
                    expected(column.kind()),
                    describe(&leaves[leaf])
                ),
            )
        })?;
        for group in reader.metadata().row_groups() {
            let chunk = group.column(leaf);
            if !lies_within(chunk, size) {
                return Err(Error::data(
                    path,
                    format!(
                        "column {:?}: the footer points outside the {size} bytes of the file; the file is damaged: \
                         fetch or make it again",
                        column.name()
                    ),
                ));
            }
            let packing = chunk.compression();
            if !matches!(packing, Compression::UNCOMPRESSED | Compression::SNAPPY) {
                return Err(Error::data(
                    path,
                    format!(
                        "column {:?}: expected snappy or no compression, got {packing}; write the file again with \
                         compression=\"snappy\"",
                        column.name()
                    ),
                ));
            }
        }
        places.push(Place { column, leaf, full: leaves[leaf].max_def_level(), unit });
    }
    Ok(places)
}

/// Whether a column's pages lie inside the file, as the footer tells it; the library trusts the footer.
fn lies_within(chunk: &ColumnChunkMetaData, size: u64) -> bool {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let (Ok(start), Ok(length)) = (u64::try_from(start), u64::try_from(chunk.compressed_size())) else {
        return false;
    };
    start.checked_add(length).is_some_and(|end| end <= size)
}

fn missing(path: &Path, column: Column, root: &parquet::schema::types::Type) -> Error {
    let names: Vec<&str> = root.get_fields().iter().map(|field| field.name()).collect();
    let near = nearest(column.name(), names.iter().copied());
    let hint = near.map(|near| format!(" ({near:?} is near)")).unwrap_or_default();
    Error::data(
        path,
        format!(
            "column {:?} is missing{hint}: expected Pick-a-Pic v2's columns, got {}; rename the file's columns, or \
             give a mirror of the dataset",
            column.name(),
            names.join(", ")
        ),
    )
}

/// Nanoseconds in the column's unit (1 where it is no timestamp), or `None` where its type does not serve.
fn unit(leaf: &ColumnDescriptor, kind: Kind) -> Option<i64> {
    if leaf.max_rep_level() > 0 {
        return None;
    }
    let physical = leaf.physical_type();
    match kind {
        Kind::Boolean => (physical == Physical::BOOLEAN).then_some(1),
        Kind::Text | Kind::Bytes => (physical == Physical::BYTE_ARRAY).then_some(1),
        Kind::Double => {
            matches!(physical, Physical::DOUBLE | Physical::FLOAT | Physical::INT32 | Physical::INT64)
                .then_some(1)
        }
        Kind::Integer => matches!(physical, Physical::INT32 | Physical::INT64).then_some(1),
        Kind::Time => match leaf.logical_type_ref() {
            Some(LogicalType::Timestamp(stamp)) if physical == Physical::INT64 => Some(match stamp.unit {
                TimeUnit::MILLIS => 1_000_000,
                TimeUnit::MICROS => 1_000,
                TimeUnit::NANOS => 1,
            }),
            _ => None,
        },
    }
}

fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Boolean => "booleans",
        Kind::Text => "text (BYTE_ARRAY)",
        Kind::Bytes => "bytes (BYTE_ARRAY), or a struct with such a field `bytes`",
        Kind::Double => "numbers (DOUBLE)",
        Kind::Integer => "whole numbers (INT64)",
        Kind::Time => "timestamps (INT64 with a unit)",
    }
}

fn describe(leaf: &ColumnDescriptor) -> String {
    let list = if leaf.max_rep_level() > 0 { "lists of " } else { "" };
    match leaf.logical_type_ref() {
        Some(logical) => format!("{list}{} ({logical:?})", leaf.physical_type()),
        None => format!("{list}{}", leaf.physical_type()),
    }
}

/// Passes over the next `count` rows of a column.
fn skip(reader: &mut ColumnReader, count: usize) -> Result<(), String> {
    let passed = match reader {
        ColumnReader::BoolColumnReader(typed) => typed.skip_records(count),
        ColumnReader::Int32ColumnReader(typed) => typed.skip_records(count),
        ColumnReader::Int64ColumnReader(typed) => typed.skip_records(count),
        ColumnReader::Int96ColumnReader(typed) => typed.skip_records(count),
        ColumnReader::FloatColumnReader(typed) => typed.skip_records(count),
        ColumnReader::DoubleColumnReader(typed) => typed.skip_records(count),
        ColumnReader::ByteArrayColumnReader(typed) => typed.skip_records(count),
        ColumnReader::FixedLenByteArrayColumnReader(typed) => typed.skip_records(count),
    };
    match passed.map_err(|error| error.to_string())? {
        passed if passed == count => Ok(()),
        passed => Err(format!("expected {count} more rows, got {passed}")),
    }
}

/// Decodes the next `count` rows of a column.
fn decode(reader: &mut ColumnReader, count: usize, place: &Place) -> Result<Vec<Option<Value>>, String> {
    let full = place.full;
    match (reader, place.column.kind()) {
        (ColumnReader::BoolColumnReader(typed), Kind::Boolean) => {
            typed_values(typed, count, full, |value: bool| Ok(Value::Boolean(value)))
        }
        (ColumnReader::ByteArrayColumnReader(typed), Kind::Bytes) => {
            typed_values(typed, count, full, |value: ByteArray| Ok(Value::Bytes(value.data().to_vec())))
        }
        (ColumnReader::ByteArrayColumnReader(typed), Kind::Text) => {
            typed_values(typed, count, full, |value: ByteArray| {
                let text = std::str::from_utf8(value.data())
                    .map_err(|error| format!("text is not UTF-8: {error}"))?;
                Ok(Value::Text(text.to_owned()))
            })
        }
        (ColumnReader::DoubleColumnReader(typed), Kind::Double) => {
            typed_values(typed, count, full, |value: f64| Ok(Value::Double(value)))
        }
        (ColumnReader::FloatColumnReader(typed), Kind::Double) => {
            typed_values(typed, count, full, |value: f32| Ok(Value::Double(f64::from(value))))
        }
        (ColumnReader::Int32ColumnReader(typed), Kind::Double) => {
            typed_values(typed, count, full, |value: i32| Ok(Value::Double(f64::from(value))))
        }
        (ColumnReader::Int64ColumnReader(typed), Kind::Double) => {
            typed_values(typed, count, full, |value: i64| Ok(Value::Double(value as f64)))
        }
        (ColumnReader::Int32ColumnReader(typed), Kind::Integer) => {
            typed_values(typed, count, full, |value: i32| Ok(Value::Integer(i64::from(value))))
        }
        (ColumnReader::Int64ColumnReader(typed), Kind::Integer | Kind::Time) => {
            let unit = place.unit;
            typed_values(typed, count, full, |value: i64| {
                value
                    .checked_mul(unit)
                    .map(Value::Integer)
                    .ok_or_else(|| format!("the time {value} is out of range"))
            })
        }
        (_, kind) => Err(format!("the row group's column is not {}", expected(kind))),
    }
}

/// Decodes the next `count` rows of a column whose type is known; a null is `None`.
fn typed_values<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    count: usize,
    full: i16,
    wrap: impl Fn(T::T) -> Result<Value, String>,
) -> Result<Vec<Option<Value>>, String> {
    let (mut levels, mut values) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (records, _, _) = reader
        .read_records(count, Some(&mut levels), None, &mut values)
        .map_err(|error: ParquetError| error.to_string())?;
    if records != count {
        return Err(format!("expected {count} more rows, got {records}"));
    }
    if full == 0 {
        levels = vec![0; count];
    }
    let mut values = values.into_iter();
    levels
        .into_iter()
        .map(|level| {
            if level < full {
                return Ok(None);
            }
            values.next().ok_or_else(|| "fewer values than rows".to_owned()).and_then(&wrap).map(Some)
        })
        .collect()
}
