//! The desk world: caption grammar, renderer, measured style, population of users with known utilities.
//!
//! A [`Scene`] is what a caption says and nothing else: one to three objects with colour, shape and perhaps size, how
//! they stand to each other, and perhaps the background. What a caption leaves out (an unnamed size, the exact layout,
//! the unnamed background) is drawn from the renderer's stream; how the picture looks ([`style::Style`]) is never
//! captioned, and there taste lives. Scenes are split by composition, so held-out captions combine what training never
//! combined, while each single word is common in training.

pub mod alignment;
pub mod belief;
pub mod caption;
pub mod measure;
pub mod perceive;
pub mod population;
pub mod prompts;
pub mod render;
pub mod style;
pub mod talk;
pub mod tastes;

use sha2::{Digest as _, Sha256};

use crate::rng::Stream;

pub use alignment::alignment;
pub use caption::{parse, words};
pub use measure::{Measured, measure};
pub use render::render;
pub use style::{Style, style_words};

/// Pixels along each side of a desk picture.
pub const SIDE: usize = 64;

/// A closed set of grammar values: declares the enum, its members in order and each one's word.
macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// Every member, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that captions use.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The member that captions call `word`.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|member| member.word() == word)
            }
        }
    };
}

vocabulary! {
    /// The outline of an object.
    Shape {
        /// A disc.
        Circle = "circle",
        /// An axis-aligned square.
        Square = "square",
        /// An equilateral triangle, point up.
        Triangle = "triangle",
        /// A rhombus on its point.
        Diamond = "diamond",
        /// A five-pointed star.
        Star = "star",
        /// A plus sign.
        Cross = "cross",
        /// A disc with a hole.
        Ring = "ring",
        /// A heart, point down.
        Heart = "heart",
    }
}

vocabulary! {
    /// The colour of an object.
    Colour {
        /// Red.
        Red = "red",
        /// Orange.
        Orange = "orange",
        /// Yellow.
        Yellow = "yellow",
        /// Green.
        Green = "green",
        /// Cyan.
        Cyan = "cyan",
        /// Blue.
        Blue = "blue",
        /// Purple.
        Purple = "purple",
        /// Pink.
        Pink = "pink",
    }
}

vocabulary! {
    /// The colour behind the objects.
    Background {
        /// Nearly white.
        White = "white",
        /// Middle gray.
        Gray = "gray",
        /// Nearly black.
        Black = "black",
        /// Pale brown.
        Beige = "beige",
        /// Dark blue.
        Navy = "navy",
        /// Pale green.
        Mint = "mint",
        /// Pale violet.
        Lavender = "lavender",
    }
}

vocabulary! {
    /// The size of an object, where the caption names it.
    Size {
        /// Clearly below the middle of what fits.
        Small = "small",
        /// Clearly above the middle of what fits.
        Large = "large",
    }
}

vocabulary! {
    /// Where an object stands relative to another, or to two others.
    Relation {
        /// Smaller x.
        Left = "left",
        /// Larger x.
        Right = "right",
        /// Smaller y.
        Above = "above",
        /// Larger y.
        Below = "below",
    }
}

impl Relation {
    /// Whether the relation is along x.
    pub fn is_horizontal(self) -> bool {
        matches!(self, Self::Left | Self::Right)
    }

    /// The sign of the first object's coordinate minus the second's, along the relation's axis (y points down).
    pub fn sign(self) -> f64 {
        match self {
            Self::Left | Self::Above => -1.0,
            Self::Right | Self::Below => 1.0,
        }
    }

    /// The opposite relation.
    pub fn inverse(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }
}

impl Colour {
    /// The neutral colour, sRGB in [0, 1].
    pub fn rgb(self) -> [f64; 3] {
        match self {
            Self::Red => [0.86, 0.10, 0.12],
            Self::Orange => [0.96, 0.50, 0.06],
            Self::Yellow => [0.97, 0.86, 0.12],
            Self::Green => [0.12, 0.60, 0.20],
            Self::Cyan => [0.12, 0.76, 0.84],
            Self::Blue => [0.12, 0.28, 0.86],
            Self::Purple => [0.50, 0.14, 0.66],
            Self::Pink => [0.97, 0.50, 0.74],
        }
    }
}

impl Background {
    /// The neutral colour, sRGB in [0, 1].
    pub fn rgb(self) -> [f64; 3] {
        match self {
            Self::White => [0.94, 0.94, 0.94],
            Self::Gray => [0.47, 0.47, 0.47],
            Self::Black => [0.08, 0.08, 0.08],
            Self::Beige => [0.88, 0.75, 0.54],
            Self::Navy => [0.09, 0.12, 0.34],
            Self::Mint => [0.62, 0.91, 0.74],
            Self::Lavender => [0.73, 0.64, 0.95],
        }
    }

