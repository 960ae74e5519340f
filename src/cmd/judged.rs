//! After a study of people: its judges are asked about the images that were kept, and about users' own choices.
//!
//! Leaves, for each judge and each set of questions, `judged/<judge>/<set>.csv` beside the cells, a row for each call, and
//! `<set>.truth.csv`, what is true of each pair. Sets: `pairs` (images of the study), and choices of users that no other part of
//! the study has seen, foreseen after their `own` choices, a `mismatched` user's, or `none`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::Device;

use super::{Global, terminal};
use crate::data::desk::users::Choice;
use crate::embed::choices::Choices;
use crate::error::{Error, Result};
use crate::judge::{Asked, Cache, Caps, Config, Judge, Picture, Plan as Questions, Protocol, Shot, Template};
use crate::judgement::truth::{self, Truth};
use crate::judgement::{self, Row};
use crate::progress::Progress;
use crate::record::replace_file;
use crate::report::fig5::{self, Made};
use crate::report::judged::{FOLDER, MISMATCHED, NONE, OWN, PAIRS};
use crate::report::people::mismatched;
use crate::report::study::{Design, Study};
use crate::scenes::tastes::Kind;
use crate::spec::users::{self as people, Users, Words};
use crate::spec::{Plan, Prompts};

/// The folder of answers below that of --cache.
const CACHE: &str = "judge";

/// Asks every judge of the plan's people.
///
/// # Errors
/// Where a judge cannot be opened or asked, an image that was kept was changed, or the disk refuses.
pub(super) fn run(plan: &Plan, global: &Global, progress: &Progress) -> Result<()> {
    let Some(spec) = plan.spec.users.as_ref().filter(|users| !users.judges.is_empty()) else { return Ok(()) };
    let study = Study::load(Design::of(&plan.spec)?, &plan.folder)?;
    let own_prompts = plan.spec.data.prompts == Prompts::Own;
    let bench = Bench::new((spec, own_prompts), &study, super::people::choices(plan, progress)?)?;
    for judge in &spec.judges {
        progress.enter(&format!("judge {}", judge.name));
        let folder = plan.folder.join(FOLDER).join(&judge.name);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let opened = open(judge, plan, global, progress)?;
        let mut caps = Caps { calls: judge.max_calls, tokens: None, cost: judge.max_cost };
        let protocol = Protocol {
            template: match judge.words {
                Words::Default => Template::default(),
                Words::Desk => Template::parse(Template::DESK, "experiments/prompts/judge-desk.txt")?,
            },
            seed: spec.seed,
            ..Protocol::default()
        };
        for set in [PAIRS, OWN, MISMATCHED, NONE] {
            let (asked, truths) = match set {
                PAIRS => bench.images(judge)?,
                _ => bench.choices(judge, set)?,
            };
            let repeats = if set == PAIRS { 1 } else { judge.repeats as u32 };
            let rows = ask(
                &opened,
                &Protocol { repeats, ..protocol.clone() },
                &asked,
                (global, progress),
                &mut caps,
            )?;
            let store = |name: String, text: String| replace_file(&folder.join(name), text.as_bytes());
            store(format!("{set}.truth.csv"), truth::write(&truths)?)?;
            store(format!("{set}.csv"), judgement::write(&rows)?)?;
        }
    }
    let names: Vec<&str> = spec.judges.iter().map(|judge| judge.label.as_str()).collect();
    terminal::say(global.quiet, &format!("judged by {}", names.join(", ")));
    Ok(())
}

/// Refuses a judge that could not be asked in the end: before anything is trained, and without asking it anything.
///
/// # Errors
/// Where a key or the files of a model are missing.
pub(super) fn check(plan: &Plan) -> Result<()> {
    for judge in plan.spec.users.iter().flat_map(|users| &users.judges) {
        if let config @ Config::OpenAi(_) = config(judge, plan)? {
            Judge::open(config, &Device::Cpu, |name| std::env::var(name).ok())?;
        }
    }
    Ok(())
}

