//! Weight files ↔ tensors: safetensors and PyTorch's `.pt`/`.pth`/`.bin`, checked, as frozen tensors or trainable ones.
//!
//! A model's constructor takes candle's `VarBuilder` and asks for tensors by the checkpoint's own keys. The builder
//! comes from here: from [`Weights`] (a file: every tensor must be there with the right shape) or from [`Trainable`]
//! (variables, started from a file or drawn from seeded streams), so one constructor serves inference and pretraining.
//! Where a file is at fault the error is [`Error::Weights`] with the file, the key, what was expected and what was found.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, nearest};
use crate::record::replace_file;
use crate::rng;
use crate::units::{Digest, Seed};

mod machine;
mod pickle;
mod relaid;
mod shards;

use shards::Shards;

/// One open weight file; cheap to clone.
#[derive(Clone)]
pub struct Weights(Arc<Opened>);

struct Opened {
    path: PathBuf,
    digest: Option<Digest>,
    metadata: BTreeMap<String, String>,
    source: Source,
    /// Where tensors are looked for that this file lacks.
    beneath: Option<Weights>,
}

enum Source {
    /// The mapped file, where its tensor data starts, and what the header says of each tensor.
    Safetensors { map: Mmap, data_start: usize, index: BTreeMap<String, Stored> },
    /// PyTorch's zip of pickled tensors, which are read without running anything.
    Pickle(pickle::Archive),
    /// Several safetensors files under one index.
    Shards(Shards),
}

/// The header's entry in which a file names, as a [`Beneath`], the file that it was tuned from.
pub const BENEATH: &str = "beneath";

/// The file that another one was tuned from: tensors that tuning left alone are stored there only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beneath {
    /// Where it stands, from the folder of the file above.
    pub file: PathBuf,
    /// Its SHA-256.
    pub digest: Digest,
}

/// One tensor of a safetensors header; its bytes are `from..to` after the header.
struct Stored {
    dtype: DType,
    shape: Vec<usize>,
    from: usize,
    to: usize,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({})", self.0.path.display())
    }
}

