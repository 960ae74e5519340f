//! The pairs that users of a study chose between, with their pictures: the desk's, which are all in memory and whose
//! features are measured, or those of a data set of any size, whose pictures are read when somebody looks at them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::data::album::Album;
use crate::data::desk::users::{Choice, Shown};
use crate::error::{Error, Result};
use crate::pixels::Image;
use crate::units::Digest;

/// Pairs by the numbers that choices know them by.
#[derive(Debug)]
pub enum Gallery {
    /// The desk's.
    Desk(Vec<Shown>),
    /// A data set's, by their places among all pairs.
    Album {
        /// The pictures.
        album: Album,
        /// The captions of the pairs that somebody chose between.
        captions: BTreeMap<usize, String>,
    },
}

/// Pictures of some pairs, in memory.
pub type Pictures<'g> = BTreeMap<usize, Cow<'g, [Image; 2]>>;

impl Gallery {
    /// What both pictures of a pair were made for; nothing where nobody chose between them.
    pub fn caption(&self, pair: usize) -> &str {
        match self {
            Self::Desk(shown) => shown.get(pair).map_or("", |shown| &shown.caption),
            Self::Album { captions, .. } => captions.get(&pair).map_or("", String::as_str),
        }
    }

    /// What users see in the pictures, which only the desk knows.
    pub fn shown(&self) -> Option<&[Shown]> {
        match self {
            Self::Desk(shown) => Some(shown),
            Self::Album { .. } => None,
        }
    }

    /// The pictures of all pairs that some choices are about.
    ///
    /// # Errors
    /// Where there is no such pair, or a picture cannot be decoded.
    pub fn pictures<'c>(&self, choices: impl IntoIterator<Item = &'c Choice>) -> Result<Pictures<'_>> {
        let places: BTreeSet<usize> = choices.into_iter().map(|choice| choice.pair).collect();
        self.pictures_of(&places.into_iter().collect::<Vec<_>>())
    }

    /// The pictures of pairs, by ascending numbers.
    ///
    /// # Errors
    /// As [`Gallery::pictures`].
    pub fn pictures_of(&self, places: &[usize]) -> Result<Pictures<'_>> {
        match self {
            Self::Desk(shown) => {
                let one = |&place: &usize| {
                    let shown = shown.get(place).ok_or_else(|| nothing(place))?;
                    Ok((place, Cow::Borrowed(&shown.images)))
                };
                places.iter().map(one).collect()
            }
            Self::Album { album, .. } => {
                let images = album.pictures(places)?.into_iter().map(Cow::Owned);
                Ok(places.iter().copied().zip(images).collect())
            }
        }
    }

    /// What identifies each picture of a pair: the digest of the desk's, the place among all of another data set's, which
    /// [`Gallery::identity`] identifies.
    pub fn names(&self, pair: usize) -> [String; 2] {
        match self {
            Self::Desk(shown) => [0, 1].map(|side: usize| {
                let image = shown.get(pair).map(|shown| &shown.images[side]);
                image.map_or_else(String::new, |image| Digest::of(image.rgb()).short().to_owned())
            }),
            Self::Album { .. } => [0, 1].map(|side| format!("{pair}/{side}")),
        }
    }

    /// The digest of the whole, where [`Gallery::names`] do not say what they are of.
    pub fn identity(&self) -> Option<&Digest> {
        match self {
            Self::Desk(_) => None,
            Self::Album { album, .. } => Some(album.digest()),
        }
    }
}

fn nothing(pair: usize) -> Error {
    Error::Shape(format!("pair {pair} is asked for, and there is none"))
}
