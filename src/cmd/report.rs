//! `ppd report [STUDY]`: renders tables and figures from records alone; no tensor library is touched.

use std::path::{Path, PathBuf};

use super::{Global, Verdict, terminal};
use crate::error::Error;
use crate::report::{self, claims, fig2, fig5, readme, study::Design, study::Study};
use crate::spec::{Identification, Spec, library};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The study; without it, every study that has records
    #[arg(value_name = "STUDY")]
    study: Option<String>,
    /// Write nothing; exit with 3 where a figure, a table or the document is not what the records give
    #[arg(long)]
    check: bool,
    /// Fill the marked places of this document as well
    #[arg(long, value_name = "FILE.md")]
    splice: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    let studies = match &arguments.study {
        Some(study) => vec![study.clone()],
        None => library::studies("experiments".as_ref()),
    };
    let (mut shown, mut stale, mut broken) = (0, Vec::new(), false);
    for name in &studies {
        let request = global.request(name);
        if Identification::is_asked_for(&request)? {
            let study = Identification::load(&request)?;
            let folder = study.folder(&global.results);
            if !has_records(name, &folder, arguments)? {
                continue;
            }
            shown += 1;
            let (outputs, holds) = fig2::render(&fig2::Found::load(&study, &folder)?)?;
            settle(&study.name, &study.label, &outputs, arguments, global, &mut stale)?;
            broken |= !holds;
            continue;
        }
        let spec = Spec::load(&request)?;
        let folder = spec.folder(&global.results);
        if !has_records(name, &folder, arguments)? {
            continue;
        }
        shown += 1;
        let study = Study::load(Design::of(&spec)?, &folder)?;
        let outputs = report::render_all(&study)?;
        settle(&spec.name, &spec.label, &outputs, arguments, global, &mut stale)?;
        broken |= !all_holds(&study)?;
    }
    if shown == 0 {
        terminal::say(global.quiet, &format!("no study has records in {}", global.results.display()));
    }
    for path in &stale {
        println!("stale: {}", path.display());
    }
    // Where there is nothing to compare, a check has shown nothing.
    Ok(if !stale.is_empty() || (arguments.check && shown == 0) || (global.strict && broken) {
        Verdict::DoesNotHold
    } else {
        Verdict::Done
    })
}

/// Whether a study has records; one that was asked for by name must have some.
fn has_records(name: &str, folder: &Path, arguments: &Arguments) -> anyhow::Result<bool> {
    let has = folder.join("cells").exists();
    if !has && arguments.study.is_some() {
        return Err(Error::Spec(format!(
            "study {name} has no records in {}; make them with `ppd reproduce {name}`, or name their place with \
             --results DIR",
            folder.display()
        ))
        .into());
    }
    Ok(has)
}

/// Writes a study's outputs and fills a document, or finds what is stale of them.
fn settle(
    study: &str,
    label: &str,
    outputs: &[report::Output],
    arguments: &Arguments,
    global: &Global,
    stale: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let figures = folder_of(study, label, &global.figures);
    if arguments.check {
        stale.extend(report::stale(outputs, &figures)?);
    } else {
        let written = report::write(outputs, &figures)?;
        print(outputs, &figures, written.len(), global);
    }
    let Some(path) = &arguments.splice else { return Ok(()) };
    let document = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let filled = readme::splice(&document, study, outputs, &figures.to_string_lossy())?;
    if filled != document && arguments.check {
        stale.push(path.clone());
    } else if filled != document {
        crate::record::replace_file(path, filled.as_bytes())?;
    }
    Ok(())
}

/// Renders what a run has just recorded.
pub(super) fn render(spec: &Spec, global: &Global) -> anyhow::Result<Verdict> {
    let study = Study::load(Design::of(spec)?, &spec.folder(&global.results))?;
    let outputs = report::render_all(&study)?;
    let figures = folder_of(&spec.name, &spec.label, &global.figures);
    let written = report::write(&outputs, &figures)?;
    print(&outputs, &figures, written.len(), global);
    Ok(if global.strict && !all_holds(&study)? { Verdict::DoesNotHold } else { Verdict::Done })
}

/// Whether every claim of the study holds.
fn all_holds(study: &Study) -> crate::error::Result<bool> {
    Ok(claims::judge(study)?.iter().all(claims::Judged::holds) && fig5::holds(study)?)
}

/// `figures/<study>`, and for profiles other than the released one a folder of their own below it.
pub(super) fn folder_of(study: &str, label: &str, figures: &Path) -> PathBuf {
    let folder = figures.join(study);
    if label == "desk" { folder } else { folder.join(label) }
}

pub(super) fn print(outputs: &[report::Output], figures: &Path, written: usize, global: &Global) {
    if global.json {
        let tables = outputs.iter().flat_map(|output| &output.tables);
        let tables: serde_json::Map<_, _> =
            tables.map(|(name, table)| (name.clone(), table.json())).collect();
        println!("{:#}", serde_json::json!({"figures": figures, "tables": tables}));
    } else if !global.quiet {
        for output in outputs.iter().filter(|output| output.figures.is_empty()) {
            for (_, table) in &output.tables {
                println!("{}", table.markdown());
            }
        }
    }
    terminal::say(
        global.quiet,
        &format!("{} outputs in {}, {written} files written", outputs.len(), figures.display()),
    );
}
