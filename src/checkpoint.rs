//! Training state and adapters on disk: write beside, sync, rename.
//!
//! A checkpoint is one safetensors file. Its header carries, beside the tensors, the digest of the configuration that it
//! belongs to, the position in the run as JSON, and a digest of the tensors, so that a file of another run, a torn one
//! and a damaged one are each refused by name. Random streams are not stored: a stream belongs to a seed, a purpose and
//! an index, so the position alone finds every one of them again.
//!
//! Reads and writes through [`crate::weights`], on its own floor, so that weight files have one reader and one writer.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::adapter::{self, Adapter};
use crate::error::{Error, Result};
use crate::models::layout;
use crate::units::Digest;
use crate::weights::{self, Weights};

/// What the header of a checkpoint says it is.
const FORMAT: &str = "ppd checkpoint 1";
/// What the header of an adapter says it is.
const ADAPTER_FORMAT: &str = "ppd adapter 2";
/// What it said when the tensors lay under the names of the attention blocks; such files are still read.
const NAMED_ADAPTER_FORMAT: &str = "ppd adapter 1";

/// A training state read back.
#[derive(Debug)]
pub struct Checkpoint<P> {
    /// Where the run stood.
    pub position: P,
    /// Its tensors: parameters, and the optimiser's moments.
    pub weights: Weights,
}

/// Stores a training state; the file at `path` is the former one or the new one whole, whenever the process ends.
///
/// `config` is the digest of everything that decides the run's course; [`load`] asks for it again.
///
/// # Errors
/// Where the disk refuses, or the position cannot be written as JSON.
pub fn save<P: Serialize>(
    path: &Path,
    config: &Digest,
    position: &P,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let position = serde_json::to_string(position)
        .map_err(|fault| Error::weights(path, format!("the position cannot be stored: {fault}")))?;
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("config", config.hex().to_owned()),
        ("position", position),
        ("contents", contents(tensors)?.hex().to_owned()),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    weights::save(path, tensors, DType::F32, &metadata)?;
    Ok(())
}

/// Reads a training state of this configuration, where there is one.
///
/// # Errors
/// Where the file is torn or damaged, is no checkpoint, or belongs to another configuration.
pub fn load<P: DeserializeOwned>(path: &Path, config: &Digest) -> Result<Option<Checkpoint<P>>> {
    if !path.try_exists().map_err(Error::io("read", path))? {
        return Ok(None);
    }
    let weights = Weights::open(path)?;
    expect_format(&weights, FORMAT, "a checkpoint")?;
    let stored = field(&weights, "config")?;
    if stored != config.hex() {
        return Err(Error::weights(
            path,
            format!(
                "this checkpoint belongs to the configuration {}…, the run has {}…: run with the settings that it was \
                 made with, or delete it to start anew",
                stored.get(..12).unwrap_or(stored),
                config.short()
            ),
        ));
    }
    let position = serde_json::from_str(field(&weights, "position")?).map_err(|fault| {
        Error::weights(path, format!("its position cannot be read ({fault}): delete it to start anew"))
    })?;
    let mut tensors = BTreeMap::new();
    for name in weights.names() {
        tensors.insert(name.to_owned(), weights.read(name, DType::F32, &Device::Cpu)?);
    }
    if contents(&tensors)?.hex() != field(&weights, "contents")? {
        return Err(Error::weights(
            path,
            "its tensors are not those that were stored: the file is damaged; delete it to start anew",
        ));
    }
    Ok(Some(Checkpoint { position, weights }))
}

/// Stores an adapter with what is needed to open it again, and returns the file's digest.
///
/// Its names are IP-Adapter's: `ip_adapter.<number>.to_k_ip.weight` and `to_v_ip.weight`, numbered in the order in which
/// the denoiser's attention blocks run, beside `user_projector.weight` (and `.bias`). The header's `blocks` holds each
/// block's own name and width in that order, `config` the sizes of [`adapter::Config`].
///
/// `tensors` are its parameters by name; `notes` are further header entries, such as how it was trained.
///
/// # Errors
/// Where the disk refuses.
pub fn save_adapter(
    path: &Path,
    adapter: &Adapter,
    tensors: &BTreeMap<String, Tensor>,
    notes: &BTreeMap<String, String>,
) -> Result<Digest> {
    let json = |value: serde_json::Result<String>| {
        value.map_err(|fault| Error::weights(path, format!("the adapter's sizes cannot be stored: {fault}")))
    };
    let mut metadata = notes.clone();
    metadata.insert("format".into(), ADAPTER_FORMAT.into());
    metadata.insert("config".into(), json(serde_json::to_string(adapter.config()))?);
    let blocks = adapter.blocks();
    metadata.insert("blocks".into(), json(serde_json::to_string(&blocks))?);
    let place = layout::ip_adapter(&blocks);
    let tensors = tensors.iter().map(|(name, tensor)| (place(name).name, tensor.clone())).collect();
    weights::save(path, &tensors, DType::F32, &metadata)
}

