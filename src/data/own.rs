//! One's own pairs: a folder with `pairs.csv` and its pictures, or a webdataset tar.
//!
//! `pairs.csv` needs the columns `caption`, `image_0`, `image_1` (files from the folder) and `label` (`0` or `1`, the side
//! that was chosen; `tie`; empty where nobody chose). It may have `user_id`, `ranking_id` (whole numbers),
//! `image_0_uid`, `image_1_uid` (the files' names where absent), `model_0` and `model_1`.
//!
//! A tar holds each pair as files that follow each other and share their name up to the first dot: `KEY.0.jpg` and
//! `KEY.1.jpg` (or `.png`, or `KEY.jpg_0` and `KEY.jpg_1`), and the rest either in `KEY.json`, by Pick-a-Pic's names, or
//! as one text file a value: `KEY.caption` (or `.txt`), `KEY.label_0`, `KEY.label_1`, `KEY.user_id`.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::{Choice, Preference};
use crate::error::{Error, Result, nearest};

/// The list in a folder of one's own.
pub const LIST: &str = "pairs.csv";

const NEEDED: [&str; 4] = ["caption", "image_0", "image_1", "label"];
const OPTIONAL: [&str; 6] = ["user_id", "ranking_id", "image_0_uid", "image_1_uid", "model_0", "model_1"];

/// The pairs of a folder, one after the other.
pub struct Folder {
    folder: PathBuf,
    list: PathBuf,
    rows: csv::StringRecordsIntoIter<File>,
    columns: Vec<String>,
    pictures: bool,
}

impl Folder {
    /// Opens a folder's list; with `pictures`, they are read too.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none; [`Error::Data`] where a column is missing or unknown.
    pub fn open(folder: &Path, pictures: bool) -> Result<Self> {
        let list = folder.join(LIST);
        let file = File::open(&list).map_err(Error::io("read", &list))?;
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(file);
        let header = reader.headers().map_err(|fault| Error::data(&list, format!("line 1: {fault}")))?;
        let columns: Vec<String> =
            header.iter().map(|name| name.trim_start_matches('\u{feff}').to_owned()).collect();
        let known = || NEEDED.iter().chain(&OPTIONAL).copied();
        for name in NEEDED {
            if !columns.iter().any(|column| column == name) {
                // Not one that is rightly there under its own name.
                let others =
                    columns.iter().map(String::as_str).filter(|column| !known().any(|name| name == *column));
                let near = nearest(name, others);
                return Err(Error::data(
                    &list,
                    format!(
                        "line 1: expected the columns {}, got {}: {name} is missing{}",
                        NEEDED.join(", "),
                        columns.join(", "),
                        near.map(|near| format!(" (`{near}` is near)")).unwrap_or_default()
                    ),
                ));
            }
        }
        if let Some(other) = columns.iter().find(|column| !known().any(|name| name == column.as_str())) {
            let near = nearest(other, known());
            return Err(Error::data(
                &list,
                format!(
                    "line 1: unknown column `{other}`, expected {}{}; remove or rename it",
                    known().collect::<Vec<_>>().join(", "),
                    near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
                ),
            ));
        }
        Ok(Self { folder: folder.to_path_buf(), list, rows: reader.into_records(), columns, pictures })
    }