/// How a judge is asked, its folder found.
fn config(judge: &people::Judge, plan: &Plan) -> Result<Config> {
    let origin = format!("{}: users.judges: {}", plan.spec.name, judge.name);
    let text = toml::to_string(&judge.judge).map_err(|fault| Error::Spec(format!("{origin}: {fault}")))?;
    let mut config = Config::parse(&text, &origin)?;
    if let Config::Vlm(vlm) = &mut config {
        let is_artefact = plan.spec.profile.names_artefact(&vlm.folder);
        vlm.folder = plan.spec.profile.reader_in(&plan.places.assets, &vlm.folder)?;
        if !is_artefact {
            people::there(&vlm.folder.join("model.safetensors"))?;
        }
    }
    Ok(config)
}

fn open(judge: &people::Judge, plan: &Plan, global: &Global, progress: &Progress) -> Result<Judge> {
    let device = super::device::Compute::alone(global.device, global.threads())?.device;
    let mut opened = Judge::open(config(judge, plan)?, &device, |name| std::env::var(name).ok())?;
    opened.prepare(Some(&global.cache.join(CACHE)), progress)?;
    Ok(opened)
}

/// Every call's row; answers that were given before are not asked for again. What was spent, then or now, is taken off `caps`,
/// which hold for all sets of questions together.
fn ask(
    judge: &Judge,
    protocol: &Protocol,
    asked: &[Asked],
    (global, progress): (&Global, &Progress),
    caps: &mut Caps,
) -> Result<Vec<Row>> {
    let folder = global.cache.join(CACHE);
    let cache = match judge.is_kept() {
        true => Some(Cache::open(&folder, &judge.identity().digest())?),
        false => None,
    };
    let questions = Questions::new(judge, protocol, asked, cache.as_ref())?;
    let judged = questions.ask(*caps, progress)?;
    let spent = judged.before.plus(judged.spent);
    caps.calls = caps.calls.map(|most| most.saturating_sub(spent.calls));
    caps.cost = caps.cost.map(|most| (most - spent.cost).max(0.0));
    Ok(judged.rows)
}

/// All that judges of a study are shown.
struct Bench<'a> {
    spec: &'a Users,
    choices: Choices,
    /// The kept images of the first training seed.
    kept: HashMap<(Made, u32, u64), Picture>,
    /// What each prompt says.
    prompts: BTreeMap<u32, String>,
    questions: Vec<fig5::Question>,
    /// For each evaluated user another one of her kind.
    strangers: BTreeMap<i64, i64>,
    /// Whether each user has prompts of her own.
    own_prompts: bool,
}

impl<'a> Bench<'a> {
    fn new((spec, own_prompts): (&'a Users, bool), study: &Study, choices: Choices) -> Result<Self> {
        let (mut kept, mut prompts) = (HashMap::new(), BTreeMap::new());
        let mut seeds: BTreeMap<&str, u64> = BTreeMap::new();
        for picture in &study.pictures {
            let first = *seeds.entry(&picture.method).or_insert(picture.train_seed);
            if picture.train_seed != first {
                continue;
            }
            let one = &picture.kept;
            // A text may have a profile behind the prompt; the shortest is the prompt.
            let text = prompts.entry(one.prompt).or_insert_with(|| one.text.clone());
            if one.text.len() < text.len() {
                text.clone_from(&one.text);
            }
            let made: Made = (picture.method.clone(), one.condition.clone());
            let name = format!("{}/{}/{}/{}", made.0, made.1, one.prompt, one.noise_seed);
            let path = picture.folder.join("images").join(&one.file);
            // Its digest is compared with the record's. The desk's are small, and stay in memory.
            let bytes = picture.png()?;
            let picture = match spec.choices.is_simulated() {
                true => Picture::new(name, crate::image::decode(&bytes, &path)?),
                false => Picture::open(name, path)?,
            };
            kept.insert((made, one.prompt, one.noise_seed), picture);
        }
        let of_kind = |kind| mismatched(spec, &spec.evaluated(kind).collect::<Vec<i64>>());
        let strangers = [Kind::Seen, Kind::Unseen].into_iter().flat_map(of_kind).collect();
        let questions = fig5::questions(study);
        Ok(Self { spec, choices, kept, prompts, questions, strangers, own_prompts })
    }

    /// Both sides of the pairs that some choices are between, by the number of the pair.
    fn samples<'c>(
        &self,
        choices: impl IntoIterator<Item = &'c Choice>,
    ) -> Result<HashMap<usize, [Picture; 2]>> {
        let samples = self.choices.gallery.pictures(choices)?.into_iter().map(|(pair, images)| {
            let place = self.choices.place(pair);
            let side = |side: usize| Picture::new(format!("pair-{place}/{side}"), images[side].clone());
            (pair, [side(0), side(1)])
        });
        Ok(samples.collect())
    }

