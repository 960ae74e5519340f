//! Pairs of pictures to judge, as other tools hand them over: a CSV, or two folders with files of the same names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::to_score;
use crate::error::{Error, Result};

/// A pair to judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The user whose preference is asked for; none where every user's is.
    pub user: Option<String>,
    /// What both pictures were asked to show.
    pub prompt: String,
    /// The left picture as the list names it, and where it lies.
    pub left: (String, PathBuf),
    /// The right one.
    pub right: (String, PathBuf),
    /// The true ln P(left) − ln P(right), where the list knows it.
    pub log_odds: Option<f64>,
    /// The row of the list, from 1.
    pub row: usize,
}

/// Reads a CSV with the columns `user`, `prompt`, `left` and `right`, in any order and among others; paths are relative to its
/// folder. A column `log_odds` is read where it is there.
///
/// # Errors
/// [`Error::Io`] where it cannot be read, [`Error::Data`], with the row, where a column or a picture is missing, a row is broken, or
/// a pair stands there twice.
pub fn pairs(path: impl AsRef<Path>) -> Result<Vec<Item>> {
    let path = path.as_ref();
    let table = Table::read(path, &["user", "prompt", "left", "right"], &["log_odds"])?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut seen = BTreeSet::new();
    let item = |(row, fields): (usize, &Vec<Option<String>>)| {
        let text = |index: usize| fields[index].clone().unwrap_or_default();
        let there = |name: String| {
            let file = folder.join(&name);
            match !name.is_empty() && file.is_file() {
                true => Ok((name, file)),
                false => Err(table.fault(
                    row,
                    format!(
                        "there is no file {}; paths are taken from the folder of the list",
                        file.display()
                    ),
                )),
            }
        };
        let log_odds = match fields[4].as_deref().filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => {
                Some(text.parse::<f64>().ok().filter(|odds| odds.is_finite()).ok_or_else(|| {
                    table.fault(row, format!("expected a number in `log_odds`, got {text:?}"))
                })?)
            }
        };
        if !seen.insert([text(0), text(1), text(2), text(3)]) {
            return Err(table.fault(
                row,
                "this pair stands there already; --repeats asks about pairs more than once".into(),
            ));
        }
        let (left, right) = (there(text(2))?, there(text(3))?);
        Ok(Item { user: Some(text(0)), prompt: text(1), left, right, log_odds, row })
    };
    let items: Vec<Item> = (1..).zip(&table.rows).map(item).collect::<Result<_>>()?;
    none_is_a_fault(path, items)
}

/// Reads two folders whose pictures of one name are a pair. The list says what each was asked to show: a CSV with the columns `image`
/// and `prompt`, and `user` where each pair is one user's, or else a text with a prompt a line, in the order of the pictures' names.
///
/// # Errors
/// [`Error::Io`] where something cannot be read, [`Error::Data`] where a folder lacks a picture that the list or the other folder has.
pub fn folders(left: &Path, right: &Path, prompts: &Path) -> Result<Vec<Item>> {
    let lacks = |folder: &Path, name: &str| {
        let shown = folder.display();
        Error::data(
            prompts,
            format!("{name} is no file in {shown}; pictures of one name in both folders are a pair"),
        )
    };
    let item = |row: usize, user: Option<String>, image: &str, prompt: String| {
        let found = [left, right].map(|folder| (folder.join(image), folder));
        if let Some((_, folder)) = found.iter().find(|(path, _)| image.is_empty() || !path.is_file()) {
            return Err(lacks(folder, image));
        }
        let [left, right] = found.map(|(path, _)| (path.display().to_string(), path));
        Ok(Item { user, prompt, left, right, log_odds: None, row })
    };
    if prompts.extension().is_some_and(|extension| extension == "csv") {
        let table = Table::read(prompts, &["image", "prompt"], &["user"])?;
        let items = (1..).zip(&table.rows).map(|(row, fields)| {
            let text = |index: usize| fields[index].clone().unwrap_or_default();
            item(row, fields[2].clone(), &text(0), text(1))
        });
        return none_is_a_fault(prompts, items.collect::<Result<_>>()?);
    }
    let (ours, theirs) = (to_score::folder(left, prompts)?, to_score::folder(right, prompts)?);
    let items =
        (1..).zip(ours.iter().zip(&theirs)).map(|(row, (ours, theirs))| match ours.image == theirs.image {
            true => item(row, None, &ours.image, ours.prompt.clone()),
            false => Err(lacks(right, &ours.image)),
        });
    none_is_a_fault(prompts, items.collect::<Result<_>>()?)
}

