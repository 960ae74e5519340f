//! The numbers of a Stage C.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The numbers of a Stage C, named as in the checkpoint's `config.json`.
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
    /// Width of each level.
    pub block_out_channels: Vec<usize>,
    /// Attention heads of each level.
    pub num_attention_heads: Vec<usize>,
    /// (residual, timestep, attention) triples of each level on the way down.
    pub down_num_layers_per_block: Vec<usize>,
    /// The same on the way up, innermost level first.
    pub up_num_layers_per_block: Vec<usize>,
    /// Width of the text tokens.
    pub clip_text_in_channels: usize,
    /// Width of the pooled text embedding.
    pub clip_text_pooled_in_channels: usize,
    /// Width of the image embedding (zeros where there is no image).
    pub clip_image_in_channels: usize,
    /// Tokens made of one pooled embedding.
    pub clip_seq: usize,
    /// Names of the further scalars that modulate each timestep block; zero in all uses here.
    pub timestep_conditioning_type: Vec<String>,
    /// For each step between levels, whether it changes the resolution; Stage C never does.
    pub switch_level: Vec<bool>,
}

impl Config {
    /// Refuses what this implementation does not compute.
    ///
    /// # Errors
    /// [`Error::Spec`] naming the field, what it may be and what it is.
    pub fn check(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        let refuse = |what: String| Err(Error::Spec(format!("Stage C config: {what}")));
        for (name, len) in [
            ("num_attention_heads", self.num_attention_heads.len()),
            ("down_num_layers_per_block", self.down_num_layers_per_block.len()),
            ("up_num_layers_per_block", self.up_num_layers_per_block.len()),
            ("switch_level", self.switch_level.len() + 1),
        ] {
            if len != levels || levels == 0 {
                return refuse(format!("{name} does not fit the {levels} levels of block_out_channels"));
            }
        }
        if self.switch_level.contains(&true) {
            return refuse("switch_level must be false throughout (Stage C keeps its resolution)".into());
        }
        for (level, (&width, &heads)) in
            self.block_out_channels.iter().zip(&self.num_attention_heads).enumerate()
        {
            if heads == 0 || width % heads != 0 {
                return refuse(format!("level {level}: {width} channels do not divide into {heads} heads"));
            }
        }
        Ok(())
    }

    /// Stable Cascade's Stage C of 3.6 B parameters.
    ///
    /// # Source
    /// `stabilityai/stable-cascade-prior`, `prior/config.json`; `Stability-AI/StableCascade`, `configs`.
    pub fn stable_cascade() -> Self {
        Self {
            in_channels: 16,
            out_channels: 16,
            timestep_ratio_embedding_dim: 64,
            patch_size: 1,
            conditioning_dim: 2048,
            block_out_channels: vec![2048, 2048],
            num_attention_heads: vec![32, 32],
            down_num_layers_per_block: vec![8, 24],
            up_num_layers_per_block: vec![24, 8],
            clip_text_in_channels: 1280,
            clip_text_pooled_in_channels: 1280,
            clip_image_in_channels: 768,
            clip_seq: 4,
            timestep_conditioning_type: vec!["sca".into(), "crp".into()],
            switch_level: vec![false],
        }
    }

    /// Its lite sister of 1 B parameters (`prior_lite`).
    pub fn stable_cascade_lite() -> Self {
        Self {
            conditioning_dim: 1536,
            block_out_channels: vec![1536, 1536],
            num_attention_heads: vec![24, 24],
            down_num_layers_per_block: vec![4, 12],
            up_num_layers_per_block: vec![12, 4],
            ..Self::stable_cascade()
        }
    }

    /// The attention blocks in the order in which they run: (checkpoint prefix, width).
    pub fn attention_blocks(&self) -> Vec<(String, usize)> {
        let levels = self.block_out_channels.len();
        let down = (0..levels).map(|l| ("down_blocks", l, l, self.down_num_layers_per_block[l]));
        let up = (0..levels).map(|i| ("up_blocks", i, levels - 1 - i, self.up_num_layers_per_block[i]));
        down.chain(up)
            .flat_map(|(side, index, level, layers)| {
                let width = self.block_out_channels[level];
                (0..layers).map(move |layer| (format!("{side}.{index}.{}", 3 * layer + 2), width))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Config {
        Config {
            block_out_channels: vec![32, 48],
            num_attention_heads: vec![2, 3],
            down_num_layers_per_block: vec![1, 2],
            up_num_layers_per_block: vec![2, 1],
            ..Config::stable_cascade()
        }
    }

    #[test]
    fn attention_blocks_are_named_in_running_order() {
        let config = small();
        let names: Vec<String> = config.attention_blocks().into_iter().map(|(name, _)| name).collect();
        let expected = ["down_blocks.0.2", "down_blocks.1.2", "down_blocks.1.5"];
        assert_eq!(names[..3], expected);
        assert_eq!(names[3..], ["up_blocks.0.2", "up_blocks.0.5", "up_blocks.1.2"]);
    }

    #[test]
    fn a_config_that_changes_the_resolution_is_refused() {
        let config = Config { switch_level: vec![true], ..small() };
        assert!(config.check().unwrap_err().to_string().contains("switch_level"));
    }
}
