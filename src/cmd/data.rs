//! `ppd data make|score|show|inspect`: the desk's preference pairs, what rewards say of them, how they look; and what
//! is in anybody's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::device::Compute;
use super::image_store::ImageStore;
use super::{Global, Verdict, progress, terminal};
use crate::data::desk::calibrate::{PICK_A_PIC, calibrate};
use crate::data::desk::{self, Judged, Jury, Pair, Sample};
use crate::data::scores::Scores;
use crate::data::{Preference, Split, pick_a_pic, scores, show};
use crate::diffusion::{GuidanceSteps, SamplerConfig, UnconditionalUser};
use crate::error::Result;
use crate::generate::{Request, Sampling, sample};
use crate::image::{self, Format};
use crate::pixels::Image;
use crate::progress::Progress;
use crate::provenance::file_digest;
use crate::record::replace_file;
use crate::report;
use crate::rng::stream;
use crate::scenes::population::{Config, Kind, Population};
use crate::scenes::{self, ObjectWeights, sample_scene};
use crate::spec::{Profile, Spec, weights_digest};
use crate::units::{Digest, GuidanceScale, Seed};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Sample pairs from the base model and let simulated users choose, then score them
    Make {
        /// How many pairs
        #[arg(long, default_value_t = 3000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
        pairs: u32,
        /// The seed of captions, noise and choices
        #[arg(long, default_value_t = 31, value_name = "SEED")]
        seed: u64,
        /// Sampler steps
        #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        num_steps: u32,
    },
    /// Score every picture of the pairs with the profile's rewards: the paper's relabelling
    Score,
    /// Count what is in a data set of pairs, what of it is used and why not the rest, its parts and its users' groups
    Inspect(super::inspect::Arguments),
    /// Draw pairs with their captions and labels
    Show {
        /// The picture to write
        #[arg(long, value_name = "FILE.png")]
        grid: PathBuf,
        /// How many pairs, spread over the file
        #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        pairs: u32,
    },
}

impl Arguments {
    /// Whether results are all that it leaves behind.
    pub(super) fn prints(&self) -> bool {
        matches!(self.action, Action::Inspect(_))
    }
}

/// Guidance scales that pairs are sampled with: alignment and style vary with them.
const GUIDANCE: [f64; 3] = [1.5, 2.5, 4.0];
/// How many simulated users stand behind the raw labels.
const USERS: usize = 200;
/// How often captions have one, two and three objects.
const OBJECTS: ObjectWeights = [0.5, 0.3, 0.2];

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    if let Action::Inspect(arguments) = &arguments.action {
        return super::inspect::run(arguments, global);
    }
    let profile = Spec::load(&global.request("table1"))?.profile;
    let path = profile.data_in(&global.assets, "pairs")?;
    match arguments.action {
        Action::Make { pairs, seed, num_steps } => {
            let progress = progress(global)?;
            let compute = global.compute()?;
            let recipe = Recipe::new(&profile, global, (pairs, seed, num_steps))?;
            let judged = make(&recipe, &profile, global, &compute, &progress)?;
            let made = label(recipe, &judged, &profile, global, &compute, &progress)?;
            drop(progress);
            made.write(&path)?;
            scores::write_judges(&scores_path(&path), &judges(&profile, global, &made.scores)?)?;
            terminal::say(global.quiet, &format!("{} pairs in {}", judged.len(), path.display()));
        }
        Action::Score => {
            let progress = progress(global)?;
            let compute = global.compute()?;
            let preferences = load(&path)?;
            let scores = score(&preferences, &path, &profile, global, &compute, &progress)?;
            scores::write(scores_path(&path), &preferences, &scores)?;
            scores::write_judges(&scores_path(&path), &judges(&profile, global, &scores)?)?;
        }
        Action::Inspect(_) => return Ok(Verdict::Done),
        Action::Show { ref grid, pairs } => return draw(&path, grid, pairs as usize, global),
    }
    describe(&path, global)?;
    Ok(Verdict::Done)
}

/// How the pairs were made, `pairs.json` beside them.
#[derive(Debug, Clone, Serialize)]
struct Recipe {
    pairs: u32,
    /// Of captions, noise, guidance, users and choices.
    seed: Seed,
    num_steps: u32,
    guidance_scales: [f64; 3],
    /// How often captions have one, two and three objects.
    objects: ObjectWeights,
    x0_clamp: f64,
    jpeg_quality: u8,
    users: usize,
    /// The weights that sampled them, by name.
    weights: BTreeMap<String, Digest>,
    /// The users behind the raw labels, calibrated to Pick-a-Pic's agreements.
    population: Option<Config>,
}