fn none_is_a_fault(path: &Path, items: Vec<Item>) -> Result<Vec<Item>> {
    match items.is_empty() {
        true => Err(Error::data(path, "holds no pairs; expected at least one")),
        false => Ok(items),
    }
}

/// A CSV's columns by name: those that it must have, then those that it may.
struct Table<'a> {
    path: &'a Path,
    rows: Vec<Vec<Option<String>>>,
}

impl<'a> Table<'a> {
    fn read(path: &'a Path, required: &[&str], optional: &[&str]) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
        let mut reader = csv::Reader::from_reader(bytes);
        let header = reader.headers().map_err(|fault| Error::data(path, fault.to_string()))?.clone();
        let place = |name: &&str| header.iter().position(|column| column.trim() == *name);
        if let Some(lacking) = required.iter().find(|name| place(name).is_none()) {
            let found: Vec<&str> = header.iter().collect();
            return Err(Error::data(
                path,
                format!(
                    "expected the columns {}, got {}; there is no `{lacking}`",
                    required.join(", "),
                    found.join(", ")
                ),
            ));
        }
        let places: Vec<Option<usize>> = required.iter().chain(optional).map(place).collect();
        let mut table = Self { path, rows: Vec::new() };
        for (index, record) in reader.records().enumerate() {
            let record = record.map_err(|fault| table.fault(index + 1, fault.to_string()))?;
            let field = |place: &Option<usize>| Some(record[(*place)?].to_owned());
            table.rows.push(places.iter().map(field).collect());
        }
        Ok(table)
    }

    fn fault(&self, row: usize, message: String) -> Error {
        Error::data(self.path, format!("row {row}: {message}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn a_list_names_user_prompt_and_both_pictures() {
        let root = folder(&["l/0.png", "r/0.png"]);
        let path = root.path().join("pairs.csv");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            pairs(&path)
        };
        let items = read(
            "right,log_odds,left,prompt,user\nr/0.png,-0.5,l/0.png,\"a, b\",ann\nl/0.png,,r/0.png,c,17\n",
        )
        .unwrap();
        assert_eq!(
            (items[0].user.as_deref(), &*items[0].prompt, items[0].log_odds),
            (Some("ann"), "a, b", Some(-0.5))
        );
        assert_eq!(items[1].left, ("r/0.png".into(), root.path().join("r/0.png")));
        assert_eq!(items[1].log_odds, None);
        for (text, part) in [
            ("user,left,right\n", "no `prompt`"),
            ("user,prompt,left,right\nann,a,l/0.png,r/1.png\n", "row 1"),
            ("user,prompt,left,right\nann,a,l/0.png,r/0.png\nann,a,l/0.png,r/0.png\n", "row 2"),
            ("user,prompt,left,right,log_odds\nann,a,l/0.png,r/0.png,much\n", "log_odds"),
            ("user,prompt,left,right\n", "no pairs"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains("pairs.csv") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn pictures_of_one_name_are_a_pair() {
        let root = folder(&["l/b.png", "l/a.png", "r/a.png", "r/b.png", "r/notes.md"]);
        let [left, right, list, csv] = ["l", "r", "p.txt", "p.csv"].map(|name| root.path().join(name));
        std::fs::write(&list, "first\nsecond\n").unwrap();
        let items = folders(&left, &right, &list).unwrap();
        assert_eq!((&*items[1].prompt, &items[1].right.1), ("second", &right.join("b.png")));
        assert_eq!(items[0].user, None);
        std::fs::write(&csv, "user,image,prompt\nann,b.png,x\n").unwrap();
        let items = folders(&left, &right, &csv).unwrap();
        assert_eq!((items.len(), items[0].user.as_deref()), (1, Some("ann")));
        std::fs::write(&csv, "image,prompt\nc.png,x\n").unwrap();
        assert!(folders(&left, &right, &csv).unwrap_err().to_string().contains("c.png"));
        std::fs::rename(right.join("b.png"), right.join("c.png")).unwrap();
        assert!(folders(&left, &right, &list).unwrap_err().to_string().contains("b.png"));
    }
}