    /// What a judge is shown of a user.
    fn shots(&self, judge: &people::Judge, user: i64) -> Result<Arc<[Shot]>> {
        let block = self.choices.block(user, judge.block)?;
        let told = &block[..judge.shots.min(block.len())];
        let samples = self.samples(told)?;
        let shots = told.iter().map(|choice| Shot {
            caption: self.choices.gallery.caption(choice.pair).to_owned(),
            chosen: samples[&choice.pair][choice.chosen].clone(),
            rejected: samples[&choice.pair][1 - choice.chosen].clone(),
        });
        Ok(shots.collect())
    }

    /// The study's images for each user, over others.
    fn images(&self, judge: &people::Judge) -> Result<(Vec<Asked>, Vec<Truth>)> {
        let (mut asked, mut truths) = (Vec::new(), Vec::new());
        let mut known: HashMap<i64, Arc<[Shot]>> = HashMap::new();
        let mut seen = std::collections::HashSet::new();
        for one in &self.questions {
            let wanted = judge.over.as_ref().is_none_or(|over| over.contains(&one.over))
                && judge.prompts.is_none_or(|most| self.own_prompts || (one.prompt as usize) < most);
            let picture = |made: &Made| self.kept.get(&(made.clone(), one.prompt, one.noise));
            let (true, Some(left), Some(right)) = (wanted, picture(&one.left), picture(&one.right)) else {
                continue;
            };
            let shots = match known.get(&one.user) {
                Some(shots) => shots.clone(),
                None => known.entry(one.user).or_insert(self.shots(judge, one.user)?).clone(),
            };
            let truth = Truth {
                comparison: one.comparison.clone(),
                user: one.user.to_string(),
                prompt: self.prompts.get(&one.prompt).cloned().unwrap_or_default(),
                left: left.name().to_owned(),
                right: right.name().to_owned(),
                probability: one.probability,
                choice: None,
            };
            // A pair may stand in several comparisons, and is asked about once.
            if seen.insert((one.user, truth.left.clone(), truth.right.clone())) {
                asked.push(question(&truth, left, right, shots));
            }
            truths.push(truth);
        }
        Ok((asked, truths))
    }

    /// Choices of every evaluated user, foreseen from her own others, a stranger's, or nothing.
    fn choices(&self, judge: &people::Judge, set: &str) -> Result<(Vec<Asked>, Vec<Truth>)> {
        let (mut asked, mut truths) = (Vec::new(), Vec::new());
        for (&user, &stranger) in &self.strangers {
            let shots = match set {
                OWN => self.shots(judge, user)?,
                MISMATCHED => self.shots(judge, stranger)?,
                _ => Arc::new([]),
            };
            let block = self.choices.block(user, judge.foresees)?;
            let foreseen = &block[..self.spec.shots.min(block.len())];
            let samples = self.samples(foreseen)?;
            for choice in foreseen {
                let [left, right] = &samples[&choice.pair];
                let truth = Truth {
                    comparison: set.to_owned(),
                    user: user.to_string(),
                    prompt: self.choices.gallery.caption(choice.pair).to_owned(),
                    left: left.name().to_owned(),
                    right: right.name().to_owned(),
                    probability: self.choices.probability(user, choice.pair),
                    choice: Some(choice.chosen == 0),
                };
                asked.push(question(&truth, left, right, shots.clone()));
                truths.push(truth);
            }
        }
        Ok((asked, truths))
    }
}

fn question(truth: &Truth, left: &Picture, right: &Picture, shots: Arc<[Shot]>) -> Asked {
    Asked {
        user: truth.user.clone(),
        prompt: truth.prompt.clone(),
        left: left.clone(),
        right: right.clone(),
        shots,
        log_odds: truth.log_odds(),
    }
}
