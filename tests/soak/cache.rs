//! Encoding a data set of pairs takes the memory of one shard, whether there are a thousand pairs or fifty thousand.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ppd::cache::{Layout, Shards};
use ppd::data::pick_a_pic::{Columns, Rows, Writer};
use ppd::data::{Preference, Split};
use ppd::image::{self, Format};
use ppd::pixels::Image;
use ppd::units::Digest;

use crate::memory::limit_own_memory;

/// Tells the process that is this test's child which folder to work in.
const FOLDER: &str = "PPD_TEST_PAIRS";
/// What one shard of pairs, its pictures and its latents may take, in bytes.
const ROOM: usize = 48 << 20;
const SIDE: usize = 32;

fn write_pairs(path: &Path, count: usize) {
    let mut writer = Writer::create(path).unwrap();
    for start in (0..count).step_by(1000) {
        let rows: Vec<Preference> = (start..start + 1000)
            .map(|index| {
                let picture = |salt: usize| {
                    let bytes = (0..3 * SIDE * SIDE).map(|i| (i * (index + salt) % 251) as u8).collect();
                    image::encode(&Image::new(SIDE, SIDE, bytes), Format::Jpeg(80)).unwrap()
                };
                Preference {
                    caption: format!("picture {index}"),
                    images: Some([picture(1), picture(2)]),
                    label: Some([1.0, 0.0]),
                    ..Preference::default()
                }
            })
            .collect();
        writer.write(&rows).unwrap();
    }
    writer.finish().unwrap();
}

/// Encodes all pairs (to their pixels, wider as latents), then reads some of them back.
fn encode(folder: &Path) {
    limit_own_memory(ROOM);
    let path = folder.join("pairs.parquet");
    let count = Rows::open(&path, Split::Train, Columns::WithoutImages).unwrap().left().unwrap();
    let layout = Layout { per_shard: 256, precision: DType::F32 };
    let shards = Shards::new(folder, "latents", &Digest::of(b"pairs"), count, layout);
    let mut pairs = Rows::open(&path, Split::Train, Columns::All).unwrap();
    shards
        .fill(|rows| {
            let taken = pairs.take(rows.clone())?;
            let mut values = Vec::new();
            for pair in &taken {
                let picture = pair.image(0, &path)?;
                values.extend(picture.rgb().iter().map(|&byte| f32::from(byte)));
            }
            let tensor = Tensor::from_vec(values, (taken.len(), 3 * SIDE * SIDE), &Device::Cpu)?;
            Ok(BTreeMap::from([("latents".to_owned(), tensor)]))
        })
        .unwrap();
    for index in (0..count).step_by(97) {
        let row = shards.read("latents", &[index], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(row.dims(), [1, 3 * SIDE * SIDE]);
    }
}

#[test]
fn soak_memory_does_not_grow_with_the_data_set() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return encode(folder.as_ref());
    }
    for count in [1_000, 50_000] {
        let folder = tempfile::tempdir().unwrap();
        write_pairs(&folder.path().join("pairs.parquet"), count);
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "cache::soak_memory_does_not_grow_with_the_data_set",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{count} pairs: {said}\n{}", String::from_utf8_lossy(&child.stderr));
        assert!(said.contains("1 passed"), "the child ran this very test: {said}");
    }
}
