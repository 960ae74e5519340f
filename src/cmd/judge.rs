//! `ppd judge`: pairs of images of any two origins → which of them each user would prefer, in one table.

mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;

use super::{Global, Verdict, progress, terminal};
use crate::data::shots::{self, UserShots};
use crate::data::to_judge::{self, Item};
use crate::error::{Error, Result, nearest};
use crate::judge::{Asked, Cache, Caps, Config, Judge, Oracle, Picture, Plan, Protocol, Shot, Template};
use crate::judgement;
use crate::record::replace_file;
use crate::units::Seed;

/// What the command takes besides the options of every command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The judge's configuration, or the word `oracle` for one that knows the column log_odds of --pairs
    #[arg(long, value_name = "JUDGE.toml")]
    judge: PathBuf,
    /// The pairs that users have compared, one user a line, as in `ppd embed --examples`; not needed with --shots 0
    #[arg(long, value_name = "SHOTS.jsonl", required_unless_present = "shots")]
    users: Option<PathBuf>,
    /// How many of a user's pairs the judge is shown, the first ones [default: all]
    #[arg(long, value_name = "N")]
    shots: Option<u32>,
    /// A CSV with the columns user,prompt,left,right; paths are relative to it
    #[arg(long, value_name = "CSV", required_unless_present = "left", conflicts_with_all = ["left", "right", "prompts"])]
    pairs: Option<PathBuf>,
    /// A folder of images, whose win rate is counted
    #[arg(long, value_name = "DIR", requires = "right", requires = "prompts")]
    left: Option<PathBuf>,
    /// A folder with images of the same names
    #[arg(long, value_name = "DIR", requires = "left")]
    right: Option<PathBuf>,
    /// Their prompts: a CSV with the columns image,prompt (and user, else every user judges every pair), or one a line
    #[arg(long, value_name = "FILE", requires = "left")]
    prompts: Option<PathBuf>,
    /// Where the table goes, one row a call
    #[arg(long, value_name = "CSV")]
    out: PathBuf,
    /// The words of the question [default: experiments/prompts/judge.txt, built in]
    #[arg(long, value_name = "FILE")]
    prompt_template: Option<PathBuf>,
    /// Where the order within each shown pair is drawn from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How often each question is asked
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// The most calls for the whole table, earlier runs' included
    #[arg(long, value_name = "N")]
    max_calls: Option<u64>,
    /// The most tokens, read and written
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// The most money, in the unit of the prices in the judge's configuration
    #[arg(long, value_name = "X", value_parser = cost)]
    max_cost: Option<f64>,
    /// Judge images of different sizes as they are: a judge can tell them apart by that alone
    #[arg(long)]
    allow_sizes: bool,
    /// Ask again where an earlier answer could not be read
    #[arg(long)]
    retry_unreadable: bool,
}

const EXAMPLES: &str = "\
Examples:
  ppd judge --judge experiments/judges/gpt-4o.toml --users shots.jsonl --pairs pairs.csv --out judgements.csv --dry-run
  ppd judge --judge experiments/judges/llava.toml --users shots.jsonl --left ppd --right base --prompts prompts.csv \\
            --out judgements.csv
  ppd judge --judge gpt-4o.toml --users shots.jsonl --pairs pairs.csv --out judgements.csv --max-cost 5

Each pair is asked in both orders. Answers are kept in the folder of --cache, so that the same command goes on where it was
stopped, or where a cap ended it once that is raised. An endpoint's key is read from the environment (OPENAI_API_KEY, or the
variable that `key_env` names), and stored nowhere.";

fn cost(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().map_err(|fault| fault.to_string())?;
    match number.is_finite() && number >= 0.0 {
        true => Ok(number),
        false => Err("expected a number of at least 0".into()),
    }
}

/// The folder of answers below that of --cache.
const CACHE: &str = "judge";

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    let protocol = Protocol {
        template: template(arguments)?,
        seed: Seed::new(arguments.seed),
        repeats: arguments.repeats,
        allow_sizes: arguments.allow_sizes,
    };
    let config = match arguments.judge.to_str() {
        Some("oracle") => Config::Oracle(Oracle::default()),
        _ => Config::read(&arguments.judge)?,
    };
    let asked = asked(arguments)?;
    let overlap = shown_and_asked(&asked);
    let progress = progress(global)?;
    if overlap > 0 {
        progress.note(&format!(
            "{overlap} of {} pairs show an image that the judge is shown among the user's own pairs; it may know the answer",
            asked.len()
        ));
    }
    let _lock = global.use_cache()?;
    let folder = global.cache.join(CACHE);
    let environment = |name: &str| std::env::var(name).ok();
    let device = match &config {
        Config::Vlm(_) => global.compute()?.device,
        _ => Device::Cpu,
    };
    let mut judge = Judge::open(config, &device, environment)?;
    let ready = match global.dry_run {
        // Without having asked an endpoint what it can, nothing of it can be known.
        true => judge.recall(&folder)?,
        false => judge.prepare(Some(&folder), &progress).map(|()| true)?,
    };
    let cache = match judge.is_kept() && ready && (folder.exists() || !global.dry_run) {
        true => Some(Cache::open(&folder, &judge.identity().digest())?),
        false => None,
    };
    if let Some(cache) = &cache {
        if cache.damaged() > 0 {
            let (path, lines) = (cache.path().display(), cache.damaged());
            progress.note(&format!(
                "{path}: {lines} lines hold no answer and are passed over; their questions are asked again"
            ));
        }
        if arguments.retry_unreadable {
            cache.forget_unreadable();
        }
    }
    let plan = Plan::new(&judge, &protocol, &asked, cache.as_ref())?;
    let estimate = plan.estimate();
    let caps = Caps { calls: arguments.max_calls, tokens: arguments.max_tokens, cost: arguments.max_cost };
    if global.dry_run {
        println!("{}", summary::estimate(&estimate, global.json));
        return Ok(Verdict::Done);
    }
    terminal::say(global.quiet, &summary::estimate(&estimate, false));
    let judged = plan.ask(caps, &progress)?;
    drop(progress);
    if let Some(folder) = arguments.out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    replace_file(&arguments.out, judgement::write(&judged.rows)?.as_bytes())?;
    terminal::say(global.quiet, &summary::cost(&judged));
    println!("{}", summary::rows(&judged.rows, global.json)?);
    let all = judged.rows.iter().all(|row| row.preferred().is_some());
    Ok(if global.strict && !all { Verdict::DoesNotHold } else { Verdict::Done })
}

