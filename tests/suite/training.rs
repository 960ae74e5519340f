//! Fine-tuning and sampling on a tiny base model with random weights: nothing depends on the number of workers or on
//! the batch, reference errors are shared, and a planted preference is learned.

use candle_core::{DType, Device, Tensor};
use ppd::adapter;
use ppd::base::{Base, Codec};
use ppd::collective::{Alone, Simulated};
use ppd::diffusion::{
    GuidanceSteps, Process, Sampler, SamplerConfig, Schedule, TimestepRange, UnconditionalUser, guide,
};
use ppd::error::Error;
use ppd::generate::{Request, Sampling, Task, Unconditional, sample, sample_latents};
use ppd::models::clip::{TextConfig, TextTower};
use ppd::models::latent_codec::{self, LatentCodec};
use ppd::models::stage_c::{Config, StageC};
use ppd::models::tokenizer::Tokenizer;
use ppd::nn::workers::Workers;
use ppd::nn::{Decay, LearningRate, Warmup};
use ppd::objective;
use ppd::pixels::Image;
use ppd::prior::Prior;
use ppd::rng::stream;
use ppd::scenes::words;
use ppd::train::{Bench, Example, Keep, Pairs, ReferenceErrors, Rows, Settings, Step, Trained, fine_tune};
use ppd::units::{Digest, GuidanceScale, Seed};
use ppd::weights::{Trainable, Weights};

/// The oracle's tiny prior, with a text encoder and a codec of random weights around it.
fn base() -> Base {
    let fixtures = format!("{}/tests/fixtures/stage_c", env!("CARGO_MANIFEST_DIR"));
    let prior: Config =
        serde_json::from_str(&std::fs::read_to_string(format!("{fixtures}/config.json")).unwrap()).unwrap();
    let weights = Weights::open(format!("{fixtures}/prior.safetensors")).unwrap();
    let tokenizer = Tokenizer::desk(&words()).unwrap();
    let text: TextConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": tokenizer.vocab_size(), "hidden_size": 32, "intermediate_size": 64, "projection_dim": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": tokenizer.context(),
        "hidden_act": "gelu", "eos_token_id": tokenizer.vocab_size() - 1,
    }))
    .unwrap();
    let codec = latent_codec::Config {
        latent_channels: 16,
        widths: vec![8, 8, 16],
        encoder_blocks: vec![0, 0, 1],
        decoder_blocks: vec![0, 0, 1],
        decoder_widths: None,
    };
    // Tensors, not variables: a base model is frozen.
    let freeze = |seed| {
        let trainable = Trainable::new(Seed::new(seed));
        (trainable.clone(), trainable.builder(&Device::Cpu))
    };
    let frozen = |trainable: &Trainable| {
        let tensors = trainable.tensors().into_iter().map(|(name, t)| (name, t.detach())).collect();
        candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
    };
    let (text_weights, vb) = freeze(1);
    TextTower::new(&text, vb).unwrap();
    let (codec_weights, vb) = freeze(2);
    LatentCodec::new(&codec, vb).unwrap();
    Base {
        prior: Prior {
            denoiser: StageC::new(&prior, weights.builder(DType::F32, &Device::Cpu)).unwrap(),
            text: TextTower::new(&text, frozen(&text_weights)).unwrap(),
            tokenizer,
            schedule: Schedule::default(),
            device: Device::Cpu,
        },
        codec: Codec::Desk(LatentCodec::new(&codec, frozen(&codec_weights)).unwrap()),
    }
}

fn requests() -> Vec<Request> {
    let prompts =
        ["a red square", "a blue circle left of a green star", "a large pink heart on a white background"];
    let request = |i: u64| Request { prompt: prompts[i as usize % 3].into(), index: i, seed: Seed::new(4) };
    (0..11).map(request).collect()
}

fn sampling(scale: f64, guidance_steps: GuidanceSteps) -> Sampling {
    Sampling {
        sampler: SamplerConfig { num_steps: 3, x0_clamp: Some(4.0) },
        guidance_scale: GuidanceScale::new(scale).unwrap(),
        unconditional_user: UnconditionalUser::Keep,
        guidance_steps,
    }
}

