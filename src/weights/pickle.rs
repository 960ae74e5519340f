//! PyTorch's zip of pickled tensors, read as data: nothing in it is ever called.
//!
//! A pickle is a program for a stack machine, and Python's runs whatever function it names. The machine here knows how to
//! stack values and what torch's own state dicts name; anything else (another function, an instruction that it does not
//! know) refuses the file, with the name. Tensors stay where they lie in the mapped file until they are asked for, and each
//! storage is then checked against the zip's CRC-32.
//!
//! # Source
//! Python's `pickletools`, for the instructions; `torch/_weights_only_unpickler.py`, for what a state dict may name.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use zip::{CompressionMethod, ZipArchive};

use super::machine::{Fault, Stored, Value, run};
use crate::error::{Error, Result};

/// Where torch's archives keep their pickle, below one folder.
const PICKLE: &str = "/data.pkl";
/// Under which keys a checkpoint may keep its state dict beside other things; the first is HPS v2's.
const NESTED: [&str; 2] = ["state_dict", "model"];

/// An archive's tensors by name, in the mapped file.
pub struct Archive {
    map: Mmap,
    tensors: BTreeMap<String, Stored>,
    storages: HashMap<String, Storage>,
}

/// Where a storage lies in the file, and what its bytes must add up to.
struct Storage {
    start: usize,
    length: usize,
    crc: u32,
}

impl Archive {
    /// Opens the state dict of a file: at the top, or under `state_dict` as in HPS v2's checkpoints.
    ///
    /// # Errors
    /// [`Error::Weights`] where the file is damaged, of another format, or holds more than tensors and plain values.
    pub fn open(path: &Path, map: Mmap) -> Result<Self> {
        let fault = |message: String| Error::weights(path, message);
        let (pickle, storages) = entries(&map).map_err(fault)?;
        let top = run(&pickle).map_err(|error| {
            fault(match error {
                Fault::Broken(what) => {
                    format!("its pickle is damaged ({what}); fetch the file again")
                }
                Fault::Code(what) => format!(
                    "is refused: its pickle {what}. Pickles can hold code, and this one holds more than tensors; \
                     nothing of it was run. If you trust where it comes from, save its tensors as safetensors in Python"
                ),
            })
        })?;
        let mut tensors = state_dict(&top);
        for key in NESTED {
            if tensors.is_empty()
                && let Some(nested) = top.get(key)
            {
                tensors = state_dict(&nested);
            }
        }
        if tensors.is_empty() {
            return Err(fault(format!(
                "not a checkpoint: it holds no tensors, neither at the top nor under `{}`",
                NESTED.join("` or `")
            )));
        }
        Ok(Self { map, tensors, storages })
    }

    /// Every name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape stored under a name, where there is one.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|stored| stored.shape.clone())
    }

    /// The tensor under a name, where there is one.
    ///
    /// # Errors
    /// With what is wrong, where its bytes are damaged or missing.
    pub fn read(&self, name: &str, device: &Device) -> std::result::Result<Option<Tensor>, String> {
        let Some(stored) = self.tensors.get(name) else { return Ok(None) };
        let dtype = match stored.kind.as_str() {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "ByteStorage" | "BoolStorage" => DType::U8,
            "IntStorage" => DType::I32,
            "LongStorage" => DType::I64,
            other => return Err(format!("is stored as {other}: not supported")),
        };
        let storage = self.storages.get(&stored.storage).ok_or("its storage is missing from the archive")?;
        let bytes = &self.map[storage.start..storage.start + storage.length];
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        if crc.sum() != storage.crc {
            return Err(
                "its bytes do not have the checksum that the archive names: the file is damaged, fetch it \
                        again"
                    .into(),
            );
        }
        let packed = gather(bytes, stored, dtype.size_in_bytes())
            .ok_or("reaches past the end of its storage: the file is damaged, fetch it again")?;
        Tensor::from_raw_buffer(&packed, dtype, &stored.shape, device)
            .map(Some)
            .map_err(|fault| fault.to_string())
    }
}

