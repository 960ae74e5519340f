//! LLaVA-OneVision: SigLIP's tower, a projector, and Qwen2, in the layout of `llava-hf/llava-onevision-qwen2-*-ov-hf`.
//!
//! It reads few-shot pairs of images and writes what their user likes; its hidden states are the user embedding (the
//! paper's Sec. 4.1). Training and judging use the same forward pass. What this module does not do: read files, or choose
//! words (see `vlm` for the repository, and `embed` for the prompt).

use candle_core::{D, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::error::{Error, Result};
use crate::models::blocks::fan_in;
use crate::nn;

mod chat;
mod config;
mod generate;
mod qwen2;
mod siglip;
mod views;

pub use chat::{ChatTemplate, ChatTokenizer, Message, Part};
pub use config::{
    Config, EndTokens, GenerationConfig, ProcessorConfig, RopeParameters, TextConfig, TileSize, VisionConfig,
};
pub use generate::{Decoding, Generated, Sampling};
pub use qwen2::{Keep, KvCache, Past, Qwen2, States};
pub use siglip::SiglipTower;
pub use views::{Grid, ImageProcessor, Layout, Views};

/// One prompt as the model takes it: token ids, in which the image token stands once for each feature, and the images
/// in their order.
#[derive(Debug, Clone)]
pub struct Input {
    /// The token ids.
    pub ids: Vec<u32>,
    /// The images.
    pub images: Vec<Views>,
}

/// The embeddings of a batch of prompts, which end at the same column.
#[derive(Debug, Clone)]
pub struct Merged {
    /// (B, N, D); zeros before a sample's start.
    pub embeddings: Tensor,
    /// The first column of each sample.
    pub starts: Vec<usize>,
}

/// Two affine maps with a non-linearity between them, from the tower's width to the language model's.
#[derive(Debug, Clone)]
struct Projector {
    linear_1: (Tensor, Option<Tensor>),
    linear_2: (Tensor, Option<Tensor>),
    act: super::clip::Activation,
}

impl Projector {
    fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let (from, to) = (cfg.vision_config.hidden_size, cfg.text_config.hidden_size);
        let linear = |name: &str, from: usize| -> Result<(Tensor, Option<Tensor>)> {
            let vb = vb.pp(name);
            let weight = nn::frozen_weight(&vb.get_with_hints((to, from), "weight", fan_in(from))?)?;
            let bias = cfg.multimodal_projector_bias.then(|| vb.get_with_hints(to, "bias", Init::Const(0.0)));
            Ok((weight, bias.transpose()?))
        };
        let (linear_1, linear_2) = (linear("linear_1", from)?, linear("linear_2", to)?);
        Ok(Self { linear_1, linear_2, act: cfg.projector_hidden_act })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = nn::linear(xs, &self.linear_1.0, self.linear_1.1.as_ref())?;
        let xs = self.act.forward(&xs)?;
        Ok(nn::linear(&xs, &self.linear_2.0, self.linear_2.1.as_ref())?)
    }
}

/// The whole model.
#[derive(Debug, Clone)]
pub struct LlavaOnevision {
    vision_tower: SiglipTower,
    multi_modal_projector: Projector,
    image_newline: Tensor,
    language_model: Qwen2,
    config: Config,
}

