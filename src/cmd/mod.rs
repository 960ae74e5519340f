//! The command line: parses, calls one function of a lower floor, prints, and chooses the exit code.
//!
//! Exit codes: 0 done; 1 failed or stopped; 2 bad usage or a bad experiment file; 3 only where asked to judge
//! (`--strict`, `verify`): done, but something does not hold. Results go to standard output, everything else to
//! standard error. Only this module and `main.rs` print.

mod cell;
mod clean;
mod data;
mod device;
mod doctor;
mod embed;
mod fetch;
mod generate;
mod identify;
mod image_store;
mod inspect;
mod judge;
mod judged;
mod people;
mod pretrain;
mod report;
mod reproduce;
mod score;
mod terminal;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use clap::parser::ValueSource;
use clap::{ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use self::device::Compute;
use crate::error::Error;
use crate::progress::Progress;
use crate::record::FolderLock;
use crate::spec::{Places, Request, Seeds, Size};

/// A reproducible research harness for Personalized Preference Fine-tuning of diffusion models.
#[derive(Debug, Parser)]
#[command(name = "ppd", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

const EXAMPLES: &str = "\
Examples:
  ppd reproduce table1                        train, sample and score every method of Table 1, then render it
  ppd reproduce table1 --quick                the same path in under a minute, with numbers that mean nothing
  ppd reproduce table1 --dry-run              what would run, what is cached, how long it takes
  ppd reproduce table1 --seeds 5              training seeds 0 to 4 (`--seeds 3,5` for these two)
  ppd reproduce table1 --set methods.ppd.objective.beta=0.2
  ppd sweep beta                              PPD over β and learning rate, on validation prompts
  ppd report table1                           tables and figures again, from records alone
  ppd pretrain denoiser                       train the desk's base model, or go on with it
  ppd generate \"a small red star\" --grid star.png
  ppd score images                            what every reward says of the images in a folder
  ppd data show --grid pairs.png              look at the preference pairs
  ppd fetch --dry-run                         what the paper's scale needs from others, and how large it is
  ppd verify                                  check every record against the digest it was sealed with
  ppd clean --dry-run                         what could be freed
  ppd doctor                                  what this machine has to compute with

A study or training that is interrupted goes on where it stopped when its command is given again.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a study: train, sample and score what is missing, then render its tables and figures
    Reproduce(reproduce::Arguments),
    /// Run a study that varies one method over a grid
    Sweep(reproduce::Arguments),
    /// Render tables and figures from records alone
    Report(report::Arguments),
    /// Train one of the desk's own models, or go on with it, and install it
    Pretrain(pretrain::Arguments),
    /// Make images for prompts, with or without a trained user
    Generate(Box<generate::Arguments>),
    /// Read users' few-shot pairs with a vision-language model: embeddings and written profiles
    Embed(embed::Arguments),
    /// Ask a judge which of two images each user would prefer: an endpoint, a model on this machine, or an oracle
    Judge(Box<judge::Arguments>),
    /// Score images by every reward, every twin and measured statistics, or by a public reward model
    Score(Box<score::Arguments>),
    /// Make, score and show the desk's preference pairs
    Data(data::Arguments),
    /// Download weights and data of others, or check those that are here [default profile: paper]
    Fetch(fetch::Arguments),
    /// Check records: read every row, and compare each record with the digest it was sealed with
    Verify(verify::Arguments),
    /// Show what can be made again, with sizes, and remove it
    Clean(clean::Arguments),
    /// Show what this machine has, and what each missing thing would need
    Doctor,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Weights, data and sizes to run on: a name in experiments/profiles, or a path that ends in .toml
    #[arg(long, global = true, default_value = "desk", value_name = "NAME")]
    profile: String,
    /// Change a setting, for example `train.steps=100` or `methods.ppd.objective.beta=0.2`; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Training seeds: `5` is 0 to 4, `3,5` is these two [default: the study's]
    #[arg(long, global = true, value_name = "N|LIST")]
    seeds: Option<Seeds>,
    /// Where to compute: `cpu`, `cuda`, `cuda:N`, or `auto` for a GPU where there is one
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    device: device::Choice,
    /// Worker threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Folder of records
    #[arg(long, global = true, default_value = "results", value_name = "DIR")]
    results: PathBuf,
    /// Folder of figures
    #[arg(long, global = true, default_value = "figures", value_name = "DIR")]
    figures: PathBuf,
    /// Folder of weights and data that the project ships
    #[arg(long, global = true, default_value = "assets", value_name = "DIR")]
    assets: PathBuf,
    /// Folder of what can be made again, such as trained adapters
    #[arg(long, global = true, default_value = "cache", value_name = "DIR")]
    cache: PathBuf,
    /// Show what would be done, and do nothing
    #[arg(long, global = true)]
    dry_run: bool,
    /// A smoke run with tiny sizes, kept apart from real records
    #[arg(long, global = true)]
    quick: bool,
    /// The published run: the study's `[released]` sizes, in `released` below the folders of records and figures
    #[arg(long, global = true, conflicts_with = "quick")]
    released: bool,
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Exit with 3 where a claim does not hold
    #[arg(long, global = true)]
    strict: bool,
    /// Print results and errors only
    #[arg(long, short, global = true)]
    quiet: bool,
    /// No colours (also by the environment's NO_COLOR)
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    no_color: bool,
}