/// The tensors of a dict whose keys are names.
fn state_dict(value: &Value) -> BTreeMap<String, Stored> {
    let Value::Dict(entries) = value else { return BTreeMap::new() };
    let named = |(key, value): &(Value, Value)| match (key, value) {
        (Value::Text(name), Value::Tensor(stored)) => Some((name.to_string(), stored.as_ref().clone())),
        _ => None,
    };
    entries.borrow().iter().filter_map(named).collect()
}

/// The pickle of a torch archive, and its storages by their key.
fn entries(map: &[u8]) -> std::result::Result<(Vec<u8>, HashMap<String, Storage>), String> {
    if map.starts_with(&[0x80]) {
        return Err("is a bare pickle, or was saved by a PyTorch before 1.6: such files are not read, since a pickle can \
                    hold code. Load it where you trust it and save it with `torch.save` or as safetensors"
            .into());
    }
    let broken = |fault: String| {
        format!("not a PyTorch zip checkpoint ({} bytes): {fault}; fetch it again", map.len())
    };
    let mut zip = ZipArchive::new(Cursor::new(map)).map_err(|fault| broken(fault.to_string()))?;
    let (mut pickle, mut storages) = (None, HashMap::new());
    for i in 0..zip.len() {
        let entry = zip.by_index_raw(i).map_err(|fault| broken(fault.to_string()))?;
        let name = entry.name().map_err(|fault| broken(fault.to_string()))?.to_string();
        let (start, length) = (entry.data_start().unwrap_or(u64::MAX), entry.compressed_size());
        let end = start.checked_add(length).filter(|end| *end <= map.len() as u64);
        if end.is_none() || entry.compression() != CompressionMethod::Stored {
            return Err(broken(format!("its part `{name}` is cut short or compressed")));
        }
        let (start, length, crc) = (start as usize, length as usize, entry.crc32());
        if name.contains("/code/") {
            return Err("is a TorchScript archive, which is code: it is not read. Use the state dict of the same model".into());
        } else if name.ends_with(PICKLE) {
            let bytes = &map[start..start + length];
            let mut sum = flate2::Crc::new();
            sum.update(bytes);
            if sum.sum() != crc {
                return Err(broken(format!("its part `{name}` does not have the checksum that it should")));
            }
            pickle = Some(bytes.to_vec());
        } else if let Some((_, key)) = name.rsplit_once("/data/") {
            storages.insert(key.to_string(), Storage { start, length, crc });
        } else if name.ends_with("/byteorder") && &map[start..start + length] != b"little" {
            return Err("was saved on a big-endian machine: not supported".into());
        }
    }
    let pickle = pickle.ok_or_else(|| broken("it has no `data.pkl`".into()))?;
    Ok((pickle, storages))
}

/// The elements of a tensor in row-major order; `None` where the storage is too short.
fn gather(bytes: &[u8], stored: &Stored, size: usize) -> Option<Vec<u8>> {
    let Stored { shape, strides, offset, .. } = stored;
    let count = shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side))?;
    if count == 0 {
        return Some(Vec::new());
    }
    let reach = shape.iter().zip(strides).try_fold(*offset, |reach, (side, stride)| {
        (side - 1).checked_mul(*stride).and_then(|step| reach.checked_add(step))
    })?;
    if reach.checked_add(1)?.checked_mul(size)? > bytes.len()
        || count.checked_mul(size)? > isize::MAX as usize
    {
        return None;
    }
    let mut row_major = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        row_major[axis - 1] = row_major[axis] * shape[axis];
    }
    let is_packed =
        shape.iter().zip(strides.iter().zip(&row_major)).all(|(side, (a, b))| *side == 1 || a == b);
    if is_packed {
        return Some(bytes[offset * size..(offset + count) * size].to_vec());
    }
    // Broadcast views may hold more elements than bytes exist; what no checkpoint has is not worth its memory.
    if count * size > bytes.len() {
        return None;
    }
    let mut packed = Vec::with_capacity(count * size);
    for element in 0..count {
        let at = row_major.iter().zip(shape).zip(strides);
        let place: usize = at.map(|((unit, side), stride)| element / unit % side * stride).sum();
        let start = (offset + place) * size;
        packed.extend_from_slice(&bytes[start..start + size]);
    }
    Some(packed)
}
