//! What is dear to compute and can be computed again: rows of tensors (latents, text states, scores) in sharded files.
//!
//! A store lies in `<cache>/<what>/<key>`, where the key is the digest of everything that its rows follow from: the input
//! and the model. Each shard holds the same number of rows, appears whole or not at all, and has its SHA-256 beside it,
//! which is checked when the shard is first read; so a killed run goes on at the shard it was at. Shards are mapped: memory
//! does not grow with the data set.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::record::replace_file;
use crate::units::Digest;
use crate::weights::{self, Weights};

/// Rows that are computed once and kept.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    rows: usize,
    per_shard: usize,
    precision: DType,
    /// The latest shards that were read, the last one last.
    open: Mutex<Vec<(usize, Weights)>>,
}

/// Shards that stay mapped.
const OPEN: usize = 64;

impl Shards {
    /// The store of `rows` rows of `what` under a cache folder, of which `key` tells everything that they follow from.
    pub fn new(cache: &Path, what: &str, key: &Digest, rows: usize, layout: Layout) -> Self {
        let folder = cache.join(what).join(&key.hex()[..16]);
        let Layout { per_shard, precision } = layout;
        Self { folder, rows, per_shard: per_shard.max(1), precision, open: Mutex::default() }
    }

    /// The same store, of which rows are kept in single precision.
    pub fn in_single_precision(mut self) -> Self {
        self.precision = DType::F32;
        self
    }

    /// How many rows there are when all are.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// True where there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows of each shard that is not there yet.
    pub fn missing(&self) -> Vec<Range<usize>> {
        let shards = 0..self.rows.div_ceil(self.per_shard);
        shards.filter(|&index| !self.is_there(index)).map(|index| self.range(index)).collect()
    }

    fn is_there(&self, index: usize) -> bool {
        self.file(index).is_file() && self.digest_file(index).is_file()
    }

    /// Stores one shard.
    ///
    /// # Errors
    /// Where a tensor has not as many rows as the shard, the rows are no shard of this store, or the disk refuses.
    pub fn store(&self, rows: &Range<usize>, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let index = rows.start / self.per_shard;
        if *rows != self.range(index) {
            return Err(Error::Shape(format!(
                "rows {rows:?} are no shard: expected {:?}",
                self.range(index)
            )));
        }
        for (name, tensor) in tensors {
            if tensor.dims().first() != Some(&rows.len()) {
                let got = tensor.dims();
                return Err(Error::Shape(format!("`{name}` of rows {rows:?} has the shape {got:?}")));
            }
        }
        let metadata = BTreeMap::from([("rows".to_owned(), format!("{}..{}", rows.start, rows.end))]);
        let digest = weights::save(self.file(index), tensors, self.precision, &metadata)?;
        // The digest comes last: a shard without one is not there.
        replace_file(&self.digest_file(index), format!("{}\n", digest.hex()).as_bytes())
    }

    /// Computes what is missing, shard by shard in their order.
    ///
    /// # Errors
    /// Those of `make` and of [`Shards::store`].
    pub fn fill(
        &self,
        mut make: impl FnMut(&Range<usize>) -> Result<BTreeMap<String, Tensor>>,
    ) -> Result<()> {
        for rows in self.missing() {
            // Another process may have made it meanwhile.
            if !self.is_there(rows.start / self.per_shard) {
                self.store(&rows, &make(&rows)?)?;
            }
        }
        Ok(())
    }