/// The folder of what is published, below those of records and of figures.
const RELEASED: &str = "released";

impl Global {
    fn request(&self, study: &str) -> Request {
        Request {
            study: study.to_owned(),
            profile: self.profile.clone(),
            size: match (self.quick, self.released) {
                (true, _) => Size::Quick,
                (_, true) => Size::Released,
                _ => Size::Standard,
            },
            set: self.set.clone(),
            seeds: self.seeds.clone(),
            experiments: "experiments".into(),
        }
    }

    fn places(&self) -> Places {
        Places {
            results: self.results.clone(),
            figures: self.figures.clone(),
            cache: self.cache.clone(),
            assets: self.assets.clone(),
        }
    }

    /// Keeps `ppd clean` out of the cache for as long as the lock lives.
    fn use_cache(&self) -> crate::error::Result<FolderLock> {
        FolderLock::share(&self.cache)
    }

    fn compute(&self) -> crate::error::Result<Compute> {
        Compute::alone(self.device, self.threads())
    }

    fn threads(&self) -> usize {
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }
}

impl Command {
    /// Its name, and which options it heeds of those that only some commands do.
    fn heeds(&self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Reproduce(_) => (
                "reproduce",
                &["--set", "--seeds", "--dry-run", "--quick", "--released", "--json", "--strict"],
            ),
            Self::Sweep(_) => {
                ("sweep", &["--set", "--seeds", "--dry-run", "--quick", "--released", "--json", "--strict"])
            }
            Self::Report(_) => ("report", &["--set", "--quick", "--released", "--json", "--strict"]),
            Self::Generate(_) => ("generate", &["--set", "--seeds", "--quick", "--released"]),
            Self::Score(_) => ("score", &["--json"]),
            Self::Verify(_) => ("verify", &["--released", "--json"]),
            Self::Clean(_) => ("clean", &["--dry-run", "--released", "--json"]),
            Self::Doctor => ("doctor", &["--json"]),
            Self::Fetch(_) => ("fetch", &["--dry-run", "--json"]),
            Self::Pretrain(_) => ("pretrain", &[]),
            Self::Embed(_) => ("embed", &[]),
            Self::Judge(_) => ("judge", &["--dry-run", "--json", "--strict"]),
            Self::Data(arguments) if arguments.prints() => ("data inspect", &["--json"]),
            Self::Data(_) => ("data", &[]),
        }
    }
}

