//! Public reward models, opened from the files that their authors published, in the layouts that these have.
//!
//! A path names the weights, or a folder that holds them; configuration and tokenizer are looked for beside them, and then
//! in the folder of the backbone, which lends what a checkpoint comes without. Nothing is ever run: safetensors have no
//! code, and pickles that name any are refused.
//!
//! | reward | weights | beside them |
//! |---|---|---|
//! | `clip` | `open_clip_model.safetensors`, `open_clip_pytorch_model.bin`, `model.safetensors`, `pytorch_model.bin`, or the last two's `….index.json` | `open_clip_config.json` or `config.json`, tokenizer |
//! | `hps-v2.0`, `hps-v2.1` | `HPS_v2_compressed.pt`, `HPS_v2.1_compressed.pt` | tokenizer; ViT-H/14 unless an `open_clip_config.json` says otherwise |
//! | `pick-score` | `model.safetensors`, `pytorch_model.bin`, or their `….index.json` | `config.json`, tokenizer |
//! | `aesthetic` | `sac+logos+ava1-l14-linearMSE.pth`, over the image tower of a backbone laid out as `clip` | |
//! | `image-reward` | `ImageReward.pt` | `med_config.json`, BERT's tokenizer |

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::blip;
use crate::models::clip::{Config as ClipConfig, OpenClipConfig, TextConfig, VisionConfig};
use crate::models::tokenizer::Tokenizer;
use crate::prior::{check_room, read_config};
use crate::reward::{
    Pixels, Preprocessing, Published, Reward, aesthetic, clip, hps, image_reward, pick_score,
};
use crate::weights::Weights;

/// What a reward is opened from.
#[derive(Debug, Clone)]
pub struct Files {
    /// Its weights: a file, or the folder of a public checkpoint.
    pub weights: PathBuf,
    /// Which public model it is; none: one of the desk's.
    pub published: Option<Published>,
    /// The public checkpoint that lends it what it comes without.
    pub backbone: Option<PathBuf>,
}

/// Opens a public reward model from `weights`, a file or a folder; the aesthetic head needs a CLIP's as `backbone`, and the
/// others may borrow its configuration and tokenizer.
///
/// # Errors
/// Where a file is missing (with what was looked for), damaged, refused, or belongs to another model.
pub fn open(
    published: Published,
    weights: &Path,
    backbone: Option<&Path>,
    device: &Device,
) -> Result<Reward> {
    let file = find(weights, names(published))?;
    agrees(published, &file)?;
    match published {
        Published::Aesthetic => open_aesthetic(&file, backbone, device),
        Published::ImageReward => open_image_reward(&file, backbone, device),
        Published::Clip | Published::HpsV20 | Published::HpsV21 | Published::PickScore => {
            open_clip(published, &file, backbone, device)
        }
    }
}

/// The weight files of CLIPs, open_clip's before Hugging Face's.
const CLIP: [&str; 6] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    HUGGING_FACE[0],
    HUGGING_FACE[1],
    HUGGING_FACE[2],
    HUGGING_FACE[3],
];

/// Hugging Face's: one file, or the index of several.
const HUGGING_FACE: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The names of a reward's weights, in the order of preference.
fn names(published: Published) -> &'static [&'static str] {
    match published {
        Published::Clip => &CLIP,
        Published::HpsV20 => &["HPS_v2_compressed.pt", "HPS_v2.0_compressed.pt", "HPS_v2.pt"],
        Published::HpsV21 => &["HPS_v2.1_compressed.pt", "HPS_v2.1.pt"],
        Published::PickScore => &HUGGING_FACE,
        Published::Aesthetic => {
            &["sac+logos+ava1-l14-linearMSE.pth", "sac+logos+ava1-l14-linearMSE.safetensors"]
        }
        Published::ImageReward => &["ImageReward.pt", "ImageReward.safetensors"],
    }
}

/// Refuses one version of HPS under the other's name: their numbers are on different scales.
fn agrees(published: Published, file: &Path) -> Result<()> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let other = match published {
        Published::HpsV20 if name.contains("v2.1") => Published::HpsV21,
        Published::HpsV21 if name.contains("v2.0") || name == "HPS_v2_compressed.pt" => Published::HpsV20,
        _ => return Ok(()),
    };
    Err(Error::weights(
        file,
        format!(
            "by its name this is {other}, whose numbers are on another scale than {published}'s; give --reward {other}"
        ),
    ))
}

