//! Tables and figures from records alone.
//!
//! An output is a function of a [`Study`]: the rows of all finished cells beside what the experiment file asked.
//! [`OUTPUTS`] lists them all; a new one is its own file and a line there. Nothing here names a tensor, and what a
//! figure shows stands beside it as CSV.
//!
//! ```text
//! figures/<study>/<name>.{md,csv,tex}        a table
//! figures/<study>/<name>.{svg,pdf,png,csv}   a figure with the numbers that it plots
//! figures/<study>/<name>.html                the same as a page, where a figure has one
//! ```
//!
//! The same rows give the same bytes on every day and for any number of threads, so [`stale`] can tell whether the
//! files in a folder are what the records say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::{Error, Result};

pub mod audit;
pub mod claims;
pub mod export;
pub mod fig2;
pub mod fig3;
pub mod fig4;
pub mod fig5;
pub mod fig6;
mod from_spec;
pub mod judged;
pub mod matrix;
pub mod pairs;
pub mod panel;
pub mod people;
pub mod plot;
pub mod readme;
pub mod retained;
pub mod samples;
pub mod study;
pub mod sweep;
pub mod table;
pub mod table1;
pub mod traces;

#[cfg(test)]
mod testing;

pub use study::{Design, Method, Role, Study};
pub use table::Table;

/// One figure: its shapes, and the numbers that they stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The file's name without its ending.
    pub name: String,
    /// What the figure shows, a sentence or two.
    pub caption: String,
    /// The shapes.
    pub scene: plot::Scene,
    /// The numbers.
    pub data: Table,
}

/// What one output gives: tables and figures that belong together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// The output's name, as `ppd report` and README's markers know it.
    pub name: String,
    /// Tables with the names of their files.
    pub tables: Vec<(String, Table)>,
    /// Figures.
    pub figures: Vec<Figure>,
    /// Whole HTML documents with the names of their files.
    pub pages: Vec<(String, String)>,
}

/// An output that a study can have.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it shows, for a list.
    pub about: &'static str,
    /// Makes it; `None` where the study holds nothing that it could show.
    pub render: fn(&Study) -> Result<Option<Output>>,
}

/// All outputs, in the order in which a report shows them.
pub const OUTPUTS: &[Entry] = &[
    Entry {
        name: "table1",
        about: "each method's mean on each reward and its twin, beside the paper",
        render: table1::render,
    },
    Entry { name: "claims", about: "each claim's verdict and its evidence", render: claims::render },
    Entry {
        name: "fig3",
        about: "win rates of the personal model over base and baselines",
        render: fig3::render,
    },
    Entry { name: "fig4", about: "rewards over mixtures of users", render: fig4::render },
    Entry {
        name: "fig5",
        about: "how much people would rather have the images that were made for them",
        render: fig5::render,
    },
    Entry {
        name: "audit",
        about: "what judges say of the images, beside the truth, and how good the judges are",
        render: audit::render,
    },
    Entry {
        name: "fig6",
        about: "images for users drawn by lot, and what they show of what was written about each",
        render: fig6::render,
    },
    Entry {
        name: "retained",
        about: "what one model keeps of each specialist's gain",
        render: retained::render,
    },
    Entry {
        name: "matrix",
        about: "every method and user on every score, pixels included",
        render: matrix::render,
    },
    Entry { name: "samples", about: "the first prompts' images under every method", render: samples::render },
    Entry {
        name: "traces",
        about: "loss, margin, implicit accuracy and saturation in training",
        render: traces::render,
    },
    Entry { name: "sweep", about: "gain at each value of the swept keys", render: sweep::render },
];

/// Every output that the study asks for and has something for.
///
/// # Errors
/// Where an output cannot be made of what is there.
pub fn render_all(study: &Study) -> Result<Vec<Output>> {
    let outputs: Vec<Option<Output>> =
        asked_for(study).into_par_iter().map(|entry| (entry.render)(study)).collect::<Result<_>>()?;
    Ok(outputs.into_iter().flatten().collect())
}

fn asked_for(study: &Study) -> Vec<&'static Entry> {
    let asked = study.design.outputs.as_deref();
    OUTPUTS
        .iter()
        .filter(|entry| asked.is_none_or(|names| names.iter().any(|name| name == entry.name)))
        .collect()
}

impl Output {
    /// The files of this output: names and contents.
    ///
    /// # Errors
    /// Where a figure cannot be drawn.
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        for (name, table) in &self.tables {
            files.push((format!("{name}.md"), table.markdown().into_bytes()));
            files.push((format!("{name}.csv"), table.csv().into_bytes()));
            files.push((format!("{name}.tex"), table.latex().into_bytes()));
        }
        for figure in &self.figures {
            let svg = figure.scene.to_svg(&figure.caption)?;
            if !figure.scene.pixels_alone {
                files.push((format!("{}.pdf", figure.name), export::to_pdf(&svg)?));
            }
            files.push((format!("{}.png", figure.name), export::to_png(&svg)?));
            if !figure.scene.holds_pictures() {
                files.push((format!("{}.svg", figure.name), svg.into_bytes()));
            }
            files.push((format!("{}.csv", figure.name), figure.data.csv().into_bytes()));
        }
        for (name, page) in &self.pages {
            files.push((format!("{name}.html"), page.clone().into_bytes()));
        }
        Ok(files)
    }

    /// The names of its tables and figures.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        let tables = self.tables.iter().map(|(name, _)| name.as_str());
        tables.chain(self.figures.iter().map(|figure| figure.name.as_str()))
    }

    /// This output as Markdown, or the one `part` of it, its figures as links below `figures` (a path relative to the
    /// document); `None` where it has no such part.
    pub fn markdown(&self, part: Option<&str>, figures: &str) -> Option<String> {
        let asked = |name: &str| part.is_none_or(|part| part == name);
        let tables = self.tables.iter().filter(|(name, _)| asked(name));
        let mut parts: Vec<String> = tables.map(|(_, table)| table.markdown()).collect();
        for figure in self.figures.iter().filter(|figure| asked(&figure.name)) {
            let width = (figure.scene.width * 2.0).round();
            let alt = figure.caption.replace('"', "'");
            parts.push(format!(
                "<img src=\"{figures}/{}.{}\" alt=\"{alt}\" width=\"{width}\">\n\n{}\n",
                figure.name,
                if figure.scene.holds_pictures() { "png" } else { "svg" },
                figure.caption
            ));
        }
        (!parts.is_empty()).then(|| parts.join("\n"))
    }
}

