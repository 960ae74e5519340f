//! Experiment files to a plan of cells; every refusal happens here.
//!
//! A study is read in layers, each over the one before: the study that it `extends`, its own file, the profile's
//! `[set]`, the study's own section for the profile, the study's `[released]` or the profile's and the study's `[quick]` where asked for, and each `--set key=value`. What is
//! unknown is refused with file, line and the nearest known word; what is out of range, or missing on this disk, is
//! refused before anything runs, all of it at once. What this module does not do: run anything, or print.

mod check;
pub mod claim;
pub mod identify;
pub mod library;
mod method;
mod plan;
mod profile;
mod sections;
mod settings;
mod source;
pub mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result, nearest};
use crate::units::{Digest, Seed};

pub use claim::Claim;
pub use identify::Identification;
pub use method::{Captions, Condition, Conditioning, Labels, Method, Role};
pub use plan::{Cell, Estimate, Places, Plan, SCHEMA, weights_digest};
pub use profile::{Cost, Precision, Profile, PublicReward};
pub use settings::{Adapter, Data, Prompts, Rewards, Sample, Seeds, Train};
pub use users::Users;

use sections::Sections;
use source::{Node, Problems, Sources, name_of};

/// What somebody asked for on the command line.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A study's name, or a path that ends in `.toml`.
    pub study: String,
    /// A profile's name, or a path that ends in `.toml`; empty is `desk`.
    pub profile: String,
    /// How large a run it is.
    pub size: Size,
    /// Settings as `key=value`, in order.
    pub set: Vec<String>,
    /// The training seeds; absent: the file's.
    pub seeds: Option<Seeds>,
    /// The folder of experiment files; what is not there is built in.
    pub experiments: PathBuf,
}

/// How large a run of a study is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Size {
    /// As the study's file says.
    #[default]
    Standard,
    /// A smoke run: the profile's `[quick]` layer applies, then the study's own.
    Quick,
    /// The run that is published: the study's `[released]` layer applies.
    Released,
}

/// A study, read and checked, not yet set against this disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Its title.
    pub title: String,
    /// What it stands beside in the paper.
    pub paper: Option<String>,
    /// The study whose folder holds its records: itself, or the one that it shares them with.
    pub records: String,
    /// The training seeds.
    pub seeds: Seeds,
    /// What is trained on, and what is asked for.
    pub data: Data,
    /// How images are made.
    pub sample: Sample,
    /// The synthetic users.
    pub rewards: Rewards,
    /// The people, where it is a study of them.
    pub users: Option<Users>,
    /// The rows of its table.
    pub methods: Vec<Method>,
    /// What it claims, fixed before looking.
    pub claims: Vec<Claim>,
    /// Where it sweeps: the swept keys.
    pub sweep: Option<Sweep>,
    /// The tables and figures that are rendered; absent: all that there is something for.
    pub outputs: Option<Vec<String>>,
    /// Studies that belong to it, and are reproduced after it where nothing of it is changed.
    pub with: Vec<String>,
    /// The weights and data that it runs on.
    pub profile: Profile,
    /// The folder name of the profile with its changes: `desk`, `desk-quick`, `desk-set-1a2b3c4d`.
    pub label: String,
}

/// `[sweep]`: every combination of the axes' values becomes a method.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The method that is varied.
    pub method: String,
    /// The values of each key of that method, such as `"objective.beta" = [0.1, 0.5]`.
    pub axes: BTreeMap<String, Vec<f64>>,
}

impl Sweep {
    /// The name of the method at a point: `ppd beta=0.5 learning_rate=0.0001`.
    fn point_name(&self, values: &[f64]) -> String {
        let settings = self.axes.keys().zip(values).map(|(key, value)| {
            let key = key.rsplit('.').next().unwrap_or(key);
            format!(" {key}={value}")
        });
        std::iter::once(self.method.clone()).chain(settings).collect()
    }