    fn pair(&self, row: &csv::StringRecord) -> Result<Preference> {
        let line = row.position().map_or(0, csv::Position::line);
        let fault = |message: String| Error::data(&self.list, format!("line {line}: {message}"));
        let value = |name: &str| {
            let place = self.columns.iter().position(|column| column == name);
            place.and_then(|place| row.get(place)).map(str::trim).filter(|value| !value.is_empty())
        };
        let needed = |name: &str| {
            value(name).ok_or_else(|| fault(format!("{name}: expected a value, got an empty field")))
        };
        let number = |name: &str| {
            let text = value(name);
            text.map(|text| {
                text.parse::<i64>()
                    .map_err(|_| fault(format!("{name}: expected a whole number, got `{text}`")))
            })
            .transpose()
        };
        let files = [needed("image_0")?, needed("image_1")?];
        let mut images = [Vec::new(), Vec::new()];
        for (bytes, file) in images.iter_mut().zip(files) {
            let path = self.folder.join(file);
            if self.pictures {
                *bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            } else if !path.is_file() {
                return Err(fault(format!("expected a picture {}, got no such file", path.display())));
            }
        }
        let label = match value("label") {
            None => None,
            Some("0") => Some(Choice::Side(0)),
            Some("1") => Some(Choice::Side(1)),
            Some("tie" | "0.5") => Some(Choice::Tie),
            Some(other) => {
                return Err(fault(format!("label: expected 0, 1, tie or nothing, got `{other}`")));
            }
        };
        let text = |name: &str| value(name).map(str::to_owned);
        Ok(Preference {
            caption: needed("caption")?.to_owned(),
            images: self.pictures.then_some(images),
            label: label.map(Choice::label),
            user_id: number("user_id")?,
            ranking_id: number("ranking_id")?.or(Some(line as i64)),
            image_uids: [
                text("image_0_uid").or_else(|| Some(files[0].to_owned())),
                text("image_1_uid").or_else(|| Some(files[1].to_owned())),
            ],
            models: [text("model_0"), text("model_1")],
            ..Preference::default()
        })
    }
}

impl Iterator for Folder {
    type Item = Result<Preference>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.rows.next()?;
        Some(match row {
            Ok(row) => self.pair(&row),
            Err(fault) => Err(Error::data(
                &self.list,
                format!("expected a table of {} columns: {fault}", self.columns.len()),
            )),
        })
    }
}

/// Reads a tar's pairs, and gives them to `take` one after the other; with `pictures`, they are read too.
///
/// # Errors
/// [`Error::Data`] where it is no tar, or a pair lacks something; what `take` says.
pub fn read_tar(path: &Path, pictures: bool, take: &mut dyn FnMut(Preference) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, file));
    let damaged = |fault: std::io::Error| {
        Error::data(path, format!("expected a whole tar file: {fault}; fetch or make it again"))
    };
    let mut open: Option<Member> = None;
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(damaged)?.to_string_lossy().into_owned();
        let start = name.rfind('/').map_or(0, |slash| slash + 1);
        let Some((key, ending)) = name[start..].split_once('.') else { continue };
        let key = format!("{}{key}", &name[..start]);
        if open.as_ref().is_some_and(|member| member.key != key)
            && let Some(member) = open.take()
        {
            take(member.finish(path, pictures)?)?;
        }
        let member = open.get_or_insert_with(|| Member { key, ..Member::default() });
        let ending = ending.to_ascii_lowercase();
        if let Some(side) = side(&ending) {
            member.sides[side] = true;
            if !pictures {
                continue;
            }
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        member.put(&ending, bytes, path)?;
    }
    match open {
        Some(member) => take(member.finish(path, pictures)?),
        None => Err(Error::data(
            path,
            "expected pairs as KEY.0.jpg, KEY.1.jpg and KEY.json, got no file with a dot",
        )),
    }
}

/// Which picture an ending names.
fn side(ending: &str) -> Option<usize> {
    match ending {
        "0.jpg" | "0.jpeg" | "0.png" | "jpg_0" | "png_0" => Some(0),
        "1.jpg" | "1.jpeg" | "1.png" | "jpg_1" | "png_1" => Some(1),
        _ => None,
    }
}

/// A pair of a tar, as far as it was read.
#[derive(Default)]
struct Member {
    key: String,
    pair: Preference,
    images: [Vec<u8>; 2],
    sides: [bool; 2],
    label: [Option<f64>; 2],
}

