//! Preference pairs from wherever they lie, one after the other: Pick-a-Pic's parquet shards, a folder of one's own with
//! `pairs.csv`, or webdataset tars. A few dozen pairs are in memory at a time, however many there are.

use std::path::{Path, PathBuf};

use crate::data::pick_a_pic::{self, Batches, Columns};
use crate::data::{Preference, Split, own};
use crate::error::{Error, Result};

/// Pairs with pictures that are in memory at once.
const WITH_PICTURES: usize = 32;

/// How a data set is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// Parquet files in Pick-a-Pic's schema, version 1 or 2.
    Parquet(Vec<PathBuf>),
    /// A folder with `pairs.csv`.
    Folder(PathBuf),
    /// Webdataset tars.
    Tars(Vec<PathBuf>),
}

impl Store {
    /// Finds out how `path` is stored; `split` chooses among a parquet mirror's files by their names.
    ///
    /// # Errors
    /// Where it is not there, or holds none of the three.
    pub fn at(path: &Path, split: Split) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let is_tar = |path: &Path| path.extension().is_some_and(|ending| ending == "tar");
        if metadata.is_file() {
            let file = path.to_path_buf();
            return match path.file_name() {
                Some(name) if name == own::LIST => {
                    Ok(Self::Folder(path.parent().unwrap_or(Path::new(".")).to_path_buf()))
                }
                _ if is_tar(path) => Ok(Self::Tars(vec![file])),
                _ => Ok(Self::Parquet(vec![file])),
            };
        }
        if path.join(own::LIST).is_file() {
            return Ok(Self::Folder(path.to_path_buf()));
        }
        let mut tars = Vec::new();
        for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
            let file = entry.map_err(Error::io("list", path))?.path();
            if file.is_file() && is_tar(&file) {
                tars.push(file);
            }
        }
        tars.sort_unstable();
        if tars.is_empty() {
            Ok(Self::Parquet(pick_a_pic::shards(path, split)?))
        } else {
            Ok(Self::Tars(tars))
        }
    }

    /// What to call it.
    pub fn name(&self) -> String {
        match self {
            Self::Parquet(files) => format!("{} parquet file(s)", files.len()),
            Self::Folder(_) => format!("a folder with {}", own::LIST),
            Self::Tars(files) => format!("{} tar(s)", files.len()),
        }
    }

    /// Gives all pairs to `take`, in the order of files and rows; with `pictures`, they are read too.
    ///
    /// # Errors
    /// Where a file is damaged, with file and row; what `take` says.
    pub fn each(&self, pictures: bool, take: &mut dyn FnMut(Preference) -> Result<()>) -> Result<()> {
        match self {
            Self::Parquet(files) => {
                let columns = if pictures { Columns::All } else { Columns::WithoutImages };
                for file in files {
                    let batches = Batches::open(file, columns)?;
                    let batches = if pictures { batches.with_rows(WITH_PICTURES) } else { batches };
                    for batch in batches {
                        batch?.into_iter().try_for_each(&mut *take)?;
                    }
                }
                Ok(())
            }
            Self::Folder(folder) => {
                own::Folder::open(folder, pictures)?.try_for_each(|pair| pair.and_then(&mut *take))
            }
            Self::Tars(files) => files.iter().try_for_each(|file| own::read_tar(file, pictures, take)),
        }
    }
}
