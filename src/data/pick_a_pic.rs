//! Pick-a-Pic v2's own parquet schema: reading shards of any mirror, and writing them.
//!
//! The nineteen columns, their order and their types are those of the published dataset's card. Mirrors differ:
//! a reader takes `jpg_0` as plain bytes or as the `bytes` of a Hugging Face image, integers and floats of either
//! width, and any timestamp unit; it asks only for the columns in use and does without the others.

mod reader;
mod writer;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

pub use crate::data::pick_a_pic::reader::{Batches, read};
pub use crate::data::pick_a_pic::writer::Writer;
use crate::data::{Preference, Split};
use crate::error::{Error, Result};
use crate::units::Digest;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Boolean,
    Text,
    Bytes,
    Double,
    Integer,
    /// Nanoseconds since 1970, without a time zone.
    Time,
}

/// One value of a column.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Boolean(bool),
    Text(String),
    Bytes(Vec<u8>),
    Double(f64),
    Integer(i64),
}

/// The nineteen columns, in the published order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    AreDifferent,
    BestImageUid,
    Caption,
    CreatedAt,
    HasLabel,
    ImageUid(usize),
    ImageUrl(usize),
    Jpg(usize),
    Label(usize),
    Model(usize),
    RankingId,
    UserId,
    NumExamplePerPrompt,
    Index,
}

impl Column {
    const ALL: [Self; 19] = [
        Self::AreDifferent,
        Self::BestImageUid,
        Self::Caption,
        Self::CreatedAt,
        Self::HasLabel,
        Self::ImageUid(0),
        Self::ImageUrl(0),
        Self::ImageUid(1),
        Self::ImageUrl(1),
        Self::Jpg(0),
        Self::Jpg(1),
        Self::Label(0),
        Self::Label(1),
        Self::Model(0),
        Self::Model(1),
        Self::RankingId,
        Self::UserId,
        Self::NumExamplePerPrompt,
        Self::Index,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AreDifferent => "are_different",
            Self::BestImageUid => "best_image_uid",
            Self::Caption => "caption",
            Self::CreatedAt => "created_at",
            Self::HasLabel => "has_label",
            Self::ImageUid(0) => "image_0_uid",
            Self::ImageUid(_) => "image_1_uid",
            Self::ImageUrl(0) => "image_0_url",
            Self::ImageUrl(_) => "image_1_url",
            Self::Jpg(0) => "jpg_0",
            Self::Jpg(_) => "jpg_1",
            Self::Label(0) => "label_0",
            Self::Label(_) => "label_1",
            Self::Model(0) => "model_0",
            Self::Model(_) => "model_1",
            Self::RankingId => "ranking_id",
            Self::UserId => "user_id",
            Self::NumExamplePerPrompt => "num_example_per_prompt",
            Self::Index => "__index_level_0__",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::AreDifferent | Self::HasLabel => Kind::Boolean,
            Self::BestImageUid | Self::Caption | Self::ImageUid(_) | Self::ImageUrl(_) | Self::Model(_) => {
                Kind::Text
            }
            Self::CreatedAt => Kind::Time,
            Self::Jpg(_) => Kind::Bytes,
            Self::Label(_) => Kind::Double,
            Self::RankingId | Self::UserId | Self::NumExamplePerPrompt | Self::Index => Kind::Integer,
        }
    }

    /// Whether a file without it is of no use.
    fn required(self) -> bool {
        matches!(self, Self::Caption | Self::Jpg(_) | Self::Label(_))
    }

    /// The value that a row holds in this column.
    fn get(self, row: &Preference) -> Option<Value> {
        let text = |value: &Option<String>| value.clone().map(Value::Text);
        match self {
            Self::AreDifferent => row.are_different.map(Value::Boolean),
            Self::BestImageUid => text(&row.best_image_uid),
            Self::Caption => Some(Value::Text(row.caption.clone())),
            Self::CreatedAt => row.created_at.map(Value::Integer),
            Self::HasLabel => row.has_label.map(Value::Boolean),
            Self::ImageUid(side) => text(&row.image_uids[side]),
            Self::ImageUrl(side) => text(&row.image_urls[side]),
            Self::Jpg(side) => row.images.as_ref().map(|images| Value::Bytes(images[side].clone())),
            Self::Label(side) => row.label.map(|label| Value::Double(label[side])),
            Self::Model(side) => text(&row.models[side]),
            Self::RankingId => row.ranking_id.map(Value::Integer),
            Self::UserId => row.user_id.map(Value::Integer),
            Self::NumExamplePerPrompt => row.num_example_per_prompt.map(Value::Integer),
            Self::Index => row.index.map(Value::Integer),
        }
    }

    /// Puts a value of this column's kind into a row; a half label waits for its other half as NaN.
    fn set(self, row: &mut Preference, value: Value) {
        match (self, value) {
            (Self::AreDifferent, Value::Boolean(value)) => row.are_different = Some(value),
            (Self::BestImageUid, Value::Text(value)) => row.best_image_uid = Some(value),
            (Self::Caption, Value::Text(value)) => row.caption = value,
            (Self::CreatedAt, Value::Integer(value)) => row.created_at = Some(value),
            (Self::HasLabel, Value::Boolean(value)) => row.has_label = Some(value),
            (Self::ImageUid(side), Value::Text(value)) => row.image_uids[side] = Some(value),
            (Self::ImageUrl(side), Value::Text(value)) => row.image_urls[side] = Some(value),
            (Self::Jpg(side), Value::Bytes(value)) => row.images.get_or_insert_default()[side] = value,
            (Self::Label(side), Value::Double(value)) => row.label.get_or_insert([f64::NAN; 2])[side] = value,
            (Self::Model(side), Value::Text(value)) => row.models[side] = Some(value),
            (Self::RankingId, Value::Integer(value)) => row.ranking_id = Some(value),
            (Self::UserId, Value::Integer(value)) => row.user_id = Some(value),
            (Self::NumExamplePerPrompt, Value::Integer(value)) => row.num_example_per_prompt = Some(value),
            (Self::Index, Value::Integer(value)) => row.index = Some(value),
            (column, value) => unreachable!("the reader gives {column:?} its own kind, not {value:?}"),
        }
    }
}

