//! `ppd data inspect`: what is in a data set of pairs, what of it is used, and how it falls into parts and groups.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Global, Verdict, progress, terminal};
use crate::data::census::{Census, Counts, Disagreement, Policy, Words};
use crate::data::few_shot::{self, Groups};
use crate::data::pairs::Store;
use crate::data::splits::{self, Part, Row, Splits};
use crate::data::{Preference, Split};
use crate::units::Seed;

/// What the command takes besides the options of every command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Parquet files in Pick-a-Pic's schema, a folder with pairs.csv, or webdataset tars
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Which part of a parquet mirror: the beginning of its files' names
    #[arg(long, value_name = "PART", default_value = "train", value_parser = part)]
    part: Split,
    /// The seed of parts and groups
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// The share of users that training never sees
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    unseen_users: f64,
    /// The share of seen users' captions for validation
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    validation: f64,
    /// The share of seen users' captions that are held out to test
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    held_out: f64,
    /// How many of a user's pairs make a group
    #[arg(long, value_name = "N", default_value_t = 4)]
    shots: usize,
    /// How many further pairs a group has to ask about
    #[arg(long, value_name = "N", default_value_t = 0)]
    targets: usize,
    /// What happens where label and best_image_uid disagree: leave-out, by-label or by-name
    #[arg(long, value_name = "POLICY", default_value = "leave-out", value_parser = disagreement)]
    disagreement: Disagreement,
    /// Use a person's repeated choices among the same pictures too
    #[arg(long)]
    keep_duplicates: bool,
    /// Leave out captions that hold a word of this file, one word or phrase a line; the program brings no list
    #[arg(long, value_name = "FILE")]
    unwanted_words: Option<PathBuf>,
    /// Decode every picture, to count broken ones; takes most of the time
    #[arg(long)]
    decode: bool,
}

const EXAMPLES: &str = "\
Examples:
  ppd data inspect /data/pick-a-pic-v2 --decode
  ppd data inspect my-pairs --shots 4 --targets 1 --json
  ppd data inspect pairs.tar --unwanted-words words.txt";

/// Pairs that are looked at together.
const TOGETHER: usize = 64;

