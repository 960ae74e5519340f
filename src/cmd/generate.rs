//! `ppd generate`: images for prompts, with or without a trained user, into a folder or onto one sheet.

mod model;
mod pictures;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::cell::{CONSTANT_USER, sampling};
use super::{Global, Verdict, progress, terminal};
use crate::adapter::Adapter;
use crate::base::Base;
use crate::checkpoint::open_adapter;
use crate::data::{images, prompts};
use crate::error::{Error, Result, nearest};
use crate::generate::{Request, sample};
use crate::image::{self, Cell, Sheet};
use crate::launch::Look;
use crate::provenance::Provenance;
use crate::spec::{Condition, Spec};
use crate::units::Seed;

/// What the command takes besides the options of every command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// What the images should show
    #[arg(value_name = "PROMPT", required_unless_present_any = ["prompts", "model"])]
    texts: Vec<String>,
    /// Prompts from a file in PartiPrompts' columns, or `validation` for the profile's own
    #[arg(long, value_name = "FILE.tsv", conflicts_with = "texts")]
    prompts: Option<String>,
    /// How many of the file's prompts, from the first
    #[arg(long, value_name = "N", requires = "prompts", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Images of each prompt, with noise seeds that follow each other
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
    /// The first noise seed
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    noise_seed: u64,
    /// The study whose [sample] settings, users and methods are meant
    #[arg(long, default_value = "table1", value_name = "STUDY")]
    study: String,
    /// A method of the study, with the adapter that a run left in the cache
    #[arg(long, value_name = "NAME", conflicts_with = "adapter")]
    method: Option<String>,
    /// An adapter's file
    #[arg(long, value_name = "FILE.safetensors")]
    adapter: Option<PathBuf>,
    /// The user: a reward, or a mixture such as clip=0.50+aesthetic=0.50; with --model, the user's coordinates with commas
    /// between, or FILE.safetensors:NAME [default: none]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Write every image, and `images.csv`, into this folder
    #[arg(long, value_name = "DIR", required_unless_present = "grid")]
    out: Option<PathBuf>,
    /// Write one sheet with all images over their prompts
    #[arg(long, value_name = "FILE.png", conflicts_with = "model")]
    grid: Option<PathBuf>,
    #[command(flatten)]
    model: model::Arguments,
}

const EXAMPLES: &str = "\
Examples:
  ppd generate \"a large red star left of a small blue ring\" --grid star.png
  ppd generate --prompts validation --count 16 --grid base.png
  ppd generate --prompts validation --count 64 --out images --method ppd --user aesthetic
  ppd generate \"a green heart\" --images 8 --grid hearts.png --set sample.guidance_scale=4
  ppd generate --model stable-cascade-prior --prompt \"a small town by the sea\" --out town
  ppd generate --model stable-cascade-prior --decoder stable-cascade --prompt \"a small town\" --out town";

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    if let (Some(model), Some(out)) = (&arguments.model.model, &arguments.out) {
        let adapter = arguments.adapter.as_deref().map(|file| (file, arguments.user.as_deref()));
        return model::run(&arguments.model, model, adapter, out, global);
    }
    let spec = Spec::load(&global.request(&arguments.study))?;
    let compute = global.compute()?;
    let base = compute.base(&spec.profile, &global.assets, None)?;
    let adapter = adapter(arguments, global, &spec, &base)?;
    let condition: Condition = arguments.user.as_deref().unwrap_or("none").parse()?;
    let user = user(&condition, &spec, adapter.as_ref())?;
    let requests = requests(arguments, global, &spec)?;
    log_look(&requests, global, &spec)?;

    let progress = progress(global)?;
    progress.begin("sample", requests.len());
    let user = adapter.as_ref().zip(user.as_deref());
    let pictures = sample(&base, &requests, &sampling(&spec.sample), user, &compute.workers, &|count| {
        progress.advance(count);
        !progress.stopping()
    })?;
    progress.check()?;
    drop(progress);

    if let Some(path) = &arguments.grid {
        let cells: Vec<Cell> = pictures
            .iter()
            .zip(&requests)
            .map(|(picture, request)| Cell::new(picture).caption(request.prompt.as_str()))
            .collect();
        let columns = cells.len().min(8).max(usize::from(cells.len() > 1) * 2);
        let sheet = Sheet { columns, scale: 2, text: 1, ..Sheet::default() };
        image::write(path, &sheet.draw(&cells)?)?;
        terminal::say(global.quiet, &format!("{} images on {}", pictures.len(), path.display()));
    }
    if let Some(folder) = &arguments.out {
        let made: Vec<images::Entry> = requests
            .iter()
            .enumerate()
            .map(|(i, request)| images::Entry {
                file: format!("{i:05}.png"),
                prompt: request.prompt.clone(),
                noise_seed: request.seed.get(),
                user: condition.to_string(),
            })
            .collect();
        images::write(folder, &made, &pictures)?;
        terminal::say(global.quiet, &format!("{} images in {}", pictures.len(), folder.display()));
    }
    Ok(Verdict::Done)
}