impl Member {
    fn put(&mut self, ending: &str, bytes: Vec<u8>, path: &Path) -> Result<()> {
        if let Some(side) = side(ending) {
            self.images[side] = bytes;
            return Ok(());
        }
        let fault = |message: String| Error::data(path, format!("{}.{ending}: {message}", self.key));
        if ending == "json" {
            let value: Value =
                serde_json::from_slice(&bytes).map_err(|error| fault(format!("expected JSON: {error}")))?;
            let Value::Object(fields) = value else { return Err(fault("expected an object".into())) };
            for (name, value) in &fields {
                self.set(name, value, path)?;
            }
            return Ok(());
        }
        let name = if ending == "txt" { "caption" } else { ending };
        let text = String::from_utf8(bytes).map_err(|_| fault("expected UTF-8 text".into()))?;
        let text = text.trim();
        // A number where there is one; a caption stays text.
        let value = match text.parse::<serde_json::Number>() {
            Ok(number) if name != "caption" => Value::Number(number),
            _ => Value::String(text.to_owned()),
        };
        self.set(name, &value, path)
    }

    /// Puts a value by Pick-a-Pic's name of it; other names are other people's business.
    fn set(&mut self, name: &str, value: &Value, path: &Path) -> Result<()> {
        if value.is_null() {
            return Ok(());
        }
        let key = &self.key;
        let wrong =
            |expected: &str| Error::data(path, format!("{key}: {name}: expected {expected}, got {value}"));
        let text = || value.as_str().map(str::to_owned).ok_or_else(|| wrong("text"));
        let integer = || value.as_i64().ok_or_else(|| wrong("a whole number"));
        let half = || {
            value
                .as_f64()
                .filter(|half| (0.0..=1.0).contains(half))
                .ok_or_else(|| wrong("a number from 0 to 1"))
        };
        match name {
            "caption" | "prompt" => self.pair.caption = text()?,
            "label_0" => self.label[0] = Some(half()?),
            "label_1" => self.label[1] = Some(half()?),
            "user_id" => self.pair.user_id = Some(integer()?),
            "ranking_id" => self.pair.ranking_id = Some(integer()?),
            "image_0_uid" => self.pair.image_uids[0] = Some(text()?),
            "image_1_uid" => self.pair.image_uids[1] = Some(text()?),
            "best_image_uid" => self.pair.best_image_uid = Some(text()?),
            "model_0" => self.pair.models[0] = Some(text()?),
            "model_1" => self.pair.models[1] = Some(text()?),
            "are_different" => self.pair.are_different = value.as_bool(),
            "has_label" => self.pair.has_label = value.as_bool(),
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self, path: &Path, pictures: bool) -> Result<Preference> {
        let fault = |message: &str| Error::data(path, format!("{}: {message}", self.key));
        if let Some(side) = self.sides.iter().position(|there| !there) {
            return Err(fault(&format!(
                "expected a picture {}.{side}.jpg, got none beside its other files; files of a pair must follow each other",
                self.key
            )));
        }
        if self.pair.caption.is_empty() {
            return Err(fault("expected a caption in KEY.json or KEY.txt, got none"));
        }
        self.pair.label = match self.label {
            [Some(first), Some(second)] => Some([first, second]),
            [Some(first), None] => Some([first, 1.0 - first]),
            [None, Some(second)] => Some([1.0 - second, second]),
            [None, None] => None,
        };
        if pictures {
            self.pair.images = Some(self.images);
        }
        Ok(self.pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(list: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LIST), list).unwrap();
        std::fs::write(folder.path().join("a.jpg"), "a").unwrap();
        let rows = Folder::open(folder.path(), true).and_then(|rows| rows.collect::<Result<Vec<_>>>());
        rows.map(|rows| format!("{rows:?}")).unwrap_or_else(|fault| fault.to_string())
    }

    #[test]
    fn a_folder_is_read_and_faults_name_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let list = "caption,image_0,image_1,label,user_id\n\"a cat, sitting\",a.jpg,b.jpg,1,-3\nb,b.jpg,a.jpg,tie,\nc,a.jpg,b.jpg,,4\n";
        std::fs::write(folder.path().join(LIST), list).unwrap();
        std::fs::write(folder.path().join("a.jpg"), "A").unwrap();
        std::fs::write(folder.path().join("b.jpg"), "B").unwrap();
        let rows: Vec<Preference> =
            Folder::open(folder.path(), true).unwrap().collect::<Result<_>>().unwrap();
        assert_eq!(rows[0].caption, "a cat, sitting");
        assert_eq!(rows[0].images, Some([b"A".to_vec(), b"B".to_vec()]));
        assert_eq!((rows[0].choice(), rows[0].user_id), (Some(Choice::Side(1)), Some(-3)));
        assert_eq!((rows[1].choice(), rows[1].user_id), (Some(Choice::Tie), None));
        assert_eq!((rows[2].choice(), rows[2].image_uids[0].as_deref()), (None, Some("a.jpg")));
        for (list, part) in [
            ("caption,image_0,image1,label\n", "image_1 is missing (`image1` is near)"),
            ("caption,image_0,image_1,label,usr_id\n", "did you mean `user_id`?"),
            (
                "caption,image_0,image_1,label\nx,a.jpg,a.jpg,2\n",
                "line 2: label: expected 0, 1, tie or nothing, got `2`",
            ),
            ("caption,image_0,image_1,label\nx,a.jpg,c.jpg,1\n", "c.jpg"),
            ("caption,image_0,image_1,label\n,a.jpg,a.jpg,1\n", "line 2: caption: expected a value"),
            (
                "caption,image_0,image_1,label,user_id\nx,a.jpg,a.jpg,1,me\n",
                "user_id: expected a whole number, got `me`",
            ),
            ("caption,image_0,image_1,label\nx,a.jpg\n", "expected a table of 4 columns"),
        ] {
            assert!(message(list).contains(part), "{}", message(list));
        }
    }

