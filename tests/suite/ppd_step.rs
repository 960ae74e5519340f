//! The user branch in the denoiser, and three whole PPD steps against torch (tests/reference/golden_ppd_step.py).

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use ppd::adapter::{Adapter, Config};
use ppd::diffusion::Schedule;
use ppd::models::stage_c::{self, KeyValue, StageC};
use ppd::nn::{self, AdamW, AdamWConfig, LearningRate};
use ppd::objective::{self, BatchErrors, dpo};
use ppd::units::{Beta, Seed, Timestep, TimestepCount};
use ppd::weights::{Trainable, Weights};

use crate::thinned;

const USER: Config =
    Config { user_width: 3, num_tokens: 5, token_width: 56, projector_bias: false, projector_std: 1.0 };

fn path(name: &str) -> String {
    format!("{}/tests/fixtures/stage_c/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn weights(name: &str) -> Weights {
    Weights::open(path(&format!("{name}.safetensors"))).unwrap()
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

fn denoiser() -> (StageC, Vec<(String, usize)>) {
    let config: stage_c::Config = json("config.json");
    let model = StageC::new(&config, weights("prior").builder(DType::F32, &Device::Cpu)).unwrap();
    (model, config.attention_blocks())
}

fn read(file: &Weights, name: &str) -> Tensor {
    file.read(name, DType::F32, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn norm(tensor: &Tensor) -> f64 {
    numbers(tensor).iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    norm(&(a - b).unwrap()) / norm(b)
}

/// One step's inputs.
struct Batch {
    noise: Tensor,
    noised: [Tensor; 2],
    r: Tensor,
    text: Vec<KeyValue>,
}

impl Batch {
    fn of(golden: &Weights, step: usize, model: &StageC) -> Self {
        let get = |name: &str| read(golden, &format!("step{step}.{name}"));
        let (r, noise) = (get("r"), get("noise"));
        let timesteps: Vec<Timestep> = numbers(&r).into_iter().map(|t| Timestep::new(t).unwrap()).collect();
        let noised = ["w", "l"].map(|side| {
            let noised =
                Schedule::default().add_noise(&get(&format!("latent_{side}")), &noise, &timesteps).unwrap();
            assert!(norm(&(&noised - get(&format!("noised_{side}"))).unwrap()) < 1e-5);
            noised
        });
        let tokens =
            model.conditioning_tokens(&get("clip_text"), &get("clip_text_pooled"), &get("clip_img")).unwrap();
        Self { noise, noised, r, text: model.key_values(&tokens).unwrap() }
    }

    /// The errors on the chosen and the rejected images.
    fn errors(&self, model: &StageC, user: Option<&[KeyValue]>) -> [Tensor; 2] {
        self.noised.each_ref().map(|noised| {
            nn::squared_error(&model.forward(noised, &self.r, &self.text, user).unwrap(), &self.noise)
                .unwrap()
        })
    }
}

/// A parameter before the first step.
///
/// The fixture has no start (the reference stored it by reference: it held the values *after* the last step), so it is
/// undone from the first step: AdamW's first step is `θ(1 − ηλ) − η·g/(|g| + ε)`, whatever its moments' decay.
fn start(golden: &Weights, name: &str, rate: f64) -> Tensor {
    let (after, gradient) = (format!("step0.after.{name}"), format!("step0.grad.{name}"));
    let after = read(golden, &after);
    let undone = numbers(&after).into_iter().zip(numbers(&read(golden, &gradient))).map(|(after, g)| {
        let AdamWConfig { eps, weight_decay, .. } = AdamWConfig::default();
        ((after + rate * g / (g.abs() + eps)) / (1.0 - rate * weight_decay)) as f32
    });
    Tensor::from_vec(undone.collect(), after.dims(), &Device::Cpu).unwrap()
}

/// The gradient of `Σ coefficient · error` for each of the optimiser's variables.
fn gradients(errors: &[Tensor; 2], chosen: &[f64], rejected: &[f64], optimiser: &AdamW) -> Vec<Tensor> {
    let scaled = |errors: &Tensor, coefficients: &[f64]| {
        let coefficients: Vec<f32> = coefficients.iter().map(|&c| c as f32).collect();
        (errors * Tensor::new(coefficients, &Device::Cpu).unwrap()).unwrap().sum(D::Minus1).unwrap()
    };
    let surrogate = (scaled(&errors[0], chosen) + scaled(&errors[1], rejected)).unwrap();
    let mut found = surrogate.backward().unwrap();
    optimiser
        .variables()
        .map(|(name, var)| found.remove(var).unwrap_or_else(|| panic!("{name} got no gradient")))
        .collect()
}

#[test]
fn three_ppd_steps_equal_torchs() {
    let ((model, blocks), golden) = (denoiser(), weights("ppd_step"));
    let meta: serde_json::Value = json("ppd_step.json");
    let trainable = Trainable::new(Seed::new(0));
    let adapter = Adapter::new(USER, &blocks, trainable.builder(&Device::Cpu)).unwrap();
    let mut vars: BTreeMap<String, Var> = trainable.vars();
    // The reference feeds user tokens, not user vectors.
    vars.remove("user_projector.weight").unwrap();
    let first_rate = meta["steps"][0]["lr"].as_f64().unwrap();
    for (name, var) in &vars {
        var.set(&start(&golden, name, first_rate)).unwrap();
    }
    assert_eq!(vars.len(), golden.names().iter().filter(|name| name.starts_with("step0.after.")).count());
    let mut optimiser = AdamW::new(vars.clone().into_iter().collect(), AdamWConfig::default()).unwrap();
    let learning_rate = LearningRate {
        peak: meta["lr"].as_f64().unwrap(),
        warmup_steps: meta["warmup_steps"].as_u64().unwrap() as usize,
        warmup: Default::default(),
        decay: Default::default(),
    };
    let beta = Beta::new(meta["beta"].as_f64().unwrap()).unwrap();
    let objective = objective::Config::Dpo(dpo::Config {
        beta,
        half_factor: true,
        timesteps: TimestepCount::new(1.0).unwrap(),
    });

    for step in 0..3 {
        let batch = Batch::of(&golden, step, &model);
        let reference = batch.errors(&model, None).map(|errors| numbers(&errors));
        let user = adapter.key_values(&read(&golden, &format!("step{step}.user"))).unwrap();
        let policy = batch.errors(&model, Some(&user));
        let [reference_chosen, reference_rejected] = reference;
        let [policy_chosen, policy_rejected] = policy.each_ref().map(numbers);
        let errors = BatchErrors { policy_chosen, policy_rejected, reference_chosen, reference_rejected };
        let loss = objective.loss(&errors).unwrap();
        // β = 2000 multiplies the rounding of the errors; the reference itself is off by 4e-4.
        let expected = meta["steps"][step]["loss"].as_f64().unwrap();
        assert!((loss.value - expected).abs() < 1e-3, "step {step}: loss {} and {expected}", loss.value);
        let stored = numbers(&read(&golden, &format!("step{step}.per_sample")));
        assert!(loss.per_sample.iter().zip(&stored).all(|(a, b)| (a - b).abs() < 1e-3), "step {step}");

        // The coefficients the reference's own margins give: its rounding of them taken out, the gradients are the
        // denoiser's and the branch's alone.
        let margins = numbers(&read(&golden, &format!("step{step}.inside")));
        let theirs: Vec<f64> =
            margins.iter().map(|m| 0.5 * beta.get() / (1.0 + m.exp()) / margins.len() as f64).collect();
        let gap = theirs.iter().zip(&loss.coefficients.chosen).map(|(a, b)| (a / b - 1.0).abs());
        assert!(gap.fold(0.0, f64::max) < 1e-3, "step {step}: {:?} and {theirs:?}", loss.coefficients.chosen);
        let minus: Vec<f64> = theirs.iter().map(|c| -c).collect();
        let (exact, ours) = (
            gradients(&policy, &theirs, &minus, &optimiser),
            gradients(&policy, &loss.coefficients.chosen, &loss.coefficients.rejected, &optimiser),
        );
        for ((name, _), gradient) in optimiser.variables().zip(exact) {
            let (gradient, expected) =
                thinned::entries(&golden, &format!("step{step}.grad.{name}"), &gradient);
            let error = relative(&gradient, &expected);
            assert!(error < 1e-4, "step {step}, gradient of {name}: {error}");
        }
        let ours: Vec<Option<Tensor>> = ours.into_iter().map(Some).collect();
        let rate = learning_rate.at(step);
        assert_eq!(rate, meta["steps"][step]["lr"].as_f64().unwrap());
        optimiser.step(&ours, rate).unwrap();
        for (name, var) in optimiser.variables() {
            let after = format!("step{step}.after.{name}");
            let (var, expected) = thinned::entries(&golden, &after, &var.as_detached_tensor());
            let error = relative(&var, &expected);
            assert!(error < 1e-4, "step {step}, {name} after the step: {error}");
        }
    }
}

#[test]
fn a_new_branch_and_an_absent_user_are_the_base_exactly() {
    let ((model, blocks), golden) = (denoiser(), weights("ppd_step"));
    let batch = Batch::of(&golden, 0, &model);
    let base = batch.errors(&model, None).map(|errors| numbers(&errors));
    let trainable = Trainable::new(Seed::new(7));
    let adapter = Adapter::new(USER, &blocks, trainable.builder(&Device::Cpu)).unwrap();
    let branch = |users: &[[f32; 3]; 3]| {
        adapter.key_values(&adapter.tokens(&Tensor::new(users, &Device::Cpu).unwrap()).unwrap()).unwrap()
    };
    let one_hot = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let errors = batch.errors(&model, Some(&branch(&one_hot)));
    assert_eq!(errors.each_ref().map(numbers), base, "a zero W′v adds nothing");

    // At first only W′v moves: what it receives does not depend on a zero W′v, all else does.
    let gradients = errors[0].sum_all().unwrap().backward().unwrap();
    for (name, var) in trainable.vars() {
        let gradient = norm(gradients.get(&var).unwrap_or_else(|| panic!("{name} got no gradient")));
        assert_eq!(gradient > 0.0, name.ends_with("to_v_ip.weight"), "{name}: {gradient}");
    }

    for (name, var) in trainable.vars() {
        if name.ends_with("to_v_ip.weight") {
            var.set(&read(&golden, &format!("step0.after.{name}"))).unwrap();
        }
    }
    assert_ne!(batch.errors(&model, Some(&branch(&one_hot))).map(|e| numbers(&e)), base);
    assert_eq!(batch.errors(&model, Some(&branch(&[[0.0; 3]; 3]))).map(|e| numbers(&e)), base);
    let mixed = batch.errors(&model, Some(&branch(&[one_hot[0], [0.0; 3], one_hot[2]])));
    assert_eq!(numbers(&mixed[0])[1], base[0][1], "one absent user in a batch is the base as well");

    // Keys and values made once for each user, then handed to each sample.
    let rows = Tensor::new(&[2u32, 0, 2], &Device::Cpu).unwrap();
    let shared: Vec<KeyValue> = branch(&one_hot).iter().map(|kv| kv.select(&rows).unwrap()).collect();
    let direct = branch(&[one_hot[2], one_hot[0], one_hot[2]]);
    let [shared, direct] =
        [shared, direct].map(|user| batch.errors(&model, Some(&user)).map(|e| numbers(&e)));
    assert_eq!(shared, direct);
}

#[test]
fn a_projector_with_a_bias_learns_the_absent_user() {
    let trainable = Trainable::new(Seed::new(7));
    let config = Config { projector_bias: true, ..USER };
    let adapter = Adapter::new(config, &[("block".into(), 8)], trainable.builder(&Device::Cpu)).unwrap();
    let vars = trainable.vars();
    let bias = &vars["user_projector.bias"];
    let absent = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(norm(&adapter.tokens(&absent).unwrap()), 0.0, "the bias starts at zero");
    bias.set(&Tensor::ones(bias.shape(), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let tokens = adapter.tokens(&absent).unwrap();
    assert_eq!(tokens.dims(), [2, 5, 56]);
    assert!(numbers(&tokens).iter().all(|&x| x == 1.0));
    let gradients = tokens.sum_all().unwrap().backward().unwrap();
    assert!(numbers(gradients.get(bias).unwrap()).iter().all(|&g| g == 2.0));
    assert!(adapter.tokens(&tokens).is_err());
    assert!(adapter.key_values(&absent).is_err());
}

/// The gradients of a PPD loss's errors with respect to every parameter of a branch that has begun to learn.
fn branch_gradients(model: &StageC) -> BTreeMap<String, Tensor> {
    let (blocks, golden) = (denoiser().1, weights("ppd_step"));
    let batch = Batch::of(&golden, 0, model);
    let trainable = Trainable::new(Seed::new(7));
    let adapter = Adapter::new(USER, &blocks, trainable.builder(&Device::Cpu)).unwrap();
    for (name, var) in trainable.vars() {
        if name.ends_with("to_v_ip.weight") {
            var.set(&read(&golden, &format!("step0.after.{name}"))).unwrap();
        }
    }
    let users = Tensor::new(&[[1.0f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], &Device::Cpu).unwrap();
    let user = adapter.key_values(&adapter.tokens(&users).unwrap()).unwrap();
    let [chosen, rejected] = batch.errors(model, Some(&user));
    let gradients = (chosen - rejected).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |(name, var): (String, Var)| {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{name} got no gradient")).clone();
        (name, gradient)
    };
    trainable.vars().into_iter().map(of).collect()
}

#[test]
fn activations_that_are_made_again_change_no_gradient() {
    let kept = branch_gradients(&denoiser().0);
    for layers in [1, 2, 100] {
        let again = branch_gradients(&denoiser().0.recomputing(layers.try_into().unwrap()));
        for (name, gradient) in &kept {
            assert!(norm(gradient) > 0.0, "{name}");
            assert_eq!(numbers(gradient), numbers(&again[name]), "{name}, {layers} layers at a time");
        }
    }
}

#[test]
fn a_model_in_bf16_trains_a_branch_in_single_precision() {
    let config: stage_c::Config = json("config.json");
    let half = StageC::new(&config, weights("prior").builder(DType::BF16, &Device::Cpu)).unwrap();
    assert_eq!(half.dtype(), DType::BF16);
    let (single, half) = (branch_gradients(&denoiser().0), branch_gradients(&half));
    for (name, gradient) in &single {
        assert_eq!(half[name].dtype(), DType::F32, "{name}");
        // Eight bits of mantissa through two dozen layers.
        let error = relative(&half[name], gradient);
        assert!(error < 0.1, "{name}: {error}");
    }
}