fn draw(base: &Base, requests: &[Request], threads: usize) -> Vec<Image> {
    let sampling = sampling(3.0, GuidanceSteps::ALL);
    sample(base, requests, &sampling, None, &Workers::new(threads).unwrap(), &|_| true).unwrap()
}

#[test]
fn an_image_depends_on_its_own_request_alone() {
    let (base, requests) = (base(), requests());
    let together = draw(&base, &requests, 1);
    assert_eq!(together.len(), requests.len());
    assert!(draw(&base, &requests, 3) == together, "the number of workers changed an image");
    for i in [0, 4, 10] {
        assert!(draw(&base, &requests[i..=i], 2)[0] == together[i], "image {i} differs alone");
    }
    assert!(together[0] != together[3], "the same prompt under other noise is another image");
}

fn steps(from: f64, to: f64, unconditional_every: usize) -> GuidanceSteps {
    GuidanceSteps {
        interval: TimestepRange::new(from, to).unwrap(),
        unconditional_every: unconditional_every.try_into().unwrap(),
    }
}

#[test]
fn guidance_that_is_left_out_saves_its_evaluations() {
    let (base, requests, two) = (base(), requests(), workers(2));
    let of = |scale: f64, steps: GuidanceSteps| {
        let before = base.prior.denoiser.evaluations();
        let images = sample(&base, &requests, &sampling(scale, steps), None, &two, &|_| true).unwrap();
        (images, (base.prior.denoiser.evaluations() - before) as usize / requests.len())
    };
    // Three steps, at timesteps 1, 2/3 and 1/3.
    let (published, evaluations) = of(3.0, GuidanceSteps::default());
    assert_eq!(evaluations, 6);
    assert!(of(3.0, steps(0.0, 1.0, 1)) == (published.clone(), 6), "the whole interval is no interval");
    let (unguided, evaluations) = of(1.0, GuidanceSteps::default());
    assert_eq!(evaluations, 3);
    assert!(of(3.0, steps(0.9, 0.95, 1)) == (unguided.clone(), 3), "an interval between the steps");
    for (steps, evaluations) in [
        (steps(0.5, 0.8, 1), 4),
        (steps(0.0, 0.8, 1), 5),
        (steps(0.0, 1.0, 2), 5),
        (steps(0.0, 1.0, 3), 4),
        (steps(0.0, 0.8, 2), 4),
    ] {
        let (images, counted) = of(3.0, steps);
        assert_eq!(counted, evaluations, "{steps:?}");
        assert!(images != published && images != unguided, "{steps:?}");
    }
}

#[test]
fn a_kept_half_is_that_of_the_step_that_evaluated_it() {
    let base = base();
    let Prior { denoiser, schedule, .. } = &base.prior;
    let prompts = [requests()[0].prompt.clone()];
    let scale = GuidanceScale::new(3.0).unwrap();
    let sampler = Sampler::new(*schedule, SamplerConfig { num_steps: 3, x0_clamp: None }).unwrap();
    let timesteps = sampler.timesteps().to_vec();
    let noise = |index| {
        let data = stream(Seed::new(2), "noise", index).normals(16 * 16);
        Tensor::from_vec(data, (1, 16, 4, 4), &Device::Cpu).unwrap()
    };
    for unconditional in [Unconditional::Zeros, Unconditional::Captions(vec!["a blue circle".into()])] {
        let task = Task {
            prompts: &prompts,
            unconditional: &unconditional,
            guidance_scale: scale,
            guidance_steps: steps(0.0, 1.0, 2),
            user: None,
        };
        let mut seen = Vec::new();
        let process = Process::Ddpm(sampler.clone());
        let draw = |step| Ok(noise(1 + step as u64));
        sample_latents(&base.prior, &process, &task, &noise(0), draw, |before, pred| {
            seen.push((before.clone(), pred.clone()));
            Ok(())
        })
        .unwrap();
        let conditional = base.prior.conditioning_tokens(&prompts).unwrap();
        let other = match &unconditional {
            Unconditional::Zeros => base.prior.zero_conditioning_tokens(1).unwrap(),
            Unconditional::Captions(captions) => base.prior.conditioning_tokens(captions).unwrap(),
        };
        let pred = |tokens: &Tensor, step: usize| {
            let text = denoiser.key_values(tokens).unwrap();
            let timestep = Tensor::full(timesteps[step].get() as f32, 1, &Device::Cpu).unwrap();
            denoiser.forward(&seen[step].0, &timestep, &text, None).unwrap()
        };
        let numbers = |xs: &Tensor| xs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // The half of step 1 is that of step 0; step 2 evaluates it again.
        for (step, evaluated) in [(0, 0), (1, 0), (2, 2)] {
            let expected = guide(&pred(&conditional, step), &pred(&other, evaluated), scale).unwrap();
            assert!(numbers(&expected) == numbers(&seen[step].1), "step {step}");
        }
    }
}

