//! Style: how a picture looks beyond what its caption says. Taste lives here.

use crate::rng::Stream;

/// How a picture looks; zero in every field is neutral.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Style {
    /// Lighter above zero, darker below; in [-1, 1].
    pub brightness: f64,
    /// More vivid above zero, more muted below; in [-1, 1].
    pub saturation: f64,
    /// Towards red above zero, towards blue below; in [-1, 1].
    pub warmth: f64,
    /// Stronger contrast above zero, flatter below; in [-1, 1].
    pub contrast: f64,
    /// Closer above zero, farther below; in [-1, 1].
    pub zoom: f64,
    /// How far off the centre the objects stand, as a share of the free room; in [0, 1].
    pub offset: f64,
    /// The width of a dark outline as a share of the widest one; in [0, 1].
    pub outline: f64,
    /// The strength of diagonal stripes on the background; in [0, 1].
    pub stripes: f64,
    /// The strength of grain on the background; in [0, 1].
    pub grain: f64,
}

/// The words that [`style_words`] may use, in the order of the fields, two to a tone.
pub const STYLE_WORDS: [&str; 16] = [
    "bright", "dark", "vivid", "muted", "warm", "cool", "crisp", "soft", "close", "distant", "centred",
    "offset", "outlined", "striped", "grainy", "plain",
];

impl Style {
    /// No deviation in any direction.
    pub fn neutral() -> Self {
        Self::default()
    }

    /// A random style: tones are triangular on [-1, 1], the offset is uniform, and outline, stripes and grain are each
    /// absent in half of the pictures or more.
    pub fn sample(stream: &mut Stream) -> Self {
        let mut tone = || stream.uniform() + stream.uniform() - 1.0;
        let (brightness, saturation, warmth, contrast, zoom) = (tone(), tone(), tone(), tone(), tone());
        let offset = stream.uniform();
        let mut sometimes = |probability: f64| {
            // Both numbers are always drawn, so one effect never shifts another's.
            let (present, strength) = (stream.chance(probability), stream.between(0.3, 1.0));
            if present { strength } else { 0.0 }
        };
        let (outline, stripes, grain) = (sometimes(0.4), sometimes(0.3), sometimes(0.3));
        Self { brightness, saturation, warmth, contrast, zoom, offset, outline, stripes, grain }
    }
}

/// The words that describe a style where it clearly deviates; a neutral style has only `centred` and `plain`.
///
/// They never stand in scene captions: reward models append some of them in training, so that their embeddings keep
/// what taste needs.
pub fn style_words(style: &Style) -> Vec<&'static str> {
    let mut words = Vec::new();
    let mut tone = |value: f64, above, below| {
        if value > 0.25 {
            words.push(above);
        } else if value < -0.25 {
            words.push(below);
        }
    };
    tone(style.brightness, "bright", "dark");
    tone(style.saturation, "vivid", "muted");
    tone(style.warmth, "warm", "cool");
    tone(style.contrast, "crisp", "soft");
    tone(style.zoom, "close", "distant");
    tone(style.offset - 0.5, "offset", "centred");
    if style.outline > 0.0 {
        words.push("outlined");
    }
    if style.stripes > 0.0 {
        words.push("striped");
    }
    if style.grain > 0.0 {
        words.push("grainy");
    }
    if style.stripes + style.grain == 0.0 {
        words.push("plain");
    }
    words
}
