//! Pictures of single pairs of a data set of any size: read when somebody looks at them, wherever the pairs lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::pairs::Store;
use crate::data::{Preference, Split};
use crate::error::{Error, Result};
use crate::pixels::Image;
use crate::progress::Progress;
use crate::record::replace_file;
use crate::units::Digest;

/// A data set whose pictures stay on the disk.
#[derive(Debug, Clone)]
pub struct Album {
    store: Store,
    starts: Vec<usize>,
    path: PathBuf,
    digest: Digest,
}

/// What is the matter with a pair's pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// One of them cannot be decoded.
    Broken,
    /// Nothing, but they differ in size, so that no judge can be asked about them.
    SizesDiffer,
    /// Nothing.
    Whole,
}

impl State {
    const ALL: [Self; 3] = [Self::Broken, Self::SizesDiffer, Self::Whole];

    fn name(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::SizesDiffer => "sizes-differ",
            Self::Whole => "whole",
        }
    }
}

/// Pairs that are looked at together, and between two writings of what was found.
const TOGETHER: usize = 64;
const KEPT_EVERY: usize = 1 << 14;

impl Album {
    /// The pairs at `path`; `digest` is theirs.
    ///
    /// # Errors
    /// Where there are none, or a file is damaged.
    pub fn open(path: &Path, digest: Digest) -> Result<Self> {
        let store = Store::at(path, Split::Train)?;
        let starts = store.starts()?;
        Ok(Self { store, starts, path: path.to_owned(), digest })
    }

    /// Where the pairs lie.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The digest of the pairs.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// All pairs without their pictures.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn load(&self) -> Result<Vec<Preference>> {
        self.store.load()
    }

    /// Both pictures of pairs, by their ascending places.
    ///
    /// # Errors
    /// Where there is no such pair, or a picture cannot be decoded.
    pub fn pictures(&self, places: &[usize]) -> Result<Vec<[Image; 2]>> {
        let pairs = self.store.pick(places, &self.starts)?;
        let both = |pair: &Preference| Ok([pair.image(0, &self.path)?, pair.image(1, &self.path)?]);
        pairs.iter().map(both).collect()
    }

    /// What is the matter with the pictures of pairs, by their ascending places.
    fn states(&self, places: &[usize]) -> Result<Vec<State>> {
        let state = |pair: &Preference| match [0, 1].map(|side| pair.image(side, &self.path)) {
            [Ok(a), Ok(b)] if (a.width(), a.height()) == (b.width(), b.height()) => State::Whole,
            [Ok(_), Ok(_)] => State::SizesDiffer,
            _ => State::Broken,
        };
        let of_part = |part: &[usize]| -> Result<Vec<State>> {
            Ok(self.store.pick(part, &self.starts)?.iter().map(state).collect())
        };
        // Only parquet files are read from the middle on.
        let parts: Vec<&[usize]> = match self.starts.is_empty() {
            true => vec![places],
            false => places.chunks(TOGETHER).collect(),
        };
        let states: Vec<Vec<State>> = parts.par_iter().map(|part| of_part(part)).collect::<Result<_>>()?;
        Ok(states.concat())
    }
}

/// What is the matter with pictures, found out once and kept.
#[derive(Debug)]
pub struct States<'a> {
    album: &'a Album,
    file: PathBuf,
    known: BTreeMap<usize, State>,
}

