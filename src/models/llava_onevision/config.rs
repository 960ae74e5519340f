//! `config.json`, `preprocessor_config.json` and `generation_config.json`, as in `llava-hf/llava-onevision-qwen2-*-ov-hf`.

use serde::{Deserialize, Serialize};

use super::super::clip::Activation;
use crate::error::{Error, Result};

/// The whole model, as in `config.json`; what a file leaves out has transformers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The image tower.
    pub vision_config: VisionConfig,
    /// The language model.
    pub text_config: TextConfig,
    /// The token in whose place an image's features stand.
    pub image_token_index: u32,
    /// Which of the tower's hidden states the features are: −1 is the last block's output.
    pub vision_feature_layer: i64,
    /// `full`: all of the tower's tokens.
    pub vision_feature_select_strategy: String,
    /// The non-linearity of the projector.
    pub projector_hidden_act: Activation,
    /// Whether the projector's maps have a bias.
    pub multimodal_projector_bias: bool,
    /// `anyres_max_N`: an image's tiles give at most as many features as about N tiles have.
    pub vision_aspect_ratio: String,
    /// The sizes (height, width) that an image may be laid out in for tiling.
    pub image_grid_pinpoints: Vec<(usize, usize)>,
    /// Whether the logits reuse the token embeddings; [`TextConfig::tie_word_embeddings`] is what older files say.
    pub tie_word_embeddings: bool,
}

/// The image tower (SigLIP), as in `config.json`; what a file leaves out has transformers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Token width.
    pub hidden_size: usize,
    /// Width inside a block's two linear maps.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads in each block.
    pub num_attention_heads: usize,
    /// Pixels across and down.
    pub image_size: usize,
    /// Pixels across and down one patch.
    pub patch_size: usize,
    /// The non-linearity.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
}

/// The language model (Qwen2), as in `config.json`; what a file leaves out has transformers' default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Token width.
    pub hidden_size: usize,
    /// Width inside a block's gated maps.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values.
    pub num_key_value_heads: usize,
    /// The longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Added to mean squares.
    pub rms_norm_eps: f64,
    /// The base of the rotary angles.
    pub rope_theta: f64,
    /// Where newer files keep that base.
    pub rope_parameters: Option<RopeParameters>,
    /// Another spacing of the angles: refused.
    pub rope_scaling: Option<serde_json::Value>,
    /// The gate's non-linearity: `silu`.
    pub hidden_act: String,
    /// Whether the logits reuse the token embeddings.
    pub tie_word_embeddings: bool,
    /// Attention to the nearest positions only: refused.
    pub use_sliding_window: bool,
}

/// The rotary angles, as newer files write them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeParameters {
    /// The base.
    pub rope_theta: f64,
    /// `default`.
    #[serde(default)]
    pub rope_type: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        let sides = || (1..=6).map(|n| 384 * n);
        Self {
            vision_config: VisionConfig::default(),
            text_config: TextConfig::default(),
            image_token_index: 151_646,
            vision_feature_layer: -1,
            vision_feature_select_strategy: "full".into(),
            projector_hidden_act: Activation::Gelu,
            multimodal_projector_bias: true,
            vision_aspect_ratio: "anyres_max_9".into(),
            image_grid_pinpoints: sides().flat_map(|h| sides().map(move |w| (h, w))).collect(),
            tie_word_embeddings: false,
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 16,
            hidden_act: Activation::GeluPytorchTanh,
            layer_norm_eps: 1e-6,
        }
    }
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 22_016,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            max_position_embeddings: 32_768,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_parameters: None,
            rope_scaling: None,
            hidden_act: "silu".into(),
            tie_word_embeddings: false,
            use_sliding_window: false,
        }
    }
}

impl VisionConfig {
    /// Patches along a side.
    pub fn patches(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }
}

impl TextConfig {
    /// The base of the rotary angles, wherever the file has it.
    pub fn rope_base(&self) -> f64 {
        self.rope_parameters.as_ref().map_or(self.rope_theta, |parameters| parameters.rope_theta)
    }

    /// Channels of a head.
    pub fn head_width(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }
}

impl Config {
    /// Refuses what this implementation does not compute, and sizes that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Spec`] with the entry's name, what it says and what is supported.
    pub fn check(&self) -> Result<()> {
        let refuse = |entry: &str, got: String, expected: &str| {
            Err(Error::Spec(format!(
                "config.json: `{entry}` is {got}; supported is {expected}: use one of the \
                 llava-hf/llava-onevision-qwen2-*-ov-hf checkpoints, or change the entry if it is a mistake"
            )))
        };
        let (vision, text) = (&self.vision_config, &self.text_config);
        if self.vision_feature_select_strategy != "full" {
            let got = self.vision_feature_select_strategy.clone();
            return refuse("vision_feature_select_strategy", got, "full");
        }
        if text.hidden_act != "silu" {
            return refuse("text_config.hidden_act", text.hidden_act.clone(), "silu");
        }
        if text.use_sliding_window {
            return refuse("text_config.use_sliding_window", "true".into(), "false");
        }
        if let Some(scaling) = &text.rope_scaling {
            return refuse("text_config.rope_scaling", scaling.to_string(), "null");
        }
        match text.rope_parameters.as_ref().and_then(|parameters| parameters.rope_type.as_deref()) {
            None | Some("default") => {}
            Some(other) => return refuse("text_config.rope_parameters.rope_type", other.into(), "default"),
        }
        self.max_tiles()?;
        self.feature_layer()?;
        let divides = |whole: usize, part: usize| part > 0 && whole.is_multiple_of(part);
        if !divides(text.hidden_size, text.num_attention_heads) || !text.head_width().is_multiple_of(2) {
            let got = format!("{} for hidden_size {}", text.num_attention_heads, text.hidden_size);
            return refuse("text_config.num_attention_heads", got, "a number of heads of even, equal width");
        }
        if !divides(text.num_attention_heads, text.num_key_value_heads) {
            let got = text.num_key_value_heads.to_string();
            return refuse("text_config.num_key_value_heads", got, "a divisor of num_attention_heads");
        }
        if !divides(vision.hidden_size, vision.num_attention_heads) {
            let got = vision.num_attention_heads.to_string();
            return refuse("vision_config.num_attention_heads", got, "a divisor of hidden_size");
        }
        if vision.patch_size == 0 || vision.patches() == 0 {
            let got = vision.patch_size.to_string();
            return refuse("vision_config.patch_size", got, "1 to image_size");
        }
        let size = vision.image_size;
        match self
            .image_grid_pinpoints
            .iter()
            .find(|(h, w)| !divides(*h, size) || !divides(*w, size) || h * w == 0)
        {
            Some(pinpoint) => refuse(
                "image_grid_pinpoints",
                format!("{pinpoint:?} among others"),
                "whole tiles of image_size",
            ),
            None if self.image_grid_pinpoints.is_empty() => {
                refuse("image_grid_pinpoints", "empty".into(), "a list of sizes")
            }
            None => Ok(()),
        }
    }

