//! What a study's file says for some runs alone: under a profile, for a smoke run, for the published one.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{Node, Problems, Sources};
use super::take_table;

/// The sections `[profiles.NAME]`, `[quick]` and `[released]`, taken out of a study's tree.
pub(super) struct Sections<'a> {
    /// What the study changes under the profile.
    pub(super) profile: DeTable<'a>,
    /// What a smoke run changes.
    pub(super) quick: DeTable<'a>,
    /// What the published run changes.
    pub(super) released: DeTable<'a>,
}

impl<'a> Sections<'a> {
    /// Takes them for the profile whose sections are called `name`, and the keys out that its section is `without`. A
    /// `quick` or `released` of that section stands in the place of the study's.
    pub(super) fn take(
        tree: &mut DeTable<'a>,
        name: &str,
        sources: &Sources,
        problems: &mut Problems,
    ) -> Self {
        let mut profile = take_table(&mut take_table(tree, "profiles"), name);
        if let Some(without) = profile.remove("without") {
            for (key, place) in keys(&without, sources, problems) {
                if !take_deep(tree, &key) {
                    problems.push(format!(
                        "{place}: profiles.{name}.without: the study has no `{key}`; expected keys that stand in it, such as \
                         \"users.claims\""
                    ));
                }
            }
        }
        let mut section = |key: &str| {
            let own = profile.contains_key(key);
            let (own_table, of_study) = (take_table(&mut profile, key), take_table(tree, key));
            if own { own_table } else { of_study }
        };
        let (quick, released) = (section("quick"), section("released"));
        Self { profile, quick, released }
    }
}

/// The keys of a list, each with its place.
fn keys(list: &Node<'_>, sources: &Sources, problems: &mut Problems) -> Vec<(String, String)> {
    let place = |node: &Node<'_>| sources.place(node.span().start);
    let Some(entries) = list.get_ref().as_array() else {
        problems.push(format!("{}: `without` must be a list of keys", place(list)));
        return Vec::new();
    };
    let mut keys = Vec::new();
    for entry in entries.iter() {
        match entry.get_ref().as_str() {
            Some(key) => keys.push((key.to_owned(), place(entry))),
            None => problems.push(format!("{}: `without` must be a list of keys", place(entry))),
        }
    }
    keys
}

/// Takes `a.b.c` out of a table of tables; whether it was there.
fn take_deep(table: &mut DeTable<'_>, key: &str) -> bool {
    match key.split_once('.') {
        None => table.remove(key).is_some(),
        Some((first, rest)) => match table.get_mut(first).map(Spanned::get_mut) {
            Some(DeValue::Table(below)) => take_deep(below, rest),
            _ => false,
        },
    }
}