impl LlavaOnevision {
    /// Opens a `LlavaOnevisionForConditionalGeneration`, or makes a new one where the builder makes variables.
    ///
    /// # Errors
    /// Where the config asks for what is not supported, or a weight is missing or has another shape.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        cfg.check()?;
        let language = vb.pp("language_model");
        let tied = cfg.ties(language.contains_tensor("lm_head.weight"));
        let width = cfg.text_config.hidden_size;
        Ok(Self {
            vision_tower: SiglipTower::new(&cfg.vision_config, cfg.feature_layer()?, vb.pp("vision_tower"))?,
            multi_modal_projector: Projector::new(cfg, vb.pp("multi_modal_projector"))?,
            image_newline: vb.get_with_hints(width, "image_newline", fan_in(width))?,
            language_model: Qwen2::new(&cfg.text_config, tied, language)?,
            config: cfg.clone(),
        })
    }

    /// The configuration that it was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The language model alone.
    pub fn language_model(&self) -> &Qwen2 {
        &self.language_model
    }

    /// The tower's features of tiles, before the projector: (T, 3, S, S) to (T, patches, tower width).
    ///
    /// # Errors
    /// Where the pixels have another size.
    pub fn vision_features(&self, tiles: &Tensor) -> Result<Tensor> {
        let newline = &self.image_newline;
        self.vision_tower.forward(&tiles.to_device(newline.device())?.to_dtype(newline.dtype())?)
    }

    /// The features that stand in an image's place in the prompt: (features, D), as many as [`Views::features`] says.
    ///
    /// # Errors
    /// Where the tiles have another size.
    pub fn image_features(&self, image: &Views) -> Result<Tensor> {
        let features = self.multi_modal_projector.forward(&self.vision_features(&image.tiles)?)?;
        self.pack(&features, image.grid.as_ref())
    }

    /// [`LlavaOnevision::image_features`] of several images, in their order; as many go through the tower together as it takes
    /// at once.
    fn images_features<'a>(&self, images: impl Iterator<Item = &'a Views>) -> Result<Vec<Tensor>> {
        let images: Vec<&Views> = images.collect();
        let tiles = |image: &Views| image.tiles.dim(0);
        let (mut features, mut first) = (Vec::with_capacity(images.len()), 0);
        while first < images.len() {
            let (mut last, mut count) = (first + 1, tiles(images[first])?);
            while last < images.len() && count + tiles(images[last])? <= self.vision_tower.at_once() {
                count += tiles(images[last])?;
                last += 1;
            }
            let together = images[first..last].iter().map(|image| &image.tiles).collect::<Vec<_>>();
            let together = self.vision_features(&Tensor::cat(&together, 0)?)?;
            let together = self.multi_modal_projector.forward(&together)?; // (tiles, patches, D)
            let mut at = 0;
            for image in &images[first..last] {
                let own = together.narrow(0, at, tiles(image)?)?;
                features.push(self.pack(&own, image.grid.as_ref())?);
                at += tiles(image)?;
            }
            first = last;
        }
        Ok(features)
    }

    /// Lays out the features of an image's tiles: the whole image first; then, of the tiles side by side, what is no
    /// padding, made smaller where there is much, each row with a newline behind it. Without a grid, the whole image and
    /// one newline.
    ///
    /// # Shapes
    /// `features` (tiles, patches, D).
    fn pack(&self, features: &Tensor, grid: Option<&Grid>) -> Result<Tensor> {
        let (tiles, patches, width) = features.dims3()?;
        let side = self.config.vision_config.patches();
        let newline = self.image_newline.reshape((1, width))?;
        let whole = features.get(0)?; // (patches, D)
        let Some(grid) = grid else { return Ok(Tensor::cat(&[&whole, &newline], 0)?) };
        let (down, across) = grid.tiles;
        if tiles != 1 + down * across || patches != side * side {
            return Err(Error::Shape(format!(
                "{tiles} tiles of {patches} features: expected one and {down}×{across} of {} features; the grid belongs to \
                 another image or model",
                side * side
            )));
        }
        let part = |xs: &Tensor, axis: usize, range: &std::ops::Range<usize>| {
            xs.narrow(axis, range.start, range.len())?.contiguous()
        };
        let xs = features
            .narrow(0, 1, tiles - 1)?
            .reshape((down, across, side, side, width))?
            .permute((0, 2, 1, 3, 4))?
            .reshape((down * side, across * side, width))?; // (H, W, D)
        let (rows, columns) = grid.shape;
        // Of a sliver no feature of the tiles shows anything but padding.
        if rows == 0 {
            return Ok(whole);
        }
        if columns == 0 {
            return Ok(Tensor::cat(&[vec![&whole], vec![&newline; rows]].concat(), 0)?);
        }
        let xs = part(&part(&xs, 0, &grid.rows)?, 1, &grid.columns)?;
        let xs = interpolated(&interpolated(&xs, 0, rows)?, 1, columns)?;
        let newlines = newline.unsqueeze(0)?.broadcast_as((rows, 1, width))?;
        let lines = Tensor::cat(&[&xs, &newlines.contiguous()?], 1)?.flatten_to(1)?; // (rows·(columns + 1), D)
        Ok(Tensor::cat(&[&whole, &lines], 0)?)
    }

    /// A batch's embeddings with its images' features in the image token's places.
    ///
    /// # Errors
    /// [`Error::Shape`] where a prompt has more or fewer image tokens than its images have features, or an id is unknown.
    pub fn merge(&self, inputs: &[Input]) -> Result<Merged> {
        let longest = inputs.iter().map(|input| input.ids.len()).max().unwrap_or(0);
        if inputs.iter().any(|input| input.ids.is_empty()) {
            return Err(Error::Shape("a prompt has no tokens; expected at least one".into()));
        }
        let starts: Vec<usize> = inputs.iter().map(|input| longest - input.ids.len()).collect();
        let mut features = self.images_features(inputs.iter().flat_map(|input| &input.images))?.into_iter();
        let rows = inputs.iter().zip(&starts).map(|(input, &start)| {
            let own: Vec<Tensor> = features.by_ref().take(input.images.len()).collect();
            let merged = self.merge_one(input, &own)?;
            let zeros = Tensor::zeros((start, merged.dim(D::Minus1)?), merged.dtype(), merged.device())?;
            Ok(if start == 0 { merged } else { Tensor::cat(&[&zeros, &merged], 0)? })
        });
        Ok(Merged { embeddings: Tensor::stack(&rows.collect::<Result<Vec<_>>>()?, 0)?, starts })
    }

    fn merge_one(&self, input: &Input, images: &[Tensor]) -> Result<Tensor> {
        let image_token = self.config.image_token_index;
        let features: usize = input.images.iter().map(Views::features).sum();
        let places = input.ids.iter().filter(|&&id| id == image_token).count();
        if places != features {
            return Err(Error::Shape(format!(
                "the prompt has {places} image tokens, and its {} images have {features} features; each image needs one \
                 placeholder, expanded to its number of features",
                input.images.len()
            )));
        }
        let embedded = self.language_model.embed(&input.ids)?;
        if features == 0 {
            return Ok(embedded);
        }
        let images = Tensor::cat(images, 0)?;
        let (mut pieces, mut used, mut at) = (Vec::new(), 0, 0);
        for run in input.ids.chunk_by(|a, b| (*a == image_token) == (*b == image_token)) {
            pieces.push(if run[0] == image_token {
                used += run.len();
                images.narrow(0, used - run.len(), run.len())?
            } else {
                embedded.narrow(0, at, run.len())?
            });
            at += run.len();
        }
        Ok(Tensor::cat(&pieces, 0)?)
    }

    /// The states of whole prompts, with gradients where something trains.
    ///
    /// # Errors
    /// Those of [`LlavaOnevision::merge`], and where a prompt is longer than the model's context.
    pub fn forward(&self, inputs: &[Input], keep: Keep) -> Result<States> {
        let merged = self.merge(inputs)?;
        self.language_model.forward(&merged.embeddings, Past::None { starts: &merged.starts }, keep)
    }

    /// The logits of `ids` as each prompt's next token: (B, ids), in single precision.
    ///
    /// # Errors
    /// As [`LlavaOnevision::forward`].
    pub fn next_logits(&self, inputs: &[Input], ids: &[u32]) -> Result<Tensor> {
        self.language_model.logits_of(&self.forward(inputs, Keep::None)?.last, ids)
    }
}

/// Another length along `axis` by linear interpolation between the nearest two, corners not aligned, as torch's `bilinear`.
fn interpolated(xs: &Tensor, axis: usize, length: usize) -> Result<Tensor> {
    let from = xs.dim(axis)?;
    if from == length {
        return Ok(xs.clone());
    }
    let scale = from as f32 / length as f32;
    let (mut before, mut after, mut share) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..length {
        let at = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let first = (at as usize).min(from - 1);
        before.push(first as u32);
        after.push((first + 1).min(from - 1) as u32);
        share.push(at - first as f32);
    }
    let shape: Vec<usize> = (0..xs.rank()).map(|i| if i == axis { length } else { 1 }).collect();
    let share = Tensor::from_vec(share, shape, xs.device())?;
    let row = |indices: Vec<u32>| -> Result<Tensor> {
        let indices = Tensor::from_vec(indices, length, xs.device())?;
        Ok(xs.index_select(&indices, axis)?.to_dtype(candle_core::DType::F32)?)
    };
    let other = share.affine(-1.0, 1.0)?;
    let mixed = (row(before)?.broadcast_mul(&other)? + row(after)?.broadcast_mul(&share)?)?;
    Ok(mixed.to_dtype(xs.dtype())?)
}
