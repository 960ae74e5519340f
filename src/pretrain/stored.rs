//! A reward's folder: `model.safetensors`, `reward.json` and, where it reads prompts, `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::models::tokenizer::{DESK_CONTEXT, DESK_PAD, Tokenizer};
use crate::reward::{Config, Reward, clip};
use crate::weights::{self, Weights};

pub(super) const MODEL: &str = "model.safetensors";
const REWARD: &str = "reward.json";
const TOKENIZER: &str = "tokenizer.json";

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(Error::io("write", &path))
}

/// Stores a reward (f16) and opens it again as it was stored, with the names of its files.
pub(super) fn store(
    folder: &Path,
    config: &Config,
    tokenizer_json: Option<&str>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<(Reward, Vec<&'static str>)> {
    let mut files = vec![MODEL, REWARD];
    weights::save(folder.join(MODEL), tensors, DType::F16, metadata)?;
    write(folder, REWARD, &(serde_json::to_string_pretty(config).expect("a config is plain data") + "\n"))?;
    if let Some(text) = tokenizer_json {
        write(folder, TOKENIZER, text)?;
        files.push(TOKENIZER);
    }
    Ok((open(folder, config, tokenizer_json)?, files))
}

fn open(folder: &Path, config: &Config, tokenizer_json: Option<&str>) -> Result<Reward> {
    let tokenizer = tokenizer_json
        .map(|text| Tokenizer::from_json(text.as_bytes(), DESK_CONTEXT, DESK_PAD))
        .transpose()?;
    config.open(Weights::open(folder.join(MODEL))?.builder(DType::F32, &Device::Cpu), tokenizer)
}

/// A CLIP that something else is made from.
pub(super) struct Parent {
    pub config: clip::Config,
    pub weights: Weights,
    pub tokenizer_json: String,
    pub reward: Reward,
}

impl Parent {
    /// Opens a CLIP's folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(Error::io("read", &path))
        };
        let (text, tokenizer_json) = (read(REWARD)?, read(TOKENIZER)?);
        let described: Config = serde_json::from_str(&text).map_err(|fault| {
            Error::weights(folder.join(REWARD), format!("is no reward's config: {fault}"))
        })?;
        let reward = open(folder, &described, Some(&tokenizer_json))?;
        let Config::Clip(config) = described else {
            return Err(Error::weights(
                folder.join(REWARD),
                "is not a CLIP's; make one with `ppd pretrain clip`",
            ));
        };
        Ok(Self { config, weights: Weights::open(folder.join(MODEL))?, tokenizer_json, reward })
    }
}