impl Weights {
    /// Opens a weight file: safetensors, PyTorch's zip format by the extensions `pt`, `pth`, `bin` and `ckpt`, or the
    /// index of several such files (`*.safetensors.index.json`, `*.bin.index.json`), which then are opened as one. Where its header names a file [`Beneath`], that one is opened and checked too, and gives what this one lacks.
    ///
    /// # Errors
    /// Where the file cannot be read, is truncated, or is of neither format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), None)
    }

    /// Opens a weight file after checking its SHA-256 digest, which a manifest gives.
    ///
    /// # Errors
    /// As [`Weights::open`], and where the digest differs.
    pub fn open_checked(path: impl AsRef<Path>, expected: &Digest) -> Result<Self> {
        Self::open_with(path.as_ref(), Some(expected))
    }

    fn open_with(path: &Path, expected: Option<&Digest>) -> Result<Self> {
        if expected.is_none() && Shards::is_index(path) {
            let (source, metadata) = (Source::Shards(Shards::open(path)?), BTreeMap::new());
            let opened = Opened { path: path.to_path_buf(), digest: None, metadata, source, beneath: None };
            return Ok(Self(Arc::new(opened)));
        }
        let file = File::open(path).map_err(Error::io("read", path))?;
        // SAFETY: the file is mapped read-only; weight files are written under another name and renamed, never in place.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let digest = expected.map(|_| Digest::of(&map));
        if let (Some(expected), Some(got)) = (expected, &digest)
            && expected != got
        {
            return Err(Error::weights(
                path,
                format!(
                    "its SHA-256 is {}…, the manifest says {}…; the file is not the one that the manifest describes: \
                     restore it or make it again",
                    got.short(),
                    expected.short()
                ),
            ));
        }
        let (source, metadata) = match path.extension().and_then(|e| e.to_str()) {
            Some("pt" | "pth" | "bin" | "ckpt") => {
                (Source::Pickle(pickle::Archive::open(path, map)?), BTreeMap::new())
            }
            _ => open_safetensors(path, map)?,
        };
        let beneath = match metadata.get(BENEATH) {
            Some(text) => {
                let named: Beneath = serde_json::from_str(text).map_err(|fault| {
                    Error::weights(
                        path,
                        format!("its header's `{BENEATH}` cannot be read: {fault}; make the file again"),
                    )
                })?;
                let folder = path.parent().unwrap_or(Path::new("."));
                Some(Self::open_checked(folder.join(&named.file), &named.digest)?)
            }
            None => None,
        };
        Ok(Self(Arc::new(Opened { path: path.to_path_buf(), digest, metadata, source, beneath })))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The file's SHA-256, where it was checked on opening.
    pub fn digest(&self) -> Option<&Digest> {
        self.0.digest.as_ref()
    }

    /// The strings stored in a safetensors header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// Every key, sorted.
    pub fn names(&self) -> Vec<&str> {
        match &self.0.source {
            Source::Safetensors { index, .. } => index.keys().map(String::as_str).collect(),
            Source::Pickle(archive) => archive.names().collect(),
            Source::Shards(shards) => shards.names().collect(),
        }
    }

    /// The bytes that all its tensors take in the given precision.
    pub fn bytes_in(&self, dtype: DType) -> u64 {
        let elements = |name| self.shape(name).map_or(0, |shape| shape.iter().product::<usize>());
        let own: usize = self.names().into_iter().map(elements).sum();
        let beneath = self.0.beneath.as_ref().map_or(0, |beneath| beneath.bytes_in(dtype));
        (own * dtype.size_in_bytes()) as u64 + beneath
    }

    /// The shape stored under a key, where there is one.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match &self.0.source {
            Source::Safetensors { index, .. } => index.get(name).map(|stored| stored.shape.clone()),
            Source::Pickle(archive) => archive.shape(name),
            Source::Shards(shards) => shards.file(name).and_then(|file| file.shape(name)),
        }
    }

    /// The tensor under `name`, which must have this shape, converted to `dtype`.
    ///
    /// # Errors
    /// [`Error::Weights`] where the key is missing or the shape is another one.
    pub fn get(&self, shape: impl Into<Shape>, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let (expected, got) = (shape.into(), self.shape(name));
        if let (None, Some(beneath)) = (&got, &self.0.beneath) {
            return beneath.get(expected, name, dtype, device);
        }
        match got {
            Some(got) if got == expected.dims() => self.read(name, dtype, device),
            Some(got) => Err(Error::weights(
                self.path(),
                format!(
                    "tensor `{name}` has shape {got:?}, expected {:?}: the file belongs to another configuration; \
                     use the config that came with it",
                    expected.dims()
                ),
            )),
            None => Err(self.missing(name)),
        }
    }

    /// The tensor under `name`, whatever its shape, converted to `dtype`.
    ///
    /// # Errors
    /// [`Error::Weights`] where the key is missing.
    pub fn read(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        if let (None, Some(beneath)) = (self.shape(name), &self.0.beneath) {
            return beneath.read(name, dtype, device);
        }
        let tensor = match &self.0.source {
            Source::Safetensors { map, data_start, index } => {
                let stored = index.get(name).ok_or_else(|| self.missing(name))?;
                let bytes = &map[data_start + stored.from..data_start + stored.to];
                Tensor::from_raw_buffer(bytes, stored.dtype, &stored.shape, device)?
            }
            Source::Pickle(archive) => archive
                .read(name, device)
                .map_err(|fault| Error::weights(self.path(), format!("tensor `{name}` {fault}")))?
                .ok_or_else(|| self.missing(name))?,
            Source::Shards(shards) => {
                shards.file(name).ok_or_else(|| self.missing(name))?.read(name, dtype, device)?
            }
        };
        Ok(tensor.to_dtype(dtype)?.contiguous()?)
    }

    /// Row `index` of the tensor under `name`, without the others, converted to `dtype`.
    ///
    /// # Errors
    /// [`Error::Weights`] where the key or the row is missing.
    pub fn row(&self, name: &str, index: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let Source::Safetensors { map, data_start, index: tensors } = &self.0.source else {
            return Ok(self.read(name, dtype, device)?.get(index)?);
        };
        let stored = tensors.get(name).ok_or_else(|| self.missing(name))?;
        let rows = stored.shape.first().copied().unwrap_or(0);
        if index >= rows {
            return Err(Error::weights(
                self.path(),
                format!("tensor `{name}` has {rows} rows, no row {index}"),
            ));
        }
        let bytes = (stored.to - stored.from) / rows;
        let start = data_start + stored.from + index * bytes;
        let row =
            Tensor::from_raw_buffer(&map[start..start + bytes], stored.dtype, &stored.shape[1..], device)?;
        Ok(row.to_dtype(dtype)?)
    }

    /// The SHA-256 of the file, or of the digests of an index's files one after the other. It is computed where opening did
    /// not, which takes as long as reading all bytes.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn content_digest(&self) -> Result<Digest> {
        match (&self.0.digest, &self.0.source) {
            (Some(digest), _) => Ok(digest.clone()),
            (None, Source::Safetensors { map, .. }) => Ok(Digest::of(map)),
            (None, Source::Pickle(_)) => {
                Ok(Digest::of(&std::fs::read(self.path()).map_err(Error::io("read", self.path()))?))
            }
            (None, Source::Shards(shards)) => {
                let digests = shards.files().iter().map(|file| Ok(file.content_digest()?.hex().to_owned()));
                Ok(Digest::of(digests.collect::<Result<Vec<_>>>()?.concat().as_bytes()))
            }
        }
    }

    fn missing(&self, name: &str) -> Error {
        let names = self.names();
        let hint = match nearest(name, names.iter().copied()) {
            Some(near) => format!("; the nearest of its {} keys is `{near}`", names.len()),
            None => format!("; its {} keys start with `{}`", names.len(), names.first().unwrap_or(&"")),
        };
        Error::weights(self.path(), format!("no tensor `{name}`{hint}: is this the file for this model?"))
    }

    /// A builder of frozen tensors in `dtype`, whatever the dtype in the file.
    pub fn builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }
}