    /// Whether an object of `colour` stands out against this background; sampled scenes avoid the pairs that do not.
    pub fn shows(self, colour: Colour) -> bool {
        !matches!(
            (self, colour),
            (Self::Black, Colour::Purple)
                | (Self::Beige, Colour::Yellow | Colour::Orange)
                | (Self::Navy, Colour::Blue | Colour::Purple)
                | (Self::Mint, Colour::Cyan)
                | (Self::Lavender, Colour::Pink | Colour::Purple)
        )
    }
}

/// One object of a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    /// Its size, where the caption names one.
    pub size: Option<Size>,
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
}

/// What a caption says: one to three objects, their relations, and perhaps the background.
///
/// With two objects, the first stands in `relations[0]` to the second; with three, the third stands in `relations[1]`
/// to both of the others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scene {
    /// One to three objects, in the order of the caption.
    pub objects: Vec<Object>,
    /// One relation fewer than there are objects.
    pub relations: Vec<Relation>,
    /// The background, where the caption names one.
    pub background: Option<Background>,
}

/// Which part of the world a scene belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// What models, rewards and preference pairs are trained on.
    Train,
    /// What settings are chosen on.
    Validation,
    /// What is reported.
    Test,
}

/// How a single (shape, colour) pair is held out: two diagonals of the shape × colour square.
///
/// Each diagonal takes every shape once and every colour once, so each of the 16 words keeps six of its eight partners
/// in training.
pub fn pair_split(shape: Shape, colour: Colour) -> Split {
    match (colour as usize + Colour::ALL.len() - shape as usize) % Colour::ALL.len() {
        3 => Split::Test,
        6 => Split::Validation,
        _ => Split::Train,
    }
}

/// The part that a scene belongs to, by the combination of its objects alone.
///
/// A scene that holds a (shape, colour) pair of the test diagonal is a test scene, else one with a pair of the
/// validation diagonal is a validation scene. A scene of several objects whose pairs are all trained on is split by a
/// hash of its set of objects, in eighths (one test, one validation, six training), whatever the sizes, relations and
/// background.
pub fn split(scene: &Scene) -> Split {
    let mut pairs: Vec<(Shape, Colour)> =
        scene.objects.iter().map(|object| (object.shape, object.colour)).collect();
    pairs.sort_unstable();
    let strictest =
        pairs.iter().map(|&(shape, colour)| pair_split(shape, colour)).max().unwrap_or(Split::Train);
    if strictest != Split::Train || pairs.len() < 2 {
        return strictest;
    }
    let mut hasher = Sha256::new();
    hasher.update(b"ppd composition 1");
    for (shape, colour) in pairs {
        hasher.update([shape as u8, colour as u8]);
    }
    match hasher.finalize()[0] % 8 {
        0 => Split::Test,
        1 => Split::Validation,
        _ => Split::Train,
    }
}

/// How probable scenes of one, two and three objects are; need not sum to one.
pub type ObjectWeights = [f64; 3];

/// Draws a scene of `part`, with one, two or three objects in proportion to `weights`.
///
/// An object's size is named half the time, the background four times in five; no two objects of a scene share both
/// shape and colour, and every object stands out against a named background. The number of objects is drawn before
/// the split is asked for, so `weights` hold in each part.
pub fn sample_scene(stream: &mut Stream, weights: ObjectWeights, part: Split) -> Scene {
    let threshold = stream.uniform() * weights.iter().sum::<f64>();
    let count = match threshold {
        t if t < weights[0] => 1,
        t if t < weights[0] + weights[1] => 2,
        _ => 3,
    };
    loop {
        let scene = propose(stream, count);
        if is_drawable(&scene) && split(&scene) == part {
            return scene;
        }
    }
}

fn propose(stream: &mut Stream, count: usize) -> Scene {
    let objects = (0..count)
        .map(|_| Object {
            size: stream.chance(0.5).then(|| *stream.pick(Size::ALL)),
            colour: *stream.pick(Colour::ALL),
            shape: *stream.pick(Shape::ALL),
        })
        .collect();
    let relations = (1..count).map(|_| *stream.pick(Relation::ALL)).collect();
    let background = stream.chance(0.8).then(|| *stream.pick(Background::ALL));
    Scene { objects, relations, background }
}

/// Whether the scene is one that [`sample_scene`] may give: distinct objects, visible on the named background.
pub fn is_drawable(scene: &Scene) -> bool {
    let distinct = scene
        .objects
        .iter()
        .enumerate()
        .all(|(i, a)| scene.objects[..i].iter().all(|b| (a.shape, a.colour) != (b.shape, b.colour)));
    let visible = scene.background.is_none_or(|b| scene.objects.iter().all(|object| b.shows(object.colour)));
    distinct && visible
}

#[cfg(test)]
mod tests;
