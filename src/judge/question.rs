//! What is asked: images, a user's pairs, and the question that a judge reads.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::template::{IMAGE, Template};
use crate::error::{Error, Result};
use crate::image;
use crate::judgement::{Order, Slot};
use crate::pixels::Image;
use crate::rng::stream;
use crate::template::Filled;
use crate::units::{Digest, Seed};

/// An image that judges are shown: in memory, or in a file that is read when it is needed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Picture(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    digest: Digest,
    size: (usize, usize),
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Memory(Image),
}

impl Picture {
    /// An image in memory, under the name that rows give it.
    pub fn new(name: impl Into<String>, image: Image) -> Self {
        let size = (image.width(), image.height());
        let digest = Digest::of(&[format!("{}x{}\n", size.0, size.1).as_bytes(), image.rgb()].concat());
        Self(Arc::new(Inner { name: name.into(), digest, size, source: Source::Memory(image) }))
    }

    /// An image in a PNG or JPEG file. Its bytes are digested and its size is read; its pixels are not.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read, [`Error::Data`] where it is no picture.
    pub fn open(name: impl Into<String>, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let reader = ::image::ImageReader::new(Cursor::new(&bytes)).with_guessed_format();
        let reader = reader.map_err(Error::io("read", &path))?;
        let size = match reader.into_dimensions() {
            Ok((width, height)) => (width as usize, height as usize),
            // Reading it whole says what is wrong with it.
            Err(_) => image::decode(&bytes, &path).map(|image| (image.width(), image.height()))?,
        };
        Ok(Self(Arc::new(Inner {
            name: name.into(),
            digest: Digest::of(&bytes),
            size,
            source: Source::File(path),
        })))
    }

    /// The name that rows give it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The digest of its bytes, or of its size and pixels where it never was a file.
    pub fn digest(&self) -> &Digest {
        &self.0.digest
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.0.size
    }

    /// Its pixels.
    ///
    /// # Errors
    /// Where the file cannot be read, is damaged, or is not what it was when it was opened.
    pub fn image(&self) -> Result<Image> {
        match &self.0.source {
            Source::Memory(image) => Ok(image.clone()),
            Source::File(path) => {
                let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
                if Digest::of(&bytes) != self.0.digest {
                    return Err(changed(path));
                }
                image::decode(&bytes, path)
            }
        }
    }
}

fn changed(path: &Path) -> Error {
    Error::data(path, "this image was changed while its judgement was waited for; run the same command again")
}

/// A pair that a user has compared.
#[derive(Debug, Clone)]
pub struct Shot {
    /// The prompt that both images answer.
    pub caption: String,
    /// The image that the user preferred.
    pub chosen: Picture,
    /// The other one.
    pub rejected: Picture,
}

/// A pair of images that a judge is asked about.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The user whose preference is asked for.
    pub user: String,
    /// The prompt that both images answer.
    pub prompt: String,
    /// The image whose win rate is counted.
    pub left: Picture,
    /// The other one.
    pub right: Picture,
    /// The user's pairs that the judge is shown, in their order; none for a judge that knows nothing of the user.
    pub shots: Arc<[Shot]>,
    /// The true ln P(left) − ln P(right), which the oracle alone reads.
    pub log_odds: Option<f64>,
}

/// How pairs are asked about.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// The words.
    pub template: Template,
    /// Where the order of the images within each shown pair is drawn from.
    pub seed: Seed,
    /// How often each question is asked; more than once to see how stable the answers are.
    pub repeats: u32,
    /// Whether the two images of a pair may have different sizes.
    pub allow_sizes: bool,
}

impl Default for Protocol {
    fn default() -> Self {
        Self { template: Template::default(), seed: Seed::new(0), repeats: 1, allow_sizes: false }
    }
}