impl Recipe {
    fn new(profile: &Profile, global: &Global, (pairs, seed, num_steps): (u32, u64, u32)) -> Result<Self> {
        let mut weights = BTreeMap::new();
        for name in ["denoiser", "text-encoder", "codec"] {
            weights.insert(name.to_owned(), file_digest(&profile.weights_in(&global.assets, name)?)?);
        }
        Ok(Self {
            pairs,
            seed: Seed::new(seed),
            num_steps,
            guidance_scales: GUIDANCE,
            objects: OBJECTS,
            x0_clamp: X0_CLAMP,
            jpeg_quality: QUALITY,
            users: USERS,
            weights,
            population: None,
        })
    }
}

/// Samples the pairs, or finds them in the cache, and measures them.
fn make(
    recipe: &Recipe,
    profile: &Profile,
    global: &Global,
    compute: &Compute,
    progress: &Progress,
) -> Result<Vec<Judged>> {
    let _cache = global.use_cache()?;
    let base = compute.base(profile, &global.assets, None)?;
    let (seed, count) = (recipe.seed, recipe.pairs as usize);
    let captions: Vec<String> = (0..count as u64)
        .map(|i| sample_scene(&mut stream(seed, "pair caption", i), OBJECTS, scenes::Split::Train).caption())
        .collect();
    // Image 2·i + side of pair i; each has a guidance of its own.
    let guidance: Vec<usize> =
        (0..2 * count as u64).map(|i| stream(seed, "pair guidance", i).below(GUIDANCE.len())).collect();
    let mut images: Vec<Option<Image>> = vec![None; 2 * count];
    progress.begin("sample pairs", 2 * count);
    for (kind, &scale) in GUIDANCE.iter().enumerate() {
        let places: Vec<usize> = (0..2 * count).filter(|&i| guidance[i] == kind).collect();
        let sampling = Sampling {
            sampler: SamplerConfig { num_steps: recipe.num_steps as usize, x0_clamp: Some(X0_CLAMP) },
            guidance_scale: GuidanceScale::new(scale)?,
            unconditional_user: UnconditionalUser::Keep,
            guidance_steps: GuidanceSteps::ALL,
        };
        let from = serde_json::json!({
            "schema": 2, "weights": recipe.weights, "sampling": sampling, "objects": OBJECTS,
        });
        let store = ImageStore::new(&global.cache, "pair-images", &profile.complete(from));
        for places in places.chunks(64) {
            let requests: Vec<Request> = places
                .iter()
                .map(|&i| Request { prompt: captions[i / 2].clone(), index: i as u64, seed })
                .collect();
            let made = store.get(&requests, |missing| {
                let made =
                    sample(&base, missing, &sampling, None, &compute.workers, &|_| !progress.stopping())?;
                progress.check()?;
                Ok(made)
            })?;
            progress.advance(places.len());
            for (&place, image) in places.iter().zip(made) {
                images[place] = Some(image);
            }
        }
    }
    let model = &profile.name;
    let num_steps = recipe.num_steps;
    let mut images = images.into_iter().enumerate().map(|(i, image)| Sample {
        image: image.expect("every guidance scale was sampled"),
        model: format!("{model}-base"),
        origin: format!("seed={}&index={i}&guidance={}&steps={num_steps}", seed.get(), GUIDANCE[guidance[i]]),
    });
    let mut pairs = Vec::with_capacity(count);
    for caption in captions {
        let (Some(first), Some(second)) = (images.next(), images.next()) else { break };
        pairs.push(Pair { caption, samples: [first, second] });
    }
    desk::judge(&pairs, Format::Jpeg(QUALITY))
}

/// Pairs with labels and scores, ready to be written.
struct Labelled {
    preferences: Vec<Preference>,
    scores: Scores,
    recipe: Recipe,
}