/// Which columns to read; what is left out is never decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// All that the file has.
    All,
    /// All but the pictures: captions, labels, users, identifiers.
    WithoutImages,
}

impl Columns {
    fn contains(self, column: Column) -> bool {
        self == Self::All || !matches!(column, Column::Jpg(_))
    }
}

/// The name of shard `index` of `count`, as the Hub gives it.
pub fn shard_name(split: Split, index: usize, count: usize) -> String {
    format!("{}-{index:05}-of-{count:05}.parquet", split.name())
}

/// The files of one part: `path` itself where it is a file; else the shards in it, or in its folder `data`, in the
/// order of their names. Where no name begins with a part's, all files count as training data.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be read; [`Error::Data`] where it has no file of this part.
pub fn shards(path: impl AsRef<Path>, split: Split) -> Result<Vec<PathBuf>> {
    let path = path.as_ref();
    let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if metadata.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = parquet_files(path)?;
    let inner = path.join("data");
    if found.is_empty() && inner.is_dir() {
        found = parquet_files(&inner)?;
    }
    let part = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Split::ALL.iter().copied().find(|split| {
            name.strip_prefix(split.name()).is_some_and(|rest| rest.starts_with('-') || rest.starts_with('.'))
        })
    };
    let unnamed = found.iter().all(|file| part(file).is_none());
    let chosen: Vec<PathBuf> = found
        .iter()
        .filter(|file| if unnamed { split == Split::Train } else { part(file) == Some(split) })
        .cloned()
        .collect();
    if chosen.is_empty() {
        let names: Vec<String> = found
            .iter()
            .filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned()))
            .take(5)
            .collect();
        return Err(Error::data(
            path,
            format!(
                "expected parquet files named {}-*.parquet here or in data/, got {}; give the folder of a \
                 Pick-a-Pic v2 mirror, or one of its files",
                split.name(),
                if names.is_empty() { "no parquet file".into() } else { names.join(", ") }
            ),
        ));
    }
    Ok(chosen)
}