    /// N of `anyres_max_N`.
    ///
    /// # Errors
    /// Where the entry says something else.
    pub fn max_tiles(&self) -> Result<usize> {
        let number = self.vision_aspect_ratio.strip_prefix("anyres_max_").and_then(|n| n.parse().ok());
        number.filter(|n| *n > 0).ok_or_else(|| {
            Error::Spec(format!(
                "config.json: `vision_aspect_ratio` is {:?}, expected anyres_max_ and a number",
                self.vision_aspect_ratio
            ))
        })
    }

    /// After how many of the tower's blocks the features are read.
    ///
    /// # Errors
    /// Where the tower has fewer.
    pub fn feature_layer(&self) -> Result<usize> {
        let (states, layer) = (self.vision_config.num_hidden_layers as i64 + 1, self.vision_feature_layer);
        let index = if layer < 0 { states + layer } else { layer };
        usize::try_from(index).ok().filter(|_| index < states).ok_or_else(|| {
            Error::Spec(format!(
                "config.json: `vision_feature_layer` is {layer}, and the tower has {states} hidden states"
            ))
        })
    }

    /// Whether the logits reuse the token embeddings, where the file may hold a matrix of their own (`own`).
    pub fn ties(&self, own: bool) -> bool {
        self.text_config.tie_word_embeddings || (self.tie_word_embeddings && !own)
    }
}

/// How images become pixels, as in `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorConfig {
    /// Height and width of a tile.
    pub size: TileSize,
    /// Multiplied with bytes.
    pub rescale_factor: f64,
    /// Subtracted from each channel.
    pub image_mean: [f32; 3],
    /// What each channel is divided by then.
    pub image_std: [f32; 3],
    /// As [`Config::image_grid_pinpoints`], which is used where this is absent.
    pub image_grid_pinpoints: Option<Vec<(usize, usize)>>,
    /// Pillow's number of the filter: 3 is bicubic, the only one supported.
    pub resample: u32,
}

/// Height and width of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TileSize {
    /// Pixels down.
    pub height: usize,
    /// Pixels across.
    pub width: usize,
}

impl Default for ProcessorConfig {
    fn default() -> Self {
        Self {
            size: TileSize { height: 384, width: 384 },
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            image_grid_pinpoints: None,
            resample: 3,
        }
    }
}

/// Which tokens end a text, as in `generation_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// One id, or several.
    pub eos_token_id: EndTokens,
}

/// One id, or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EndTokens {
    /// One.
    One(u32),
    /// Several: each ends the text.
    Several(Vec<u32>),
}

impl Default for EndTokens {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl EndTokens {
    /// All of them.
    pub fn ids(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_leaves_out_has_the_default_and_what_is_not_supported_is_named() {
        let config: Config = serde_json::from_str(r#"{"vision_config": {"patch_size": 14}}"#).unwrap();
        assert_eq!((config.vision_config.patches(), config.image_grid_pinpoints.len()), (16, 36));
        assert_eq!((config.max_tiles().unwrap(), config.feature_layer().unwrap()), (9, 12));
        let fits = Config { image_grid_pinpoints: vec![(448, 224)], ..config.clone() };
        fits.check().unwrap();
        for (change, part) in [
            (r#"{"vision_feature_select_strategy": "default"}"#, "vision_feature_select_strategy"),
            (r#"{"text_config": {"use_sliding_window": true}}"#, "use_sliding_window"),
            (r#"{"text_config": {"rope_scaling": {"type": "yarn"}}}"#, "rope_scaling"),
            (r#"{"text_config": {"num_key_value_heads": 5}}"#, "num_key_value_heads"),
            (r#"{"vision_aspect_ratio": "pad"}"#, "anyres_max_"),
            (r#"{"vision_feature_layer": -14}"#, "13 hidden states"),
            (r#"{"image_grid_pinpoints": [[224, 300]]}"#, "(224, 300)"),
        ] {
            let config: Config = serde_json::from_str(change).unwrap();
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let ends: GenerationConfig = serde_json::from_str(r#"{"eos_token_id": [151645, 151643]}"#).unwrap();
        assert_eq!(ends.eos_token_id.ids(), [151_645, 151_643]);
    }
}