/// A weight file: the path itself, or in a folder the first of `names`, or else the only weight file there.
fn find(path: &Path, names: &[&str]) -> Result<PathBuf> {
    if !path.is_dir() {
        std::fs::metadata(path).map_err(Error::io("read", path))?;
        return Ok(path.to_path_buf());
    }
    if let Some(file) = names.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok(file);
    }
    let mut others = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if file.is_file() && ["safetensors", "pt", "pth", "bin"].contains(&extension) {
            others.push(file);
        }
    }
    match &others[..] {
        [only] => Ok(only.clone()),
        _ => Err(Error::weights(
            path,
            format!(
                "holds none of {}, and {} other weight files; name the file itself",
                names.join(", "),
                others.len()
            ),
        )),
    }
}

/// Where a checkpoint's other files are looked for: beside the weights, then in the backbone's folder.
fn folders(file: &Path, backbone: Option<&Path>) -> Vec<PathBuf> {
    let beside = |path: &Path| match path.is_dir() {
        true => path.to_path_buf(),
        false => path.parent().unwrap_or(Path::new(".")).to_path_buf(),
    };
    std::iter::once(file).chain(backbone).map(beside).collect()
}

/// The first of the folders' files of this name.
fn beside(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Refuses weights that the device cannot hold, before they are loaded.
fn open_weights(file: &Path, device: &Device) -> Result<Weights> {
    let weights = Weights::open(file)?;
    check_room(&weights, DType::F32, device)?;
    Ok(weights)
}

/// A CLIP's architecture, and how pictures are made ready for it.
struct Described {
    config: ClipConfig,
    pixels: Pixels,
}

/// What `open_clip_config.json` says of pictures.
#[derive(Deserialize)]
struct OpenClipFile {
    #[serde(default)]
    preprocess_cfg: Option<OpenClipPixels>,
}

#[derive(Deserialize)]
struct OpenClipPixels {
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
}

/// Reads the configuration of a CLIP in the layout that its tensors' names show.
fn describe(weights: &Weights, folders: &[PathBuf]) -> Result<Described> {
    if weights.shape("visual.class_embedding").is_some() {
        return describe_open_clip(folders);
    }
    if weights.shape("vision_model.embeddings.class_embedding").is_some() {
        return describe_hugging_face(weights, folders);
    }
    Err(Error::weights(
        weights.path(),
        "is no CLIP: it has neither `visual.class_embedding` (open_clip's layout) nor \
         `vision_model.embeddings.class_embedding` (Hugging Face's)",
    ))
}

fn describe_open_clip(folders: &[PathBuf]) -> Result<Described> {
    let mut pixels = Pixels { preprocessing: Preprocessing::OpenClip, ..Pixels::default() };
    let Some(path) = beside(folders, "open_clip_config.json") else {
        return Ok(Described { config: vit_h_14(), pixels });
    };
    let config: OpenClipConfig = read_config(&path)?;
    if let Some(stated) = read_config::<OpenClipFile>(&path)?.preprocess_cfg {
        let unlike = |value: Option<String>, known: &str| value.filter(|value| value != known);
        if let Some(other) =
            unlike(stated.interpolation, "bicubic").or(unlike(stated.resize_mode, "shortest"))
        {
            return Err(Error::weights(
                &path,
                format!(
                    "pictures are resized bicubically by their shorter side here, not by {other:?}: not supported"
                ),
            ));
        }
        pixels.mean = stated.mean.unwrap_or(pixels.mean);
        pixels.std = stated.std.unwrap_or(pixels.std);
    }
    Ok(Described { config: config.into(), pixels })
}

fn describe_hugging_face(weights: &Weights, folders: &[PathBuf]) -> Result<Described> {
    let path = beside(folders, "config.json").ok_or_else(|| {
        Error::weights(
            weights.path(),
            "has Hugging Face's layout, but no config.json lies beside it: fetch it too",
        )
    })?;
    let mut value: Value = read_config(&path)?;
    // An image tower alone has its own configuration at the top.
    if value.get("vision_config").is_none() && value.get("image_size").is_some() {
        let width = value["projection_dim"].clone();
        value = serde_json::json!({ "vision_config": value, "projection_dim": width });
    }
    let config: ClipConfig = serde_json::from_value(value)
        .map_err(|fault| Error::weights(&path, format!("does not describe a CLIP: {fault}")))?;
    let mut pixels = Pixels { preprocessing: Preprocessing::HuggingFace, ..Pixels::default() };
    if let Some(path) = beside(folders, "preprocessor_config.json") {
        let stated: Value = read_config(&path)?;
        let side = |key: &str, inner: &str| stated[key].as_u64().or_else(|| stated[key][inner].as_u64());
        let size = config.vision_config.image_size as u64;
        let sides = [side("size", "shortest_edge"), side("crop_size", "height"), side("crop_size", "width")];
        let bicubic = stated["resample"].as_u64().is_none_or(|filter| filter == 3);
        if !bicubic || sides.into_iter().flatten().any(|side| side != size) {
            return Err(Error::weights(
                &path,
                format!(
                    "expected pictures resized bicubically to {size} pixels and cropped to as many, as the image tower \
                     takes; got size {}, crop_size {}, resample {}",
                    stated["size"], stated["crop_size"], stated["resample"]
                ),
            ));
        }
        let three = |key: &str| serde_json::from_value::<[f64; 3]>(stated[key].clone()).ok();
        pixels.mean = three("image_mean").unwrap_or(pixels.mean);
        pixels.std = three("image_std").unwrap_or(pixels.std);
    }
    Ok(Described { config, pixels })
}

/// ViT-H/14 of open_clip, which HPS v2's files are without saying so.
fn vit_h_14() -> ClipConfig {
    use crate::models::clip::Activation::Gelu;
    ClipConfig {
        projection_dim: 1024,
        text_config: TextConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            projection_dim: 1024,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            hidden_act: Gelu,
            eos_token_id: 2,
            ..TextConfig::default()
        },
        vision_config: VisionConfig {
            hidden_size: 1280,
            intermediate_size: 5120,
            projection_dim: 1024,
            num_hidden_layers: 32,
            num_attention_heads: 16,
            patch_size: 14,
            hidden_act: Gelu,
            ..VisionConfig::default()
        },
        ..ClipConfig::default()
    }
}