    /// Every combination of values, the last axis fastest.
    fn points(&self) -> Vec<Vec<f64>> {
        self.axes.values().fold(vec![Vec::new()], |points, values| {
            let extended = |point: &Vec<f64>| {
                values.iter().map(|&value| [point.as_slice(), &[value]].concat()).collect::<Vec<_>>()
            };
            points.iter().flat_map(extended).collect()
        })
    }

    /// The value of each axis in a method's name, where the method is one of the points.
    pub fn values_of(&self, method: &str) -> Option<Vec<f64>> {
        self.points().into_iter().find(|point| self.point_name(point) == method)
    }
}

impl Spec {
    /// Reads a study with its profile and its overrides.
    ///
    /// # Errors
    /// All problems at once, each with file and line, or with the override that it stands in.
    pub fn load(request: &Request) -> Result<Self> {
        let folder = &request.experiments;
        let profile_name = if request.profile.is_empty() { "desk" } else { &request.profile };
        let mut sources = Sources::default();
        let profile_text = library::profile(folder, profile_name)?;
        let profile_source = sources.add_file(&profile_text.name, &profile_text.text);
        let chain = study_chain(folder, &request.study, &mut sources)?;
        let overrides: Vec<usize> =
            request.set.iter().map(|setting| sources.add_override(setting)).collect::<Result<_>>()?;

        let mut problems = Problems::default();
        let mut profile_tree = sources.parse(profile_source)?;
        let set = take_table(&mut profile_tree, "set");
        let quick = take_table(&mut profile_tree, "quick");
        let profile: Option<Profile> = sources.read(whole(profile_tree), &mut problems);
        for fault in profile.iter().flat_map(Profile::faults) {
            problems.push(format!("{}: {fault}", profile_text.name));
        }

        let mut tree = DeTable::new();
        let mut own_claims = None;
        for &index in &chain {
            let mut layer = sources.parse(index)?;
            layer.remove("extends");
            own_claims = layer.remove("claims");
            sources.merge(&mut tree, layer, &mut problems);
        }
        // Claims are a study's own: those of the study that it extends stay there.
        if let Some(claims) = own_claims {
            tree.insert(Spanned::new(claims.span(), "claims".into()), claims);
        }
        let sections = profile.as_ref().map_or(profile_name, Profile::sections);
        let sections = Sections::take(&mut tree, sections, &sources, &mut problems);
        let size = match request.size {
            Size::Standard => vec![],
            Size::Quick => vec![quick, sections.quick],
            Size::Released => vec![sections.released],
        };
        for layer in [set, sections.profile].into_iter().chain(size) {
            sources.merge(&mut tree, layer, &mut problems);
        }
        if profile.as_ref().is_some_and(|profile| profile.one_training) {
            forget_own_training(&mut tree);
        }
        for &index in &overrides {
            sources.merge(&mut tree, sources.parse(index)?, &mut problems);
        }

        let main = chain.last().copied().unwrap_or_default();
        let read = Reader { sources: &sources, file: sources.name_of(main) };
        let spec = read.spec(tree, profile, &mut problems);
        problems.finish()?;
        let mut spec = spec.ok_or_else(|| Error::Spec(format!("{}: cannot be read", read.file)))?;
        if let Some(seeds) = &request.seeds {
            spec.seeds = seeds.clone();
        }
        spec.label = label(&spec.profile.name, request);
        Ok(spec)
    }

