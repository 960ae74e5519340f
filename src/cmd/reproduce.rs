//! `ppd reproduce STUDY` and `ppd sweep STUDY`.

use serde_json::json;

use super::cell::Laboratory;
use super::device::{self, Compute};
use super::{Global, Verdict, progress, terminal};
use crate::collective::{self, Collective};
use crate::error::Error;
use crate::launch::{Ranks, Session, local, local::Outcome};
use crate::report::study::Design;
use crate::spec::{Estimate, Identification, Method, Plan, Profile, Spec, library};
use crate::units::Digest;

/// What the two commands take besides the options of every command.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The study: a name in experiments/, or a path that ends in .toml
    #[arg(value_name = "STUDY")]
    study: String,
}

/// Which of the two commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `reproduce`: any study.
    Study,
    /// `sweep`: a study with a `[sweep]`.
    Sweep,
}

pub(super) fn run(arguments: &Arguments, global: &Global, kind: Kind) -> anyhow::Result<Verdict> {
    if kind == Kind::Study && Identification::is_asked_for(&global.request(&arguments.study))? {
        if !global.dry_run {
            device::check(global.device, None)?;
        }
        return super::identify::run(global, &arguments.study);
    }
    let spec = Spec::load(&global.request(&arguments.study))?;
    if kind == Kind::Sweep && spec.sweep.is_none() {
        let known = library::experiments("experiments".as_ref());
        let sweeps = known
            .iter()
            .filter(|name| Spec::load(&global.request(name)).is_ok_and(|spec| spec.sweep.is_some()));
        return Err(Error::Spec(format!(
            "study `{}` has no [sweep], expected one of {}; for other studies there is `ppd reproduce {}`",
            spec.name,
            sweeps.cloned().collect::<Vec<_>>().join(", "),
            spec.name
        ))
        .into());
    }
    if !global.dry_run {
        // Before assets are read, a GPU is opened or ranks wait for each other.
        let ranks = Ranks::from_environment()?;
        fits(&spec, ranks.as_ref().map_or(1, |ranks| ranks.world_size))?;
        device::check(global.device, ranks.as_ref())?;
    }
    let places = global.places();
    let plan = if global.dry_run { spec.outline(&places)? } else { spec.resolve(&places)? };
    // What cannot be rendered, or not be judged, is refused before hours are spent on it.
    Design::of(&spec)?;
    if !global.dry_run {
        super::judged::check(&plan)?;
    }
    let mut verdict = if global.dry_run { show(&plan, global)? } else { execute(&plan, global)? };
    // Settings of one study are none of another's.
    let with = spec.with.iter().filter(|_| kind == Kind::Study && global.set.is_empty());
    for study in with {
        let arguments = Arguments { study: study.clone() };
        if let other @ Verdict::DoesNotHold = run(&arguments, global, kind)? {
            verdict = other;
        }
    }
    Ok(verdict)
}

/// Prints the plan: what is complete, what is cached, what it would take.
fn show(plan: &Plan, global: &Global) -> anyhow::Result<Verdict> {
    let (estimate, probed) = estimate(plan, global)?;
    if global.json {
        println!("{}", serde_json::to_string_pretty(&as_json(plan, &estimate)?)?);
        return Ok(Verdict::Done);
    }
    println!("{} · {} · profile {}", plan.spec.name, plan.spec.title, plan.spec.label);
    println!("records in {}", plan.folder.display());
    println!();
    let heads = ["method", "seed", "users", "training", "rows", "state", "published"];
    let mut lines = vec![heads.map(str::to_owned)];
    for cell in &plan.cells {
        let done = cell.rows_done()?;
        lines.push([
            cell.method.name.clone(),
            cell.train_seed.get().to_string(),
            cell.method.conditions.len().to_string(),
            training_state(plan, cell.train_key.as_deref()),
            cell.rows.to_string(),
            match (cell.is_complete(), done) {
                (true, _) => "complete".into(),
                (false, 0) => "to do".into(),
                (false, done) => format!("{done} done"),
            },
            published(&cell.method),
        ]);
    }
    print_columns(&lines);
    println!();
    let complete = plan.cells.len() - plan.pending().len();
    println!("{} cells, {complete} complete", plan.cells.len());
    println!(
        "{} trainings, {} images, about {} of disk{}",
        estimate.trainings,
        estimate.images,
        terminal::size(estimate.bytes),
        if plan.spec.profile.pictures.is_some() {
            " (text states, kept for each caption, come to it)"
        } else {
            ""
        }
    );
    match estimate.core_seconds {
        Some(seconds) => println!("about {} {}", terminal::duration(seconds), probed.how(global)),
        None => println!("time unknown: {}", probed.how(global)),
    }
    match plan.spec.users.as_ref().map(|users| users.judges.as_slice()) {
        None | Some([]) => println!("no judge is asked: scores are the rewards' own"),
        Some(judges) => {
            let names: Vec<&str> = judges.iter().map(|judge| judge.label.as_str()).collect();
            println!("judges, asked about the images that are kept: {}", names.join(", "));
            if let Err(fault) = super::judged::check(plan) {
                println!("  none can be asked yet: {fault}");
            }
        }
    }
    print_wanting(&plan.wanting, &plan.spec.profile);
    Ok(Verdict::Done)
}

