//! What a frozen denoiser must not cost, on the path of one operation after the other: that of half precision.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor, Var};
use ppd::adapter::{Adapter, Config};
use ppd::collective::Alone;
use ppd::models::stage_c::{self, StageC};
use ppd::nn::workers::Workers;
use ppd::nn::{self, counting};
use ppd::objective;
use ppd::rng::stream;
use ppd::train::{MicroBatch, StepSettings, Stepper};
use ppd::units::Seed;
use ppd::weights::{Trainable, Weights};

const USER: Config =
    Config { user_width: 3, num_tokens: 5, token_width: 56, projector_bias: true, projector_std: 1.0 };
/// Pairs, positions along a side, and tokens of a text: no width of the model.
const PAIRS: usize = 3;
const SIDE: usize = 4;
const TEXT: usize = 7;

fn draw(shape: &[usize], index: u64) -> Tensor {
    let data = stream(Seed::new(3), "frozen", index).normals(shape.iter().product());
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn denoiser() -> StageC {
    let fixtures = format!("{}/tests/fixtures/stage_c", env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read_to_string(format!("{fixtures}/config.json")).unwrap();
    let config: stage_c::Config = serde_json::from_str(&config).unwrap();
    let weights = Weights::open(format!("{fixtures}/prior.safetensors")).unwrap();
    StageC::new(&config, weights.builder(DType::BF16, &Device::Cpu)).unwrap()
}

fn micro_batch(model: &StageC, adapter: &Adapter) -> MicroBatch {
    let (config, images) = (model.config(), 2 * PAIRS);
    let text = draw(&[images, TEXT, config.clip_text_in_channels], 0);
    let pooled = draw(&[images, 1, config.clip_text_pooled_in_channels], 1);
    let image = draw(&[images, 1, config.clip_image_in_channels], 2);
    let tokens = model.conditioning_tokens(&text, &pooled, &image).unwrap();
    let users = draw(&[images, USER.user_width], 3);
    MicroBatch {
        noised: draw(&[images, config.in_channels, SIDE, SIDE], 4),
        noise: draw(&[images, config.in_channels, SIDE, SIDE], 5),
        timestep: Tensor::full(0.5f32, images, &Device::Cpu).unwrap(),
        text: model.key_values(&tokens).unwrap(),
        user: adapter.key_values(&adapter.tokens(&users).unwrap()).unwrap(),
        reference: vec![None; PAIRS],
    }
}

fn trained(model: &StageC) -> (Trainable, Adapter) {
    let trainable = Trainable::new(Seed::new(7));
    let blocks = model.config().attention_blocks();
    let adapter = Adapter::new(USER, &blocks, trainable.builder(&Device::Cpu)).unwrap();
    // A branch that has begun to learn: at first only W′v moves.
    for (i, var) in trainable.vars().values().enumerate() {
        var.set(&(draw(var.dims(), 10 + i as u64) * 0.1).unwrap()).unwrap();
    }
    (trainable, adapter)
}

#[test]
fn backward_computes_and_holds_the_gradients_of_what_trains_alone() {
    let model = denoiser();
    let (trainable, adapter) = trained(&model);
    let batch = micro_batch(&model, &adapter);
    let MicroBatch { noised, noise, timestep, text, user, .. } = &batch;
    let errors =
        nn::squared_error(&model.forward(noised, timestep, text, Some(user)).unwrap(), noise).unwrap();
    let before = counting::weight_gradients();
    let found = errors.sum_all().unwrap().backward().unwrap();
    let vars: Vec<Var> = trainable.vars().into_values().collect();
    let maps = vars.iter().filter(|var| var.rank() == 2).count() as u64;
    assert_eq!(counting::weight_gradients() - before, maps, "one product for each map that trains");
    for var in &vars {
        assert!(found.get(var).is_some());
    }
    // What is held beside is of inputs: of each image's positions and text tokens. No weight has these sides.
    let of_vars: Vec<_> = vars.iter().map(|var| var.id()).collect();
    let sides = [SIDE * SIDE, TEXT + 2 * model.config().clip_seq];
    for id in found.get_ids().filter(|id| !of_vars.contains(id)) {
        let held = found.get_id(*id).unwrap().dims();
        let of_inputs = held.len() == 3 && held[0] == 2 * PAIRS && sides.contains(&held[1]);
        assert!(of_inputs, "a gradient of shape {held:?} is nobody's that trains");
    }
}

#[test]
fn the_optimiser_remembers_what_trains_alone_in_single_precision() {
    let model = denoiser();
    let (trainable, adapter) = trained(&model);
    let workers = Workers::new(1).unwrap();
    let dpo = serde_json::from_str::<objective::Config>(r#"{"kind": "dpo", "beta": 0.5}"#).unwrap();
    let settings = StepSettings { objective: dpo, weight_decay: 0.01, max_grad_norm: 1.0 };
    let mut stepper = Stepper::new(&model, &trainable, settings, &workers, &Alone).unwrap();
    let make = |(): &()| Ok(micro_batch(&model, &adapter));
    stepper.step((0, 1e-3), PAIRS, &[()], make, |(), _| ()).unwrap();
    let state = stepper.optimiser.state("optimiser.");
    let names = trainable.vars().into_keys();
    let expected: BTreeSet<String> = names
        .flat_map(|name| ["exp_avg", "exp_avg_sq"].map(|kind| format!("optimiser.{name}.{kind}")))
        .collect();
    assert_eq!(state.keys().cloned().collect::<BTreeSet<_>>(), expected);
    for (name, moment) in &state {
        assert_eq!(moment.dtype(), DType::F32, "{name}");
        let largest = moment.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest > 0.0, "{name} has learned nothing");
    }
}