/// What to put beside weights that come without their tokenizer.
fn no_tokenizer(file: &Path, wanted: &str, source: &str) -> Error {
    Error::weights(
        file,
        format!(
            "reads prompts, and no {wanted} lies beside it; put those of {source} there, or name a folder that holds \
                 them with --backbone"
        ),
    )
}

fn text_of(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Error::io("read", path))
}

fn clip_tokenizer(file: &Path, folders: &[PathBuf], context: usize) -> Result<Tokenizer> {
    if let Some(path) = beside(folders, "tokenizer.json") {
        return Tokenizer::from_json(text_of(&path)?.as_bytes(), context, 0)
            .map_err(|fault| at(&path, fault));
    }
    match (beside(folders, "vocab.json"), beside(folders, "merges.txt")) {
        (Some(vocab), Some(merges)) => Tokenizer::clip(&text_of(&vocab)?, &text_of(&merges)?, context, 0)
            .map_err(|fault| at(&vocab, fault)),
        _ => Err(no_tokenizer(
            file,
            "tokenizer.json (or vocab.json with merges.txt)",
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        )),
    }
}

fn bert_tokenizer(file: &Path, folders: &[PathBuf], pad_id: u32) -> Result<Tokenizer> {
    let context = image_reward::CONTEXT;
    let tokenizer = if let Some(path) = beside(folders, "tokenizer.json") {
        Tokenizer::from_json(text_of(&path)?.as_bytes(), context, pad_id).map_err(|fault| at(&path, fault))
    } else if let Some(path) = beside(folders, "vocab.txt") {
        Tokenizer::bert(&text_of(&path)?, context, pad_id).map_err(|fault| at(&path, fault))
    } else {
        Err(no_tokenizer(file, "tokenizer.json (or vocab.txt)", "bert-base-uncased"))
    };
    // BLIP adds these two behind BERT's own.
    Ok(tokenizer?.with_special(&["[DEC]", "[ENC]"]))
}

/// A fault in the bytes of a file, with the file.
fn at(path: &Path, fault: Error) -> Error {
    Error::weights(path, fault.to_string())
}

fn open_clip(published: Published, file: &Path, backbone: Option<&Path>, device: &Device) -> Result<Reward> {
    let weights = open_weights(file, device)?;
    let folders = folders(file, backbone);
    let Described { config: clip, mut pixels } = describe(&weights, &folders)?;
    let tokenizer = clip_tokenizer(file, &folders, clip.text_config.max_position_embeddings)?;
    // Where a reward prescribes its preprocessing, the layout that its weights happen to be in changes nothing.
    match published {
        Published::HpsV20 | Published::HpsV21 => pixels.preprocessing = Preprocessing::HpsV2,
        Published::PickScore => pixels.preprocessing = Preprocessing::HuggingFace,
        _ => {}
    }
    let vb = weights.builder(DType::F32, device);
    Ok(match published {
        Published::HpsV20 | Published::HpsV21 => {
            Reward::Hps(hps::Hps::new(&hps::Config { clip, pixels }, vb, tokenizer)?)
        }
        Published::PickScore => Reward::PickScore(pick_score::PickScore::new(
            &pick_score::Config { clip, pixels },
            vb,
            tokenizer,
        )?),
        _ => Reward::Clip(clip::Clip::new(&clip::Config { clip, pixels }, vb, tokenizer)?),
    })
}

