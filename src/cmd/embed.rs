//! `ppd embed`: users' few-shot pairs → embeddings and written profiles, in one file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use super::{Global, Verdict, progress, terminal};
use crate::data::shots::{self, UserShots};
use crate::embed::{self, Config, Drawn, Embedding, Template};
use crate::error::{Error, Result};
use crate::models::llava_onevision::Layout;
use crate::progress::Progress;
use crate::units::Seed;
use crate::vlm::{Vlm, repository_digest};
use crate::weights::{self, Weights};

/// What the command takes besides the options of every command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// A folder in the layout of llava-hf/llava-onevision-qwen2-7b-ov-hf
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// One user a line: {"user": …, "shots": [{"caption": …, "chosen": PATH, "rejected": PATH}, …]}
    #[arg(long, value_name = "SHOTS.jsonl")]
    examples: PathBuf,
    /// The words of the prompt [default: experiments/prompts/few-shot.txt, built in]
    #[arg(long, value_name = "FILE")]
    prompt_template: Option<PathBuf>,
    /// The most tokens that the model writes for a user
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Draw each token after dividing the logits by this; without it the likeliest token is written
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Draw from the likeliest tokens that make up this share of the probability
    #[arg(long, default_value_t = 1.0, value_name = "P", requires = "temperature")]
    top_p: f64,
    /// The seed of the draws
    #[arg(long, default_value_t = 0, value_name = "N", requires = "temperature")]
    seed: u64,
    /// How an image becomes tokens: once as a whole (the paper's), or whole and in tiles
    #[arg(long, value_enum, default_value_t = LayoutName::BaseOnly, value_name = "LAYOUT")]
    layout: LayoutName,
    /// Compute in half precision (bf16); embeddings are stored in single precision
    #[arg(long)]
    bf16: bool,
    /// Where the embeddings go; users that are there already, from the same prompt, are kept
    #[arg(long, value_name = "USERS.safetensors")]
    out: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  ppd embed --model llava-onevision-qwen2-7b-ov-hf --examples shots.jsonl --bf16 --out users.safetensors
  ppd embed --model llava-onevision-qwen2-0.5b-ov-hf --examples shots.jsonl --layout anyres --out users.safetensors

The file holds a tensor (layers + 1, width) under each user's name. Its metadata say for each user which prompt it
comes from, what the model wrote, and whether that ended by itself or at the limit.";

/// A layout by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LayoutName {
    BaseOnly,
    Anyres,
}

/// The metadata's entry that says what the embeddings follow from besides each user's pairs.
const CONFIG: &str = "embedding";

/// How long finished users may be unwritten: each writing copies the whole file.
const UNWRITTEN: Duration = Duration::from_secs(30);

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    let users = shots::read(&arguments.examples)?;
    let template = match &arguments.prompt_template {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
            Template::parse(&text, &path.display().to_string())?
        }
        None => Template::default(),
    };
    let mut out = Out::open(&arguments.out, &users)?;
    let compute = global.compute()?;
    let dtype = if arguments.bf16 { DType::BF16 } else { DType::F32 };
    let vlm = Vlm::open(&arguments.model, dtype, &compute.device)?;
    let config = Config {
        model: repository_digest(&arguments.model)?,
        template: template.digest().clone(),
        layout: match arguments.layout {
            LayoutName::BaseOnly => Layout::BaseOnly,
            LayoutName::Anyres => Layout::Anyres,
        },
        max_new_tokens: arguments.max_new_tokens as usize,
        dtype: dtype.as_str().to_owned(),
        sampling: arguments.temperature.map(|temperature| Drawn {
            temperature,
            top_p: arguments.top_p,
            seed: Seed::new(arguments.seed),
        }),
    };
    let progress = progress(global)?;
    if out.begin(serde_json::to_string(&config)?) {
        progress
            .note("another model, template or setting made the embeddings there: all users are made again");
    }
    progress.begin("embed", users.len());
    let (mut kept, mut at_limit) = (0, 0);
    for user in &users {
        match one(&vlm, &config, &template, user, &mut out, &progress) {
            Ok(None) => kept += 1,
            Ok(Some(embedding)) if !embedding.ended => at_limit += 1,
            Ok(Some(_)) => {}
            Err(fault) => {
                // What is finished is kept, whatever became of this user.
                out.write()?;
                return Err(fault.into());
            }
        }
        progress.advance(1);
    }
    out.write()?;
    drop(progress);
    let made = users.len() - kept;
    terminal::say(
        global.quiet,
        &format!(
            "embeddings of {} users in {}: {made} made, {kept} there before; of those made, {at_limit} stopped at the limit \
             of {} tokens",
            users.len(),
            arguments.out.display(),
            config.max_new_tokens
        ),
    );
    Ok(Verdict::Done)
}

