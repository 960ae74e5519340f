//! The PPD step of the full-size Stage C (3.6 billion random weights, bf16) on a GPU: 24×24 latents, 85
//! tokens of text and image, a user branch in all 64 attention blocks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use ppd::adapter::{self, Adapter};
use ppd::collective::Alone;
use ppd::diffusion::Schedule;
use ppd::models::stage_c::{Config, KeyValue, StageC};
use ppd::nn::workers::Workers;
use ppd::objective::{self, dpo};
use ppd::train::{MicroBatch, StepSettings, Stepper};
use ppd::units::{Beta, Seed, Timestep};
use ppd::weights::Trainable;
use serde_json::json;

use crate::measured::{Measured, time};

const SIDE: usize = 24;
const TEXT: usize = 77;
const USER_WIDTH: usize = 3584;
const USER_TOKENS: usize = 4;

/// Random weights of unit gain, drawn on the device; how many each tensor has that was asked for.
#[derive(Clone, Default)]
struct Random(Arc<Mutex<BTreeMap<String, usize>>>);

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.0.lock().expect("no panic").insert(name.to_owned(), shape.elem_count());
        let inputs = shape.dims().iter().skip(1).product::<usize>().max(1);
        let deviation = if shape.rank() > 1 { 0.7 / (inputs as f64).sqrt() } else { 0.05 };
        Tensor::randn(0f32, deviation as f32, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: the shape must be known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Multiply–adds of one image's forward pass, times two.
fn forward_flops(config: &Config) -> f64 {
    let positions = (SIDE * SIDE) as f64;
    let tokens = (TEXT + 2 * config.clip_seq) as f64;
    let width = config.block_out_channels[0] as f64;
    let blocks: usize = config.down_num_layers_per_block.iter().chain(&config.up_num_layers_per_block).sum();
    // A block: MLP in and out (8 C²), depthwise, queries, keys, values and output (4 C²), and the products of attention.
    let linear = 12.0 * width * width * positions;
    let attention = 2.0 * positions * (positions + tokens) * width;
    2.0 * blocks as f64 * (linear + attention)
}

/// A large bf16 product: what the card gives to matrices, against which a step's share is reckoned.
pub fn rate(device: &Device, reps: usize) -> Result<Measured> {
    const SIZE: usize = 8192;
    let of = || Tensor::randn(0f32, 1f32, (SIZE, SIZE), device)?.to_dtype(DType::BF16);
    let (a, b) = (of()?, of()?);
    let (seconds, _) = time(reps, || {
        let product = a.matmul(&b)?;
        device.synchronize()?;
        Ok(product)
    })?;
    let flops = 2.0 * (SIZE as f64).powi(3);
    let shape = json!({"product": [SIZE, SIZE, SIZE], "flops": flops, "dtype": "bf16", "device": "cuda"});
    Ok(Measured { shape, seconds, check: Vec::new() })
}

/// One PPD step of `pairs` pairs in micro-batches; with `cached`, the reference's errors are those of the first.
pub fn step(
    device: &Device,
    pairs: usize,
    micro_batch: usize,
    reps: usize,
    cached: bool,
) -> Result<Measured> {
    let config = Config::stable_cascade();
    let random = Random::default();
    let builder = VarBuilder::from_backend(Box::new(random.clone()), DType::BF16, device.clone());
    let denoiser = StageC::new(&config, builder)?;
    let parameters: usize = random.0.lock().expect("no panic").values().sum();
    let trainable = Trainable::new(Seed::new(0));
    let user = adapter::Config {
        user_width: USER_WIDTH,
        num_tokens: USER_TOKENS,
        token_width: 2048,
        projector_bias: false,
        projector_std: 1.0 / (USER_WIDTH as f64).sqrt(),
    };
    let adapter = Adapter::new(user, &config.attention_blocks(), trainable.builder(device))?;
    let dpo = dpo::Config::new(Beta::new(0.5)?);
    let settings =
        StepSettings { objective: objective::Config::Dpo(dpo), weight_decay: 1e-2, max_grad_norm: 1.0 };
    let workers = Workers::new(1)?;
    let mut stepper = Stepper::new(&denoiser, &trainable, settings, &workers, &Alone)?;
    let draw = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, device);
    let latents = [draw(&[pairs, 16, SIDE, SIDE])?, draw(&[pairs, 16, SIDE, SIDE])?];
    let noise = draw(&[pairs, 16, SIDE, SIDE])?;
    let (text, pooled) = (draw(&[pairs, TEXT, 1280])?, draw(&[pairs, 1, 1280])?);
    let (image, users) = (Tensor::zeros((pairs, 1, 768), DType::F32, device)?, draw(&[pairs, USER_WIDTH])?);
    let starts: Vec<usize> = (0..pairs).step_by(micro_batch).collect();
    let known = Mutex::new(BTreeMap::<usize, Vec<[f64; 2]>>::new());
    let schedule = Schedule::default();
    let make = |&start: &usize| {
        let size = micro_batch.min(pairs - start);
        let part = |xs: &Tensor| xs.narrow(0, start, size);
        let twice = |xs: &Tensor| Tensor::cat(&[xs, xs], 0);
        let timesteps: Vec<Timestep> = (start..start + size)
            .map(|i| Timestep::new((i as f64 + 0.5) / pairs as f64))
            .collect::<ppd::error::Result<_>>()?;
        let r: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
        let timestep = twice(&Tensor::from_vec(r, size, device)?)?;
        let noise = twice(&part(&noise)?)?;
        let both = Tensor::cat(&[part(&latents[0])?, part(&latents[1])?], 0)?;
        let noised = schedule.add_noise(&both, &noise, &[timesteps.clone(), timesteps].concat())?;
        let double =
            |kv: Vec<KeyValue>| kv.iter().map(|kv| kv.map(twice)).collect::<candle_core::Result<_>>();
        let tokens = denoiser.conditioning_tokens(&part(&text)?, &part(&pooled)?, &part(&image)?)?;
        let text = double(denoiser.key_values(&tokens)?)?;
        let user = double(adapter.key_values(&adapter.tokens(&part(&users)?)?)?)?;
        let known = cached.then(|| known.lock().expect("no panic").get(&start).cloned()).flatten();
        let reference = known.into_iter().flatten().map(Some).collect();
        Ok(MicroBatch { noised, noise, timestep, text, user, reference })
    };
    let mut done = 0;
    let (seconds, _) = time(reps, || {
        stepper.step((done, 1e-5), pairs, &starts, make, |&start, errors| {
            known.lock().expect("no panic").insert(start, errors.to_vec());
        })?;
        done += 1;
        Ok(device.synchronize()?)
    })?;
    let shape = json!({
        "latent": [pairs, 16, SIDE, SIDE], "text": [pairs, TEXT + 8, 2048], "user": [pairs, USER_TOKENS, 2048],
        "parameters": parameters, "forward_flops": forward_flops(&config), "dtype": "bf16", "device": "cuda",
    });
    Ok(Measured { shape, seconds, check: Vec::new() })
}