impl SimpleBackend for Weights {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        Ok(Weights::get(self, s, name, dtype, dev)?)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        Ok(self.read(name, dtype, dev)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.shape(name).is_some() || self.0.beneath.as_ref().is_some_and(|below| below.contains_tensor(name))
    }
}

fn open_safetensors(path: &Path, map: Mmap) -> Result<(Source, BTreeMap<String, String>)> {
    let broken = |fault: String| {
        Error::weights(
            path,
            format!("not a complete safetensors file ({} bytes): {fault}; fetch or make it again", map.len()),
        )
    };
    let (header, parsed) = SafeTensors::read_metadata(&map).map_err(|fault| broken(fault.to_string()))?;
    let data_start = 8 + header;
    let expected = data_start + parsed.data_len();
    if map.len() != expected {
        return Err(broken(format!("its header speaks of {expected} bytes")));
    }
    let mut index = BTreeMap::new();
    for (name, info) in parsed.tensors() {
        let dtype = match info.dtype {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::F16 => DType::F16,
            safetensors::Dtype::BF16 => DType::BF16,
            safetensors::Dtype::F64 => DType::F64,
            safetensors::Dtype::I64 => DType::I64,
            safetensors::Dtype::I32 => DType::I32,
            safetensors::Dtype::U32 => DType::U32,
            safetensors::Dtype::U8 | safetensors::Dtype::BOOL => DType::U8,
            other => {
                return Err(Error::weights(
                    path,
                    format!("tensor `{name}` is stored as {other:?}: not supported"),
                ));
            }
        };
        let (from, to) = info.data_offsets;
        index.insert(name, Stored { dtype, shape: info.shape.clone(), from, to });
    }
    let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok((Source::Safetensors { map, data_start, index }, metadata))
}

/// Variables for training, by name; clones share them.
///
/// The first time a constructor asks for a name, the variable is made: from the starting file where there is one, else
/// from the initialisation that the constructor names, drawn from the stream of (seed, name). The drawing therefore
/// depends neither on the order of construction nor on other tensors.
#[derive(Clone)]
pub struct Trainable(Arc<TrainableState>);

struct TrainableState {
    seed: Seed,
    start: Option<Weights>,
    vars: Mutex<BTreeMap<String, Var>>,
}

impl Trainable {
    /// Variables that start from seeded random numbers.
    pub fn new(seed: Seed) -> Self {
        Self(Arc::new(TrainableState { seed, start: None, vars: Mutex::default() }))
    }

    /// Variables that start from a file, which must hold every one of them.
    pub fn from_weights(start: Weights) -> Self {
        Self(Arc::new(TrainableState { seed: Seed::new(0), start: Some(start), vars: Mutex::default() }))
    }

