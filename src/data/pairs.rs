//! Preference pairs from wherever they lie, one after the other: Pick-a-Pic's parquet shards, a folder of one's own with
//! `pairs.csv`, or webdataset tars. A few dozen pairs are in memory at a time, however many there are.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::data::pick_a_pic::{self, Batches, Columns, Rows};
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

    /// Every file that it consists of, in one order: what its digest is made of.
    ///
    /// # Errors
    /// Where a folder cannot be listed.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let folder = match self {
            Self::Parquet(files) | Self::Tars(files) => return Ok(files.clone()),
            Self::Folder(folder) => folder,
        };
        let mut files = Vec::new();
        for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
            let entry = entry.map_err(|fault| Error::data(folder, format!("cannot be listed: {fault}")))?;
            if entry.file_type().is_file() {
                files.push(entry.into_path());
            }
        }
        Ok(files)
    }

    /// All pairs without their pictures, in the order of files and rows.
    ///
    /// # Errors
    /// As [`Store::each`].
    pub fn load(&self) -> Result<Vec<Preference>> {
        let mut pairs = Vec::new();
        self.each(false, &mut |pair| {
            pairs.push(pair);
            Ok(())
        })?;
        Ok(pairs)
    }

    /// Some pairs with their pictures, by their places in that order. Ranges are best asked for in their order: parquet
    /// files are then read once, whatever `reader` has passed.
    ///
    /// # Errors
    /// Where there are fewer, and as [`Store::each`].
    pub fn take(&self, range: Range<usize>, reader: &mut Option<Rows>) -> Result<Vec<Preference>> {
        if let Self::Parquet(files) = self {
            let behind = reader.as_ref().is_some_and(|rows| rows.position() > range.start);
            if behind || reader.is_none() {
                *reader = Some(Rows::of(files.clone(), Columns::All));
            }
            return reader.as_mut().expect("it was opened").take(range);
        }
        let (mut place, mut taken) = (0, Vec::with_capacity(range.len()));
        let read = self.each(true, &mut |pair| {
            if place >= range.end {
                return Err(Error::Stopped);
            }
            if range.contains(&place) {
                taken.push(pair);
            }
            place += 1;
            Ok(())
        });
        match read {
            Ok(()) | Err(Error::Stopped) if taken.len() == range.len() => Ok(taken),
            Ok(()) => Err(Error::Shape(format!("pairs {range:?} of {place}"))),
            Err(fault) => Err(fault),
        }
    }

    /// Single pairs with their pictures, by ascending places in that order. Of parquet files nothing else is decoded; other
    /// stores are read up to the last place. `starts` are those of [`Store::starts`].
    ///
    /// # Errors
    /// Where there are fewer, and as [`Store::each`].
    pub fn pick(&self, places: &[usize], starts: &[usize]) -> Result<Vec<Preference>> {
        let mut picked = Vec::with_capacity(places.len());
        if let Self::Parquet(files) = self {
            let mut rest = places;
            for (file, ends) in files.iter().zip(starts.windows(2)) {
                let (own, others) = rest.split_at(rest.partition_point(|&place| place < ends[1]));
                rest = others;
                if own.is_empty() {
                    continue;
                }
                let mut rows = Batches::open(file, Columns::All)?;
                for place in own {
                    picked.extend(rows.at(place - ends[0])?);
                }
            }
        } else {
            let (mut place, mut wanted) = (0, places.iter().copied().peekable());
            let read = self.each(true, &mut |pair| {
                if wanted.next_if_eq(&place).is_some() {
                    picked.push(pair);
                }
                place += 1;
                if wanted.peek().is_none() { Err(Error::Stopped) } else { Ok(()) }
            });
            match read {
                Err(Error::Stopped) if picked.len() == places.len() => {}
                other => other?,
            }
        }
        match picked.len() == places.len() {
            true => Ok(picked),
            false => {
                Err(Error::Shape(format!("{} pairs were asked for, {} found", places.len(), picked.len())))
            }
        }
    }

    /// The place of each parquet file's first pair, and one behind the last; empty for other stores.
    ///
    /// # Errors
    /// Where a file is damaged.
    pub fn starts(&self) -> Result<Vec<usize>> {
        let Self::Parquet(files) = self else { return Ok(Vec::new()) };
        let mut starts = vec![0];
        for file in files {
            let before = starts.last().copied().unwrap_or_default();
            starts.push(before + Batches::open(file, Columns::WithoutImages)?.len());
        }
        Ok(starts)
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
