//! Times what the program spends its hours in and prints one JSON object a measurement, in the form that
//! `benches/torch/twin.py` prints PyTorch's: `benches/side_by_side.py` runs the two in turn and compares them.
//!
//! ```sh
//! cargo bench --bench ppd -- --list
//! cargo bench --bench ppd -- step sample --inputs DIR --threads 2     # DIR: `twin.py --export DIR`
//! cargo bench --bench ppd -- linear attention bca
//! ```

mod full;
mod measured;
mod ops;
mod pictures;
mod stage_c;
mod statistics;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

use measured::Measured;

/// As in the program: its allocator is part of its speed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// The measurements, all where none is named
    names: Vec<String>,
    /// Prints their names
    #[arg(long)]
    list: bool,
    /// The folder that the PyTorch twin exported; `step`, `step-cached`, `sample` and `encode` need it
    #[arg(long)]
    inputs: Option<PathBuf>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Measured repetitions of each, after those that warm up
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// The GPU of the full-size measurements
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// Pairs of a full-size step, and of each of its micro-batches
    #[arg(long, default_value_t = 8)]
    pairs: usize,
    #[arg(long, default_value_t = 4)]
    micro_batch: usize,
    /// Sampler steps
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn inputs(&self) -> Result<&PathBuf> {
        self.inputs.as_ref().context("this measurement needs --inputs, the folder that twin.py --export made")
    }

    fn full(&self, cached: bool) -> Result<Measured> {
        let device = candle_core::Device::new_cuda_with_stream(self.gpu)?;
        full::step(&device, self.pairs, self.micro_batch, self.reps, cached)
    }
}

type Bench = fn(&Arguments) -> Result<Measured>;

const BENCHES: &[(&str, Bench)] = &[
    ("step", |a| stage_c::step(a.inputs()?, a.threads, a.reps, false)),
    ("step-cached", |a| stage_c::step(a.inputs()?, a.threads, a.reps, true)),
    ("sample", |a| stage_c::sample(a.inputs()?, a.threads, a.reps, a.steps)),
    ("preprocess", |a| pictures::preprocess(a.reps)),
    ("encode", |a| pictures::encode(a.inputs()?, a.threads, a.reps)),
    ("linear", |a| ops::linear(a.reps)),
    ("pointwise-conv", |a| ops::pointwise_conv(a.reps)),
    ("depthwise-conv", |a| ops::depthwise_conv(a.reps)),
    ("layer-norm", |a| ops::layer_norm(a.reps)),
    ("grn", |a| ops::grn(a.reps)),
    ("gelu", |a| ops::gelu(a.reps)),
    ("gelu-grn", |a| ops::gelu_grn(a.reps)),
    ("modulate", |a| ops::modulate(a.reps)),
    ("attention", |a| ops::attention(a.reps)),
    ("squared-error", |a| ops::squared_error(a.reps)),
    ("bca", |a| statistics::bca(a.reps, 1)),
    ("bca-parallel", |a| statistics::bca(a.reps, a.threads)),
    // On a GPU, and only where asked for by name.
    ("full-step", |a| a.full(false)),
    ("full-step-cached", |a| a.full(true)),
    ("full-rate", |a| full::rate(&candle_core::Device::new_cuda_with_stream(a.gpu)?, a.reps)),
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        BENCHES.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    if let Some(unknown) = arguments.names.iter().find(|name| !BENCHES.iter().any(|(known, _)| known == name))
    {
        anyhow::bail!("unknown measurement {unknown:?}; --list prints the known ones");
    }
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    for (name, bench) in BENCHES {
        let by_default = arguments.names.is_empty() && !name.starts_with("full-");
        if by_default || arguments.names.iter().any(|asked| asked == name) {
            bench(&arguments).with_context(|| (*name).to_owned())?.print(name, arguments.gpu);
        }
    }
    Ok(())
}
