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

use crate::devices::{fixture_path, on_cpu, on_each_device};
use crate::thinned;

const USER: Config =
    Config { user_width: 3, num_tokens: 5, token_width: 56, projector_bias: false, projector_std: 1.0 };

fn path(name: &str) -> String {
    fixture_path(&format!("stage_c/{name}"))
}

fn weights(name: &str) -> Weights {
    Weights::open(path(&format!("{name}.safetensors"))).unwrap()
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

fn denoiser(dtype: DType, device: &Device) -> (StageC, Vec<(String, usize)>) {
    let config: stage_c::Config = json("config.json");
    let model = StageC::new(&config, weights("prior").builder(dtype, device)).unwrap();
    (model, config.attention_blocks())
}

fn read(file: &Weights, name: &str, device: &Device) -> Tensor {
    file.read(name, DType::F32, device).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn norm(tensor: &Tensor) -> f64 {
    numbers(tensor).iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    norm(&(on_cpu(a) - on_cpu(b)).unwrap()) / norm(b)
}

/// One step's inputs.
struct Batch {
    noise: Tensor,
    noised: [Tensor; 2],
    r: Tensor,
    text: Vec<KeyValue>,
}

impl Batch {
    fn of(golden: &Weights, step: usize, model: &StageC, device: &Device) -> Self {
        let get = |name: &str| read(golden, &format!("step{step}.{name}"), device);
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
fn start(golden: &Weights, name: &str, rate: f64, device: &Device) -> Tensor {
    let (after, gradient) = (format!("step0.after.{name}"), format!("step0.grad.{name}"));
    let after = read(golden, &after, &Device::Cpu);
    let undone =
        numbers(&after).into_iter().zip(numbers(&read(golden, &gradient, &Device::Cpu))).map(|(after, g)| {
            let AdamWConfig { eps, weight_decay, .. } = AdamWConfig::default();
            ((after + rate * g / (g.abs() + eps)) / (1.0 - rate * weight_decay)) as f32
        });
    Tensor::from_vec(undone.collect(), after.dims(), device).unwrap()
}

/// The gradient of `Σ coefficient · error` for each of the optimiser's variables.
fn gradients(errors: &[Tensor; 2], chosen: &[f64], rejected: &[f64], optimiser: &AdamW) -> Vec<Tensor> {
    let scaled = |errors: &Tensor, coefficients: &[f64]| {
        let coefficients: Vec<f32> = coefficients.iter().map(|&c| c as f32).collect();
        (errors * Tensor::new(coefficients, errors.device()).unwrap()).unwrap().sum(D::Minus1).unwrap()
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
    on_each_device(|device| {
        let ((model, blocks), golden) = (denoiser(DType::F32, device), weights("ppd_step"));
        let meta: serde_json::Value = json("ppd_step.json");
        let trainable = Trainable::new(Seed::new(0));
        let adapter = Adapter::new(USER, &blocks, trainable.builder(device)).unwrap();
        let mut vars: BTreeMap<String, Var> = trainable.vars();
        // The reference feeds user tokens, not user vectors.
        vars.remove("user_projector.weight").unwrap();
        let first_rate = meta["steps"][0]["lr"].as_f64().unwrap();
        for (name, var) in &vars {
            var.set(&start(&golden, name, first_rate, device)).unwrap();
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
            let batch = Batch::of(&golden, step, &model, device);
            let reference = batch.errors(&model, None).map(|errors| numbers(&errors));
            let user = adapter.key_values(&read(&golden, &format!("step{step}.user"), device)).unwrap();
            let policy = batch.errors(&model, Some(&user));
            let [reference_chosen, reference_rejected] = reference;
            let [policy_chosen, policy_rejected] = policy.each_ref().map(numbers);
            let errors = BatchErrors { policy_chosen, policy_rejected, reference_chosen, reference_rejected };
            let loss = objective.loss(&errors).unwrap();
            // β = 2000 multiplies the rounding of the errors; the reference itself is off by 4e-4.
            let expected = meta["steps"][step]["loss"].as_f64().unwrap();
            assert!((loss.value - expected).abs() < 1e-3, "step {step}: loss {} and {expected}", loss.value);
            let stored = numbers(&read(&golden, &format!("step{step}.per_sample"), device));
            assert!(loss.per_sample.iter().zip(&stored).all(|(a, b)| (a - b).abs() < 1e-3), "step {step}");

            // The coefficients the reference's own margins give: its rounding of them taken out, the gradients are the
            // denoiser's and the branch's alone.
            let margins = numbers(&read(&golden, &format!("step{step}.inside"), device));
            let theirs: Vec<f64> =
                margins.iter().map(|m| 0.5 * beta.get() / (1.0 + m.exp()) / margins.len() as f64).collect();
            let gap = theirs.iter().zip(&loss.coefficients.chosen).map(|(a, b)| (a / b - 1.0).abs());
            assert!(
                gap.fold(0.0, f64::max) < 1e-3,
                "step {step}: {:?} and {theirs:?}",
                loss.coefficients.chosen
            );
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
    });
}

#[test]
fn a_new_branch_and_an_absent_user_are_the_base_exactly() {
    let ((model, blocks), golden) = (denoiser(DType::F32, &Device::Cpu), weights("ppd_step"));
    let batch = Batch::of(&golden, 0, &model, &Device::Cpu);
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
            var.set(&read(&golden, &format!("step0.after.{name}"), &Device::Cpu)).unwrap();
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

/// A branch that has begun to learn, and its keys and values for three users.
fn begun(blocks: &[(String, usize)], device: &Device) -> (Trainable, Vec<KeyValue>) {
    let golden = weights("ppd_step");
    let trainable = Trainable::new(Seed::new(7));
    let adapter = Adapter::new(USER, blocks, trainable.builder(device)).unwrap();
    for (name, var) in trainable.vars() {
        if name.ends_with("to_v_ip.weight") {
            var.set(&read(&golden, &format!("step0.after.{name}"), device)).unwrap();
        }
    }
    let users = Tensor::new(&[[1.0f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], device).unwrap();
    let user = adapter.key_values(&adapter.tokens(&users).unwrap()).unwrap();
    (trainable, user)
}

/// The gradients of a PPD loss's errors with respect to every parameter of a branch that has begun to learn.
fn branch_gradients(
    (model, blocks): &(StageC, Vec<(String, usize)>),
    device: &Device,
) -> BTreeMap<String, Tensor> {
    let batch = Batch::of(&weights("ppd_step"), 0, model, device);
    let (trainable, user) = begun(blocks, device);
    let [chosen, rejected] = batch.errors(model, Some(&user));
    let gradients = (chosen - rejected).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |(name, var): (String, Var)| {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{name} got no gradient")).clone();
        (name, gradient)
    };
    trainable.vars().into_iter().map(of).collect()
}

/// The losses of one PPD step and the errors that they come from, and the gradient of every parameter of its branch.
fn one_step(dtype: DType, device: &Device) -> (Vec<f64>, BTreeMap<String, Tensor>) {
    let (model, blocks) = denoiser(dtype, device);
    let batch = Batch::of(&weights("ppd_step"), 0, &model, device);
    let (trainable, user) = begun(&blocks, device);
    let [reference_chosen, reference_rejected] = batch.errors(&model, None).map(|errors| numbers(&errors));
    let policy = batch.errors(&model, Some(&user));
    let [policy_chosen, policy_rejected] = policy.each_ref().map(numbers);
    // A β that does not multiply the rounding of errors.
    let objective = objective::Config::Dpo(dpo::Config {
        beta: Beta::new(1.0).unwrap(),
        half_factor: true,
        timesteps: TimestepCount::new(1.0).unwrap(),
    });
    let errors = BatchErrors { policy_chosen, policy_rejected, reference_chosen, reference_rejected };
    let loss = objective.loss(&errors).unwrap();
    let optimiser = AdamW::new(trainable.vars().into_iter().collect(), AdamWConfig::default()).unwrap();
    let found = gradients(&policy, &loss.coefficients.chosen, &loss.coefficients.rejected, &optimiser);
    let names = optimiser.variables().map(|(name, _)| name.to_owned());
    let BatchErrors { policy_chosen, policy_rejected, reference_chosen, reference_rejected } = errors;
    let losses = [loss.per_sample, policy_chosen, policy_rejected, reference_chosen, reference_rejected];
    (losses.concat(), names.zip(found).collect())
}

#[test]
fn a_step_on_each_device_is_that_of_the_cpu() {
    let (losses, gradients) = one_step(DType::F32, &Device::Cpu);
    on_each_device(|device| {
        // Single precision: another order of summation. bf16 beside single precision: eight bits of mantissa through two
        // dozen layers, which is 2e-3 and 0.03 on the CPU.
        for (dtype, of_losses, of_gradients) in [(DType::F32, 1e-5, 1e-4), (DType::BF16, 1e-2, 0.06)] {
            let (got, found) = one_step(dtype, device);
            assert_eq!((got.len(), found.len()), (losses.len(), gradients.len()));
            for (got, loss) in got.iter().zip(&losses) {
                assert!((got - loss).abs() < of_losses, "{dtype:?}: {got} and {loss}");
            }
            for (name, gradient) in &gradients {
                let error = relative(&found[name], gradient);
                assert!(error < of_gradients, "{dtype:?}, {name}: {error}");
            }
        }
    });
}

#[test]
fn activations_that_are_made_again_change_no_gradient() {
    on_each_device(|device| {
        let kept = branch_gradients(&denoiser(DType::F32, device), device);
        for layers in [1, 2, 100] {
            let (model, blocks) = denoiser(DType::F32, device);
            let again = branch_gradients(&(model.recomputing(layers.try_into().unwrap()), blocks), device);
            for (name, gradient) in &kept {
                assert!(norm(gradient) > 0.0, "{name}");
                assert_eq!(numbers(gradient), numbers(&again[name]), "{name}, {layers} layers at a time");
            }
        }
    });
}

#[test]
fn a_model_in_bf16_trains_a_branch_in_single_precision() {
    on_each_device(|device| {
        let [single, half] = [DType::F32, DType::BF16].map(|dtype| denoiser(dtype, device));
        assert_eq!(half.0.dtype(), DType::BF16);
        let [single, half] = [single, half].map(|model| branch_gradients(&model, device));
        for (name, gradient) in &single {
            assert_eq!(half[name].dtype(), DType::F32, "{name}");
            // Eight bits of mantissa through two dozen layers.
            let error = relative(&half[name], gradient);
            assert!(error < 0.1, "{name}: {error}");
        }
    });
}
