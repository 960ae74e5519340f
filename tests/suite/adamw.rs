//! AdamW, clipping and learning rates against torch and diffusers (tests/reference/golden_optim.py).

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use ppd::nn::{AdamW, AdamWConfig, Decay, LearningRate, Warmup, clip_gradients};

const RUNS: [&str; 5] = ["const", "warmup", "warmup_clip", "linear_decay", "cosine"];
const STEPS: usize = 25;

struct Golden {
    tensors: HashMap<String, Tensor>,
    meta: serde_json::Value,
}

impl Golden {
    fn load() -> Self {
        let folder = format!("{}/tests/fixtures/adamw", env!("CARGO_MANIFEST_DIR"));
        let tensors =
            candle_core::safetensors::load(format!("{folder}/trajectories.safetensors"), &Device::Cpu)
                .unwrap();
        let meta = std::fs::read(format!("{folder}/meta.json")).unwrap();
        Self { tensors, meta: serde_json::from_slice::<serde_json::Value>(&meta).unwrap()["runs"].clone() }
    }

    fn number(&self, run: &str, key: &str) -> f64 {
        self.meta[run][key].as_f64().unwrap()
    }

    fn get(&self, run: &str, name: &str) -> &Tensor {
        &self.tensors[&format!("{run}.{name}")]
    }

    fn optimiser(&self, run: &str) -> AdamW {
        let variables = (0..3)
            .map(|j| (format!("p{j}"), Var::from_tensor(self.get(run, &format!("init{j}"))).unwrap()))
            // The order in which variables are given must not matter.
            .rev()
            .collect();
        let betas = self.meta[run]["betas"].as_array().unwrap();
        let config = AdamWConfig {
            beta1: betas[0].as_f64().unwrap(),
            beta2: betas[1].as_f64().unwrap(),
            eps: self.number(run, "eps"),
            weight_decay: self.number(run, "weight_decay"),
        };
        AdamW::new(variables, config).unwrap()
    }

    fn gradients(&self, run: &str, step: usize) -> Vec<Option<Tensor>> {
        (0..3).map(|j| Some(self.get(run, &format!("grad{j}")).get(step).unwrap())).collect()
    }

    fn learning_rate(&self, run: &str) -> LearningRate {
        LearningRate {
            peak: self.number(run, "lr"),
            warmup_steps: self.number(run, "warmup") as usize,
            warmup: Warmup::FromZero,
            decay: match self.meta[run]["scheduler"].as_str() {
                None | Some("constant_with_warmup") => Decay::Constant,
                Some("linear") => Decay::Linear { total_steps: STEPS },
                Some("cosine") => Decay::Cosine { total_steps: STEPS },
                other => panic!("{other:?}"),
            },
        }
    }

    /// One step of `run`; the norm where the run clips.
    fn advance(&self, run: &str, optimiser: &mut AdamW, step: usize) -> Option<f64> {
        let mut gradients = self.gradients(run, step);
        let norm =
            self.meta[run]["clip"].as_f64().map(|max_norm| clip_gradients(&mut gradients, max_norm).unwrap());
        optimiser.step(&gradients, self.learning_rate(run).at(step)).unwrap();
        norm
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[track_caller]
fn close(got: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.dims(), expected.dims());
    for (g, e) in numbers(got).iter().zip(numbers(expected)) {
        assert!((g - e).abs() <= tolerance * (1.0 + e.abs()), "{what}: got {g}, expected {e}");
    }
}

#[test]
fn trajectories_equal_torchs() {
    let golden = Golden::load();
    for run in RUNS {
        let mut optimiser = golden.optimiser(run);
        for step in 0..STEPS {
            if let Some(norm) = golden.advance(run, &mut optimiser, step) {
                let expected = numbers(golden.get(run, "grad_norm"))[step];
                assert!(
                    (norm - expected).abs() < 1e-6 * expected,
                    "{run} {step}: norm {norm} and {expected}"
                );
            }
            for (j, (_, var)) in optimiser.variables().enumerate() {
                let expected = golden.get(run, &format!("param{j}")).get(step).unwrap();
                // A unit in the last place of parameters up to 2 is 2e-7; steps of 1e-3 hardly add to it.
                close(&var.as_detached_tensor(), &expected, 5e-7, &format!("{run} step {step} p{j}"));
            }
        }
        for j in 0..3 {
            let state = optimiser.state("");
            for moment in ["exp_avg", "exp_avg_sq"] {
                let expected = golden.get(run, &format!("{moment}{j}"));
                close(&state[&format!("p{j}.{moment}")], expected, 1e-6, &format!("{run} {moment}{j}"));
            }
        }
    }
}

#[test]
fn learning_rates_equal_diffusers() {
    let golden = Golden::load();
    for run in RUNS {
        let schedule = golden.learning_rate(run);
        for (step, expected) in numbers(golden.get(run, "lr_f64")).into_iter().enumerate() {
            assert!((schedule.at(step) - expected).abs() < 1e-17, "{run} {step}: {}", schedule.at(step));
        }
    }
    let moving =
        LearningRate { peak: 1.0, warmup_steps: 2, warmup: Warmup::default(), decay: Decay::default() };
    assert_eq!([0, 1, 2, 100].map(|step| moving.at(step)), [0.5, 1.0, 1.0, 1.0]);
    let past = LearningRate { decay: Decay::Cosine { total_steps: 10 }, ..moving };
    assert_eq!(past.at(1000), 0.0);
}

#[test]
fn a_restored_optimiser_goes_on_to_the_last_bit() {
    let golden = Golden::load();
    let run = "warmup_clip";
    let mut whole = golden.optimiser(run);
    (0..STEPS).for_each(|step| _ = golden.advance(run, &mut whole, step));

    let mut first = golden.optimiser(run);
    (0..11).for_each(|step| _ = golden.advance(run, &mut first, step));
    let stored = first.state("moments.");
    let mut second = golden.optimiser(run);
    for ((_, to), (_, from)) in second.variables().zip(first.variables()) {
        to.set(&from.as_detached_tensor()).unwrap();
    }
    second.restore("moments.", first.steps_done(), |name| Ok(stored[name].clone())).unwrap();
    (11..STEPS).for_each(|step| _ = golden.advance(run, &mut second, step));

    for ((name, a), (_, b)) in whole.variables().zip(second.variables()) {
        assert_eq!(numbers(a), numbers(b), "{name}");
    }
    assert!(second.step(&[None], 1e-3).is_err());
}