/// Prints what is wanting before a study can run, and how to see what it would take.
pub(super) fn print_wanting(wanting: &[String], profile: &Profile) {
    if wanting.is_empty() {
        return;
    }
    println!("\nwanting, so that the names of cells are provisional:");
    wanting.iter().for_each(|line| println!("  - {line}"));
    if !profile.artefacts.is_empty() {
        println!("sizes and licences: `ppd fetch --profile {} --dry-run`", profile.name);
    }
}

/// Where an estimate's costs come from.
#[derive(Clone, Copy, PartialEq)]
enum Probed {
    /// The profile states them.
    Stated,
    /// A few steps were taken here.
    Here(usize),
    /// Nobody knows.
    Unknown,
}

impl Probed {
    fn how(self, global: &Global) -> String {
        match self {
            Self::Stated => format!("on {} threads, by the profile's costs", global.threads()),
            Self::Here(1) => "on this device, by a probe of a few steps".into(),
            Self::Here(workers) => format!("on {workers} threads here, by a probe of a few steps"),
            Self::Unknown => "the profile states no cost, and a probe needs the files".into(),
        }
    }
}

/// What the plan will take, in seconds of this machine: by the profile's costs, or, where it states none and everything
/// is here, by a probe.
fn estimate(plan: &Plan, global: &Global) -> anyhow::Result<(Estimate, Probed)> {
    let stated = plan.spec.profile.cost;
    let (cost, probed, workers) = if stated.is_known() {
        (stated, Probed::Stated, global.threads())
    } else if plan.wanting.is_empty() && !plan.pending().is_empty() {
        let compute = Compute::alone(global.device, global.threads())?;
        let progress = progress(global)?;
        let cost = Laboratory::new(plan, &compute).probe(&progress)?;
        (cost, Probed::Here(compute.workers.count()), compute.workers.count())
    } else {
        (stated, Probed::Unknown, 1)
    };
    let mut estimate = plan.estimate(cost)?;
    estimate.core_seconds = estimate.core_seconds.map(|seconds| seconds / workers as f64);
    Ok((estimate, probed))
}

/// The paper's numbers that a method's row will stand beside.
fn published(method: &Method) -> String {
    method.paper.iter().map(|(reward, value)| format!("{reward} {value}")).collect::<Vec<_>>().join(", ")
}

fn training_state(plan: &Plan, key: Option<&str>) -> String {
    match key {
        None => "none".into(),
        Some(key) if plan.places.training(key).exists() => format!("{} cached", &key[..8]),
        Some(key) => key[..8].to_owned(),
    }
}

fn as_json(plan: &Plan, estimate: &Estimate) -> anyhow::Result<serde_json::Value> {
    let mut cells = Vec::new();
    for cell in &plan.cells {
        cells.push(json!({
            "id": cell.id,
            "method": cell.method.name,
            "train_seed": cell.train_seed,
            "train_key": cell.train_key,
            "rows": cell.rows,
            "rows_done": cell.rows_done()?,
            "complete": cell.is_complete(),
            "published": cell.method.paper,
        }));
    }
    Ok(json!({
        "study": plan.spec.name,
        "profile": plan.spec.label,
        "folder": plan.folder,
        "cells": cells,
        "estimate": {
            "trainings": estimate.trainings,
            "images": estimate.images,
            "bytes": estimate.bytes,
            "seconds": estimate.core_seconds,
        },
        "wanting": plan.wanting,
    }))
}

