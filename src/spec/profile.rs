//! A profile: which weights and data an experiment runs on, and how large.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::Pictures;
use crate::error::{Error, Result, nearest};
use crate::hub::{self, Artefact, Hub, Located};
use crate::reward::Published;
use crate::reward_checkpoint;
use crate::units::Digest;

/// `experiments/profiles/<name>.toml`, less its `[set]` and `[quick]` layers, which change experiments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The version of the format.
    pub schema: u32,
    /// Its name.
    pub name: String,
    /// What it is, in a sentence.
    pub title: String,
    /// Whose sections of studies apply, `[profiles.NAME]`; absent: those of its own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<String>,
    /// The rewards that it has; each has weights of its own name, and where `-twin` follows, a twin.
    pub rewards: Vec<String>,
    /// Scores that are measured from pixels and need no weights.
    #[serde(default)]
    pub measured: Vec<String>,
    /// The file of each model, from the assets folder.
    #[serde(default)]
    pub weights: BTreeMap<String, PathBuf>,
    /// The file of each data set (`pairs`, `validation`, `test`), from the assets folder.
    #[serde(default)]
    pub data: BTreeMap<String, PathBuf>,
    /// Models and data sets of others, by the same names; `ppd fetch` brings them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub artefacts: BTreeMap<String, Artefact>,
    /// Which public model each reward is; one that is not named here is the desk's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub published: BTreeMap<String, PublicReward>,
    /// The precision of the denoiser's weights and activations.
    #[serde(default)]
    pub precision: Precision,
    /// The sizes of pictures around Stable Cascade; absent: the base is the desk's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<Pictures>,
    /// Whether all methods train alike, as in the paper: what studies change of `[train]` for single methods, tuned at desk
    /// scale, is left out.
    #[serde(default)]
    pub one_training: bool,
    /// How many of the denoiser's layers at a time make their activations again on the way back instead of keeping them;
    /// absent: all are kept. Changes memory and time, no number.
    #[serde(default)]
    pub recomputed_layers: Option<NonZeroUsize>,
    /// What work costs on one core, for estimates.
    #[serde(default)]
    pub cost: Cost,
}

/// A reward that is one of the public models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicReward {
    /// Which.
    pub model: Published,
    /// The artefact that lends it what it comes without: a CLIP's image tower, a tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backbone: Option<String>,
}

/// The precision of the denoiser; adapters and their optimiser are in single precision either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// bf16: half the memory, and the exponents of single precision.
    Bf16,
}

impl TryFrom<String> for Precision {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        match text.as_str() {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Err("Stage C overflows in f16; expected f32 or bf16".into()),
            _ => Err(format!("unknown precision `{text}`, expected f32 or bf16")),
        }
    }
}

impl Profile {
    /// An object of all that a result follows from, with the precision it is computed in and the sizes of its pictures.
    ///
    /// Single precision and the desk's size, the rule, are left out: what was made before there was a choice keeps its
    /// name.
    pub fn complete(&self, mut config: serde_json::Value) -> serde_json::Value {
        if self.precision != Precision::F32 {
            config["precision"] = serde_json::json!(self.precision);
        }
        if let Some(pictures) = self.pictures {
            config["pictures"] = serde_json::json!(pictures);
        }
        config
    }

    /// The name of the sections of studies that apply under it.
    pub fn sections(&self) -> &str {
        self.like.as_deref().unwrap_or(&self.name)
    }

    /// Whether a model is called by the name of an artefact, not by a folder.
    pub fn names_artefact(&self, model: &Path) -> bool {
        model.to_str().is_some_and(|name| self.artefacts.contains_key(name))
    }

    /// The folder of a vision-language model: that of the artefact of this name where there is one, else one among the
    /// assets.
    ///
    /// # Errors
    /// Where the artefact was not fetched (with the command that does), or was changed.
    pub fn reader_in(&self, assets: &Path, model: &Path) -> Result<PathBuf> {
        match model.to_str().filter(|_| self.names_artefact(model)) {
            Some(name) => Ok(self.locate(name, &Hub::from_env(hub::LOCK)?)?.root),
            None => Ok(assets.join(model)),
        }
    }

    /// The digest of the same model.
    ///
    /// # Errors
    /// Where a file is missing (with the way to it) or damaged.
    pub fn reader_digest(&self, assets: &Path, model: &Path) -> Result<Digest> {
        match model.to_str().filter(|_| self.names_artefact(model)) {
            Some(name) => Ok(self.locate(name, &Hub::from_env(hub::LOCK)?)?.digest()),
            None => {
                let path = assets.join(model).join("model.safetensors");
                super::users::there(&path)?;
                super::weights_digest(&path, &self.name)
            }
        }
    }