/// Embeds a user, unless the file has them from the same prompt.
fn one(
    vlm: &Vlm,
    config: &Config,
    template: &Template,
    user: &UserShots,
    out: &mut Out,
    progress: &Progress,
) -> Result<Option<Embedding>> {
    let in_line = |fault: Error| match fault {
        Error::Spec(_) | Error::Shape(_) | Error::NonFinite { .. } => user.fault(fault),
        other => other,
    };
    let captions: Vec<&str> = user.shots.iter().map(|shot| shot.caption.as_str()).collect();
    let prompt = embed::prompt(vlm, template, &captions).map_err(in_line)?;
    let images = user.pictures()?;
    let digest = embed::prompt_digest(config, &prompt, &images);
    if out.has(&user.user, digest.hex()) {
        return Ok(None);
    }
    let embedding = embed::embed(vlm, config, &prompt, &images, |_| progress.check()).map_err(in_line)?;
    out.add(&user.user, digest.hex(), &embedding, config.max_new_tokens)?;
    Ok(Some(embedding))
}

/// The file of embeddings, as far as it is.
struct Out {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    written: Instant,
    changed: bool,
}

impl Out {
    /// What the file holds, where it is there.
    fn open(path: &Path, users: &[UserShots]) -> Result<Self> {
        let (mut tensors, mut metadata) = (BTreeMap::new(), BTreeMap::new());
        if path.exists() {
            let file = Weights::open(path)?;
            for name in file.names() {
                if !users.iter().any(|user| user.user == name) {
                    return Err(Error::Spec(format!(
                        "--out {} holds {name:?}, which is no user of --examples: give another --out, or the list that it \
                         was made from",
                        path.display()
                    )));
                }
                tensors.insert(name.to_owned(), file.read(name, DType::F32, &Device::Cpu)?);
            }
            metadata.clone_from(file.metadata());
        }
        Ok(Self { path: path.to_owned(), tensors, metadata, written: Instant::now(), changed: false })
    }

    /// Names what the embeddings follow from. Where what is there follows from something else, none of it is kept, and the
    /// answer is true.
    fn begin(&mut self, config: String) -> bool {
        let differs = self.metadata.get(CONFIG).is_none_or(|there| *there != config);
        let stale = differs && !self.tensors.is_empty();
        if differs {
            self.tensors.clear();
            self.metadata = BTreeMap::from([(CONFIG.to_owned(), config)]);
        }
        stale
    }

    fn set(&mut self, key: &str, value: String) {
        self.metadata.insert(key.to_owned(), value);
    }

    fn has(&self, user: &str, digest: &str) -> bool {
        let known = self.metadata.get(&format!("prompt_digest.{user}"));
        self.tensors.contains_key(user) && known.is_some_and(|known| known == digest)
    }

    fn add(&mut self, user: &str, digest: &str, embedding: &Embedding, limit: usize) -> Result<()> {
        let end = match embedding.ended {
            true => format!("ended by itself after {} tokens", embedding.ids.len()),
            false => format!("stopped at the limit of {limit} tokens"),
        };
        self.set(&format!("prompt_digest.{user}"), digest.to_owned());
        self.set(&format!("text.{user}"), embedding.text.clone());
        self.set(&format!("end.{user}"), end);
        let profile = format!("profile.{user}");
        match embedding.profile() {
            Some(text) => self.set(&profile, text.to_owned()),
            None => drop(self.metadata.remove(&profile)),
        }
        self.tensors.insert(user.to_owned(), embedding.states.clone());
        self.changed = true;
        if self.written.elapsed() > UNWRITTEN { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        if self.changed {
            weights::save(&self.path, &self.tensors, DType::F32, &self.metadata)?;
            (self.written, self.changed) = (Instant::now(), false);
        }
        Ok(())
    }
}
