//! Which files make a decoder.

use super::*;
use crate::models::layout;
use crate::prior::{first_there, free_memory, has_room, open_tokenizer, read_config};

/// The files of a decoder, found but not yet loaded: what is missing is said before anything takes minutes.
#[derive(Debug, Clone)]
pub struct Files {
    denoiser: PathBuf,
    /// Whether the denoiser is one of Stability's files.
    stability: bool,
    autoencoder: PathBuf,
    folder: PathBuf,
}

/// The names of a text encoder's weights.
const TEXT_ENCODER: [&str; 2] = ["model.safetensors", "model.bf16.safetensors"];

/// The names of weights in one of diffusers' folders, in the order of preference.
const DIFFUSERS: [&str; 2] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bf16.safetensors"];
/// Stability's names.
const STAGE_B: [&str; 4] = [
    "stage_b.safetensors",
    "stage_b_bf16.safetensors",
    "stage_b_lite.safetensors",
    "stage_b_lite_bf16.safetensors",
];
const STAGE_A: &str = "stage_a.safetensors";

impl Files {
    /// Finds the files; see [`Decoder::open_repository`].
    ///
    /// # Errors
    /// Where one is missing, naming those that were looked for.
    pub fn find(path: &Path) -> Result<Self> {
        let found = Self::find_without_text(path)?;
        first_there(&found.folder.join("text_encoder"), &TEXT_ENCODER)?;
        first_there(&found.folder.join("tokenizer"), &["tokenizer.json"])?;
        Ok(found)
    }

    /// Finds the files of the networks alone: text encoder and tokenizer are a prior's, see [`Files::open_with`].
    ///
    /// # Errors
    /// Where one is missing, naming those that were looked for.
    pub fn find_without_text(path: &Path) -> Result<Self> {
        let parent = |path: &Path| match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let is_diffusers = |file: &Path| {
            file.file_name().is_some_and(|name| DIFFUSERS.iter().any(|diffusers| name == *diffusers))
        };
        let (denoiser, folder) = if path.is_file() {
            let beside = parent(path);
            (path.to_path_buf(), if is_diffusers(path) { beside.join("..") } else { beside })
        } else if let Ok(file) = first_there(path, &DIFFUSERS) {
            (file, path.join(".."))
        } else {
            let within = DIFFUSERS.map(|name| format!("decoder/{name}"));
            let names: Vec<&str> = within.iter().map(String::as_str).chain(STAGE_B).collect();
            (first_there(path, &names)?, path.to_path_buf())
        };
        let stability = !is_diffusers(&denoiser);
        let within = DIFFUSERS.map(|name| format!("vqgan/{name}"));
        let mut names: Vec<&str> = within.iter().map(String::as_str).collect();
        names.insert(if stability { 0 } else { names.len() }, STAGE_A);
        Ok(Self { autoencoder: first_there(&folder, &names)?, denoiser, stability, folder })
    }

    /// What [`Files::open_with`] loads, by name, not read yet.
    ///
    /// # Errors
    /// Where a file is damaged.
    pub(crate) fn weights(&self) -> Result<[(&'static str, Weights); 2]> {
        Ok([
            ("the decoder", Weights::open(&self.denoiser)?),
            ("its autoencoder", Weights::open(&self.autoencoder)?),
        ])
    }

    /// Loads them. The denoiser computes in `dtype`, the rest in single precision.
    ///
    /// # Errors
    /// Where a file is damaged, belongs to another config, or the device has no room for it.
    pub fn open(&self, dtype: DType, device: &Device) -> Result<Decoder> {
        let text_encoder = first_there(&self.folder.join("text_encoder"), &TEXT_ENCODER)?;
        let config: TextConfig = read_config(&text_encoder.with_file_name("config.json"))?;
        let text = Weights::open(&text_encoder)?.builder(DType::F32, device);
        let tokenizer = open_tokenizer(&self.folder.join("tokenizer"), config.max_position_embeddings)?;
        self.open_with(TextTower::new(&config, text)?, tokenizer, dtype, device)
    }

    /// Loads the networks, to be conditioned by a text encoder that is open already: a prior's is the same.
    ///
    /// # Errors
    /// Where a file is damaged, belongs to another config, or the device has no room for it.
    pub fn open_with(
        &self,
        text: TextTower,
        tokenizer: Tokenizer,
        dtype: DType,
        device: &Device,
    ) -> Result<Decoder> {
        let pipeline: Pipeline = read_where_there(&self.folder.join("model_index.json"))?;
        let scheduler: SchedulerConfig =
            read_where_there(&self.folder.join("scheduler/scheduler_config.json"))?;
        Ok(Decoder {
            denoiser: self.open_denoiser(dtype, device)?,
            text,
            tokenizer,
            autoencoder: self.open_autoencoder(device)?,
            schedule: Schedule::Cosine { offset: scheduler.s, scaler: scheduler.scaler },
            latent_dim_scale: pipeline.latent_dim_scale,
            device: device.clone(),
        })
    }

    fn open_denoiser(&self, dtype: DType, device: &Device) -> Result<StageB> {
        let weights = Weights::open(&self.denoiser)?;
        let beside = self.denoiser.with_file_name("config.json");
        let config =
            if !self.stability || beside.is_file() { read_config(&beside)? } else { known(&weights)? };
        let builder = match layout::is_stability(weights.names().into_iter()) {
            true => weights.builder_in(layout::stability_stage_b, dtype, device),
            false => weights.builder(dtype, device),
        };
        has_room(&weights, dtype, free_memory(device))?;
        StageB::new(&config, builder)
    }

    fn open_autoencoder(&self, device: &Device) -> Result<StageA> {
        let weights = Weights::open(&self.autoencoder)?;
        let config = if self.autoencoder.ends_with(STAGE_A) {
            stage_a::Config::of_stability(|name| weights.shape(name)).ok_or_else(|| {
                Error::weights(
                    &self.autoencoder,
                    format!("has no `up_blocks.0.0.weight`: is this {STAGE_A}?"),
                )
            })?
        } else {
            read_config(&self.autoencoder.with_file_name("config.json"))?
        };
        StageA::new(&config, weights.builder(DType::F32, device))
    }
}

/// The config of one of Stability's files, which come without: the second level's width tells which model it is.
fn known(weights: &Weights) -> Result<stage_b::Config> {
    let known = [stage_b::Config::stable_cascade(), stage_b::Config::stable_cascade_lite()];
    let shape = weights.shape("down_downscalers.1.1.weight");
    let width = shape.as_deref().and_then(|shape| shape.first().copied());
    known.into_iter().find(|config| Some(config.block_out_channels[1]) == width).ok_or_else(|| {
        Error::weights(
            weights.path(),
            format!(
                "`down_downscalers.1.1.weight` has shape {shape:?}, expected 640 or 576 rows (Stage B of 1.5 or 0.7 B \
                 parameters); for another model put its config.json beside it"
            ),
        )
    })
}

/// What `model_index.json` says besides which classes it was made of.
#[derive(Deserialize)]
#[serde(default)]
struct Pipeline {
    latent_dim_scale: f64,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self { latent_dim_scale: 10.67 }
    }
}

/// `scheduler_config.json` of diffusers' `DDPMWuerstchenScheduler`.
#[derive(Deserialize)]
#[serde(default)]
struct SchedulerConfig {
    s: f64,
    scaler: f64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { s: 0.008, scaler: 1.0 }
    }
}

fn read_where_there<T: serde::de::DeserializeOwned + Default>(path: &Path) -> Result<T> {
    if path.is_file() { read_config(path) } else { Ok(T::default()) }
}