    /// The method of this name.
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }

    /// The noise seeds of a method: those common to all, and further ones where it is the base.
    pub fn noise_seeds(&self, method: &Method) -> Vec<Seed> {
        let mut seeds = self.data.noise_seeds.get().to_vec();
        let further = self.data.spread_seeds.as_ref().filter(|_| method.role == Role::Base);
        let further = further.map_or(&[][..], Seeds::get);
        seeds.extend(further.iter().filter(|seed| !self.data.noise_seeds.get().contains(seed)));
        seeds
    }

    /// The numbers of the prompts that a method makes images of under a condition.
    pub fn prompts_of(&self, method: &Method, condition: &Condition) -> Vec<u32> {
        let each = self.data.num_prompts;
        match (&self.users, self.data.prompts) {
            (Some(users), Prompts::Own) => users.own_prompts(method.role, condition, each),
            _ => (0..each as u32).collect(),
        }
    }

    /// Whether the image of a prompt is one of those that records keep.
    pub fn keeps_image_of(&self, prompt: u64) -> bool {
        let place = match self.data.prompts {
            Prompts::Own => prompt % self.data.num_prompts.max(1) as u64,
            Prompts::Validation | Prompts::Test => prompt,
        };
        place < self.data.kept_images as u64
    }

    /// What the prompts follow from, besides the pairs, where they are the captions of people's own choices.
    pub fn own_prompts(&self) -> Option<serde_json::Value> {
        let users = self.users.as_ref().filter(|_| self.data.prompts == Prompts::Own)?;
        Some(
            serde_json::json!({"people": users.identity(), "evaluated": users.evaluated, "pairs": self.data.pairs}),
        )
    }

    /// The folder of the study's records under a results folder.
    pub fn folder(&self, results: &Path) -> PathBuf {
        results.join(&self.records).join(&self.label)
    }
}

/// The sources of a study and of those that it extends, the deepest first.
fn study_chain(folder: &Path, study: &str, sources: &mut Sources) -> Result<Vec<usize>> {
    #[derive(Deserialize)]
    struct Extends {
        extends: Option<String>,
    }
    let mut chain = Vec::new();
    let mut names = vec![study.to_owned()];
    while let Some(name) = names.last().cloned() {
        let text = library::experiment(folder, &name)?;
        let index = sources.add_file(&text.name, &text.text);
        sources.parse(index)?;
        chain.insert(0, index);
        // A fault in `extends` itself is a type error; the typed reading below would not see the key any more.
        let extends = toml::from_str::<Extends>(&text.text)
            .map_err(|fault| Error::Spec(format!("{}: extends: {}", text.name, fault.message())))?;
        match extends.extends {
            Some(next) if names.contains(&next) => {
                return Err(Error::Spec(format!(
                    "{}: extends `{next}`, which extends it in turn",
                    text.name
                )));
            }
            Some(next) => names.push(next),
            None => break,
        }
    }
    Ok(chain)
}

/// The folder name of a profile with its changes.
fn label(profile: &str, request: &Request) -> String {
    let quick = if request.size == Size::Quick { "-quick" } else { "" };
    if request.set.is_empty() {
        return format!("{profile}{quick}");
    }
    let digest = Digest::of(request.set.join("\n").as_bytes());
    format!("{profile}{quick}-set-{}", &digest.short()[..8])
}

fn whole(table: DeTable<'_>) -> Node<'_> {
    Spanned::new(0..0, DeValue::Table(table))
}

/// Takes a table out of a tree; empty where there is none.
fn take_table<'a>(tree: &mut DeTable<'a>, key: &str) -> DeTable<'a> {
    match tree.remove(key).map(Spanned::into_inner) {
        Some(DeValue::Table(table)) => table,
        _ => DeTable::new(),
    }
}

/// Reads the merged tree section by section, so that a fault in one does not hide those in the others.
struct Reader<'s> {
    sources: &'s Sources,
    file: String,
}