/// The parquet files of one folder, sorted by name.
fn parquet_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.is_file() && path.extension().is_some_and(|extension| extension == "parquet") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one part of a dataset into memory.
///
/// # Errors
/// As [`shards`] and [`read`].
pub fn load(path: impl AsRef<Path>, split: Split, columns: Columns) -> Result<Vec<Preference>> {
    let mut pairs = Vec::new();
    for file in shards(path, split)? {
        pairs.extend(read(&file, columns)?);
    }
    Ok(pairs)
}

/// One part of a dataset from its first row to its last: only what is asked for is kept in memory.
pub struct Rows {
    /// Files not yet opened, the next one last.
    files: Vec<PathBuf>,
    columns: Columns,
    open: Option<Batches>,
    /// Rows read and not yet taken, and the number of the first of them.
    ahead: VecDeque<Preference>,
    next: usize,
    path: PathBuf,
}

impl Rows {
    /// Starts before the first row.
    ///
    /// # Errors
    /// As [`shards`].
    pub fn open(path: impl AsRef<Path>, split: Split, columns: Columns) -> Result<Self> {
        Ok(Self::of(shards(path, split)?, columns))
    }

    /// The rows of these files, in their order.
    pub fn of(mut files: Vec<PathBuf>, columns: Columns) -> Self {
        let path = files.first().cloned().unwrap_or_default();
        files.reverse();
        Self { files, columns, open: None, ahead: VecDeque::new(), next: 0, path }
    }

    /// The number of the next row.
    pub fn position(&self) -> usize {
        self.next
    }

    /// How many rows lie ahead.
    ///
    /// # Errors
    /// As [`read`].
    pub fn left(&self) -> Result<usize> {
        let unopened = self.files.iter().map(|file| Ok(Batches::open(file, self.columns)?.len()));
        let in_open = self.open.as_ref().map_or(0, Batches::left);
        Ok(unopened.sum::<Result<usize>>()? + in_open + self.ahead.len())
    }

    /// The rows of a range, none of which was taken or passed before. Files that lie before it are not read.
    ///
    /// # Errors
    /// Where there are fewer rows, the range lies behind, and as [`read`].
    pub fn take(&mut self, range: Range<usize>) -> Result<Vec<Preference>> {
        if range.start < self.next {
            return Err(Error::Shape(format!("rows {range:?} are asked for after row {}", self.next)));
        }
        self.pass(range.start)?;
        let mut taken = Vec::with_capacity(range.len());
        while taken.len() < range.len() {
            let Some(row) = self.row()? else {
                return Err(Error::data(
                    &self.path,
                    format!(
                        "expected at least {} rows, got {}: pairs were removed meanwhile",
                        range.end, self.next
                    ),
                ));
            };
            taken.push(row);
        }
        Ok(taken)
    }

    /// Goes on to row `start`, over whole files where it can.
    fn pass(&mut self, start: usize) -> Result<()> {
        while self.next < start {
            if self.ahead.is_empty() && self.open.is_none() {
                let Some(file) = self.files.last() else { return Ok(()) };
                let batches = Batches::open(file, self.columns)?;
                self.files.pop();
                if self.next + batches.len() <= start {
                    self.next += batches.len();
                    continue;
                }
                self.open = Some(batches);
            }
            if self.row()?.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn row(&mut self) -> Result<Option<Preference>> {
        loop {
            if let Some(row) = self.ahead.pop_front() {
                self.next += 1;
                return Ok(Some(row));
            }
            match (&mut self.open, self.files.last()) {
                (Some(batches), _) => match batches.next() {
                    Some(batch) => self.ahead.extend(batch?),
                    None => self.open = None,
                },
                (None, Some(file)) => {
                    self.open = Some(Batches::open(file, self.columns)?);
                    self.files.pop();
                }
                (None, None) => return Ok(None),
            }
        }
    }
}

/// The digest of the files' bytes, one after the other: what a run records as its data.
///
/// # Errors
/// [`Error::Io`] where a file cannot be read.
pub fn digest(files: &[PathBuf]) -> Result<Digest> {
    let mut hasher = sha2::Sha256::new();
    for path in files {
        let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
        std::io::copy(&mut file, &mut hasher).map_err(Error::io("read", path))?;
    }
    Ok(Digest::from_hasher(hasher))
}

#[cfg(test)]
mod tests;