impl Global {
    /// Refuses an option that the command would pass over.
    fn check(&self, command: &Command) -> crate::error::Result<()> {
        let (name, heeded) = command.heeds();
        let given = [
            ("--set", !self.set.is_empty()),
            ("--seeds", self.seeds.is_some()),
            ("--dry-run", self.dry_run),
            ("--quick", self.quick),
            ("--released", self.released),
            ("--json", self.json),
            ("--strict", self.strict),
        ];
        match given.into_iter().find(|(option, given)| *given && !heeded.contains(option)) {
            None => Ok(()),
            Some((option, _)) => Err(Error::Spec(format!(
                "`ppd {name}` does not take {option}{}",
                if heeded.is_empty() { String::new() } else { format!(", only {}", heeded.join(", ")) }
            ))),
        }
    }
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Done.
    Done,
    /// Done, but something does not hold, and somebody asked.
    DoesNotHold,
}

/// Parses the command line, runs the command, and reports how it ended.
pub fn main() -> ExitCode {
    let plain = std::env::args().any(|argument| argument == "--no-color");
    let mut command = Cli::command();
    if plain {
        command = command.color(clap::ColorChoice::Never);
    }
    let parsed = command.try_get_matches().and_then(|matches| {
        let (_, own) = matches.subcommand().unwrap_or(("", &matches));
        let chosen = own.value_source("profile") == Some(ValueSource::CommandLine);
        Ok((Cli::from_arg_matches(&matches)?, chosen))
    });
    let cli = match parsed {
        Ok((mut cli, profile_chosen)) => {
            // The desk's files come with the program; what is fetched is the paper's.
            if matches!(cli.command, Command::Fetch(_)) && !profile_chosen {
                cli.global.profile = fetch::PROFILE.to_owned();
            }
            if cli.global.released {
                cli.global.results.push(RELEASED);
                cli.global.figures.push(RELEASED);
            }
            cli
        }
        Err(message) => {
            let _ = message.print();
            return ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(2));
        }
    };
    match run(&cli) {
        Ok(Verdict::Done) => ExitCode::SUCCESS,
        Ok(Verdict::DoesNotHold) => ExitCode::from(3),
        Err(error) => {
            terminal::print_error(&error, cli.global.no_color);
            let usage = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Spec(_))));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<Verdict> {
    let global = &cli.global;
    global.check(&cli.command)?;
    // A second pool cannot be built: the first one that asks decides, and here nobody asked before.
    rayon::ThreadPoolBuilder::new().num_threads(global.threads()).build_global()?;
    match &cli.command {
        Command::Reproduce(arguments) => reproduce::run(arguments, global, reproduce::Kind::Study),
        Command::Sweep(arguments) => reproduce::run(arguments, global, reproduce::Kind::Sweep),
        Command::Report(arguments) => report::run(arguments, global),
        Command::Pretrain(arguments) => pretrain::run(arguments, global),
        Command::Generate(arguments) => generate::run(arguments, global),
        Command::Embed(arguments) => embed::run(arguments, global),
        Command::Judge(arguments) => judge::run(arguments, global),
        Command::Score(arguments) => score::run(arguments, global),
        Command::Data(arguments) => data::run(arguments, global),
        Command::Fetch(arguments) => fetch::run(arguments, global),
        Command::Verify(arguments) => verify::run(arguments, global),
        Command::Clean(arguments) => clean::run(arguments, global),
        Command::Doctor => doctor::run(global),
    }
}

/// A handle that shows progress and stops at Ctrl-C; a second Ctrl-C ends the program at once. All handles of a process stop
/// together.
fn progress(global: &Global) -> anyhow::Result<Progress> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if STOP.get().is_none() {
        let asked = STOP.get_or_init(Arc::default).clone();
        ctrlc::set_handler(move || {
            if asked.swap(true, Ordering::Relaxed) {
                std::process::exit(1);
            }
            eprintln!("\nstopping at the next clean place; press Ctrl-C again to stop at once");
        })?;
    }
    let stop = STOP.get_or_init(Arc::default).clone();
    Ok(Progress::new(stop, terminal::observer(global.quiet, global.no_color)))
}