/// Scores the pairs, calibrates the users to the rewards' agreements, and lets them choose.
fn label(
    mut recipe: Recipe,
    judged: &[Judged],
    profile: &Profile,
    global: &Global,
    compute: &Compute,
    progress: &Progress,
) -> Result<Labelled> {
    let jury = Jury { users: USERS, seed: recipe.seed };
    let start = Config { reference: desk::reference(judged), ..Config::of(Kind::Pick) };
    let labelled = |config: &Config| {
        let population = Population::with(recipe.seed, Kind::Pick, config.clone());
        desk::preferences(judged, &population, jury)
    };
    let scores = score(&labelled(&start), Path::new("pairs"), profile, global, compute, progress)?;
    let config = calibrate(judged, &scores, &start, jury, &PICK_A_PIC)?;
    let preferences = labelled(&config);
    recipe.population = Some(config);
    Ok(Labelled { preferences, scores, recipe })
}

impl Labelled {
    /// Writes the pairs, their scores and their recipe.
    fn write(&self, path: &Path) -> Result<()> {
        desk::write(path, &self.preferences)?;
        scores::write(scores_path(path), &self.preferences, &self.scores)?;
        let recipe = serde_json::to_string_pretty(&self.recipe).expect("a recipe is plain data") + "\n";
        replace_file(&path.with_extension("json"), recipe.as_bytes())
    }
}

/// JPEG quality of stored pictures: as PNG, three thousand pairs would take 37 MB.
const QUALITY: u8 = 92;

/// The clamp of clean latents while pairs are sampled, as in the studies.
const X0_CLAMP: f64 = 4.0;

fn load(path: &Path) -> Result<Vec<Preference>> {
    pick_a_pic::load(path, Split::Train, pick_a_pic::Columns::All)
}

fn scores_path(path: &Path) -> PathBuf {
    path.with_extension("scores.csv")
}

/// Scores every picture with every reward of the profile that has weights, and with the measured ones; `origin` names
/// the pairs in messages.
fn score(
    preferences: &[Preference],
    origin: &Path,
    profile: &Profile,
    global: &Global,
    compute: &Compute,
    progress: &Progress,
) -> Result<Scores> {
    let scorers = super::score::open(profile, global, &compute.device, &|note| progress.note(note))?;
    let names = scorers.names();
    progress.begin("score pairs", preferences.len());
    let mut values = vec![Vec::with_capacity(preferences.len()); names.len()];
    for chunk in preferences.chunks(64) {
        let mut images = Vec::with_capacity(2 * chunk.len());
        let mut prompts = Vec::with_capacity(2 * chunk.len());
        for pair in chunk {
            for side in 0..2 {
                images.push(pair.image(side, origin)?);
                prompts.push(pair.caption.clone());
            }
        }
        let scored = scorers.score(&images, &prompts, &compute.workers)?;
        for sides in scored.chunks_exact(2) {
            for (name, values) in names.iter().zip(&mut values) {
                values.push([sides[0][name], sides[1][name]]);
            }
        }
        progress.advance(chunk.len());
        progress.check()?;
    }
    let mut all = Scores::new();
    for (name, values) in names.iter().zip(values) {
        all.insert(name, values)?;
    }
    Ok(all)
}

/// The weights behind each reward among the scores.
fn judges(profile: &Profile, global: &Global, scores: &Scores) -> Result<BTreeMap<String, Digest>> {
    let by_weights = scores.rewards().iter().filter_map(|name| Some((name, profile.weights.get(name)?)));
    by_weights
        .map(|(name, file)| Ok((name.clone(), weights_digest(&global.assets.join(file), &profile.name)?)))
        .collect()
}

/// Prints what the rewards say of the pairs, and leaves it among the figures.
fn describe(path: &Path, global: &Global) -> anyhow::Result<()> {
    let preferences = load(path)?;
    let output = report::pairs::render(&preferences, &scores::read(scores_path(path), &preferences)?, path)?;
    for (_, table) in &output.tables {
        println!("{}", table.markdown());
    }
    report::write(&[output], &global.figures.join("pairs"))?;
    Ok(())
}

fn draw(path: &Path, grid: &Path, count: usize, global: &Global) -> anyhow::Result<Verdict> {
    let preferences = load(path)?;
    let scores = scores_path(path);
    let scores = scores.exists().then(|| scores::read(&scores, &preferences)).transpose()?;
    let count = count.min(preferences.len());
    let places: Vec<usize> = (0..count).map(|i| i * preferences.len() / count).collect();
    image::write(grid, &show::sheet(&preferences, scores.as_ref(), &places, 3, path)?)?;
    terminal::say(global.quiet, &format!("{count} of {} pairs in {}", preferences.len(), grid.display()));
    Ok(Verdict::Done)
}