impl<'a> States<'a> {
    /// What was found out before, below a cache folder.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn open(album: &'a Album, cache: &Path) -> Result<Self> {
        let file = cache.join("pictures").join(format!("{}.csv", album.digest.short()));
        let mut known = BTreeMap::new();
        if file.exists() {
            let text = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
            for line in text.lines() {
                let state = |name: &str| State::ALL.into_iter().find(|state| state.name() == name);
                let read =
                    line.split_once(',').and_then(|(place, name)| Some((place.parse().ok()?, state(name)?)));
                let (place, state) = read.ok_or_else(|| {
                    Error::data(
                        &file,
                        format!("expected lines such as `7,whole`, got {line:?} (a cache: delete this file)"),
                    )
                })?;
                known.insert(place, state);
            }
        }
        Ok(Self { album, file, known })
    }

    /// The states of pairs by their places, in the order asked for. What was found out is kept now and then.
    ///
    /// # Errors
    /// Where pairs cannot be read, and where the work is to stop.
    pub fn of(&mut self, places: &[usize], progress: &Progress) -> Result<Vec<State>> {
        let mut unknown: Vec<usize> =
            places.iter().copied().filter(|place| !self.known.contains_key(place)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() {
            progress.begin("look at pictures", unknown.len());
        }
        for part in unknown.chunks(KEPT_EVERY) {
            progress.check()?;
            let found = self.album.states(part)?;
            self.known.extend(part.iter().copied().zip(found));
            let lines: String =
                self.known.iter().map(|(place, state)| format!("{place},{}\n", state.name())).collect();
            if let Some(folder) = self.file.parent() {
                std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            }
            replace_file(&self.file, lines.as_bytes())?;
            progress.advance(part.len());
        }
        Ok(places.iter().map(|place| self.known[place]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pick_a_pic::Writer;
    use crate::image::{Format, encode};

    /// Pair `number`, whose pictures are as wide as its number and one more.
    fn pair(number: usize, broken: bool) -> Preference {
        let picture = |width: usize| {
            let image = Image::new(width, 2, vec![number as u8; 6 * width]);
            encode(&image, Format::Png).unwrap()
        };
        let second = if broken { b"torn".to_vec() } else { picture(number + 1 + number % 2) };
        Preference {
            caption: format!("number {number}"),
            images: Some([picture(number + 1), second]),
            label: Some([1.0, 0.0]),
            ..Preference::default()
        }
    }

    #[test]
    fn single_pictures_come_from_any_store_and_broken_ones_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let pairs: Vec<Preference> = (0..700).map(|number| pair(number, number == 5)).collect();
        let mut first = Writer::create(folder.path().join("train-0.parquet")).unwrap();
        // Several row groups, which a reader passes over.
        pairs[..650].chunks(130).for_each(|part| first.write(part).unwrap());
        first.finish().unwrap();
        let mut second = Writer::create(folder.path().join("train-1.parquet")).unwrap();
        second.write(&pairs[650..]).unwrap();
        second.finish().unwrap();
        let album = Album::open(folder.path(), Digest::of(b"pairs")).unwrap();
        let places = [0, 3, 4, 129, 130, 400, 649, 650, 699];
        let pictures = album.pictures(&places).unwrap();
        for (place, [a, _]) in places.iter().zip(&pictures) {
            assert_eq!((a.width(), a.rgb()[0]), (place + 1, *place as u8));
        }
        assert!(album.pictures(&[700]).is_err());
        let fault = album.pictures(&[5]).unwrap_err().to_string();
        assert!(fault.contains("jpg_1"), "{fault}");
        let cache = folder.path().join("cache");
        for _ in 0..2 {
            let mut states = States::open(&album, &cache).unwrap();
            let found = states.of(&[6, 5, 4, 3], &Progress::silent()).unwrap();
            assert_eq!(found, [State::Whole, State::Broken, State::Whole, State::SizesDiffer]);
        }
        let file = std::fs::read_dir(cache.join("pictures")).unwrap().next().unwrap().unwrap().path();
        std::fs::write(&file, "7,well\n").unwrap();
        let fault = States::open(&album, &cache).unwrap_err().to_string();
        assert!(fault.contains("7,well") && fault.contains("delete"), "{fault}");
    }

    #[test]
    fn a_folder_of_ones_own_serves_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut list = String::from("caption,image_0,image_1,label,user_id\n");
        for number in 0..4 {
            let images = pair(number, number == 2).images.unwrap();
            for (side, bytes) in images.iter().enumerate() {
                std::fs::write(folder.path().join(format!("{number}-{side}.png")), bytes).unwrap();
            }
            list += &format!("number {number},{number}-0.png,{number}-1.png,0,1\n");
        }
        std::fs::write(folder.path().join("pairs.csv"), list).unwrap();
        let album = Album::open(folder.path(), Digest::of(b"folder")).unwrap();
        assert_eq!(album.load().unwrap().len(), 4);
        let pictures = album.pictures(&[1, 3]).unwrap();
        assert_eq!(pictures.iter().map(|[a, _]| a.width()).collect::<Vec<_>>(), [2, 4]);
        let mut states = States::open(&album, &folder.path().join("cache")).unwrap();
        assert_eq!(states.of(&[0, 2], &Progress::silent()).unwrap(), [State::Whole, State::Broken]);
    }
}
