//! The numbers of a Stage B.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The numbers of a Stage B, named as in the checkpoint's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Width of the sinusoidal timestep embedding.
    pub timestep_ratio_embedding_dim: usize,
    /// Side of the patches that latents are gathered into.
    pub patch_size: usize,
    /// Width of the conditioning tokens.
    pub conditioning_dim: usize,
    /// Width of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// Attention heads of each level; of no meaning where the level has no attention.
    pub num_attention_heads: Vec<i64>,
    /// Layers of each level on the way down.
    pub down_num_layers_per_block: Vec<usize>,
    /// The same on the way up, innermost level first.
    pub up_num_layers_per_block: Vec<usize>,
    /// How often each level's layers run on the way down.
    pub down_blocks_repeat_mappers: Vec<usize>,
    /// The same on the way up, innermost level first.
    pub up_blocks_repeat_mappers: Vec<usize>,
    /// The parts of a layer of each level.
    pub block_types_per_layer: Vec<Vec<BlockType>>,
    /// Width of the pooled text embedding.
    pub clip_text_pooled_in_channels: usize,
    /// Tokens made of one pooled embedding.
    pub clip_seq: usize,
    /// Channels of Stage C's latents, by which this stage is conditioned.
    pub effnet_in_channels: usize,
    /// Channels of a small picture that could condition it too; it is black in all uses here.
    #[serde(default)]
    pub pixel_mapper_in_channels: Option<usize>,
    /// Names of the further scalars that modulate each timestep block; zero in all uses here.
    pub timestep_conditioning_type: Vec<String>,
    /// Absent: resolutions halve from level to level by strided convolutions.
    #[serde(default)]
    pub switch_level: Option<Vec<bool>>,
    /// Side of the depthwise kernels.
    #[serde(default = "three")]
    pub kernel_size: usize,
}

const fn three() -> usize {
    3
}

/// A part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockType {
    /// A residual block.
    #[serde(rename = "SDCascadeResBlock")]
    Residual,
    /// Modulation by the timestep.
    #[serde(rename = "SDCascadeTimestepBlock")]
    Timestep,
    /// Attention.
    #[serde(rename = "SDCascadeAttnBlock")]
    Attention,
}

/// A layer without attention, and one with it.
const PLAIN: [BlockType; 2] = [BlockType::Residual, BlockType::Timestep];
const ATTENDING: [BlockType; 3] = [BlockType::Residual, BlockType::Timestep, BlockType::Attention];

impl Config {
    /// Whether a level's layers attend; they are all alike.
    pub fn attends(&self, level: usize) -> bool {
        self.block_types_per_layer[level] == ATTENDING
    }

    /// The index of a level on its way up.
    pub(super) fn up(&self, level: usize) -> usize {
        self.block_out_channels.len() - 1 - level
    }

    /// Refuses what this implementation does not compute.
    ///
    /// # Errors
    /// [`Error::Spec`] naming the field, what it may be and what it is.
    pub fn check(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        let refuse = |what: String| Err(Error::Spec(format!("Stage B config: {what}")));
        for (name, len) in [
            ("num_attention_heads", self.num_attention_heads.len()),
            ("down_num_layers_per_block", self.down_num_layers_per_block.len()),
            ("up_num_layers_per_block", self.up_num_layers_per_block.len()),
            ("down_blocks_repeat_mappers", self.down_blocks_repeat_mappers.len()),
            ("up_blocks_repeat_mappers", self.up_blocks_repeat_mappers.len()),
            ("block_types_per_layer", self.block_types_per_layer.len()),
        ] {
            if len != levels || levels == 0 {
                return refuse(format!("{name} does not fit the {levels} levels of block_out_channels"));
            }
        }
        if self.switch_level.is_some() {
            return refuse("switch_level must be null: Stage B halves its resolution by convolutions".into());
        }
        if self.kernel_size != 3 {
            return refuse(format!("kernel_size must be 3, got {}", self.kernel_size));
        }
        if self.patch_size == 0 || self.timestep_ratio_embedding_dim < 4 {
            return refuse("patch_size must be at least 1, timestep_ratio_embedding_dim at least 4".into());
        }
        let repeats = self.down_blocks_repeat_mappers.iter().chain(&self.up_blocks_repeat_mappers);
        if repeats.into_iter().any(|count| *count == 0) {
            return refuse("every level runs at least once (…_blocks_repeat_mappers)".into());
        }
        for (level, &width) in self.block_out_channels.iter().enumerate() {
            let types = &self.block_types_per_layer[level];
            if types[..] != PLAIN && types[..] != ATTENDING {
                return refuse(format!(
                    "level {level}: layers of {types:?}, expected {PLAIN:?} or {ATTENDING:?}"
                ));
            }
            let heads = self.num_attention_heads[level];
            if self.attends(level) && (heads < 1 || width as i64 % heads != 0) {
                return refuse(format!("level {level}: {width} channels do not divide into {heads} heads"));
            }
        }
        Ok(())
    }

    /// Stable Cascade's Stage B of 1.5 B parameters.
    ///
    /// # Source
    /// `stabilityai/stable-cascade`, `decoder/config.json`; `Stability-AI/StableCascade`, `modules/stage_b.py`.
    pub fn stable_cascade() -> Self {
        Self {
            in_channels: 4,
            out_channels: 4,
            timestep_ratio_embedding_dim: 64,
            patch_size: 2,
            conditioning_dim: 1280,
            block_out_channels: vec![320, 640, 1280, 1280],
            num_attention_heads: vec![-1, -1, 20, 20],
            down_num_layers_per_block: vec![2, 6, 28, 6],
            up_num_layers_per_block: vec![6, 28, 6, 2],
            down_blocks_repeat_mappers: vec![1; 4],
            up_blocks_repeat_mappers: vec![3, 3, 2, 2],
            block_types_per_layer: vec![PLAIN.into(), PLAIN.into(), ATTENDING.into(), ATTENDING.into()],
            clip_text_pooled_in_channels: 1280,
            clip_seq: 4,
            effnet_in_channels: 16,
            pixel_mapper_in_channels: Some(3),
            timestep_conditioning_type: vec!["sca".into()],
            switch_level: None,
            kernel_size: 3,
        }
    }

    /// Its lite sister of 700 M parameters (`decoder_lite`).
    pub fn stable_cascade_lite() -> Self {
        Self {
            block_out_channels: vec![320, 576, 1152, 1152],
            num_attention_heads: vec![-1, 9, 18, 18],
            down_num_layers_per_block: vec![2, 4, 14, 4],
            up_num_layers_per_block: vec![4, 14, 4, 2],
            up_blocks_repeat_mappers: vec![2; 4],
            ..Self::stable_cascade()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_configs_pass_and_others_are_refused_by_field() {
        Config::stable_cascade().check().unwrap();
        let lite = Config::stable_cascade_lite();
        lite.check().unwrap();
        assert!(!lite.attends(1), "nine heads, but no attention");
        for (config, field) in [
            (Config { switch_level: Some(vec![true; 3]), ..lite.clone() }, "switch_level"),
            (Config { up_blocks_repeat_mappers: vec![1], ..lite.clone() }, "up_blocks_repeat_mappers"),
            (Config { num_attention_heads: vec![1, 1, 7, 18], ..lite.clone() }, "7 heads"),
            (Config { kernel_size: 5, ..lite.clone() }, "kernel_size"),
            (Config { block_types_per_layer: vec![vec![BlockType::Timestep]; 4], ..lite }, "level 0"),
        ] {
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }
}