impl Reader<'_> {
    /// The sections of a study; `only` and `sweep` are applied here.
    const SECTIONS: &'static [&'static str] = &[
        "schema", "name", "title", "paper", "records", "extends", "only", "seeds", "data", "train",
        "adapter", "sample", "rewards", "users", "methods", "claims", "sweep", "outputs", "with",
    ];

    fn spec<'a>(
        &self,
        mut tree: DeTable<'a>,
        profile: Option<Profile>,
        problems: &mut Problems,
    ) -> Option<Spec> {
        for key in tree.keys().filter(|key| !Self::SECTIONS.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let near = nearest(name, Self::SECTIONS.iter().copied());
            problems.push(format!(
                "{}: unknown key `{name}`, expected one of {}{}",
                self.sources.place(key.span().start),
                Self::SECTIONS.join(", "),
                near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
            ));
        }
        let schema: Option<u32> = self.need(&mut tree, "schema", problems);
        if schema.is_some_and(|schema| schema != SCHEMA) {
            problems.push(format!("{}: schema must be {SCHEMA}", self.file));
        }
        let raw_points = raw_points(tree.get("sweep"));
        let sweep: Option<Sweep> = self.may(&mut tree, "sweep", problems);
        let only: Option<Vec<String>> = self.may(&mut tree, "only", problems);
        let mut methods = self.methods(&mut tree, sweep.as_ref(), &raw_points, only.as_deref(), problems);
        let users: Option<Users> = self.may(&mut tree, "users", problems);
        let name: Option<String> = self.need(&mut tree, "name", problems);
        let title = self.need(&mut tree, "title", problems);
        let paper = self.may(&mut tree, "paper", problems);
        let records = self.may(&mut tree, "records", problems);
        let seeds = self.need(&mut tree, "seeds", problems);
        let data = self.need(&mut tree, "data", problems);
        let sample = self.need(&mut tree, "sample", problems);
        let rewards = self.need(&mut tree, "rewards", problems);
        let claims = self.may(&mut tree, "claims", problems);
        let outputs = self.may(&mut tree, "outputs", problems);
        let with: Option<Vec<String>> = self.may(&mut tree, "with", problems);
        let (name, mut profile) = (name?, profile?);
        if let Some(users) = &users {
            methods.iter_mut().for_each(|method| users.expand(method));
            // Simulated people see all that is measured; what others see, nobody knows.
            let measured =
                crate::scenes::Measured::NAMES.into_iter().filter(|_| users.choices.is_simulated());
            let further: Vec<String> =
                measured.map(str::to_owned).filter(|name| !profile.measured.contains(name)).collect();
            profile.measured.extend(further);
        }
        Some(Spec {
            records: records.unwrap_or_else(|| name.clone()),
            name,
            title: title?,
            paper,
            seeds: seeds?,
            data: data?,
            sample: sample?,
            rewards: rewards?,
            users,
            methods,
            claims: claims.unwrap_or_default(),
            sweep,
            outputs,
            with: with.unwrap_or_default(),
            profile,
            label: String::new(),
        })
    }

    /// A section that must be there.
    fn need<'a, T: Deserialize<'a>>(
        &self,
        tree: &mut DeTable<'a>,
        key: &str,
        problems: &mut Problems,
    ) -> Option<T> {
        if !tree.contains_key(key) {
            problems.push(format!("{}: `{key}` is missing", self.file));
        }
        self.may(tree, key, problems)
    }

    /// A section that may be there.
    fn may<'a, T: Deserialize<'a>>(
        &self,
        tree: &mut DeTable<'a>,
        key: &str,
        problems: &mut Problems,
    ) -> Option<T> {
        tree.remove(key).and_then(|node| self.sources.read(node, problems))
    }

    /// The methods: each over `[train]` and `[adapter]`, the swept one at each point, and of all only those asked for.
    fn methods<'a>(
        &self,
        tree: &mut DeTable<'a>,
        sweep: Option<&Sweep>,
        raw_points: &[Vec<(String, Node<'a>)>],
        only: Option<&[String]>,
        problems: &mut Problems,
    ) -> Vec<Method> {
        let mut common = DeTable::new();
        for key in ["train", "adapter"] {
            match tree.remove_entry(key) {
                Some((key, section)) => drop(common.insert(key, section)),
                None => problems.push(format!("{}: `{key}` is missing", self.file)),
            }
        }
        let entries = match tree.remove("methods").map(Spanned::into_inner) {
            Some(DeValue::Array(entries)) => entries,
            _ => {
                problems
                    .push(format!("{}: `methods` is missing: expected at least one [[methods]]", self.file));
                return Vec::new();
            }
        };
        let names: Vec<&str> = entries.iter().filter_map(name_of).collect();
        let asked = only.unwrap_or_default().iter().chain(sweep.map(|sweep| &sweep.method));
        for unknown in asked.filter(|name| !names.contains(&name.as_str())) {
            let near = nearest(unknown, names.iter().copied());
            problems.push(format!(
                "{}: no method named `{unknown}`, expected one of {}{}",
                self.file,
                names.join(", "),
                near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
            ));
        }
        let mut methods: Vec<Method> = Vec::new();
        for entry in entries.iter() {
            let name = name_of(entry).unwrap_or_default().to_owned();
            if only.is_some_and(|only| !only.contains(&name)) {
                continue;
            }
            let span = entry.span();
            let DeValue::Table(table) = entry.get_ref() else {
                problems.push(format!("{}: a method must be a table", self.sources.place(span.start)));
                continue;
            };
            let mut full = common.clone();
            self.sources.merge(&mut full, table.clone(), problems);
            let Some(sweep) = sweep.filter(|sweep| sweep.method == name) else {
                let node = Spanned::new(span, DeValue::Table(full));
                methods.extend(self.sources.read::<Method>(node, problems));
                continue;
            };
            for (point, settings) in sweep.points().iter().zip(raw_points) {
                let mut varied = full.clone();
                for (key, value) in settings {
                    put_deep(&mut varied, key, value.clone());
                }
                for key in ["name", "label"] {
                    put(
                        &mut varied,
                        key,
                        Spanned::new(span.clone(), DeValue::String(sweep.point_name(point).into())),
                    );
                }
                let node = Spanned::new(span.clone(), DeValue::Table(varied));
                methods.extend(self.sources.read::<Method>(node, problems));
            }
        }
        for (index, method) in methods.iter().enumerate() {
            if methods[..index].iter().any(|earlier| earlier.name == method.name) {
                problems.push(format!("{}: two methods are named `{}`", self.file, method.name));
            }
        }
        methods
    }
}

