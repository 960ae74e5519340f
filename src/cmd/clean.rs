//! `ppd clean`: what can be made again, and how much room it takes; then it is removed.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Global, RELEASED, Verdict, terminal};
use crate::error::Error;
use crate::record::{self, FolderLock};

/// What to remove.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Remove one's own complete records too; those in results/released always stay
    #[arg(long)]
    records: bool,
}

/// Something that can be made again.
struct Item {
    path: PathBuf,
    what: String,
    bytes: u64,
}

/// What can go, with the locks that keep every run out of it until it is gone.
#[derive(Default)]
struct List {
    items: Vec<Item>,
    locks: Vec<FolderLock>,
}

impl List {
    fn push(&mut self, path: PathBuf, what: &str) {
        self.items.push(Item { bytes: bytes_in(&path), path, what: what.into() });
    }

    /// Takes a folder for as long as the list lives; one that somebody works in is not offered.
    fn take(&mut self, folder: &Path, global: &Global) -> bool {
        match FolderLock::acquire(folder) {
            Ok(lock) => {
                self.locks.push(lock);
                true
            }
            Err(_) => {
                terminal::say(global.quiet, &format!("{}: in use, left alone", folder.display()));
                false
            }
        }
    }
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    if global.released {
        return Err(Error::Spec("--released: what is published is never cleaned; leave it out".into()).into());
    }
    let List { items, locks: _locks } = list(arguments, global)?;
    let total: u64 = items.iter().map(|item| item.bytes).sum();
    if global.json {
        let items: Vec<_> = items
            .iter()
            .map(|item| json!({"path": item.path, "what": item.what, "bytes": item.bytes}))
            .collect();
        let report = json!({"items": items, "bytes": total, "removed": !global.dry_run});
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if items.is_empty() {
        println!("nothing to free");
    } else {
        for item in &items {
            println!("{:>10}  {}  ({})", terminal::size(item.bytes), item.path.display(), item.what);
        }
        println!(
            "{:>10}  {}",
            terminal::size(total),
            if global.dry_run { "would be freed" } else { "to free" }
        );
    }
    if global.dry_run {
        return Ok(Verdict::Done);
    }
    for item in &items {
        std::fs::remove_dir_all(&item.path).map_err(Error::io("remove", &item.path))?;
    }
    terminal::say(global.quiet || items.is_empty(), "freed");
    Ok(Verdict::Done)
}

fn list(arguments: &Arguments, global: &Global) -> anyhow::Result<List> {
    let mut list = List::default();
    if global.cache.exists() && list.take(&global.cache, global) {
        for folder in subfolders(&global.cache) {
            list.push(folder, "cache");
        }
    }
    for study in subfolders(&global.results) {
        if study.file_name().is_some_and(|name| name == RELEASED) {
            continue;
        }
        for profile in subfolders(&study) {
            // No run, no lock file; none is made.
            if profile.join(".lock").exists() && !list.take(&profile, global) {
                continue;
            }
            let quick = profile.file_name().is_some_and(|name| name.to_string_lossy().contains("-quick"));
            if quick || arguments.records {
                list.push(profile, if quick { "smoke run" } else { "records" });
                continue;
            }
            for cell in record::cell_folders(&profile)? {
                if record::read_header(&cell).is_ok_and(|header| header.finished.is_none()) {
                    list.push(cell, "unfinished record");
                }
            }
        }
    }
    Ok(list)
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    folders.sort_unstable();
    folders
}

fn bytes_in(folder: &Path) -> u64 {
    walkdir::WalkDir::new(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(|metadata| metadata.is_file())
        .map(|metadata| metadata.len())
        .sum()
}
