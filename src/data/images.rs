//! A folder of images with `images.csv`, which says what each was asked to show, for whom and from which noise.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::{self, Format};
use crate::pixels::Image;

/// The list in such a folder.
pub const LIST: &str = "images.csv";

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file's name in the folder.
    pub file: String,
    /// What it was asked to show.
    pub prompt: String,
    /// Its noise.
    pub noise_seed: u64,
    /// For whom; `none` for nobody.
    pub user: String,
}

/// Writes the images as PNG, then the list: a folder with a list is complete.
///
/// # Errors
/// Where the disk refuses, or there are not as many entries as images.
pub fn write(folder: &Path, entries: &[Entry], images: &[Image]) -> Result<()> {
    if entries.len() != images.len() {
        return Err(Error::Shape(format!("{} entries, {} images", entries.len(), images.len())));
    }
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    for (entry, image) in entries.iter().zip(images) {
        let path = folder.join(&entry.file);
        std::fs::write(&path, image::encode(image, Format::Png)?).map_err(Error::io("write", &path))?;
    }
    let path = folder.join(LIST);
    let mut writer = csv::Writer::from_writer(Vec::new());
    for entry in entries {
        writer.serialize(entry).map_err(|fault| Error::data(&path, fault.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|fault| Error::data(&path, fault.to_string()))?;
    std::fs::write(&path, bytes).map_err(Error::io("write", &path))
}

/// Reads the list of a folder; each entry's file comes with its folder.
///
/// # Errors
/// [`Error::Io`] where there is no list, [`Error::Data`], with the line, where it cannot be read.
pub fn read(folder: &Path) -> Result<Vec<(PathBuf, Entry)>> {
    let path = folder.join(LIST);
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let mut entries = Vec::new();
    for entry in csv::Reader::from_reader(bytes.as_slice()).deserialize() {
        let entry: Entry = entry.map_err(|fault| {
            Error::data(&path, format!("expected the columns file, prompt, noise_seed, user: {fault}"))
        })?;
        entries.push((folder.join(&entry.file), entry));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_back_and_faults_name_it() {
        let folder = tempfile::tempdir().unwrap();
        let images: Vec<Image> = (0..2).map(|i| Image::new(2, 1, vec![40 * i; 6])).collect();
        let entries: Vec<Entry> = (0..2)
            .map(|i| Entry {
                file: format!("{i}.png"),
                prompt: "a \"red\", star".into(),
                noise_seed: i,
                user: "none".into(),
            })
            .collect();
        write(folder.path(), &entries, &images).unwrap();
        for ((path, entry), (expected, picture)) in
            read(folder.path()).unwrap().into_iter().zip(entries.iter().zip(&images))
        {
            assert_eq!(&entry, expected);
            assert_eq!(&image::read(path).unwrap(), picture);
        }
        assert!(write(folder.path(), &entries, &images[..1]).is_err());
        std::fs::write(folder.path().join(LIST), "file\nx\n").unwrap();
        let message = read(folder.path()).unwrap_err().to_string();
        assert!(message.contains(LIST) && message.contains("noise_seed"), "{message}");
        let message = read(&folder.path().join("no")).unwrap_err().to_string();
        assert!(message.contains(LIST), "{message}");
    }
}