fn put<'a>(table: &mut DeTable<'a>, key: &str, value: Node<'a>) {
    let span = value.span();
    table.remove(key);
    table.insert(Spanned::new(span, key.to_owned().into()), value);
}

/// Sets `a.b.c` in a table of tables; tables that are missing are made, and refused later where they are unknown.
fn put_deep<'a>(table: &mut DeTable<'a>, key: &str, value: Node<'a>) {
    let Some((first, rest)) = key.split_once('.') else { return put(table, key, value) };
    if table.get(first).is_none_or(|below| !below.get_ref().is_table()) {
        put(table, first, Spanned::new(value.span(), DeValue::Table(DeTable::new())));
    }
    if let Some(DeValue::Table(below)) = table.get_mut(first).map(Spanned::get_mut) {
        put_deep(below, rest, value);
    }
}

/// The values of `[sweep] axes` as they stand in the file, in the order of [`Sweep::points`].
fn raw_points<'a>(sweep: Option<&Node<'a>>) -> Vec<Vec<(String, Node<'a>)>> {
    let axes = sweep.and_then(|sweep| sweep.get_ref().as_table()?.get("axes")?.get_ref().as_table());
    let mut points = vec![Vec::new()];
    for (key, values) in axes.into_iter().flatten() {
        let Some(values) = values.get_ref().as_array() else { continue };
        points = points
            .iter()
            .flat_map(|point: &Vec<(String, Node<'a>)>| {
                values.iter().map(|value| {
                    let mut longer = point.clone();
                    longer.push((key.get_ref().to_string(), value.clone()));
                    longer
                })
            })
            .collect();
    }
    points
}

/// Takes from the methods what they change of `[train]` for themselves.
fn forget_own_training(tree: &mut DeTable) {
    let Some(DeValue::Array(methods)) = tree.get_mut("methods").map(Spanned::get_mut) else { return };
    for method in methods.iter_mut() {
        if let DeValue::Table(method) = method.get_mut() {
            method.remove("train");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