fn part(text: &str) -> Result<Split, String> {
    Split::ALL.iter().copied().find(|split| split.name() == text).ok_or_else(|| {
        let names: Vec<&str> = Split::ALL.iter().map(|split| split.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn disagreement(text: &str) -> Result<Disagreement, String> {
    match text {
        "leave-out" => Ok(Disagreement::LeaveOut),
        "by-label" => Ok(Disagreement::ByLabel),
        "by-name" => Ok(Disagreement::ByName),
        _ => Err("expected leave-out, by-label or by-name".into()),
    }
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    let store = Store::at(&arguments.path, arguments.part)?;
    let unwanted = arguments.unwanted_words.as_deref().map(Words::read).transpose()?;
    let words = unwanted.as_ref().map(Words::len);
    let mut census = Census::new(Policy {
        disagreement: arguments.disagreement,
        keep_duplicates: arguments.keep_duplicates,
        unwanted,
        decode: arguments.decode,
    });
    let progress = progress(global)?;
    progress.begin("read", 0);
    let (mut rows, mut users) = (Vec::new(), Vec::new());
    let mut waiting = Vec::with_capacity(TOGETHER);
    let mut take = |waiting: &mut Vec<Preference>| {
        progress.advance(waiting.len());
        for pair in census.admit_all(std::mem::take(waiting), &arguments.path) {
            rows.push(Row::of(&pair));
            users.push(pair.user_id);
        }
        progress.check()
    };
    store.each(arguments.decode, &mut |pair| {
        waiting.push(pair);
        if waiting.len() == TOGETHER { take(&mut waiting) } else { Ok(()) }
    })?;
    take(&mut waiting)?;
    drop(progress);
    let seed = Seed::new(arguments.seed);
    let config = splits::Config {
        seed,
        unseen_users: arguments.unseen_users,
        validation: arguments.validation,
        held_out: arguments.held_out,
    };
    // Without a user nothing can be split by user; the counts still are.
    let has_users = users.iter().any(Option::is_some);
    let splits = if has_users { Some(splits::assign(&rows, &config)?) } else { None };
    let shape = few_shot::Config { seed, shots: arguments.shots, targets: arguments.targets, per_user: None };
    let mut parts = Vec::new();
    if let Some(splits) = &splits {
        for part in Part::ALL {
            let places: Vec<usize> = splits.places(*part).collect();
            let people: BTreeSet<i64> = places.iter().filter_map(|&place| users[place]).collect();
            let owned = places.iter().filter_map(|&place| Some((place, users[place]?)));
            let groups = few_shot::groups(owned, &shape)?;
            parts.push((*part, places.len(), people.len(), groups));
        }
    }
    let whole = few_shot::groups(
        users.iter().enumerate().filter_map(|(place, user)| Some((place, (*user)?))),
        &shape,
    )?;
    let told = Told { arguments, store: store.name(), counts: census.counts(), splits, parts, whole, words };
    if global.json {
        println!("{:#}", told.json());
    } else {
        told.print(global);
    }
    Ok(Verdict::Done)
}

/// Everything that was counted.
struct Told<'a> {
    arguments: &'a Arguments,
    store: String,
    counts: &'a Counts,
    splits: Option<Splits>,
    /// Pairs, users and groups of each part.
    parts: Vec<(Part, usize, usize, Groups)>,
    /// The groups of all pairs that are used, whatever their part.
    whole: Groups,
    words: Option<usize>,
}

impl Told<'_> {
    fn json(&self) -> Value {
        let groups = |groups: &Groups| {
            json!({
                "groups": groups.groups.len(), "users": groups.users,
                "users_with_too_few": groups.users_with_too_few, "pairs_of_too_few": groups.pairs_of_too_few,
                "remainder": groups.remainder,
            })
        };
        let parts: Vec<Value> = self
            .parts
            .iter()
            .map(|(part, pairs, users, made)| {
                json!({ "part": part, "pairs": pairs, "users": users, "groups": groups(made) })
            })
            .collect();
        json!({
            "path": self.arguments.path, "store": self.store, "seed": self.arguments.seed,
            "shots": self.arguments.shots, "targets": self.arguments.targets, "unwanted_words": self.words,
            "decoded": self.arguments.decode, "counts": self.counts, "parts": parts,
            "in_no_part": self.splits.as_ref().map(Splits::left_out), "all_pairs": groups(&self.whole),
        })
    }

    fn print(&self, global: &Global) {
        let counts = self.counts;
        println!("{}: {}", self.arguments.path.display(), self.store);
        println!("{:>10}  pairs read", counts.read);
        for (reason, count) in counts.left_out.iter().filter(|(_, count)| **count > 0) {
            println!("{count:>10}  left out: {}", reason.name());
        }
        println!("{:>10}  pairs used", counts.kept);
        for (count, what) in [
            (counts.settled, "of these: label and best_image_uid disagree"),
            (counts.without_user, "of these: no user named"),
            (
                counts.without_image_uid,
                "of these: a picture without a name, whose duplicates and leaks are not found",
            ),
            (counts.has_label_false, "of these: has_label is false, the label counts"),
        ] {
            if count > 0 {
                println!("{count:>10}  {what}");
            }
        }
        let size = self.arguments.shots + self.arguments.targets;
        let groups = |made: &Groups| {
            format!(
                "{} groups of {size} from {} users; left out: {} users with fewer than {size} pairs ({} pairs), {} pairs \
                 left over",
                made.groups.len(),
                made.users,
                made.users_with_too_few,
                made.pairs_of_too_few,
                made.remainder
            )
        };
        match &self.splits {
            Some(splits) => {
                println!("\nparts, seed {}:", self.arguments.seed);
                for (part, pairs, users, made) in &self.parts {
                    println!("{pairs:>10}  {}: {users} users; {}", part.name(), groups(made));
                }
                for (reason, count) in splits.left_out().iter().filter(|(_, count)| **count > 0) {
                    println!("{count:>10}  in no part: {}", reason.name());
                }
                println!("\nall pairs together: {}", groups(&self.whole));
            }
            None => println!("\nno pair names its user: no parts by user, no groups"),
        }
        let quiet = global.quiet;
        if !self.arguments.decode {
            terminal::say(quiet, "pictures were not decoded; --decode counts the broken ones");
        }
        if self.words.is_none() {
            terminal::say(quiet, "no caption was left out for its content; --unwanted-words FILE does that");
        }
    }
}