/// Prints lines of columns, each as wide as its widest cell.
fn print_columns<const N: usize>(lines: &[[String; N]]) {
    let mut widths = [0; N];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in lines {
        let cells: Vec<String> =
            line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// Runs what is missing, and says how it went.
fn execute(plan: &Plan, global: &Global) -> anyhow::Result<Verdict> {
    let progress = progress(global)?;
    let _cache = global.use_cache()?;
    let compute = Compute::together(global.device, global.threads(), &global.cache)?;
    let laboratory = Laboratory::new(plan, &compute);
    same_plan(plan, &*compute.collective)?;
    let recorded = plan.spec.users.as_ref().is_some_and(|users| !users.choices.is_simulated());
    if recorded && !plan.pending().is_empty() {
        // Where too few people chose often enough, nothing is trained for nothing. The first rank looks at all pictures, and
        // keeps what it found for the others.
        for first in [true, false] {
            let own = (compute.collective.rank() == 0) == first;
            let found = if own { laboratory.choices(&progress).map(drop) } else { Ok(()) };
            collective::agree(found, &*compute.collective)?;
        }
    }
    if compute.collective.rank() > 0 {
        laboratory.follow(&progress)?;
        return Ok(Verdict::Done);
    }
    let outcome =
        Session::begin(&plan.places, &plan.folder, global.threads(), &compute.name()).and_then(|session| {
            local::run(plan, &session, &progress, |cell, progress| laboratory.run(cell, &session, progress))
        });
    // Whatever happened, nobody waits for another training.
    laboratory.announce(None)?;
    let outcome = outcome?;
    let through = !outcome.stopped && outcome.failed.is_empty() && outcome.left == 0;
    let judged = if through { super::judged::run(plan, global, &progress) } else { Ok(()) };
    drop(progress);
    finish(plan, &outcome, global)?;
    judged?;
    super::report::render(&plan.spec, global)
}

/// Refuses ranks that do not divide a method's batch.
fn fits(spec: &Spec, world_size: usize) -> crate::error::Result<()> {
    let mut trained = spec.methods.iter().filter(|method| method.objective.is_some());
    trained.try_for_each(|method| collective::check(method.train.pairs_per_step, world_size))
}

/// Refuses ranks that were given different commands or files.
fn same_plan(plan: &Plan, collective: &dyn Collective) -> crate::error::Result<()> {
    let ids: Vec<&str> = plan.cells.iter().map(|cell| cell.id.as_str()).collect();
    // The digest's first digits: a whole number that a sum keeps exactly.
    let digest = Digest::of(ids.join("\n").as_bytes());
    let number = u64::from_str_radix(digest.short(), 16).unwrap_or_default() as f64;
    let all = collective::all_gather(&[number], collective)?;
    match all.iter().position(|&other| other != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Spec(format!(
            "rank {rank} plans other cells than the first one; start all ranks with the same command, in the same \
             checkout"
        ))),
    }
}

/// Reports how a run ended.
///
/// # Errors
/// Where it was stopped, or where a cell failed.
fn finish(plan: &Plan, outcome: &Outcome, global: &Global) -> anyhow::Result<()> {
    let Outcome { complete, done, failed, left, stopped } = outcome;
    let again = "run the same command again to go on";
    if *stopped {
        anyhow::bail!("stopped: {} of {} cells complete; {again}", complete + done, plan.cells.len());
    }
    if !failed.is_empty() {
        let reasons: Vec<String> =
            failed.iter().map(|(cell, reason)| format!("{cell}: {reason:#}")).collect();
        anyhow::bail!(
            "{} of {} cells failed{}; what is complete is kept, {again}\n  - {}",
            failed.len(),
            plan.cells.len(),
            if *left > 0 { format!(", {left} were not tried") } else { String::new() },
            reasons.join("\n  - ")
        );
    }
    if *done == 0 {
        terminal::say(
            global.quiet,
            &format!("nothing to do: {complete} cells complete in {}", plan.folder.display()),
        );
    } else {
        terminal::say(
            global.quiet,
            &format!("{done} cells done, {} complete in {}", complete + done, plan.folder.display()),
        );
    }
    Ok(())
}
