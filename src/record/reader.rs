//! Reads records back, packed or not, and refuses what is damaged.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{Header, IMAGES, KEY_COLUMNS, Kept, Key, Row, SCHEMA, Step, text, with_suffix};
use crate::error::{Error, Result};
use crate::units::Digest;

/// The header of the record in `folder`.
///
/// # Errors
/// Where there is none, where it is not JSON of this schema, or where the system refuses.
pub fn read_header(folder: &Path) -> Result<Header> {
    let path = folder.join("header.json");
    let text = read_packed(&path)?;
    let way_out = || format!("remove the folder {} and run again", folder.display());
    let header: Header = serde_json::from_slice(&text).map_err(|fault| {
        Error::data(
            &path,
            format!("is not a record's header: {fault}; expected schema {SCHEMA}; {}", way_out()),
        )
    })?;
    if header.schema != SCHEMA {
        let message = format!("has schema {}, expected {SCHEMA}; {}", header.schema, way_out());
        return Err(Error::data(&path, message));
    }
    Ok(header)
}

/// The record in `folder`: its header and its rows, in file order.
///
/// The rows of an unfinished record end before its torn last line.
///
/// # Errors
/// Where a file is missing, or corrupt (the message names the line), or differs from the digest that it was sealed
/// with.
pub fn read_cell(folder: &Path) -> Result<(Header, Vec<Row>)> {
    let header = read_header(folder)?;
    let path = folder.join("rows.csv");
    let bytes = read_packed(&path)?;
    if header.rows_digest.as_ref().is_some_and(|sealed| *sealed != Digest::of(&bytes)) {
        return Err(Error::data(
            &path,
            format!(
                "was changed after the run: its digest differs from the one in header.json; restore it, or remove the \
                 folder {} and run again",
                folder.display()
            ),
        ));
    }
    let mut text = String::from_utf8(bytes).map_err(|fault| {
        Error::data(&path, format!("is not text: {fault}; remove its folder and run again"))
    })?;
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    let rows = if text.is_empty() { Vec::new() } else { parse_rows(&path, &text, &header.scores)? };
    Ok((header, rows))
}

/// Where the packed form of a file stands.
fn packed(path: &Path) -> PathBuf {
    with_suffix(path, ".gz")
}

/// Whether a file is there, packed or not.
pub fn is_there(path: &Path) -> bool {
    path.exists() || packed(path).exists()
}

/// A file's bytes, or those of its packed form where only that is there.
pub fn read_packed(path: &Path) -> Result<Vec<u8>> {
    let packed = packed(path);
    if path.exists() || !packed.exists() {
        return std::fs::read(path).map_err(Error::io("read", path));
    }
    let file = File::open(&packed).map_err(Error::io("read", &packed))?;
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).map_err(|fault| {
        Error::data(
            &packed,
            format!("cannot be unpacked: {fault}; restore it, or remove its folder and run again"),
        )
    })?;
    Ok(bytes)
}

/// Whether `folder` holds a record, complete or not.
pub fn is_record(folder: &Path) -> bool {
    is_there(&folder.join("header.json")) && is_there(&folder.join("rows.csv"))
}

/// A kept image's bytes, as they were kept.
///
/// # Errors
/// Where the file is missing or is not the one that was kept.
pub fn read_image(folder: &Path, kept: &Kept) -> Result<Vec<u8>> {
    let path = folder.join(IMAGES).join(&kept.file);
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    if Digest::of(&bytes) != kept.digest {
        return Err(Error::data(&path, "is not the image that was kept: its digest differs; restore it"));
    }
    Ok(bytes)
}

/// The loss trace in `folder`; empty where the cell trained nothing.
///
/// # Errors
/// Where a line is corrupt, or the system refuses.
pub fn read_trace(folder: &Path) -> Result<Vec<Step>> {
    let path = folder.join("trace.csv");
    if !is_there(&path) {
        return Ok(Vec::new());
    }
    csv::Reader::from_reader(read_packed(&path)?.as_slice())
        .deserialize()
        .collect::<std::result::Result<_, _>>()
        .map_err(|fault| Error::data(&path, format!("{fault}; remove its folder and run again")))
}

/// Every folder under `root` that holds a record, in name order.
///
/// # Errors
/// Where a folder cannot be read.
pub fn cell_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.map_err(|fault| Error::data(root, format!("cannot be read: {fault}")))?;
        if ["header.json", "header.json.gz"].iter().any(|name| entry.file_name() == *name) {
            folders.extend(entry.path().parent().map(Path::to_path_buf));
        }
    }
    folders.dedup();
    Ok(folders)
}

/// Every record under `root`, in the order of folder names, unfinished ones included (their `finished` is `None`).
///
/// # Errors
/// Where one of them is corrupt, or two hold the same image.
pub fn read_records(root: &Path) -> Result<Vec<(Header, Vec<Row>)>> {
    let mut seen: HashSet<(String, Key)> = HashSet::new();
    let mut records = Vec::new();
    for folder in cell_folders(root)? {
        let (header, rows) = read_cell(&folder)?;
        for row in &rows {
            if !seen.insert((header.profile.clone(), row.key())) {
                let message = format!("another record under {} also holds {}", root.display(), row.key());
                return Err(Error::data(&folder, format!("{message}; keep one of the two folders")));
            }
        }
        records.push((header, rows));
    }
    Ok(records)
}

pub(super) fn parse_rows(path: &Path, text: &str, scores: &[String]) -> Result<Vec<Row>> {
    let corrupt = |message: String| {
        let folder = path.parent().unwrap_or(path).display().to_string();
        Error::data(path, format!("{message}; restore the file, or remove the folder {folder} and run again"))
    };
    let rows = text::parse_rows(text, &KEY_COLUMNS, scores).map_err(corrupt)?;
    let mut seen = HashSet::new();
    for (index, row) in rows.iter().enumerate() {
        if !seen.insert(row.key()) {
            return Err(corrupt(format!("line {}: a second row for {}", index + 2, row.key())));
        }
    }
    Ok(rows)
}