fn open_aesthetic(file: &Path, backbone: Option<&Path>, device: &Device) -> Result<Reward> {
    let head = Weights::open(file)?;
    let backbone = backbone.ok_or_else(|| {
        Error::Spec(format!(
            "{} is a head over a CLIP's image embeddings: name the CLIP (OpenAI's ViT-L/14 for LAION's head) with \
             --backbone PATH",
            file.display()
        ))
    })?;
    let tower = find(backbone, &CLIP)?;
    let weights = open_weights(&tower, device)?;
    let Described { config: clip, pixels } = describe(&weights, &folders(&tower, None))?;
    let rows =
        |place: usize| head.shape(&format!("layers.{place}.weight")).and_then(|shape| shape.first().copied());
    let [Some(a), Some(b), Some(c), Some(d)] = [0, 2, 4, 6].map(rows) else {
        return Err(Error::weights(
            file,
            "is no head of LAION's layout: it has no tensors `layers.0.weight`, `layers.2.weight`, `layers.4.weight` and \
             `layers.6.weight`",
        ));
    };
    let reads = head.shape("layers.0.weight").and_then(|shape| shape.get(1).copied());
    if reads != Some(clip.projection_dim) {
        return Err(Error::weights(
            file,
            format!(
                "reads embeddings of {} numbers, and {} gives {}; LAION's head belongs on OpenAI's CLIP ViT-L/14",
                reads.unwrap_or(0),
                tower.display(),
                clip.projection_dim
            ),
        ));
    }
    let config = aesthetic::Config {
        vision: VisionConfig { projection_dim: clip.projection_dim, ..clip.vision_config },
        pixels,
        head: aesthetic::HeadConfig { widths: [a, b, c, d] },
    };
    let layers = head.builder(DType::F32, device).pp("layers");
    Ok(Reward::Aesthetic(aesthetic::Aesthetic::new(&config, weights.builder(DType::F32, device), layers)?))
}

fn open_image_reward(file: &Path, backbone: Option<&Path>, device: &Device) -> Result<Reward> {
    let weights = open_weights(file, device)?;
    let folders = folders(file, backbone);
    let mut text: blip::TextConfig = match beside(&folders, "med_config.json") {
        Some(path) => read_config(&path)?,
        None => blip::TextConfig::default(),
    };
    // The two tokens that BLIP adds to BERT's are in some files and not in others.
    if let Some([vocab, _]) = weights.shape("blip.text_encoder.embeddings.word_embeddings.weight").as_deref()
    {
        text.vocab_size = *vocab;
    }
    let vision = vision_config(&weights, &text)?;
    let pixels = Pixels { preprocessing: Preprocessing::OpenClip, ..Pixels::default() };
    let tokenizer = bert_tokenizer(file, &folders, text.pad_token_id)?;
    let rows =
        |place: usize| weights.shape(&format!("mlp.layers.{place}.weight")).map_or(0, |shape| shape[0]);
    let head = aesthetic::HeadConfig { widths: [0, 2, 4, 6].map(rows) };
    let config = image_reward::Config { vision, text, pixels, head };
    let vb = weights.builder(DType::F32, device);
    Ok(Reward::ImageReward(image_reward::ImageReward::new(&config, vb, tokenizer)?))
}

/// BLIP's image encoder, whose sizes stand in no file: from the shapes of its tensors.
fn vision_config(weights: &Weights, text: &blip::TextConfig) -> Result<blip::VisionConfig> {
    let shape = |name: &str| weights.shape(&format!("blip.visual_encoder.{name}")).unwrap_or_default();
    let (projection, positions, inner) =
        (shape("patch_embed.proj.weight"), shape("pos_embed"), shape("blocks.0.mlp.fc1.weight"));
    let ([hidden_size, 3, patch_size, _], [1, positions, _], [intermediate_size, _]) =
        (&projection[..], &positions[..], &inner[..])
    else {
        return Err(Error::weights(
            weights.path(),
            "is no ImageReward: it lacks `blip.visual_encoder.patch_embed.proj.weight`, `.pos_embed` or `.blocks.0`",
        ));
    };
    let layers = (0..).take_while(|i| !shape(&format!("blocks.{i}.norm1.weight")).is_empty()).count();
    // BLIP's ViTs have heads of 64; a smaller one has as many as its text encoder.
    let heads = if hidden_size % 64 == 0 { hidden_size / 64 } else { text.num_attention_heads };
    Ok(blip::VisionConfig {
        hidden_size: *hidden_size,
        intermediate_size: *intermediate_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        image_size: positions.saturating_sub(1).isqrt() * patch_size,
        patch_size: *patch_size,
    })
}