/// The adapter that was asked for: a file, or what a method's training left in the cache.
fn adapter(arguments: &Arguments, global: &Global, spec: &Spec, base: &Base) -> Result<Option<Adapter>> {
    let open = |path: &Path| {
        open_adapter(path, &base.prior.denoiser.config().attention_blocks(), &base.prior.device).map(Some)
    };
    if let Some(path) = &arguments.adapter {
        return open(path);
    }
    let Some(name) = &arguments.method else { return Ok(None) };
    if spec.method(name).is_none() {
        let names: Vec<&str> = spec.methods.iter().map(|method| method.name.as_str()).collect();
        let near = nearest(name, names.iter().copied());
        return Err(Error::Spec(format!(
            "{}: no method `{name}`, expected one of {}{}",
            spec.name,
            names.join(", "),
            near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
        )));
    }
    let plan = spec.resolve(&global.places())?;
    let cell = plan.cells.iter().find(|cell| cell.method.name == *name);
    let Some(key) = cell.and_then(|cell| cell.train_key.as_deref()) else { return Ok(None) };
    let path = plan.places.training(key).join("adapter.safetensors");
    if !path.exists() {
        return Err(Error::Spec(format!(
            "method {name}: {} is not there; train it with `ppd reproduce {}`, or name a file with --adapter",
            path.display(),
            spec.name
        )));
    }
    open(&path)
}

/// The vector that the adapter is told.
fn user(condition: &Condition, spec: &Spec, adapter: Option<&Adapter>) -> Result<Option<Vec<f32>>> {
    let users = &spec.rewards.users;
    let Some(adapter) = adapter else {
        if condition.is_none() {
            return Ok(None);
        }
        return Err(Error::Spec(format!(
            "--user {condition}: the base knows no users; name an adapter with --method or --adapter"
        )));
    };
    match adapter.config().user_width {
        1 if condition.is_none() => Ok(Some(CONSTANT_USER.to_vec())),
        width if width == users.len() => {
            Ok(Some(condition.weights(users)?.iter().map(|&weight| weight as f32).collect()))
        }
        1 => Err(Error::Spec(format!("--user {condition}: this adapter was trained without users"))),
        width => Err(Error::Spec(format!(
            "the adapter's users have {width} coordinates, study {} has {} users ({}); name its study with --study",
            spec.name,
            users.len(),
            users.join(", ")
        ))),
    }
}

/// Logs a look at the test prompts, where one of them is among the requests.
fn log_look(requests: &[Request], global: &Global, spec: &Spec) -> Result<()> {
    let test = prompts::read(&spec.profile.data_in(&global.assets, "test")?)?.prompts;
    let texts: HashSet<&str> = test.iter().map(|prompt| prompt.text.as_str()).collect();
    if !requests.iter().any(|request| texts.contains(request.prompt.as_str())) {
        return Ok(());
    }
    let outputs = [global.results.as_path(), &global.figures];
    let (provenance, _) = Provenance::gather(Path::new("."), &outputs, global.threads(), "")?;
    let look = Look { study: "ppd generate", profile: &spec.label, cells: 0, seeds: &[] };
    look.log(&global.results, provenance.git.as_ref())
}

fn requests(arguments: &Arguments, global: &Global, spec: &Spec) -> Result<Vec<Request>> {
    let texts = match arguments.prompts.as_deref() {
        None => arguments.texts.clone(),
        Some(name) => {
            let path = match name {
                "validation" => spec.profile.data_in(&global.assets, name)?,
                path => PathBuf::from(path),
            };
            let all = prompts::read(&path)?.prompts;
            let count = arguments.count.map_or(all.len(), |count| count as usize);
            if count > all.len() {
                return Err(Error::data(
                    &path,
                    format!("holds {} prompts, --count asks for {count}", all.len()),
                ));
            }
            all.into_iter().take(count).map(|prompt| prompt.text).collect()
        }
    };
    let seeds = arguments.noise_seed..arguments.noise_seed + u64::from(arguments.images);
    let of_prompt = |(index, prompt): (usize, &String)| {
        let (index, prompt) = (index as u64, prompt.clone());
        seeds.clone().map(move |seed| Request { prompt: prompt.clone(), index, seed: Seed::new(seed) })
    };
    Ok(texts.iter().enumerate().flat_map(of_prompt).collect())
}