/// Pairs whose second image has brighter latents, and an objective that prefers it.
fn pairs(base: &Base, count: usize) -> Pairs {
    let mut noise = stream(Seed::new(9), "latents", 0);
    let data: Vec<f32> = (0..count)
        .flat_map(|_| {
            let first = noise.normals(16 * 16);
            let second: Vec<f32> = noise.normals(16 * 16).iter().map(|x| x + 0.7).collect();
            first.into_iter().chain(second).collect::<Vec<f32>>()
        })
        .collect();
    let captions: Vec<String> = (0..count).map(|i| requests()[i % 3].prompt.clone()).collect();
    Pairs {
        latents: Rows::Memory(Tensor::from_vec(data, (count, 2, 16, 4, 4), &Device::Cpu).unwrap()),
        tokens: Rows::Memory(base.prior.conditioning_tokens(&captions).unwrap()),
        caption: (0..count).collect(),
        empty: base.prior.conditioning_tokens(&[String::new()]).unwrap(),
        broken: std::collections::BTreeSet::new(),
        cut_captions: 0,
    }
}

fn settings(steps: usize) -> Settings {
    Settings {
        objective: serde_json::from_str::<objective::Config>(r#"{"kind": "dpo", "beta": 0.1}"#).unwrap(),
        adapter: adapter::Config {
            user_width: 2,
            num_tokens: 3,
            token_width: 8,
            projector_bias: false,
            projector_std: 1.0,
        },
        steps,
        pairs_per_step: 6,
        learning_rate: LearningRate {
            peak: 3e-3,
            warmup_steps: 2,
            warmup: Warmup::default(),
            decay: Decay::default(),
        },
        timesteps: TimestepRange::ALL,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        text_dropout: 0.1,
        user_dropout: 0.1,
    }
}

fn examples(count: usize, second_chosen: bool) -> Vec<Example> {
    (0..count).map(|pair| Example { pair, second_chosen, user: vec![1.0, 0.0] }).collect()
}

fn bytes(trained: &Trained) -> Vec<u8> {
    let flat = trained.tensors.values().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    flat.flat_map(f32::to_le_bytes).collect()
}

fn bench<'a>(
    base: &'a Base,
    pairs: &'a Pairs,
    reference: &'a ReferenceErrors,
    workers: &'a Workers,
) -> Bench<'a> {
    Bench { base, pairs, reference, workers, collective: &Alone }
}

/// The trained parameters' bytes and what each step measured.
fn run(bench: &Bench, examples: &[Example], steps: usize) -> (Vec<u8>, Vec<Step>) {
    let trained = fine_tune(bench, examples, &settings(steps), Seed::new(5), None, &mut |_| true).unwrap();
    (bytes(&trained), trained.trace)
}

fn workers(count: usize) -> Workers {
    Workers::new(count).unwrap()
}