    /// The models that a picture passes on its way into latents, of those that profiles name.
    pub const ENCODERS: [&str; 2] = ["weights/codec", "weights/effnet"];

    /// The name of a reward's twin.
    pub fn twin(reward: &str) -> String {
        format!("{reward}-twin")
    }

    /// The weights of a model under an assets folder.
    ///
    /// # Errors
    /// Where the profile names none.
    pub fn weights_in(&self, assets: &Path, model: &str) -> Result<PathBuf> {
        self.file(assets, "weights", &self.weights, model)
    }

    /// Whether the profile names weights for a model.
    pub fn names_weights(&self, model: &str) -> bool {
        self.weights.contains_key(model) || self.artefacts.get(model).is_some_and(|artefact| !artefact.data)
    }

    /// The files that a reward is opened from.
    ///
    /// # Errors
    /// As [`Profile::weights_in`].
    pub fn reward_in(&self, assets: &Path, reward: &str) -> Result<reward_checkpoint::Files> {
        let public = self.published.get(reward);
        let backbone = public.and_then(|public| public.backbone.as_deref());
        Ok(reward_checkpoint::Files {
            weights: self.weights_in(assets, reward)?,
            published: public.map(|public| public.model),
            backbone: backbone.map(|name| self.weights_in(assets, name)).transpose()?,
        })
    }

    /// The file of a data set under an assets folder.
    ///
    /// # Errors
    /// Where the profile names none.
    pub fn data_in(&self, assets: &Path, name: &str) -> Result<PathBuf> {
        self.file(assets, "data", &self.data, name)
    }

    fn file(
        &self,
        assets: &Path,
        section: &str,
        files: &BTreeMap<String, PathBuf>,
        name: &str,
    ) -> Result<PathBuf> {
        if let Some(file) = files.get(name) {
            return Ok(assets.join(file));
        }
        if self.artefacts.contains_key(name) {
            return Ok(self.locate(name, &Hub::from_env(hub::LOCK)?)?.path);
        }
        let artefacts = self.artefacts.iter().filter(|(_, artefact)| artefact.data == (section == "data"));
        let known: Vec<&str> =
            files.keys().chain(artefacts.map(|(name, _)| name)).map(String::as_str).collect();
        Err(Error::Spec(format!(
            "profile {}: no file for `{name}` in [{section}], which names {}",
            self.name,
            known.join(", ")
        )))
    }

    /// The artefact of this name.
    ///
    /// # Errors
    /// Where the profile has none.
    pub fn artefact(&self, name: &str) -> Result<&Artefact> {
        self.artefacts.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.artefacts.keys().map(String::as_str).collect();
            let near = nearest(name, known.iter().copied());
            Error::Spec(format!(
                "profile {}: unknown artefact `{name}`, expected one of {}{}",
                self.name,
                if known.is_empty() { "none".into() } else { known.join(", ") },
                near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
            ))
        })
    }

    /// Where an artefact lies on this disk, checked against what was first fetched; no network is used.
    ///
    /// # Errors
    /// Where the profile has none of this name, it was not fetched (with the command that does), or it was changed.
    pub fn locate(&self, name: &str, hub: &Hub) -> Result<Located> {
        hub.locate(&self.name, name, self.artefact(name)?)
    }

    /// The licence of each artefact that forbids commercial use: what a run records beside its results.
    pub fn non_commercial(&self) -> BTreeMap<&str, &str> {
        let bound = self.artefacts.iter().filter(|(_, artefact)| artefact.non_commercial);
        bound.map(|(name, artefact)| (name.as_str(), artefact.licence.as_str())).collect()
    }

    /// What is wrong with the artefacts as they are written.
    pub(super) fn faults(&self) -> Vec<String> {
        let faults = self.artefacts.iter().filter_map(|(name, artefact)| Some((name, artefact.fault()?)));
        faults.map(|(name, fault)| format!("artefacts.{name}: {fault}")).collect()
    }

    /// Every name that can label pairs.
    pub fn label_sources(&self) -> impl Iterator<Item = &str> {
        self.rewards.iter().chain(&self.measured).map(String::as_str)
    }
}

/// What work costs on one core; only estimates use it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Seconds to train on one pair once, both images.
    pub pair_seconds: Option<f64>,
    /// Seconds for one evaluation of the denoiser on one image, without gradient.
    pub evaluation_seconds: Option<f64>,
    /// Seconds to score one image by all rewards.
    pub score_seconds: Option<f64>,
}

impl Cost {
    /// Whether all of it is stated.
    pub fn is_known(&self) -> bool {
        self.pair_seconds.is_some() && self.evaluation_seconds.is_some() && self.score_seconds.is_some()
    }
}