    fn tar(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs-000.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append_data(&mut header, name, bytes.as_bytes()).unwrap();
        }
        builder.finish().unwrap();
        drop(builder);
        (folder, path)
    }

    #[test]
    fn a_webdataset_is_read_in_both_forms() {
        let json = r#"{"caption": "one", "label_0": 1, "label_1": 0.0, "user_id": 5, "other": [1], "model_0": null}"#;
        let (_folder, path) = tar(&[
            ("d/0001.0.jpg", "A"),
            ("d/0001.1.jpg", "B"),
            ("d/0001.json", json),
            ("d/0002.jpg_0", "C"),
            ("d/0002.txt", "12"),
            ("d/0002.label_0", "0.5"),
            ("d/0002.jpg_1", "D"),
        ]);
        for pictures in [true, false] {
            let mut rows = Vec::new();
            let mut take = |pair| {
                rows.push(pair);
                Ok(())
            };
            read_tar(&path, pictures, &mut take).unwrap();
            assert_eq!(rows.len(), 2);
            assert_eq!((rows[0].caption.as_str(), rows[0].user_id), ("one", Some(5)));
            assert_eq!((rows[0].choice(), rows[1].choice()), (Some(Choice::Side(0)), Some(Choice::Tie)));
            assert_eq!(rows[1].caption, "12");
            assert_eq!(rows[1].images, pictures.then(|| [b"C".to_vec(), b"D".to_vec()]));
        }
        let fails = |files: &[(&str, &str)]| {
            let (_folder, path) = tar(files);
            read_tar(&path, true, &mut |_| Ok(())).unwrap_err().to_string()
        };
        assert!(fails(&[("a.0.jpg", "A"), ("a.txt", "x")]).contains("a.1.jpg"));
        assert!(fails(&[("a.0.jpg", "A"), ("a.1.jpg", "A")]).contains("expected a caption"));
        assert!(fails(&[("a.json", "{\"user_id\": \"x\"}")]).contains("expected a whole number"));
        std::fs::write(&path, "no tar at all").unwrap();
        assert!(read_tar(&path, true, &mut |_| Ok(())).unwrap_err().to_string().contains("tar"));
    }
}
