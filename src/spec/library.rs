//! The experiments and profiles that come with the program, and those in `experiments/` that stand before them.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result, nearest};

/// Declares what is built in, so that an installed program needs no checkout.
macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!("../../experiments/", $name, ".toml")))),+]
    };
}

const EXPERIMENTS: [(&str, &str); 11] = built_in![
    "table1",
    "controls",
    "fig2",
    "fig2-ablation",
    "fig3",
    "fig4",
    "fig5",
    "fig6",
    "beta",
    "sensitivity",
    "users",
];
const PROFILES: [(&str, &str); 2] = built_in!["profiles/desk", "profiles/paper"];

/// The text of a file, and what messages call it.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) name: String,
    pub(super) text: String,
}

/// The names of all experiments, built in or in `folder`.
pub fn experiments(folder: &Path) -> Vec<String> {
    names(&EXPERIMENTS, folder)
}

/// The names of all studies: the experiments, and those in the folders below them, such as `search/ppd`.
pub fn studies(folder: &Path) -> Vec<String> {
    let mut studies = experiments(folder);
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let no_studies = ["profiles", "judges"];
    let below = below.map(|entry| entry.path());
    for below in below.filter(|path| path.is_dir() && !no_studies.iter().any(|name| path.ends_with(name))) {
        let name = below.file_name().unwrap_or_default().to_string_lossy().into_owned();
        studies.extend(names(&[], &below).into_iter().map(|study| format!("{name}/{study}")));
    }
    studies.sort_unstable();
    studies
}

/// The names of all profiles, built in or in `folder/profiles`.
pub fn profiles(folder: &Path) -> Vec<String> {
    names(&PROFILES, &folder.join("profiles"))
}

fn names(built_in: &[(&str, &str)], folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        built_in.iter().map(|(name, _)| name.rsplit('/').next().unwrap_or(name).to_owned()).collect();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// The experiment of this name, or in this file where it ends in `.toml`.
pub(super) fn experiment(folder: &Path, name: &str) -> Result<Text> {
    find("study", "experiments/", &EXPERIMENTS, folder, name, || experiments(folder))
}

/// The profile of this name, or in this file where it ends in `.toml`.
pub(super) fn profile(folder: &Path, name: &str) -> Result<Text> {
    find("profile", "experiments/profiles/", &PROFILES, &folder.join("profiles"), name, || profiles(folder))
}

fn find(
    what: &str,
    stored: &str,
    built_in: &[(&str, &str)],
    folder: &Path,
    name: &str,
    known: impl Fn() -> Vec<String>,
) -> Result<Text> {
    if name.ends_with(".toml") {
        return read(PathBuf::from(name));
    }
    let path = folder.join(format!("{name}.toml"));
    if path.is_file() {
        return read(path);
    }
    if let Some((_, text)) = built_in.iter().find(|(known, _)| known.rsplit('/').next() == Some(name)) {
        return Ok(Text { name: format!("{stored}{name}.toml (built in)"), text: (*text).to_owned() });
    }
    let known = known();
    let near = nearest(name, known.iter().map(String::as_str));
    Err(Error::Spec(format!(
        "unknown {what} `{name}`, expected one of {}, or a path that ends in .toml{}",
        known.join(", "),
        near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
    )))
}

fn read(path: PathBuf) -> Result<Text> {
    let text = std::fs::read_to_string(&path).map_err(|fault| {
        Error::Spec(format!(
            "{}: cannot be read ({fault}); check the path, or name a study of experiments/",
            path.display()
        ))
    })?;
    Ok(Text { name: path.display().to_string(), text })
}
