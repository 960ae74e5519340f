//! The full-size Stage C asks for the tensors of the published checkpoints, by name and shape.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use ppd::models::stage_c::{Config, StageC};

/// Remembers what is asked for; each tensor is one number, spread out.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<String, Vec<usize>>>>);

impl SimpleBackend for Recorder {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        self.0.lock().unwrap().insert(name.to_owned(), s.dims().to_vec());
        Tensor::zeros(1, dtype, dev)?.broadcast_as(s)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: the shape must be known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn tensors(config: &Config) -> BTreeMap<String, Vec<usize>> {
    let recorder = Recorder::default();
    // In bytes, the projections that the model joins at once take 0.8 GB.
    let builder = VarBuilder::from_backend(Box::new(recorder.clone()), DType::U8, Device::Cpu);
    StageC::new(config, builder).unwrap();
    std::mem::take(&mut *recorder.0.lock().unwrap())
}

#[test]
fn names_and_shapes_are_those_of_the_published_checkpoints() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stage_c/full_size_shapes.json");
    let published: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (name, config) in [("3.6B", Config::stable_cascade()), ("1B_lite", Config::stable_cascade_lite())] {
        let ours = tensors(&config);
        assert_eq!(ours.len() as u64, published[name]["n_tensors"], "{name}");
        let parameters: usize = ours.values().map(|shape| shape.iter().product::<usize>()).sum();
        assert_eq!(parameters as u64, published[name]["n_params"], "{name}");
        if name == "3.6B" {
            let first = published["first_block_shapes_3.6B"].as_object().unwrap();
            for (name, shape) in first {
                assert_eq!(serde_json::to_value(&ours[name]).unwrap(), *shape, "{name}");
            }
        }
    }
}