    /// A builder that registers every tensor asked for as a variable, in single precision.
    pub fn builder(&self, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, device.clone())
    }

    /// The variables made so far, sorted by name.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        self.0.vars.lock().expect("no thread panics while it holds the variables").clone()
    }

    /// The variables' present values, sorted by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.vars().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect()
    }

    /// Overwrites every variable with the tensor of its name in a file.
    ///
    /// # Errors
    /// Where the file lacks one, or has it in another shape.
    pub fn load(&self, weights: &Weights) -> Result<()> {
        for (name, var) in self.vars() {
            var.set(&weights.get(var.shape(), &name, var.dtype(), var.device())?)?;
        }
        Ok(())
    }
}

impl SimpleBackend for Trainable {
    fn get(
        &self,
        s: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        dev: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut vars = self.0.vars.lock().expect("no thread panics while it holds the variables");
        if let Some(var) = vars.get(name) {
            if var.shape() != &s {
                return Err(Error::Shape(format!(
                    "variable `{name}` was made with shape {:?}, now asked for with {s:?}",
                    var.shape()
                ))
                .into());
            }
            return Ok(var.as_tensor().clone());
        }
        let value = match &self.0.start {
            Some(start) => Weights::get(start, s, name, dtype, dev)?,
            None => draw(&s, init, self.0.seed, name, dev)?.to_dtype(dtype)?,
        };
        let var = Var::from_tensor(&value)?;
        let tensor = var.as_tensor().clone();
        vars.insert(name.to_string(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(Error::Shape(format!("variable `{name}` cannot be made without its shape")).into())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        match &self.0.start {
            Some(start) => start.shape(name).is_some(),
            None => true,
        }
    }
}

/// Draws a tensor's initial value from the stream of its name.
fn draw(shape: &Shape, init: Init, seed: Seed, name: &str, device: &Device) -> Result<Tensor> {
    let mut stream = rng::stream(seed, &format!("init {name}"), 0);
    let count = shape.elem_count();
    let normal = |stream: &mut rng::Stream, mean: f64, deviation: f64| -> Vec<f32> {
        (0..count).map(|_| (mean + deviation * stream.normal()) as f32).collect()
    };
    let values = match init {
        Init::Const(value) => vec![value as f32; count],
        Init::Randn { mean, stdev } => normal(&mut stream, mean, stdev),
        Init::Uniform { lo, up } => (0..count).map(|_| stream.between(lo, up) as f32).collect(),
        Init::Kaiming { dist, fan, non_linearity } => {
            let deviation = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            match dist {
                candle_nn::init::NormalOrUniform::Normal => normal(&mut stream, 0.0, deviation),
                candle_nn::init::NormalOrUniform::Uniform => {
                    let bound = 3f64.sqrt() * deviation;
                    (0..count).map(|_| stream.between(-bound, bound) as f32).collect()
                }
            }
        }
    };
    Ok(Tensor::from_vec(values, shape.clone(), device)?)
}

/// Writes tensors as safetensors in `dtype` (names sorted, metadata sorted, so the same tensors give the same bytes) and
/// returns the file's digest. The file appears whole or not at all: write beside, sync, rename.
///
/// # Errors
/// Where the disk refuses, or `dtype` is not one of f32, f16, bf16.
pub fn save(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    dtype: DType,
    metadata: &BTreeMap<String, String>,
) -> Result<Digest> {
    let path = path.as_ref();
    let label = match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        other => {
            return Err(Error::weights(
                path,
                format!("weights are saved as f32, f16 or bf16, not {other:?}"),
            ));
        }
    };
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let flat = tensor.flatten_all()?.to_dtype(dtype)?.to_device(&Device::Cpu)?;
        let start = data.len();
        match dtype {
            DType::F32 => flat.to_vec1::<f32>()?.iter().for_each(|x| data.extend(x.to_le_bytes())),
            DType::F16 => flat.to_vec1::<half::f16>()?.iter().for_each(|x| data.extend(x.to_le_bytes())),
            _ => flat.to_vec1::<half::bf16>()?.iter().for_each(|x| data.extend(x.to_le_bytes())),
        }
        let entry =
            serde_json::json!({"dtype": label, "shape": tensor.dims(), "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // Tensor data starts at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    replace_file(path, &bytes)?;
    Ok(Digest::of(&bytes))
}

#[cfg(test)]
mod tests;