#[test]
fn a_training_that_is_stopped_goes_on_to_the_same_bytes() {
    let base = base();
    let (pairs, examples) = (pairs(&base, 10), examples(10, true));
    let folder = tempfile::tempdir().unwrap();
    let (state, stored) = (folder.path().join("state.safetensors"), folder.path().join("reference.csv"));
    let config = Digest::of(b"this training");
    let keep = Keep { path: &state, config: &config, every: 2, read_only: false };
    let two = workers(2);
    let part = |last: u64| {
        // Each part opens everything anew, as another process would.
        let reference = ReferenceErrors::open(&stored).unwrap();
        let bench = bench(&base, &pairs, &reference, &two);
        let go_on = &mut |step: &Step| step.step < last;
        let trained = fine_tune(&bench, &examples, &settings(7), Seed::new(5), Some(&keep), go_on);
        reference.store().unwrap();
        trained
    };
    for last in [0, 3] {
        assert!(matches!(part(last), Err(Error::Stopped)));
        assert!(state.exists());
    }
    let resumed = part(u64::MAX).unwrap();
    assert!(!state.exists(), "a finished training leaves no state");

    let reference = ReferenceErrors::default();
    let one = workers(1);
    let (whole, trace) = run(&bench(&base, &pairs, &reference, &one), &examples, 7);
    assert_eq!(bytes(&resumed), whole);
    assert_eq!(resumed.trace, trace);
}

#[test]
fn training_gives_the_same_bytes_for_any_number_of_workers() {
    let base = base();
    let pairs = pairs(&base, 10);
    let (one, two) = (ReferenceErrors::default(), ReferenceErrors::default());
    let examples = examples(10, true);
    let (first, trace) = run(&bench(&base, &pairs, &one, &workers(1)), &examples, 4);
    let (second, again) = run(&bench(&base, &pairs, &two, &workers(3)), &examples, 4);
    assert_eq!(trace, again);
    assert_eq!(first, second);
    // The user branch starts at zero: the first loss is exactly ln 2, and nothing is preferred yet.
    assert!((trace[0].loss - std::f64::consts::LN_2).abs() < 1e-12, "{}", trace[0].loss);
    assert_eq!(trace[0].margin, Some(0.0));
}

#[test]
fn reference_errors_are_computed_once_whatever_the_labels_say() {
    let base = base();
    let pairs = pairs(&base, 10);
    let shared = ReferenceErrors::default();
    let two = workers(2);
    let with_shared = bench(&base, &pairs, &shared, &two);
    run(&with_shared, &examples(10, true), 3);
    let known = shared.len();
    assert_eq!(known, 18, "three steps of six visits");
    let (with_stored, _) = run(&with_shared, &examples(10, false), 3);
    assert_eq!(shared.len(), known, "the opposite labels visit the same draws");
    let fresh = ReferenceErrors::default();
    let (alone, _) = run(&bench(&base, &pairs, &fresh, &two), &examples(10, false), 3);
    assert_eq!(with_stored, alone, "stored reference errors changed the result");
}

#[test]
fn methods_that_visit_in_other_orders_evaluate_the_reference_once_for_each_pair_and_visit() {
    let base = base();
    let pairs = pairs(&base, 10);
    let two = workers(2);
    let forwards = examples(10, true);
    // The same pairs at other places of the epoch, one of them twice as often.
    let mut others: Vec<Example> = forwards.iter().rev().cloned().collect();
    others.push(forwards[3].clone());
    let evaluations = |reference: &ReferenceErrors, examples: &[Example]| {
        let start = base.prior.denoiser.evaluations();
        let result = run(&bench(&base, &pairs, reference, &two), examples, 3);
        (base.prior.denoiser.evaluations() - start, result)
    };
    let shared = ReferenceErrors::default();
    let policy = 3 * 6 * 2;
    let (first, _) = evaluations(&shared, &forwards);
    assert_eq!((first, shared.len()), (policy + 2 * 18, 18));
    let (second, with_some_known) = evaluations(&shared, &others);
    let new = shared.len() - 18;
    assert!((1..18).contains(&new), "{new} of 18 visits are new: the test needs some of each");
    assert_eq!(second, policy + 2 * new as u64, "what is known is not evaluated again");
    let (_, alone) = evaluations(&ReferenceErrors::default(), &others);
    assert!(with_some_known == alone, "an error depends on those that it was computed with");
}

