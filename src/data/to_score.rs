//! Pictures with their prompts, as other tools hand them over to be scored: a CSV, or a folder beside a list of prompts.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A picture to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The picture as the list names it.
    pub image: String,
    /// Where it lies.
    pub path: PathBuf,
    /// What it was asked to show.
    pub prompt: String,
}

/// Reads a CSV with the columns `image` and `prompt`, in any order and among others; paths are relative to its folder.
///
/// # Errors
/// [`Error::Io`] where it cannot be read, [`Error::Data`], with the row, where a column is missing or a row is broken.
pub fn pairs(path: impl AsRef<Path>) -> Result<Vec<Item>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let mut reader = csv::Reader::from_reader(bytes);
    let broken = |row: usize, fault: csv::Error| Error::data(path, format!("row {row}: {fault}"));
    let header = reader.headers().map_err(|fault| broken(0, fault))?.clone();
    let column = |name: &str| {
        header.iter().position(|column| column.trim() == name).ok_or_else(|| {
            let found: Vec<&str> = header.iter().collect();
            Error::data(
                path,
                format!(
                    "expected the columns image and prompt, got {}; there is no `{name}`",
                    found.join(", ")
                ),
            )
        })
    };
    let (image, prompt) = (column("image")?, column("prompt")?);
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut items = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|fault| broken(i + 1, fault))?;
        let (image, prompt) = (&record[image], &record[prompt]);
        if image.is_empty() {
            return Err(Error::data(path, format!("row {} names no image", i + 1)));
        }
        items.push(Item { image: image.to_owned(), path: folder.join(image), prompt: prompt.to_owned() });
    }
    Ok(items)
}

/// How the names of pictures end.
const PICTURES: [&str; 9] = ["png", "jpg", "jpeg", "jfif", "webp", "gif", "bmp", "tif", "tiff"];

/// Reads a folder's pictures in the order of their names, and as many lines of prompts. Hidden files, and those whose names
/// do not end as a picture's, are passed over.
///
/// # Errors
/// [`Error::Io`] where folder or list cannot be read, [`Error::Data`] where they are not as many.
pub fn folder(folder: impl AsRef<Path>, prompts: impl AsRef<Path>) -> Result<Vec<Item>> {
    let (folder, list) = (folder.as_ref(), prompts.as_ref());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let name = entry.map_err(Error::io("read", folder))?.file_name().to_string_lossy().into_owned();
        let extension = Path::new(&name).extension().and_then(|e| e.to_str()).unwrap_or_default();
        if !name.starts_with('.') && PICTURES.contains(&extension.to_ascii_lowercase().as_str()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    let bytes = std::fs::read(list).map_err(Error::io("read", list))?;
    let text = String::from_utf8(bytes)
        .map_err(|fault| Error::data(list, format!("expected UTF-8 text, one prompt a line: {fault}")))?;
    let prompts: Vec<&str> = text.trim_start_matches('\u{FEFF}').lines().collect();
    if prompts.len() != names.len() {
        return Err(Error::data(
            list,
            format!(
                "{} prompts, one a line, but {} holds {} pictures; each picture needs its own line, in the order of the \
                 pictures' names",
                prompts.len(),
                folder.display(),
                names.len()
            ),
        ));
    }
    let item = |(image, prompt): (String, &str)| Item {
        path: folder.join(&image),
        image,
        prompt: prompt.to_owned(),
    };
    Ok(names.into_iter().zip(prompts).map(item).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csv_is_read_by_its_columns_names() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pairs.csv");
        std::fs::write(&path, "\u{FEFF}seed,prompt,image\n1,\"a \"\"red\"\", star\",x/a.png\n2,,b.jpg\n")
            .unwrap();
        let items = pairs(&path).unwrap();
        assert_eq!(items[0].prompt, "a \"red\", star");
        assert_eq!((&*items[1].image, &*items[1].prompt), ("b.jpg", ""));
        assert_eq!(items[0].path, root.path().join("x/a.png"));
        for (text, part) in [
            ("image,caption\na,b\n", "no `prompt`"),
            ("image,prompt\na\n", "row 1"),
            ("image,prompt\na,b\n,c\n", "row 2"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = pairs(&path).unwrap_err().to_string();
            assert!(message.contains("pairs.csv") && message.contains(part), "{message}");
        }
        assert!(pairs(root.path().join("no.csv")).unwrap_err().to_string().contains("no.csv"));
    }

    #[test]
    fn a_folder_is_read_by_name_and_needs_a_line_for_each_picture() {
        let root = tempfile::tempdir().unwrap();
        for name in ["b.PNG", "a10.jpg", "a2.jpg", ".hidden.png", "notes.md"] {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        let list = root.path().join("prompts.txt");
        std::fs::write(&list, "one\r\n\nthree\n").unwrap();
        let items = folder(root.path(), &list).unwrap();
        let found: Vec<(&str, &str)> = items.iter().map(|item| (&*item.image, &*item.prompt)).collect();
        assert_eq!(found, [("a10.jpg", "one"), ("a2.jpg", ""), ("b.PNG", "three")]);
        std::fs::write(&list, "one\n").unwrap();
        let message = folder(root.path(), &list).unwrap_err().to_string();
        assert!(message.contains("1 prompts") && message.contains("3 pictures"), "{message}");
    }
}
