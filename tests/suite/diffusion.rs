//! Schedule, sampler and guidance against diffusers (tests/reference/golden_stage_c.py), and against Stability-AI/StableCascade's
//! own `gdf` package, whose `CosineSchedule`, `CosineTNoiseCond`, `EpsilonTarget` and `P2LossWeight` gave gdf_training.safetensors.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use ppd::diffusion::{Gdf, GdfConfig, Process, Sampler, SamplerConfig, Schedule, Target, guide_batch};
use ppd::nn;
use ppd::units::{GuidanceScale, LogSnr, Timestep};

type Golden = HashMap<String, Tensor>;

fn golden(name: &str) -> Golden {
    let path = format!("{}/tests/fixtures/diffusion/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.flatten_all().unwrap().to_dtype(candle_core::DType::F64).unwrap();
    tensor.to_vec1().unwrap()
}

fn timesteps(tensor: &Tensor) -> Vec<Timestep> {
    numbers(tensor).into_iter().map(|t| Timestep::new(t).unwrap()).collect()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    numbers(a).iter().zip(numbers(b)).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

#[track_caller]
fn close(got: &[f64], expected: &[f64], absolute: f64, relative: f64) {
    assert_eq!(got.len(), expected.len());
    for (index, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= absolute + relative * e.abs(), "element {index}: got {g}, expected {e}");
    }
}

#[test]
fn alpha_cumprod_equals_the_reference() {
    let golden = golden("scheduler");
    for scaler in [1.0, 0.5, 2.0] {
        let schedule = Schedule::Cosine { offset: 0.008, scaler };
        let got: Vec<f64> =
            timesteps(&golden["grid.t"]).into_iter().map(|t| schedule.alpha_cumprod(t)).collect();
        // The reference takes the cosine in single precision: one rounding of the angle near π/2 is 6e-8.
        close(&got, &numbers(&golden[&format!("grid.alpha_cumprod.scaler{scaler:.1}")]), 2.5e-7, 0.0);
    }
}

#[test]
fn timesteps_equal_the_reference_to_the_last_bit() {
    let golden = golden("scheduler");
    for num_steps in [1, 5, 10, 20, 30] {
        let sampler = Sampler::new(Schedule::default(), SamplerConfig { num_steps, x0_clamp: None }).unwrap();
        let got: Vec<f64> = sampler.timesteps().iter().map(|t| t.get()).collect();
        assert_eq!(got, numbers(&golden[&format!("timesteps.{num_steps}")]), "{num_steps} steps");
    }
}

#[test]
fn added_noise_equals_the_reference() {
    let golden = golden("scheduler");
    let (x0, noise) = (&golden["add_noise.x0"], &golden["add_noise.noise"]);
    let got = Schedule::default().add_noise(x0, noise, &timesteps(&golden["add_noise.t"])).unwrap();
    // The reference rounds ᾱ by up to 3e-8, which at timestep 0 moves √(1 − ᾱ) = 0.01 by 1.5e-6; noise reaches 3.3.
    assert!(max_difference(&got, &golden["add_noise.out"]) < 5e-6);
    assert!(Schedule::default().add_noise(x0, noise, &timesteps(&golden["step0.t"])).is_err());
}

#[test]
fn steps_equal_the_reference() {
    let golden = golden("scheduler");
    for (bound, name) in [(None, "as published"), (Some(1e6), "with a clamp that never acts")] {
        let config = SamplerConfig { num_steps: 5, x0_clamp: bound };
        let sampler = Sampler::new(Schedule::default(), config).unwrap();
        for index in 0..5 {
            let at = |what: &str| &golden[&format!("step{index}.{what}")];
            let got = sampler.step(index, at("sample"), at("model_out"), Some(at("noise"))).unwrap();
            let scale = numbers(at("prev")).into_iter().fold(1.0, |m: f64, x| m.max(x.abs()));
            // The first step multiplies by √(ᾱ'/ᾱ) ≈ 30 what the reference rounded in single precision.
            let difference = max_difference(&got, at("prev"));
            assert!(difference < 4e-6 * scale, "step {index} {name}: {difference} at scale {scale}");
        }
        assert!(sampler.step(5, &golden["step0.sample"], &golden["step0.model_out"], None).is_err());
        assert!(sampler.step(0, &golden["step0.sample"], &golden["step0.model_out"], None).is_err());
    }
}

#[test]
fn guided_sampling_equals_the_reference_pipeline() {
    let golden = golden("pipeline");
    for (run, num_steps, scale) in
        [("cfg4", 5, 4.0), ("cfg1", 5, 1.0), ("cfg4_neg", 3, 4.0), ("cfg4_n2", 2, 4.0)]
    {
        let config = SamplerConfig { num_steps, x0_clamp: None };
        let sampler = Process::Ddpm(Sampler::new(Schedule::default(), config).unwrap());
        let mut index = 0;
        let got = sampler
            .sample(
                &golden[&format!("{run}.init_latents")],
                |latents, timestep| {
                    let at = |what: &str| &golden[&format!("{run}.step{index}.{what}")];
                    assert_eq!(timestep.get(), numbers(at("timestep_ratio"))[0]);
                    if index > 0 {
                        let before = &golden[&format!("{run}.step{}.latents", index - 1)];
                        let scale = numbers(before).into_iter().fold(1.0, |m: f64, x| m.max(x.abs()));
                        assert!(max_difference(latents, before) < 1e-5 * scale, "{run} step {index}");
                    }
                    let pred = at("model_out").clone();
                    index += 1;
                    if scale > 1.0 { guide_batch(&pred, GuidanceScale::new(scale)?) } else { Ok(pred) }
                },
                |index| Ok(golden[&format!("{run}.step{index}.noise")].clone()),
            )
            .unwrap();
        let expected = &golden[&format!("{run}.image_embeddings")];
        let scale = numbers(expected).into_iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        assert!(max_difference(&got, expected) < 1e-5 * scale, "{run}");
    }
}

#[test]
fn training_equals_stability_code() {
    let golden = golden("gdf_training");
    let schedule = Schedule::default();
    let drawn = timesteps(&golden["t"]);
    let log_snr: Vec<f64> = drawn.iter().map(|&t| schedule.log_snr(t).get()).collect();
    // ln(ᾱ/(1−ᾱ)) of a single-precision ᾱ: near 0.9999 its rounding (6e-8) is divided by 1 − ᾱ = 10⁻⁴.
    close(&log_snr, &numbers(&golden["logSNR"]), 1e-3, 0.0);
    let a: Vec<f64> = drawn.iter().map(|&t| schedule.alpha_cumprod(t).sqrt()).collect();
    close(&a, &numbers(&golden["a"]), 5e-7, 0.0);
    let weight: Vec<f64> = drawn.iter().map(|&t| schedule.p2_weight(t)).collect();
    close(&weight, &numbers(&golden["p2_loss_weight"]), 5e-7, 0.0);
    // Same log-SNR in: what remains is the reference's single-precision arccosine near its ends.
    let inverted: Vec<f64> = numbers(&golden["logSNR"])
        .into_iter()
        .map(|l| schedule.timestep(LogSnr::new(l).unwrap()).get())
        .collect();
    close(&inverted, &numbers(&golden["noise_cond_r"]), 1e-5, 0.0);
    let fed: Vec<f64> = drawn.iter().map(|&t| schedule.conditioning_timestep(t).get()).collect();
    close(&fed, &numbers(&golden["noise_cond_r"]), 1e-5, 0.0);

    let noised = schedule.add_noise(&golden["x0"], &golden["epsilon"], &drawn).unwrap();
    assert!(max_difference(&noised, &golden["noised"]) < 2e-6);
    let alphas: Vec<f64> = drawn.iter().map(|&t| schedule.alpha_cumprod(t)).collect();
    let target = Target::Epsilon.of(&golden["x0"], &golden["epsilon"], &alphas).unwrap();
    assert_eq!(max_difference(&target, &golden["target"]), 0.0);
    assert!(numbers(&nn::squared_error(&target, &golden["target"]).unwrap()).iter().all(|&e| e == 0.0));
}

#[test]
fn stabilitys_sampler_equals_its_own_code() {
    let golden = golden("gdf_sampling");
    for (run, shift, guidance_rescale) in [("plain", 1.0, 0.0), ("rescaled", 1.0, 0.7), ("shifted", 2.0, 0.0)]
    {
        let at = |what: &str| &golden[&format!("{run}.{what}")];
        let config = GdfConfig { num_steps: 6, shift, guidance_rescale };
        let sampler = Gdf::new(Schedule::default(), config).unwrap();
        let fed: Vec<f64> = sampler.timesteps().iter().map(|t| t.get()).collect();
        // The reference's single-precision arccosine near its ends.
        close(&fed, &numbers(at("fed")), 1e-5, 0.0);
        let (sampler, mut index) = (Process::Gdf(sampler), 0);
        let close = |latents: &Tensor, expected: &Tensor, what: &str| {
            let largest = numbers(expected).into_iter().fold(1.0, |m: f64, x| m.max(x.abs()));
            // x₀ of the first step is a hundred times the difference of two nearly equal numbers.
            assert!(max_difference(latents, expected) < 3e-5 * largest, "{run} {what}");
        };
        let end = sampler
            .sample(
                at("start"),
                |latents, timestep| {
                    if index > 0 {
                        close(latents, &at("latents").get(index - 1)?, &format!("step {index}"));
                    }
                    index += 1;
                    // The line that the fixture's script calls a denoiser.
                    let predict = |bias: &Tensor| -> candle_core::Result<Tensor> {
                        let inside = (latents * 0.7)?.broadcast_add(&bias.reshape((2, 1, 1, 1))?)?;
                        inside.tanh()? * (0.5 + timestep.get())
                    };
                    let bias = &golden["bias"];
                    let both = Tensor::cat(&[predict(bias)?, predict(&bias.zeros_like()?)?], 0)?;
                    sampler.guide(&both, GuidanceScale::new(3.0)?)
                },
                |index| Ok(at("noise").get(index)?),
            )
            .unwrap();
        close(&end, &at("latents").get(5).unwrap(), "at the end");
    }
    let refused = |config| Gdf::new(Schedule::default(), config).unwrap_err().to_string();
    assert!(refused(GdfConfig { num_steps: 0, shift: 1.0, guidance_rescale: 0.0 }).contains("num_steps"));
    assert!(refused(GdfConfig { num_steps: 1, shift: 0.0, guidance_rescale: 0.0 }).contains("shift"));
    assert!(refused(GdfConfig { num_steps: 1, shift: 1.0, guidance_rescale: 1.5 }).contains("[0, 1]"));
}

/// The final latents of a sampler whose denoiser is exact for latents drawn from N(mean, deviation²): they are affine in
/// the noise, so probing with one unit of each noise gives their mean and variance without chance.
fn gaussian_moments(schedule: Schedule, num_steps: usize, mean: f64, deviation: f64) -> (f64, f64) {
    let sampler = Process::Ddpm(Sampler::new(schedule, SamplerConfig { num_steps, x0_clamp: None }).unwrap());
    let probes = num_steps + 1; // one without noise, one for the start, one for each step but the last
    let unit = |row: Option<usize>| {
        let column = (0..probes).map(|r| f64::from(u8::from(Some(r) == row))).collect::<Vec<_>>();
        Tensor::from_vec(column, (probes, 1), &Device::Cpu).unwrap()
    };
    let end = sampler
        .sample(
            &unit(Some(1)),
            |latents, timestep| {
                let a = schedule.alpha_cumprod(timestep);
                // E[noise | noised] for Gaussian latents.
                let gain = (1.0 - a).sqrt() / (a * deviation * deviation + 1.0 - a);
                Ok(((latents - a.sqrt() * mean)? * gain)?)
            },
            |index| Ok(unit((index + 2 < probes).then_some(index + 2))),
        )
        .unwrap();
    let end = numbers(&end);
    (end[0], end[1..].iter().map(|x| (x - end[0]).powi(2)).sum())
}

#[test]
fn an_exact_gaussian_denoiser_reaches_the_closed_form() {
    for &schedule in Schedule::ALL {
        let last = schedule.alpha_cumprod(Timestep::new(0.0).unwrap());
        // Latents all equal: each step's posterior is exact, so any number of steps gives the closed form.
        for num_steps in [1, 2, 30] {
            let sampler = Sampler::new(schedule, SamplerConfig { num_steps, x0_clamp: None }).unwrap();
            let a = schedule.alpha_cumprod(sampler.timesteps()[num_steps - 1]);
            let alpha = a / last;
            // The start has variance 1, not 1 − ᾱ(1); the surplus shrinks with every step.
            let before: f64 = (1..num_steps).fold(1.0, |variance, index| {
                let here = schedule.alpha_cumprod(sampler.timesteps()[index - 1]);
                let next = schedule.alpha_cumprod(sampler.timesteps()[index]);
                let kept = (here / next).sqrt() * (1.0 - next) / (1.0 - here);
                kept * kept * variance + (1.0 - here / next) * (1.0 - next) / (1.0 - here)
            });
            let kept = alpha.sqrt() * (1.0 - last) / (1.0 - a);
            let (mean, variance) = gaussian_moments(schedule, num_steps, 0.7, 0.0);
            assert!((variance - kept * kept * before).abs() < 1e-12, "{schedule:?} {num_steps}: {variance}");
            // The start has mean 0, not √ᾱ(1) · mean: one hundredth of the mean, shrunk by the steps.
            assert!(
                (mean - last.sqrt() * 0.7).abs() < 0.007 * kept + 1e-12,
                "{schedule:?} {num_steps}: {mean}"
            );
        }
        // Gaussian latents: the mean is right at once, and more steps bring the variance nearer, from below.
        let variance_error = |num_steps| {
            let (mean, variance) = gaussian_moments(schedule, num_steps, 0.7, DEVIATION);
            // 1 − √0.9999 of the mean at the end, and as little for the start's mean of 0.
            assert!((mean - 0.7).abs() < 1e-4, "{schedule:?} {num_steps}: mean {mean}");
            variance - DEVIATION * DEVIATION
        };
        let (coarse, fine) = (variance_error(300), variance_error(600));
        assert!(coarse < 0.0 && fine < 0.0 && fine > coarse / 1.5, "{schedule:?}: {coarse} then {fine}");
    }
    // The published schedule is of first order: twice the steps, half the error.
    let error = |num_steps| gaussian_moments(Schedule::STABLE_CASCADE, num_steps, 0.7, DEVIATION).1 - 0.25;
    let (coarse, fine) = (error(600), error(1200));
    assert!(fine.abs() < 0.01 * 0.25 && (coarse / fine - 2.0).abs() < 0.1, "{coarse} then {fine}");
}

/// The standard deviation of the Gaussian latents.
const DEVIATION: f64 = 0.5;

#[test]
fn the_clamp_bounds_the_clean_latents() {
    let config = SamplerConfig { num_steps: 1, x0_clamp: Some(1.0) };
    let sampler = Sampler::new(Schedule::default(), config).unwrap();
    let start = Tensor::new(&[[3f32, -2.0]], &Device::Cpu).unwrap();
    // A denoiser that predicts no noise at all implies clean latents of 300 and -200.
    let end = numbers(&sampler.step(0, &start, &start.zeros_like().unwrap(), None).unwrap());
    assert!(end.iter().all(|x| x.abs() <= 1.0 + 1e-3), "{end:?}");
    assert!(end[0] > 0.99 && end[1] < -0.99);
    for bad in
        [SamplerConfig { num_steps: 0, x0_clamp: None }, SamplerConfig { num_steps: 1, x0_clamp: Some(0.0) }]
    {
        assert!(Sampler::new(Schedule::default(), bad).is_err());
    }
}