/// All files of several outputs, in the outputs' order.
fn files(outputs: &[Output]) -> Result<Vec<(String, Vec<u8>)>> {
    let files: Vec<Vec<_>> = outputs.par_iter().map(Output::files).collect::<Result<_>>()?;
    Ok(files.into_iter().flatten().collect())
}

/// Writes all files of `outputs` into `folder`; files that already hold these bytes are left alone. Returns the paths
/// that were written.
///
/// # Errors
/// Where a figure cannot be drawn, or the system refuses.
pub fn write(outputs: &[Output], folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let mut written = Vec::new();
    for (name, bytes) in files(outputs)? {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|standing| standing == bytes) {
            continue;
        }
        crate::record::replace_file(&path, &bytes)?;
        written.push(path);
    }
    Ok(written)
}

/// The files in `folder` that are missing or differ from what `outputs` would write. A PDF, a page, and a PNG beside an SVG say
/// what the picture beside them says, and are not kept where records are published: one that is missing is none of these.
///
/// # Errors
/// Where a figure cannot be drawn.
pub fn stale(outputs: &[Output], folder: &Path) -> Result<Vec<PathBuf>> {
    let files = files(outputs)?;
    let drawn: BTreeSet<&str> = files.iter().filter_map(|(name, _)| name.strip_suffix(".svg")).collect();
    let is_said_again = |name: &str| match name.rsplit_once('.') {
        Some((_, "pdf" | "html")) => true,
        Some((figure, "png")) => drawn.contains(figure),
        _ => false,
    };
    Ok(files
        .iter()
        .map(|(name, bytes)| (name, folder.join(name), bytes))
        .filter(|(name, path, _)| path.exists() || !is_said_again(name))
        .filter(|(_, path, bytes)| std::fs::read(path).map_or(true, |standing| standing != **bytes))
        .map(|(_, path, _)| path)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_output_is_listed_once_and_draws_cleanly() {
        let study = testing::study();
        let outputs = render_all(&study).unwrap();
        let expected: Vec<&str> = OUTPUTS
            .iter()
            .map(|entry| entry.name)
            .filter(|name| !["fig5", "audit", "fig6", "sweep", "samples"].contains(name))
            .collect();
        let made: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(
            made, expected,
            "the synthetic study has something for every output but sweeps and images"
        );
        let mut names: Vec<String> = Vec::new();
        for output in &outputs {
            for figure in &output.figures {
                let faults = panel::faults(&figure.scene);
                assert!(faults.is_empty(), "{}: {faults:#?}", figure.name);
            }
            names.extend(output.files().unwrap().into_iter().map(|(name, _)| name));
        }
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), names.len(), "two outputs write one file: {names:?}");
        // A place to look at the figures while working on them.
        if let Some(folder) = std::env::var_os("PPD_LOOK") {
            write(&outputs, Path::new(&folder)).unwrap();
        }
    }

    #[test]
    fn what_was_written_is_fresh_until_it_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = render_all(&testing::study()).unwrap();
        let all = stale(&outputs, folder.path()).unwrap();
        let written = write(&outputs, folder.path()).unwrap();
        let is_said_again = |path: &&PathBuf| {
            let kind = path.extension().and_then(|kind| kind.to_str());
            kind == Some("pdf") || (kind == Some("png") && path.with_extension("svg").exists())
        };
        let (again, once): (Vec<&PathBuf>, Vec<&PathBuf>) = written.iter().partition(is_said_again);
        assert!(again.iter().any(|path| path.extension().is_some_and(|kind| kind == "png")));
        assert_eq!(once, all.iter().collect::<Vec<_>>());
        assert!(stale(&outputs, folder.path()).unwrap().is_empty());
        // Where it stands, it must say the same.
        std::fs::write(again[0], "edited").unwrap();
        assert_eq!(stale(&outputs, folder.path()).unwrap(), [again[0].clone()]);
        std::fs::remove_file(again[0]).unwrap();
        assert!(stale(&outputs, folder.path()).unwrap().is_empty());
        write(&outputs, folder.path()).unwrap();
        assert!(write(&outputs, folder.path()).unwrap().is_empty(), "fresh files are left alone");
        std::fs::write(folder.path().join("table1.md"), "edited").unwrap();
        assert_eq!(stale(&outputs, folder.path()).unwrap(), [folder.path().join("table1.md")]);
    }

    #[test]
    fn a_study_without_rows_gives_no_outputs() {
        let design = testing::study().design;
        assert!(render_all(&Study::new(design, Vec::new())).unwrap().is_empty());
    }
}
