//! Users' few-shot pairs, one user a line: who they are, and for each pair its caption and two pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::image;
use crate::pixels::Image;

/// One user's pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserShots {
    /// The user's name.
    pub user: String,
    /// Their pairs, in the order that they were given.
    pub shots: Vec<Shot>,
    /// The line of the file, from 1.
    pub line: usize,
    /// The file, for messages.
    file: PathBuf,
}

/// One pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shot {
    /// The prompt that both pictures answer.
    pub caption: String,
    /// The file of the picture that the user prefers.
    pub chosen: PathBuf,
    /// The file of the other.
    pub rejected: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    user: Name,
    shots: Vec<Pair>,
}

/// Pick-a-Pic's users are numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(i64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    caption: String,
    chosen: PathBuf,
    rejected: PathBuf,
}

impl UserShots {
    /// A fault in this user's line.
    pub fn fault(&self, message: impl std::fmt::Display) -> Error {
        fault(&self.file, self.line, message)
    }

    /// The pictures, each pair's chosen one before its rejected one.
    ///
    /// # Errors
    /// [`Error::Data`] with the line and the picture that cannot be read.
    pub fn pictures(&self) -> Result<Vec<Image>> {
        let files = self.shots.iter().flat_map(|shot| [&shot.chosen, &shot.rejected]);
        files.map(|file| image::read(file).map_err(|cause| self.fault(cause))).collect()
    }
}

fn fault(file: &Path, line: usize, message: impl std::fmt::Display) -> Error {
    Error::data(file, format!("line {line}: {message}"))
}

/// Reads a file of users: each line `{"user": …, "shots": [{"caption": …, "chosen": PATH, "rejected": PATH}, …]}`, paths
/// from the file's own folder. Blank lines are passed over.
///
/// # Errors
/// [`Error::Data`] with the line: no such object, a user twice or without pairs, a picture that is not there.
pub fn read(path: &Path) -> Result<Vec<UserShots>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut users = Vec::new();
    let mut lines = BTreeMap::new();
    for (i, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = i + 1;
        let fault = |message: String| fault(path, line, message);
        let parsed: Line = serde_json::from_str(text).map_err(|cause| {
            fault(format!(
                "expected {{\"user\": …, \"shots\": [{{\"caption\": …, \"chosen\": PATH, \"rejected\": PATH}}, …]}}: {cause}"
            ))
        })?;
        let user = match parsed.user {
            Name::Text(text) => text,
            Name::Number(number) => number.to_string(),
        };
        if user.is_empty() || user == "__metadata__" {
            return Err(fault(format!("{user:?} is no name for a user; give another one")));
        }
        if let Some(first) = lines.insert(user.clone(), line) {
            return Err(fault(format!(
                "the user {user:?} has line {first} already; put all pairs of a user into one line, or give another name"
            )));
        }
        if parsed.shots.is_empty() {
            return Err(fault(format!("the user {user:?} has no pairs; expected at least one")));
        }
        let shots = parsed.shots.into_iter().enumerate().map(|(i, pair)| {
            let [chosen, rejected] = [pair.chosen, pair.rejected].map(|file| folder.join(file));
            for file in [&chosen, &rejected] {
                if !file.is_file() {
                    return Err(fault(format!(
                        "pair {}: there is no file {}; paths are taken from the folder of the list",
                        i + 1,
                        file.display()
                    )));
                }
            }
            Ok(Shot { caption: pair.caption, chosen, rejected })
        });
        let shots = shots.collect::<Result<_>>()?;
        users.push(UserShots { user, shots, line, file: path.to_owned() });
    }
    match users.is_empty() {
        true => Err(Error::data(path, "holds no users; expected one JSON object a line")),
        false => Ok(users),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_come_with_their_pictures_and_faults_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        for (name, shade) in [("a", 10), ("b", 20)] {
            image::write(folder.path().join(format!("images/{name}.png")), &Image::new(2, 1, vec![shade; 6]))
                .unwrap();
        }
        std::fs::write(folder.path().join("images/torn.png"), [0x89, b'P', b'N', b'G', 13, 10, 26, 10, 0])
            .unwrap();
        let list = folder.path().join("shots.jsonl");
        let shot = |chosen: &str| {
            format!(r#"{{"caption": "a cat", "chosen": "images/{chosen}.png", "rejected": "images/b.png"}}"#)
        };
        let line = |user: &str, chosen: &str| format!(r#"{{"user": {user}, "shots": [{}]}}"#, shot(chosen));
        let read = |lines: &[String]| {
            std::fs::write(&list, lines.join("\n")).unwrap();
            super::read(&list)
        };
        let users = read(&[line("\"ann\"", "a"), String::new(), line("17", "b")]).unwrap();
        assert_eq!((users[0].user.as_str(), users[1].user.as_str(), users[1].line), ("ann", "17", 3));
        let pictures = users[0].pictures().unwrap();
        assert_eq!((pictures[0].rgb()[0], pictures[1].rgb()[0]), (10, 20));
        let torn = read(&[line("1", "torn")]).unwrap()[0].pictures().unwrap_err().to_string();
        assert!(torn.contains("line 1") && torn.contains("torn.png"), "{torn}");
        for (lines, parts) in [
            (vec![line("1", "a"), line("\"1\"", "b")], ["line 2", "line 1 already"]),
            (vec![line("1", "none")], ["line 1", "none.png"]),
            (vec![line("\"\"", "a")], ["line 1", "no name"]),
            (vec![r#"{"user": 1, "shots": []}"#.to_owned()], ["line 1", "no pairs"]),
            (vec![line("1", "a"), "{".to_owned()], ["line 2", "expected"]),
            (vec![r#"{"user": 1, "shots": [{"caption": "x"}]}"#.to_owned()], ["line 1", "chosen"]),
            (vec![], ["shots.jsonl", "no users"]),
        ] {
            let message = read(&lines).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