    /// Some rows of a tensor, in the order asked for: (indices, …).
    ///
    /// # Errors
    /// [`Error::Weights`] where a shard is missing or is not what was stored.
    pub fn read(&self, name: &str, indices: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let rows = indices.iter().map(|&index| {
            if index >= self.rows {
                return Err(Error::Shape(format!("row {index} of a store of {}", self.rows)));
            }
            self.shard(index / self.per_shard)?.row(name, index % self.per_shard, dtype, device)
        });
        Ok(Tensor::stack(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// A whole tensor, all rows in their order.
    ///
    /// # Errors
    /// As [`Shards::read`].
    pub fn read_all(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let shards = 0..self.rows.div_ceil(self.per_shard);
        let parts = shards.map(|index| self.shard(index)?.read(name, dtype, device));
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// A shard, opened and checked where this is its first use.
    fn shard(&self, index: usize) -> Result<Weights> {
        let mut open = self.open.lock().expect("no thread panics while it opens a shard");
        if let Some(place) = open.iter().position(|(other, _)| *other == index) {
            let found = open.remove(place);
            open.push(found);
            return Ok(open[open.len() - 1].1.clone());
        }
        let (file, digest) = (self.file(index), self.digest_file(index));
        let text = std::fs::read_to_string(&digest).map_err(Error::io("read", &digest))?;
        let expected = Digest::try_from(text.trim().to_owned())
            .map_err(|fault| Error::weights(&digest, fault.to_string()))?;
        let weights = Weights::open_checked(&file, &expected).map_err(|fault| {
            let fault = fault.to_string();
            Error::weights(&file, format!("{fault} (a cache: delete this file, and it is computed again)"))
        })?;
        if open.len() == OPEN {
            open.remove(0);
        }
        open.push((index, weights.clone()));
        Ok(weights)
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = index * self.per_shard;
        start..(start + self.per_shard).min(self.rows)
    }

    fn file(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index:05}.safetensors"))
    }

    fn digest_file(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index:05}.sha256"))
    }
}

/// How rows are laid out on the disk.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Rows of each shard but the last.
    pub per_shard: usize,
    /// The precision they are kept in.
    pub precision: DType,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &Path, rows: usize) -> Shards {
        let layout = Layout { per_shard: 4, precision: DType::F32 };
        Shards::new(folder, "latents", &Digest::of(b"input and model"), rows, layout)
    }

    fn numbers(rows: &Range<usize>) -> Result<BTreeMap<String, Tensor>> {
        let values: Vec<f32> = rows.clone().flat_map(|row| [row as f32, -(row as f32)]).collect();
        let tensor = Tensor::from_vec(values, (rows.len(), 2), &Device::Cpu)?;
        Ok(BTreeMap::from([("x".to_owned(), tensor)]))
    }

    #[test]
    fn rows_come_back_in_the_order_asked_for_and_only_what_is_missing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let shards = store(folder.path(), 10);
        assert_eq!(shards.missing(), [0..4, 4..8, 8..10]);
        // A run that is killed in its second shard.
        let stopped = shards.fill(|rows| if rows.start == 4 { Err(Error::Stopped) } else { numbers(rows) });
        assert!(stopped.is_err());
        let shards = store(folder.path(), 10);
        let mut made = Vec::new();
        shards
            .fill(|rows| {
                made.push(rows.clone());
                numbers(rows)
            })
            .unwrap();
        assert_eq!(made, [4..8, 8..10]);
        let read = shards.read("x", &[9, 0, 5], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(read.to_vec2::<f32>().unwrap(), [[9.0, -9.0], [0.0, 0.0], [5.0, -5.0]]);
        let all = shards.read_all("x", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(all.dims(), [10, 2]);
        assert!(shards.read("x", &[10], DType::F32, &Device::Cpu).is_err());
    }

    #[test]
    fn a_shard_that_is_not_what_was_stored_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let shards = store(folder.path(), 3);
        shards.fill(numbers).unwrap();
        let file = shards.file(0);
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let message = shards.read("x", &[1], DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("00000.safetensors") && message.contains("delete"), "{message}");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(shards.missing().len(), 1);
    }

    #[test]
    fn what_does_not_fill_a_shard_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let shards = store(folder.path(), 10);
        let message = shards.store(&(0..4), &numbers(&(0..3)).unwrap()).unwrap_err().to_string();
        assert!(message.contains("0..4") && message.contains("[3, 2]"), "{message}");
        assert!(shards.store(&(1..4), &numbers(&(1..4)).unwrap()).is_err());
    }
}
