//! `ppd fetch`: weights and data of others, downloaded, checked and noted, or checked where they are.

use serde_json::{Value, json};

use super::{Global, Verdict, progress, terminal};
use crate::error::Error;
use crate::hub::{self, Artefact, Hub, Located, Plan};
use crate::provenance::free_bytes;
use crate::spec::{Profile, Spec};

/// The profile whose files are fetched where none is named.
pub(super) const PROFILE: &str = "paper";

/// What the command takes besides the options of every command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only these artefacts, by their names in the profile [default: all that are not marked `on_request`]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,
    /// Let a folder, a file, an address or hf://OWNER/NAME[@REVISION] stand for an artefact or its repository; may be
    /// repeated
    #[arg(long, value_name = "NAME=PATH_OR_URL")]
    mirror: Vec<String>,
    /// Compute all digests again, also of what was checked before and not written to since
    #[arg(long)]
    recheck: bool,
}

const EXAMPLES: &str = "\
Examples:
  ppd fetch --dry-run                            what there is, how large, and what of it is here
  ppd fetch --only denoiser text-encoder         these two; a download that was cut goes on where it stopped
  ppd fetch --only pairs --mirror pairs=/data/pick-a-pic-v2
  HF_ENDPOINT=https://hub.example.org ppd fetch  another server with the Hub's interface

HF_HOME says where files are kept, HF_TOKEN opens gated repositories, HF_HUB_OFFLINE=1 forbids the network.
experiments/hub.lock keeps what was first fetched; whatever differs from it later is refused.";

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    let profile = Spec::load(&global.request("table1"))?.profile;
    let wanted = wanted(arguments, &profile)?;
    if wanted.is_empty() {
        let name = &profile.name;
        terminal::say(
            global.quiet,
            &format!("profile {name} has nothing to fetch: its files come with the program"),
        );
        return Ok(Verdict::Done);
    }
    let mut hub = Hub::from_env(hub::LOCK)?;
    for mirror in &arguments.mirror {
        let (name, stands) = mirror.split_once('=').ok_or_else(|| {
            Error::Spec(format!("--mirror {mirror}: expected NAME=PATH_OR_URL, got no `=`"))
        })?;
        let known = |artefact: &Artefact| artefact.repository == name;
        if !profile.artefacts.values().any(known) {
            profile.artefact(name)?;
        }
        hub = hub.with_mirror(name, stands)?;
    }
    let progress = progress(global)?;
    let plan = hub.plan(&wanted, &progress)?;
    if global.dry_run {
        drop(progress);
        show(&plan, &hub, &profile, global);
        return Ok(Verdict::Done);
    }
    let located = hub.fetch(&profile.name, &plan, arguments.recheck, &progress)?;
    drop(progress);
    report(&wanted, &located, global);
    Ok(Verdict::Done)
}

/// The artefacts that were named, or those that are fetched without being named.
fn wanted<'a>(
    arguments: &'a Arguments,
    profile: &'a Profile,
) -> anyhow::Result<Vec<(&'a str, &'a Artefact)>> {
    if arguments.only.is_empty() {
        let all = profile.artefacts.iter().filter(|(_, artefact)| !artefact.on_request);
        return Ok(all.map(|(name, artefact)| (name.as_str(), artefact)).collect());
    }
    let named = arguments.only.iter().map(|name| Ok((name.as_str(), profile.artefact(name)?)));
    named.collect()
}

/// Prints what would be fetched.
fn show(plan: &Plan, hub: &Hub, profile: &Profile, global: &Global) {
    let missing = plan.missing_bytes();
    let free = free_bytes(hub.folder());
    if global.json {
        let commits: serde_json::Map<String, Value> =
            plan.commits().map(|(name, commit)| (name.to_owned(), json!(commit))).collect();
        let items: Vec<Value> = plan
            .items()
            .map(|item| {
                json!({
                    "artefact": item.artefact, "file": item.file, "bytes": item.bytes,
                    "missing": item.is_missing(), "here": item.here,
                })
            })
            .collect();
        let told = json!({
            "files": items, "commits": commits, "missing_bytes": missing, "free_bytes": free,
            "folder": hub.folder(), "offline": hub.is_offline(),
        });
        println!("{told:#}");
        return;
    }
    let mut last = "";
    for item in plan.items() {
        if item.artefact != last {
            let artefact = &profile.artefacts[&item.artefact];
            println!("{}: {}, {}", item.artefact, artefact.source(), artefact.licence);
            last = &item.artefact;
        }
        let size = item.bytes.map_or("size unknown".into(), terminal::size);
        let state = match (item.is_missing(), item.here) {
            (false, _) => "here".to_owned(),
            (true, 0) => "to fetch".to_owned(),
            (true, here) => format!("to fetch, {} are here", terminal::size(here)),
        };
        println!("  {size:>12}  {}  ({state})", item.file);
    }
    let room = free.map_or_else(String::new, |free| format!(", {} free", terminal::size(free)));
    println!("{} to fetch into {}{room}", terminal::size(missing), hub.folder().display());
}

/// Prints where everything lies.
fn report(wanted: &[(&str, &Artefact)], located: &[Located], global: &Global) {
    let total = |found: &Located| found.files.iter().map(|file| file.bytes).sum::<u64>();
    if global.json {
        let told: Vec<Value> = wanted
            .iter()
            .zip(located)
            .map(|((name, artefact), found)| {
                json!({
                    "artefact": name, "source": artefact.source(), "commit": found.commit, "path": found.path,
                    "licence": found.licence, "files": found.files.len(), "bytes": total(found),
                    "digest": found.digest(),
                })
            })
            .collect();
        println!("{:#}", Value::from(told));
        return;
    }
    for ((name, _), found) in wanted.iter().zip(located) {
        let files = match found.files.len() {
            1 => "1 file".to_owned(),
            count => format!("{count} files"),
        };
        println!("{name}: {files}, {}, {}", terminal::size(total(found)), found.path.display());
    }
    terminal::say(global.quiet, &format!("all of it is noted in {}", hub::LOCK));
}