/// Opens an adapter for a denoiser with these attention blocks, its parameters frozen.
///
/// # Errors
/// Where the file is torn, is no adapter, or was made for another denoiser.
pub fn open_adapter(path: &Path, blocks: &[(String, usize)], device: &Device) -> Result<Adapter> {
    let weights = Weights::open(path)?;
    let is_named = weights.metadata().get("format").is_some_and(|format| format == NAMED_ADAPTER_FORMAT);
    if !is_named {
        expect_format(&weights, ADAPTER_FORMAT, "an adapter")?;
    }
    let unreadable = |fault: serde_json::Error| {
        Error::weights(path, format!("its header cannot be read ({fault}): the file is damaged"))
    };
    let config: adapter::Config = serde_json::from_str(field(&weights, "config")?).map_err(unreadable)?;
    let stored: Vec<(String, usize)> =
        serde_json::from_str(field(&weights, "blocks")?).map_err(unreadable)?;
    if stored != blocks {
        let describe = |blocks: &[(String, usize)]| match blocks.first() {
            Some((name, width)) => format!("{} blocks, the first `{name}` of width {width}", blocks.len()),
            None => "no block".to_owned(),
        };
        return Err(Error::weights(
            path,
            format!(
                "the adapter was made for another denoiser ({}), this one has {}: use the denoiser it was trained with",
                describe(&stored),
                describe(blocks)
            ),
        ));
    }
    let builder = match is_named {
        true => weights.builder(DType::F32, device),
        false => weights.builder_in(layout::ip_adapter(blocks), DType::F32, device),
    };
    Adapter::new(config, blocks, builder)
}

/// Refuses a file whose header does not say what it is.
fn expect_format(weights: &Weights, expected: &str, what: &str) -> Result<()> {
    match weights.metadata().get("format") {
        Some(format) if format == expected => Ok(()),
        Some(other) => Err(Error::weights(
            weights.path(),
            format!("expected {what} of format `{expected}`, the header says `{other}`"),
        )),
        None => Err(Error::weights(
            weights.path(),
            format!("this is not {what} of this program: its header has no `format`, expected `{expected}`"),
        )),
    }
}

/// An entry of the header.
fn field<'a>(weights: &'a Weights, name: &str) -> Result<&'a str> {
    weights.metadata().get(name).map(String::as_str).ok_or_else(|| {
        Error::weights(weights.path(), format!("its header has no `{name}`: the file is damaged"))
    })
}

