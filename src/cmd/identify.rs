//! `ppd reproduce fig2`: users told apart by few-shot features, from the plan to the figure.

use super::device::Compute;
use super::{Global, Verdict, progress, terminal};
use crate::data::pick_a_pic::{self, Columns};
use crate::embed::choices::Source;
use crate::identify::{Answered, Identifier};
use crate::launch::Session;
use crate::record::{Header, Key, Recorder, Row, SCHEMA};
use crate::report::{self, fig2};
use crate::spec::Identification;
use crate::spec::identify::Cell;

/// The noise seed of rows that no noise stands behind.
const NO_NOISE: u64 = 0;

/// Runs what is missing, and renders.
pub(super) fn run(global: &Global, study: &str) -> anyhow::Result<Verdict> {
    let study = Identification::load(&global.request(study))?;
    let places = global.places();
    if global.dry_run {
        let (cells, wanting) = study.outline(&places)?;
        return show(&study, &cells, &wanting, global);
    }
    let cells = study.cells(&places)?;
    let pending: Vec<&Cell> = cells.iter().filter(|cell| !cell.is_complete()).collect();
    let done = pending.len();
    if !pending.is_empty() {
        let progress = progress(global)?;
        let _cache = global.use_cache()?;
        let folder = study.folder(&places.results);
        let compute = Compute::alone(global.device, global.threads())?;
        let session = Session::begin(&places, &folder, global.threads(), &compute.name())?;
        let pairs = study.profile()?.data_in(&places.assets, "pairs")?;
        let workers = &compute.workers;
        let digest = cells.iter().find_map(|cell| cell.digests.get("data/pairs"));
        let identifier = match digest.filter(|_| study.is_recorded()) {
            Some(digest) => {
                let source = Source { path: &pairs, digest, most: None, cache: &places.cache };
                Identifier::recorded(&study, &source, &places.assets, workers, &progress)?
            }
            None => {
                let pairs = pick_a_pic::read(&pairs, Columns::All)?;
                Identifier::new(&study, &pairs, (&places.assets, &places.cache), workers)?
            }
        };
        let identifier = identifier.on(&compute.device);
        for cell in pending {
            progress.enter(&cell.row_method());
            let answered = identifier.answers(cell, &progress)?;
            record(&study, cell, &session, &answered)?;
        }
    }
    terminal::say(
        global.quiet,
        &format!(
            "{done} cells done, {} complete in {}",
            cells.len(),
            study.folder(&places.results).display()
        ),
    );
    render(&study, global)
}

/// Leaves a cell's complete record.
fn record(
    study: &Identification,
    cell: &Cell,
    session: &Session,
    answered: &[Answered],
) -> anyhow::Result<()> {
    let mut digests = cell.digests.clone();
    digests.extend(session.binary.clone().map(|digest| ("binary".to_owned(), digest)));
    let header = Header {
        schema: SCHEMA,
        study: study.name.clone(),
        profile: study.label.clone(),
        cell: cell.id.clone(),
        method: cell.row_method(),
        config: cell.config.clone(),
        digests,
        provenance: session.provenance.clone(),
        scores: cell.scores(study),
        ..Header::default()
    };
    let mut recorder = Recorder::open(&cell.folder, header)?;
    for one in answered {
        let condition = format!("user-{}", one.user);
        let key = Key::new(&cell.row_method(), &condition, 0, one.group as u32, NO_NOISE);
        if recorder.has(&key) {
            continue;
        }
        recorder.append(&Row {
            method: cell.row_method(),
            condition,
            train_seed: 0,
            prompt: one.group as u32,
            noise_seed: NO_NOISE,
            scores: one.scores.clone(),
            failure: None,
        })?;
    }
    recorder.finish()?;
    Ok(())
}

/// Renders tables and figures from the records alone.
pub(super) fn render(study: &Identification, global: &Global) -> anyhow::Result<Verdict> {
    let found = fig2::Found::load(study, &study.folder(&global.results))?;
    let (outputs, holds) = fig2::render(&found)?;
    let figures = super::report::folder_of(&study.name, &study.label, &global.figures);
    let written = report::write(&outputs, &figures)?;
    super::report::print(&outputs, &figures, written.len(), global);
    Ok(if global.strict && !holds { Verdict::DoesNotHold } else { Verdict::Done })
}

/// Prints the plan.
fn show(
    study: &Identification,
    cells: &[Cell],
    wanting: &[String],
    global: &Global,
) -> anyhow::Result<Verdict> {
    if global.json {
        let cells: Vec<_> = cells
            .iter()
            .map(|cell| serde_json::json!({"id": cell.id, "complete": cell.is_complete()}))
            .collect();
        let told = serde_json::json!({
            "study": study.name, "profile": study.label, "cells": cells, "wanting": wanting,
        });
        println!("{told:#}");
        return Ok(Verdict::Done);
    }
    println!("{} · {} · profile {}", study.name, study.title, study.label);
    for cell in cells {
        println!("  {}  {}", cell.row_method(), if cell.is_complete() { "complete" } else { "to do" });
    }
    println!(
        "{} users, {} groups of {} to learn from and {} to ask about each; no judge is asked",
        study.users.count, study.groups.learned, study.groups.shots, study.groups.asked
    );
    super::reproduce::print_wanting(wanting, study.profile()?);
    Ok(Verdict::Done)
}
