//! `ppd score`: what every reward, every twin and the measured statistics say of images; or what one public reward model
//! says, from its own checkpoint.

mod published;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;

use super::device::Compute;
use super::{Global, Verdict, progress, terminal};
use crate::data::images;
use crate::error::{Error, Result};
use crate::evaluate::Scorers;
use crate::image;
use crate::pixels::Image;
use crate::reward::Published;
use crate::spec::{Profile, Spec};

/// What the command takes besides the options of every command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Pictures, or folders that `ppd generate --out` made
    #[arg(value_name = "PATH", required_unless_present = "reward", conflicts_with = "reward")]
    paths: Vec<PathBuf>,
    /// What the pictures were asked to show; folders say it themselves
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Also say how often a picture's own prompt is the nearest among N prompts of the list, by each CLIP
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..))]
    retrieval: Option<u16>,
    /// Score by this public reward model instead of the profile's rewards
    #[arg(long, value_name = "NAME", value_parser = PUBLISHED, conflicts_with_all = ["prompt", "retrieval"])]
    reward: Option<String>,
    #[command(flatten)]
    table: Table,
}

/// What a public reward model is opened from, and what it scores.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --reward")]
struct Table {
    /// Its checkpoint: a file, or a folder in the layout in which it was published (configuration, weights, tokenizer)
    #[arg(long, value_name = "PATH", requires = "reward")]
    weights: Option<PathBuf>,
    /// The CLIP under the aesthetic head; others borrow a configuration and tokenizer that they come without
    #[arg(long, value_name = "PATH", requires = "reward")]
    backbone: Option<PathBuf>,
    /// A CSV with the columns image,prompt; paths are relative to it
    #[arg(long, value_name = "CSV", requires = "reward", conflicts_with_all = ["images", "prompts"])]
    pairs: Option<PathBuf>,
    /// A folder of pictures, taken in the order of their names
    #[arg(long, value_name = "DIR", requires = "reward", requires = "prompts")]
    images: Option<PathBuf>,
    /// Their prompts, one a line
    #[arg(long, value_name = "TXT", requires = "reward", requires = "images")]
    prompts: Option<PathBuf>,
    /// Where the table image,prompt,reward,version,score goes [default: standard output]
    #[arg(long, value_name = "CSV", requires = "reward")]
    out: Option<PathBuf>,
    /// Leave out pictures that cannot be read, and say which
    #[arg(long, requires = "reward")]
    skip_unreadable: bool,
}

const PUBLISHED: [&str; 6] = {
    let mut names = [""; Published::ALL.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = Published::ALL[i].name();
        i += 1;
    }
    names
};

const EXAMPLES: &str = "\
Examples:
  ppd score images > scores.csv
  ppd score images --retrieval 16
  ppd score star.png --prompt \"a large red star\" --json
  ppd score --reward hps-v2.1 --weights HPSv2 --pairs pairs.csv --out scores.csv
  ppd score --reward aesthetic --weights sac+logos+ava1-l14-linearMSE.pth --backbone clip-vit-large-patch14 \\
            --images pictures --prompts prompts.txt --out scores.csv";

/// One picture to score.
struct Item {
    path: PathBuf,
    prompt: String,
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    if let Some(published) = arguments.reward.as_deref().and_then(Published::of) {
        return published::run(&arguments.table, published, global);
    }
    let profile = Spec::load(&global.request("table1"))?.profile;
    let items = items(arguments)?;
    let progress = progress(global)?;
    let Compute { device, workers, .. } = global.compute()?;
    let scorers = open(&profile, global, &device, &|note| progress.note(note))?;
    progress.begin("score", items.len());
    let pictures = items.iter().map(|item| image::read(&item.path)).collect::<Result<Vec<Image>>>()?;
    let prompts: Vec<String> = items.iter().map(|item| item.prompt.clone()).collect();
    let mut rows = Vec::with_capacity(items.len());
    for (pictures, prompts) in pictures.chunks(64).zip(prompts.chunks(64)) {
        rows.extend(scorers.score(pictures, prompts, &workers)?);
        progress.advance(pictures.len());
        progress.check()?;
    }
    drop(progress);
    if let Some(candidates) = arguments.retrieval {
        for (name, share) in scorers.retrieval(&pictures, &prompts, usize::from(candidates))? {
            terminal::say(
                global.quiet,
                &format!("retrieval of {candidates} by {name}: {:.1} %", 100.0 * share),
            );
        }
    }
    if global.json {
        let rows: Vec<serde_json::Value> = items
            .iter()
            .zip(&rows)
            .map(|(item, scores)| serde_json::json!({ "file": item.path, "prompt": item.prompt, "scores": scores }))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", table(&items, &rows)?);
        for (name, mean) in means(&rows) {
            terminal::say(global.quiet, &format!("mean {name}: {mean:.4}"));
        }
    }
    Ok(Verdict::Done)
}

/// The rewards of a profile that have weights, their twins, and its measured statistics.
pub(super) fn open(
    profile: &Profile,
    global: &Global,
    device: &Device,
    note: &dyn Fn(&str),
) -> Result<Scorers> {
    let twins = profile.rewards.iter().map(|reward| Profile::twin(reward));
    let mut rewards = Vec::new();
    for name in profile.rewards.iter().cloned().chain(twins) {
        if !profile.names_weights(&name) {
            continue;
        }
        match profile.reward_in(&global.assets, &name) {
            Ok(files) if files.weights.exists() => rewards.push((name, files)),
            Ok(files) => note(&format!("{name}: {} is not there, left out", files.weights.display())),
            Err(fault) => note(&format!("{name}: left out; {fault}")),
        }
    }
    Scorers::open(&rewards, &profile.measured, device)
}

fn items(arguments: &Arguments) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for path in &arguments.paths {
        if path.is_dir() {
            let listed = images::read(path)?.into_iter();
            items.extend(listed.map(|(path, entry)| Item { path, prompt: entry.prompt }));
        } else {
            std::fs::metadata(path).map_err(Error::io("read", path))?;
            items.push(Item { path: path.clone(), prompt: prompt(arguments, path)? });
        }
    }
    Ok(items)
}

fn prompt(arguments: &Arguments, path: &Path) -> Result<String> {
    arguments.prompt.clone().ok_or_else(|| {
        Error::Spec(format!(
            "{}: rewards compare a picture with its prompt; say it with --prompt TEXT, or name a folder that holds {}",
            path.display(),
            images::LIST
        ))
    })
}

/// One line of CSV for each picture, a column for each score that any of them has.
fn table(items: &[Item], rows: &[BTreeMap<String, f64>]) -> anyhow::Result<String> {
    let names: Vec<&String> = means(rows).into_keys().collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["file", "prompt"].into_iter().chain(names.iter().map(|name| name.as_str())))?;
    for (item, scores) in items.iter().zip(rows) {
        let mut line = vec![item.path.display().to_string(), item.prompt.clone()];
        line.extend(names.iter().map(|name| scores.get(*name).map(f64::to_string).unwrap_or_default()));
        writer.write_record(line)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// The mean of each score over the pictures that have it.
fn means(rows: &[BTreeMap<String, f64>]) -> BTreeMap<&String, f64> {
    let mut sums: BTreeMap<&String, (f64, usize)> = BTreeMap::new();
    for (name, value) in rows.iter().flatten() {
        let (sum, count) = sums.entry(name).or_default();
        *sum += value;
        *count += 1;
    }
    sums.into_iter().map(|(name, (sum, count))| (name, sum / count as f64)).collect()
}