#[test]
fn a_sweep_over_eight_betas_evaluates_the_reference_once() {
    let base = base();
    let pairs = pairs(&base, 10);
    let two = workers(2);
    let evaluations = || base.prior.denoiser.evaluations();
    let train = |reference: &ReferenceErrors, beta: f64| {
        let objective = serde_json::json!({"kind": "dpo", "beta": beta});
        let settings = Settings { objective: serde_json::from_value(objective).unwrap(), ..settings(3) };
        let bench = bench(&base, &pairs, reference, &two);
        fine_tune(&bench, &examples(10, true), &settings, Seed::new(5), None, &mut |_| true).unwrap();
    };
    let betas = [0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0];
    let start = evaluations();
    betas.into_iter().for_each(|beta| train(&ReferenceErrors::default(), beta));
    let apart = evaluations() - start;
    let shared = ReferenceErrors::default();
    betas.into_iter().for_each(|beta| train(&shared, beta));
    let together = evaluations() - start - apart;
    // Three steps of six pairs, two images each: policies eight times, the reference eight times or once.
    assert_eq!((apart, together), (16 * 36, 9 * 36));
}

#[test]
fn a_planted_preference_is_learned_and_its_opposite_too() {
    let base = base();
    let pairs = pairs(&base, 12);
    let reference = ReferenceErrors::default();
    let two = workers(2);
    let bench = bench(&base, &pairs, &reference, &two);
    for second_chosen in [true, false] {
        let (_, trace) = run(&bench, &examples(12, second_chosen), 40);
        let late: f64 = trace[30..].iter().map(|s| s.implicit_accuracy.unwrap()).sum::<f64>() / 10.0;
        assert!(late > 0.7, "implicit accuracy {late}");
    }
}

#[test]
fn an_example_of_a_pair_that_is_not_there_is_refused() {
    let base = base();
    let pairs = pairs(&base, 2);
    let reference = ReferenceErrors::default();
    let one = workers(1);
    let bench = bench(&base, &pairs, &reference, &one);
    let outcome = fine_tune(&bench, &examples(3, true), &settings(1), Seed::new(0), None, &mut |_| true);
    assert!(outcome.err().unwrap().to_string().contains("there are 2 pairs"));
    let outcome = fine_tune(&bench, &[], &settings(1), Seed::new(0), None, &mut |_| true);
    assert!(outcome.err().unwrap().to_string().contains("no pair is left"));
}

#[test]
fn ranks_that_share_each_batch_train_the_same_adapter() {
    let base = base();
    let (pairs, examples) = (pairs(&base, 10), examples(10, true));
    let reference = ReferenceErrors::default();
    let (alone, trace) = run(&bench(&base, &pairs, &reference, &workers(1)), &examples, 4);
    let numbers = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    };
    for count in [2, 3] {
        let results: Vec<(Vec<u8>, Vec<Step>)> = std::thread::scope(|scope| {
            let on_rank = |rank: Simulated| {
                let (base, pairs, examples) = (&base, &pairs, &examples);
                scope.spawn(move || {
                    let (reference, one) = (ReferenceErrors::default(), workers(1));
                    let bench = Bench { collective: &rank, ..bench(base, pairs, &reference, &one) };
                    let result = run(&bench, examples, 4);
                    assert_eq!(reference.len(), 24 / count, "a rank computes the errors of its share");
                    result
                })
            };
            let threads: Vec<_> = Simulated::ranks(count).into_iter().map(on_rank).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (bytes, of_rank) in &results {
            assert_eq!(bytes, &results[0].0, "{count} ranks hold one adapter");
            assert_eq!(of_rank, &results[0].1);
            // Sums in another order, four updates long; Adam divides by roots of tiny moments.
            let close = |a: f32, b: f32| (a - b).abs() <= 1e-5 + 1e-3 * b.abs();
            let off = numbers(bytes).iter().zip(numbers(&alone)).filter(|(a, b)| !close(**a, *b)).count();
            assert_eq!(off, 0, "{count} ranks");
            for (a, b) in of_rank.iter().zip(&trace) {
                assert!((a.loss - b.loss).abs() < 1e-5, "{} and {}", a.loss, b.loss);
            }
        }
    }
    let lonely = Simulated::ranks(4).remove(0);
    let one = workers(1);
    let bench = Bench { collective: &lonely, ..bench(&base, &pairs, &reference, &one) };
    let refused =
        fine_tune(&bench, &examples, &settings(1), Seed::new(5), None, &mut |_| true).err().unwrap();
    assert!(refused.to_string().contains("which 4 ranks do not divide"), "{refused}");
}
