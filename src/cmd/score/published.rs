//! `ppd score --reward`: the scores of one public reward model, as a table for other tools.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Table;
use crate::cmd::device::Compute;
use crate::cmd::{Global, Verdict, progress};
use crate::data::to_score::{self, Item};
use crate::error::{Error, Result};
use crate::image;
use crate::pixels::Image;
use crate::record::replace_file;
use crate::reward::{Published, Reward};
use crate::reward_checkpoint::{self, Files};
use crate::spec::{Request, Spec};

/// Pictures that are in memory at a time.
const CHUNK: usize = 64;

pub(super) fn run(arguments: &Table, published: Published, global: &Global) -> anyhow::Result<Verdict> {
    if global.json {
        return Err(Error::Spec("--reward writes a CSV: leave --json out".into()).into());
    }
    let (items, origin) = items(arguments)?;
    let files = files(arguments, published, global)?;
    if let Some(out) = &arguments.out {
        writable(out)?;
    }
    if !arguments.skip_unreadable {
        for (i, item) in items.iter().enumerate() {
            std::fs::metadata(&item.path)
                .map_err(|fault| unreadable(&origin, i, &Error::io("read", &item.path)(fault)))?;
        }
    }
    let progress = progress(global)?;
    let Compute { device, workers, .. } = global.compute()?;
    let reward = reward_checkpoint::open(published, &files.weights, files.backbone.as_deref(), &device)?;
    progress.begin("score", items.len());
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["image", "prompt", "reward", "version", "score"])?;
    let mut skipped = 0;
    for (chunk, items) in items.chunks(CHUNK).enumerate() {
        let first = chunk * CHUNK;
        let mut rows: Vec<(usize, &Item)> = Vec::new();
        let mut pictures: Vec<Image> = Vec::new();
        for (i, picture) in workers.map(items, |_, item| image::read(&item.path)).into_iter().enumerate() {
            match picture {
                Ok(picture) => {
                    rows.push((first + i, &items[i]));
                    pictures.push(picture);
                }
                Err(fault) if arguments.skip_unreadable => {
                    skipped += 1;
                    progress.note(&format!("row {} left out: {fault}", first + i + 1));
                }
                Err(fault) => return Err(unreadable(&origin, first + i, &fault).into()),
            }
        }
        for (i, item) in &rows {
            note_cut(&reward, *i, item, &|text| progress.note(text))?;
        }
        let prompts: Vec<String> = rows.iter().map(|(_, item)| item.prompt.clone()).collect();
        let scores = reward.score(&pictures, &prompts)?;
        for ((i, item), score) in rows.iter().zip(scores) {
            if !score.is_finite() {
                let place = format!("row {} ({}) of {}", i + 1, item.image, origin.display());
                return Err(Error::NonFinite {
                    what: format!("the score of {published}"),
                    value: score,
                    place,
                }
                .into());
            }
            let score = score.to_string();
            writer.write_record([
                &item.image,
                &item.prompt,
                published.name(),
                published.version(),
                &score,
            ])?;
        }
        progress.advance(items.len());
        progress.check()?;
    }
    if skipped > 0 {
        progress.note(&format!("{skipped} of {} pictures could not be read and were left out", items.len()));
        if skipped == items.len() {
            return Err(Error::data(&origin, format!("none of its {skipped} pictures could be read")).into());
        }
    }
    drop(progress);
    let table = writer.into_inner().context("the table of scores")?;
    match &arguments.out {
        Some(out) => replace_file(out, &table)?,
        None => print!("{}", String::from_utf8(table)?),
    }
    Ok(Verdict::Done)
}

/// The checkpoint that was named, or the one that the profile pins: the paper's, where the chosen one pins none.
fn files(arguments: &Table, published: Published, global: &Global) -> Result<Files> {
    if let Some(weights) = &arguments.weights {
        return Ok(Files {
            weights: weights.clone(),
            published: Some(published),
            backbone: arguments.backbone.clone(),
        });
    }
    for profile in [global.profile.as_str(), super::super::fetch::PROFILE] {
        let request = Request { profile: profile.to_owned(), ..global.request("table1") };
        let profile = Spec::load(&request)?.profile;
        let pinned = profile.published.iter().find(|(_, public)| public.model == published);
        if let Some((name, _)) = pinned {
            let files = profile.reward_in(&global.assets, name)?;
            return Ok(Files { backbone: arguments.backbone.clone().or(files.backbone), ..files });
        }
    }
    Err(Error::Spec(format!(
        "--reward {published}: no profile pins its checkpoint; name a file or folder with --weights PATH"
    )))
}

/// The pictures to score, and the list that names them.
fn items(arguments: &Table) -> Result<(Vec<Item>, PathBuf)> {
    let (items, origin) = match (&arguments.pairs, &arguments.images, &arguments.prompts) {
        (Some(csv), None, None) => (to_score::pairs(csv)?, csv),
        (None, Some(folder), Some(prompts)) => (to_score::folder(folder, prompts)?, folder),
        _ => {
            return Err(Error::Spec(
                "--reward needs its pictures: --pairs CSV (columns image,prompt), or --images DIR with --prompts TXT (one \
                 prompt a line)"
                    .into(),
            ));
        }
    };
    match items.is_empty() {
        true => Err(Error::data(origin, "holds no pictures to score")),
        false => Ok((items, origin.clone())),
    }
}

/// Refuses a place for the table that could not be written, before hours are spent on it.
fn writable(out: &Path) -> Result<()> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if out.is_dir() || !folder.is_dir() {
        return Err(Error::Spec(format!("--out {}: expected a file in a folder that exists", out.display())));
    }
    Ok(())
}

/// A picture's fault, with the row that names it.
fn unreadable(origin: &Path, index: usize, fault: &Error) -> Error {
    Error::data(origin, format!("row {}: {fault}; --skip-unreadable leaves such rows out", index + 1))
}

/// Says what a model does not read of a prompt that is longer than its context.
fn note_cut(reward: &Reward, index: usize, item: &Item, note: &dyn Fn(&str)) -> Result<()> {
    if let Some(cut) = reward.cut(&item.prompt)? {
        note(&format!(
            "row {} ({}): the prompt has {} tokens, the model reads {}; left out: {:?}",
            index + 1,
            item.image,
            cut.tokens,
            cut.context,
            cut.rest
        ));
    }
    Ok(())
}
