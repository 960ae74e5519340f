//! A checkpoint in several files, with a `*.safetensors.index.json` or `*.bin.index.json` that says which file holds which
//! tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Weights;
use crate::error::{Error, Result};

/// What the names of such indices end in.
const INDICES: [&str; 2] = [".safetensors.index.json", ".bin.index.json"];

#[derive(Deserialize)]
struct Index {
    weight_map: Map,
}

/// The file of each tensor, every tensor being named once.
struct Map(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Map;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object from tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Map, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((tensor, file)) = entries.next_entry::<String, String>()? {
                    if let Some(other) = map.insert(tensor.clone(), file) {
                        return Err(A::Error::custom(format!(
                            "it names `{tensor}` twice, in {other} and in {}",
                            map[&tensor]
                        )));
                    }
                }
                Ok(Map(map))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The open files, and for each tensor the number of its file.
pub struct Shards {
    files: Vec<Weights>,
    of: BTreeMap<String, usize>,
}

impl Shards {
    /// Whether a path is an index's.
    pub fn is_index(path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        INDICES.iter().any(|ending| name.ends_with(ending))
    }

    /// Opens every file that the index names; none is read before a tensor is asked for.
    ///
    /// # Errors
    /// Where the index cannot be read or names a tensor twice, a file is missing or damaged, a file lacks a tensor that the
    /// index promises, or two hold it.
    pub fn open(index: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(index).map_err(Error::io("read", index))?;
        let broken = |fault: String| Error::weights(index, format!("{fault}; fetch the repository again"));
        let Index { weight_map: Map(map) } = serde_json::from_str(&text)
            .map_err(|fault| broken(format!("not an index of weight files ({fault})")))?;
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut files = Vec::new();
        let mut of = BTreeMap::new();
        for (tensor, name) in &map {
            let number = match numbers.get(name.as_str()) {
                Some(number) => *number,
                None => {
                    files.push(Weights::open(beside(index, name).ok_or_else(|| {
                        broken(format!("it names the file {name:?}, expected a name beside the index"))
                    })?)?);
                    numbers.insert(name, files.len() - 1);
                    files.len() - 1
                }
            };
            if files[number].shape(tensor).is_none() {
                return Err(broken(format!(
                    "it says that {name} holds the tensor `{tensor}`, and that file lacks it"
                )));
            }
            of.insert(tensor.clone(), number);
        }
        // A tensor that lies in two of the files has two values, and readers differ in which they take.
        for (tensor, &number) in &of {
            if let Some(other) =
                (0..files.len()).find(|other| *other != number && files[*other].shape(tensor).is_some())
            {
                let (other, name) = (files[other].path(), &map[tensor]);
                return Err(broken(format!(
                    "the tensor `{tensor}` lies in {name} and in {}",
                    other.display()
                )));
            }
        }
        match files.is_empty() {
            true => Err(broken("it names no tensors".into())),
            false => Ok(Self { files, of }),
        }
    }

    /// The file that holds a tensor.
    pub fn file(&self, tensor: &str) -> Option<&Weights> {
        self.of.get(tensor).map(|&number| &self.files[number])
    }

    /// Every tensor, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.of.keys().map(String::as_str)
    }

    /// The files, in the order in which the tensors' sorted names first need them.
    pub fn files(&self) -> &[Weights] {
        &self.files
    }
}

/// The path of a file in the index's folder; none where the name leads elsewhere.
fn beside(index: &Path, name: &str) -> Option<PathBuf> {
    let plain = Path::new(name).file_name().is_some_and(|file| file == name);
    plain.then(|| index.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::super::save;
    use super::*;

    fn shard(folder: &Path, file: &str, names: &[(&str, f32)]) {
        let tensors = names
            .iter()
            .map(|(name, value)| (name.to_string(), Tensor::full(*value, (2, 3), &Device::Cpu).unwrap()));
        save(folder.join(file), &tensors.collect(), DType::F32, &BTreeMap::new()).unwrap();
    }

    fn index(folder: &Path, map: &str) -> PathBuf {
        let path = folder.join("model.safetensors.index.json");
        std::fs::write(&path, format!(r#"{{"metadata": {{"total_size": 48}}, "weight_map": {map}}}"#))
            .unwrap();
        path
    }

    #[test]
    fn tensors_come_from_the_file_that_the_index_names() {
        let folder = tempfile::tempdir().unwrap();
        shard(folder.path(), "model-00001-of-00002.safetensors", &[("b", 1.0), ("unlisted", 5.0)]);
        shard(folder.path(), "model-00002-of-00002.safetensors", &[("a", 2.0)]);
        let map = r#"{"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}"#;
        let weights = Weights::open(index(folder.path(), map)).unwrap();
        assert_eq!(weights.names(), ["a", "b"]);
        assert_eq!(weights.bytes_in(DType::F32), 48);
        let read = |name: &str| {
            weights.get((2, 3), name, DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!((read("a")[1][2], read("b")[0][0]), (2.0, 1.0));
        let both = weights.content_digest().unwrap();
        assert_ne!(
            both,
            Weights::open(folder.path().join("model-00002-of-00002.safetensors"))
                .unwrap()
                .content_digest()
                .unwrap()
        );
        let message = weights.get((2, 3), "c", DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("`c`") && message.contains("index.json"), "{message}");
        let message = weights.get((3, 3), "a", DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("[2, 3]"), "{message}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        shard(folder.path(), "one.safetensors", &[("a", 1.0)]);
        shard(folder.path(), "three.safetensors", &[("a", 1.0), ("c", 2.0)]);
        for (map, part) in [
            (r#"{"a": "two.safetensors"}"#, "two.safetensors"),
            (r#"{"b": "one.safetensors"}"#, "`b`"),
            (r#"{"a": "../one.safetensors"}"#, "../one.safetensors"),
            (r#"{"a": "/tmp/one.safetensors"}"#, "beside the index"),
            (r#"{"a": "one.safetensors", "a": "two.safetensors"}"#, "`a` twice"),
            (r#"{"a": "one.safetensors", "c": "three.safetensors"}"#, "lies in one.safetensors and in"),
            ("{}", "no tensors"),
            ("7", "not an index"),
        ] {
            let message = Weights::open(index(folder.path(), map)).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