/// The digest of tensors: names, shapes and single-precision values.
fn contents(tensors: &BTreeMap<String, Tensor>) -> Result<Digest> {
    let mut hasher = Sha256::new();
    for (name, tensor) in tensors {
        hasher.update(name.as_bytes());
        hasher.update(format!("\0{:?}\0", tensor.dims()));
        for value in tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()? {
            hasher.update(value.to_le_bytes());
        }
    }
    Ok(Digest::from_hasher(hasher))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::units::Seed;
    use crate::weights::Trainable;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Position {
        step: u64,
        epoch: u64,
    }

    fn tensors() -> BTreeMap<String, Tensor> {
        let values: Vec<f32> = (0..600).map(|i| (i as f32).sin()).collect();
        let tensor = Tensor::from_vec(values, (20, 30), &Device::Cpu).unwrap();
        BTreeMap::from([("a.weight".to_owned(), tensor.clone()), ("b".to_owned(), (tensor * 2.0).unwrap())])
    }

    #[test]
    fn a_state_comes_back_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let (path, config) = (folder.path().join("state.safetensors"), Digest::of(b"config"));
        assert!(load::<Position>(&path, &config).unwrap().is_none());
        for step in [3, 4] {
            save(&path, &config, &Position { step, epoch: 1 }, &tensors()).unwrap();
            let read = load::<Position>(&path, &config).unwrap().unwrap();
            assert_eq!(read.position, Position { step, epoch: 1 });
            for (name, tensor) in tensors() {
                let got = read.weights.get(tensor.shape(), &name, DType::F32, &Device::Cpu).unwrap();
                assert_eq!(got.to_vec2::<f32>().unwrap(), tensor.to_vec2::<f32>().unwrap());
            }
        }
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left beside the state: {left:?}");
    }

    #[test]
    fn another_configuration_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        save(&path, &Digest::of(b"one"), &Position { step: 3, epoch: 0 }, &tensors()).unwrap();
        let message = load::<Position>(&path, &Digest::of(b"two")).unwrap_err().to_string();
        for part in ["state.safetensors", Digest::of(b"one").short(), Digest::of(b"two").short(), "delete it"]
        {
            assert!(message.contains(part), "{message}");
        }
        let message = load::<Vec<u8>>(&path, &Digest::of(b"one")).unwrap_err().to_string();
        assert!(message.contains("position"), "{message}");
        weights::save(&path, &tensors(), DType::F32, &BTreeMap::new()).unwrap();
        let message = load::<Position>(&path, &Digest::of(b"one")).unwrap_err().to_string();
        assert!(message.contains("not a checkpoint"), "{message}");
    }

    #[test]
    fn a_torn_or_damaged_file_is_refused_wherever_it_broke() {
        let folder = tempfile::tempdir().unwrap();
        let (path, config) = (folder.path().join("state.safetensors"), Digest::of(b"config"));
        save(&path, &config, &Position { step: 3, epoch: 0 }, &tensors()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for kept in [0, 5, 8, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..kept]).unwrap();
            let message = load::<Position>(&path, &config).unwrap_err().to_string();
            assert!(message.contains("state.safetensors"), "{kept} bytes kept: {message}");
        }
        for at in [whole.len() - 1, whole.len() - 2000] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let message = load::<Position>(&path, &config).unwrap_err().to_string();
            assert!(message.contains("damaged"), "byte {at}: {message}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(load::<Position>(&path, &config).unwrap().is_some());
    }

    #[test]
    fn an_adapter_opens_only_for_its_denoiser() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.safetensors");
        let config = adapter::Config {
            user_width: 3,
            num_tokens: 4,
            token_width: 6,
            projector_bias: true,
            projector_std: 1.0,
        };
        let blocks = [("down_blocks.0.2".to_owned(), 8), ("up_blocks.0.2".to_owned(), 4)];
        let trainable = Trainable::new(Seed::new(1));
        let made = Adapter::new(config, &blocks, trainable.builder(&Device::Cpu)).unwrap();
        let notes = BTreeMap::from([("method".to_owned(), "ppd".to_owned())]);
        let digest = save_adapter(&path, &made, &trainable.tensors(), &notes).unwrap();
        assert_eq!(digest, Digest::of(&std::fs::read(&path).unwrap()));
        let file = Weights::open(&path).unwrap();
        assert_eq!(file.metadata()["method"], "ppd");
        let leaves = ["to_k_ip", "to_v_ip"];
        let numbered = (0..2).flat_map(|i| leaves.map(|leaf| format!("ip_adapter.{i}.{leaf}.weight")));
        let names: Vec<String> =
            numbered.chain(["bias", "weight"].map(|leaf| format!("user_projector.{leaf}"))).collect();
        assert_eq!(file.names(), names);

        let opened = open_adapter(&path, &blocks, &Device::Cpu).unwrap();
        assert_eq!(opened.config(), &config);
        let users = Tensor::new(&[[0.2f32, 0.3, 0.5]], &Device::Cpu).unwrap();
        let tokens = |adapter: &Adapter| adapter.tokens(&users).unwrap();
        let keys = |adapter: &Adapter| {
            let branch = adapter.key_values(&tokens(adapter)).unwrap();
            branch
                .iter()
                .map(|kv| kv.tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(&opened), keys(&made));
        let mut header = file.metadata().clone();
        header.insert("format".into(), NAMED_ADAPTER_FORMAT.into());
        let former = folder.path().join("former.safetensors");
        weights::save(&former, &trainable.tensors(), DType::F32, &header).unwrap();
        assert_eq!(keys(&open_adapter(&former, &blocks, &Device::Cpu).unwrap()), keys(&made));

        let other = [("down_blocks.0.2".to_owned(), 16)];
        let message = open_adapter(&path, &other, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("another denoiser") && message.contains("width 16"), "{message}");
        save(&path, &digest, &0u8, &trainable.tensors()).unwrap();
        let message = open_adapter(&path, &blocks, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains(ADAPTER_FORMAT) && message.contains(FORMAT), "{message}");
    }
}