fn template(arguments: &Arguments) -> Result<Template> {
    match &arguments.prompt_template {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
            Template::parse(&text, &path.display().to_string())
        }
        None => Ok(Template::default()),
    }
}

/// The pairs of the list, each with its user's own.
fn asked(arguments: &Arguments) -> Result<Vec<Asked>> {
    let (list, items) = match (&arguments.pairs, &arguments.left, &arguments.right, &arguments.prompts) {
        (Some(pairs), ..) => (pairs, to_judge::pairs(pairs)?),
        (None, Some(left), Some(right), Some(prompts)) => (prompts, to_judge::folders(left, right, prompts)?),
        _ => return Err(Error::Spec("give --pairs, or --left, --right and --prompts".into())),
    };
    let known = match &arguments.users {
        Some(path) => shots::read(path)?,
        None => Vec::new(),
    };
    let users = shown(&known, arguments.shots)?;
    let mut opened = Opened::default();
    let own = |user: &str, opened: &mut Opened| -> Result<Arc<[Shot]>> {
        if arguments.shots == Some(0) {
            return Ok(Arc::new([]));
        }
        let Some(found) = users.get(user) else {
            let near = nearest(user, users.keys().copied()).map(|near| format!(" (did you mean {near:?}?)"));
            return Err(Error::data(
                list,
                format!("the user {user:?} is none of --users{}", near.unwrap_or_default()),
            ));
        };
        opened.shots(found, arguments.shots)
    };
    let mut asked = Vec::with_capacity(items.len());
    for Item { user, prompt, left, right, log_odds, .. } in items {
        let of: Vec<&str> = match &user {
            Some(user) => vec![user],
            None if users.is_empty() => vec!["anyone"],
            None => known.iter().map(|user| user.user.as_str()).collect(),
        };
        let [left, right] = [left, right].map(|(name, path)| opened.picture(name, path));
        let (left, right) = (left?, right?);
        for user in of {
            let shots = own(user, &mut opened)?;
            let (prompt, left, right) = (prompt.clone(), left.clone(), right.clone());
            asked.push(Asked { user: user.to_owned(), prompt, left, right, shots, log_odds });
        }
    }
    Ok(asked)
}

/// The users by name, all of whom have pairs enough.
fn shown(known: &[UserShots], shots: Option<u32>) -> Result<BTreeMap<&str, &UserShots>> {
    let wanted = shots.unwrap_or(0) as usize;
    let few: Vec<String> = known
        .iter()
        .filter(|user| user.shots.len() < wanted)
        .map(|user| format!("{:?} ({})", user.user, user.shots.len()))
        .collect();
    if !few.is_empty() {
        return Err(Error::Spec(format!(
            "--shots {wanted}: {} of {} users have fewer pairs: {}; take them out of --users, or give a smaller --shots",
            few.len(),
            known.len(),
            few.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ")
        )));
    }
    Ok(known.iter().map(|user| (user.user.as_str(), user)).collect())
}

/// Each file opened once, however many questions show it.
#[derive(Default)]
struct Opened {
    pictures: BTreeMap<PathBuf, Picture>,
    users: BTreeMap<String, Arc<[Shot]>>,
}

impl Opened {
    fn picture(&mut self, name: String, path: PathBuf) -> Result<Picture> {
        if let Some(there) = self.pictures.get(&path) {
            return Ok(there.clone());
        }
        let picture = Picture::open(name, &path)?;
        self.pictures.insert(path, picture.clone());
        Ok(picture)
    }

    fn shots(&mut self, user: &UserShots, count: Option<u32>) -> Result<Arc<[Shot]>> {
        if let Some(there) = self.users.get(&user.user) {
            return Ok(there.clone());
        }
        let count = count.map_or(user.shots.len(), |count| count as usize);
        let mut shots = Vec::with_capacity(count);
        for shot in user.shots.iter().take(count) {
            let mut open = |path: &PathBuf| {
                let opened = self.picture(path.display().to_string(), path.clone());
                opened.map_err(|cause| user.fault(cause))
            };
            let (chosen, rejected) = (open(&shot.chosen)?, open(&shot.rejected)?);
            shots.push(Shot { caption: shot.caption.clone(), chosen, rejected });
        }
        let shots: Arc<[Shot]> = shots.into();
        self.users.insert(user.user.clone(), shots.clone());
        Ok(shots)
    }
}

/// The number of pairs one of whose images stands among the user's own.
fn shown_and_asked(asked: &[Asked]) -> usize {
    let overlaps = |asked: &&Asked| {
        let own = asked.shots.iter().flat_map(|shot| [&shot.chosen, &shot.rejected]);
        let own: BTreeSet<_> = own.map(Picture::digest).collect();
        own.contains(asked.left.digest()) || own.contains(asked.right.digest())
    };
    asked.iter().filter(overlaps).count()
}