/// One call: a pair in one order, once.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The pair.
    pub asked: &'a Asked,
    /// Which image stands first.
    pub order: Order,
    /// The number of the repetition, from 0.
    pub repeat: u32,
    /// The messages, with a placeholder for each image.
    pub(super) words: Filled,
    /// The images in the order of the placeholders.
    pub(super) pictures: Vec<&'a Picture>,
    /// What the answer is remembered under.
    pub(super) key: Digest,
}

/// The slot in which each shot's chosen image stands: a fair coin a shot, the same in all questions about a user.
fn slots(seed: Seed, asked: &Asked) -> Vec<Slot> {
    let mut coins = stream(seed, &format!("judge shots {}", asked.user), 0);
    asked.shots.iter().map(|_| if coins.chance(0.5) { Slot::A } else { Slot::B }).collect()
}

/// All questions about a pair: each repetition in both orders. `identity` is the judge's, and `form` how it is to answer.
///
/// # Errors
/// Where a text has a placeholder for an image, the template has no place for the user's pairs, or sizes differ.
pub(super) fn questions<'a>(
    asked: &'a Asked,
    protocol: &Protocol,
    identity: &Digest,
    form: &str,
) -> Result<Vec<Question<'a>>> {
    let refuse = |message: String| {
        let (user, left, right) = (&asked.user, asked.left.name(), asked.right.name());
        Err(Error::Spec(format!("user {user:?}, {left} against {right}: {message}")))
    };
    let captions = asked.shots.iter().map(|shot| shot.caption.as_str());
    if captions.chain([asked.prompt.as_str()]).any(|text| text.contains(IMAGE)) {
        return refuse(format!("a caption holds {IMAGE}, which is the place of an image; take it out"));
    }
    if !asked.shots.is_empty() && !protocol.template.shows_pairs() {
        return refuse("the template has no {pair}, and the user has pairs; show none with --shots 0".into());
    }
    let ((w, h), (other_w, other_h)) = (asked.left.size(), asked.right.size());
    if (w, h) != (other_w, other_h) && !protocol.allow_sizes {
        return refuse(format!(
            "the images have different sizes, {w}×{h} and {other_w}×{other_h}, by which a judge can tell where they come from, \
             whatever they show; make them equal, or judge them as they are with --allow-sizes"
        ));
    }
    let slots = slots(protocol.seed, asked);
    let pairs: Vec<(&str, Slot)> =
        asked.shots.iter().zip(&slots).map(|(shot, slot)| (shot.caption.as_str(), *slot)).collect();
    let words = protocol.template.fill(&pairs, &asked.prompt, form);
    let shown: Vec<&Picture> = asked
        .shots
        .iter()
        .zip(&slots)
        .flat_map(|(shot, slot)| match slot {
            Slot::A => [&shot.chosen, &shot.rejected],
            Slot::B => [&shot.rejected, &shot.chosen],
        })
        .collect();
    let all = (0..protocol.repeats).flat_map(|repeat| Order::ALL.map(|order| (repeat, order)));
    Ok(all
        .map(|(repeat, order)| {
            let last = match order {
                Order::LeftFirst => [&asked.left, &asked.right],
                Order::RightFirst => [&asked.right, &asked.left],
            };
            let pictures = [shown.as_slice(), &last].concat();
            let digests: Vec<&str> = pictures.iter().map(|picture| picture.digest().hex()).collect();
            let whole = json!({
                "judge": identity,
                "template": protocol.template.digest(),
                "pairs": pairs.iter().map(|(caption, slot)| (caption, slot.letter())).collect::<Vec<_>>(),
                "prompt": asked.prompt,
                "form": form,
                "images": digests,
                "order": order,
                "repeat": repeat,
            });
            let key = Digest::of(whole.to_string().as_bytes());
            Question { asked, order, repeat, words: words.clone(), pictures, key }
        })
        .collect())
}

impl Question<'_> {
    /// The user's message, cut at its images: a text before each, and one behind the last.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.words.user.split(IMAGE)
    }

    /// The number of characters of its words.
    pub(super) fn characters(&self) -> usize {
        self.words.user.chars().count() + self.words.system.as_ref().map_or(0, |text| text.chars().count())
    }
}
