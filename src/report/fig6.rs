//! Figure 6: images made for users drawn by lot, beside what was written about each user.
//!
//! The paper shows images of several methods and colours the words of a user's profile by hand: green where an image
//! follows a word, red where it neglects the caption. Here both are measured. A word stands highlighted where the image's
//! feature has the word's sign and a size that [`talk::describe`] would speak of. A caption counts as neglected where the
//! image's alignment with it lies more than [`NEGLECT`] below that of the base's image of the same prompt and noise.
//!
//! Whom and what the grid shows is drawn by a seed. The table counts over all images of the study.
//!
//! A profile's words are read one by one, as the desk's model writes them; a sentence's grammar ("not dark") is not.

use std::collections::{BTreeMap, HashMap};

use super::people::{self, condition_for};
use super::study::{Method, Picture, Role, Study};
use super::table::{Cell, Kind as Column, Table};
use super::{Figure, Output, Result};
use crate::data::desk::users::of_identifier;
use crate::record::{Key, Row};
use crate::rng::stream;
use crate::scenes::talk;
use crate::scenes::tastes::Kind;
use crate::spec::Users;
use crate::spec::users::{Showcase, condition};

mod agreement;
mod draw;
mod page;

/// By how much an image's alignment may lie below the base's before the caption counts as neglected: a fifth of
/// alignment's scale from 0 to 1, which is also the unit of [`tastes::features`](crate::scenes::tastes::features).
pub const NEGLECT: f64 = 0.2;

/// What is needed of the study to say what an image follows.
struct Records<'a> {
    study: &'a Study,
    users: &'a Users,
    hero: &'a Method,
    /// What was written about each evaluated user.
    profiles: BTreeMap<i64, &'a str>,
    /// The alignment of the base's image, by prompt and noise.
    base: HashMap<(u32, u64), f64>,
}

impl<'a> Records<'a> {
    /// `None` where the study has no people, no personal model, or nothing was written about anybody.
    fn new(study: &'a Study) -> Option<Self> {
        let users = study.design.people.as_ref()?;
        let hero = study.design.first(&Role::Personal)?;
        let mut headers: Vec<_> = study.headers.iter().filter(|header| header.method == hero.name).collect();
        headers.sort_by_key(|header| header.train_seed);
        let written = |user: i64| {
            let name = condition(user).to_string();
            headers.iter().find_map(|header| header.profiles.get(&name)).map(|text| (user, text.as_str()))
        };
        let profiles: BTreeMap<i64, &str> =
            people::of_kind(users, None).into_iter().filter_map(written).collect();
        let mut base: HashMap<(u32, u64), f64> = HashMap::new();
        if let Some(method) = study.design.first(&Role::Base) {
            for row in study.rows().iter().filter(|row| row.method == method.name) {
                if let Some(alignment) = people::alignment(row) {
                    base.entry((row.prompt, row.noise_seed)).or_insert(alignment);
                }
            }
        }
        (!profiles.is_empty()).then_some(Self { study, users, hero, profiles, base })
    }

    /// The words about a user that can be measured, each once.
    fn words(&self, user: i64) -> Vec<&'static str> {
        self.profiles.get(&user).map_or_else(Vec::new, |profile| talk::words_in(profile))
    }

    /// Whether the row's image neglects its caption; `None` where it, or the base's, was not measured.
    fn neglects(&self, row: &Row) -> Option<bool> {
        let base = self.base.get(&(row.prompt, row.noise_seed))?;
        Some(people::alignment(row)? < base - NEGLECT)
    }
}

/// The images of one user and one prompt.
struct Line<'a> {
    user: i64,
    kind: Kind,
    profile: &'a str,
    words: Vec<&'static str>,
    prompt: &'a str,
    /// One for each column; nothing where the method has no image for this user.
    images: Vec<Option<Shown<'a>>>,
}

/// One image of the grid.
struct Shown<'a> {
    picture: &'a Picture,
    png: Vec<u8>,
    /// Whether it shows what each of the user's words speaks of; `None` where nobody measured it.
    agrees: Option<Vec<bool>>,
    alignment: Option<f64>,
    base: Option<f64>,
    neglects: bool,
}

/// The grid: methods across, users and prompts down.
struct Grid<'a> {
    methods: Vec<&'a Method>,
    lines: Vec<Line<'a>>,
}

/// Renders the grid as figure and page, and the table; `None` where the study has no people, or its records hold no
/// profile or no image of the personal model.
///
/// # Errors
/// Where a kept image is missing or was changed, or rows cannot be averaged.
pub fn render(study: &Study) -> Result<Option<Output>> {
    let Some(records) = Records::new(study) else { return Ok(None) };
    let kept = kept_prompts(&records);
    if kept.is_empty() || study.design.sweep.is_some() {
        return Ok(None);
    }
    let mut output = Output { name: "fig6".into(), ..Output::default() };
    output.tables.extend(agreement::table(&records)?.map(|table| ("fig6-agreement".to_owned(), table)));
    if let Some(showcase) = &records.users.showcase {
        let grid = gather(&records, showcase, kept)?;
        if !grid.lines.is_empty() {
            let caption = match records.users.choices.is_simulated() {
                true => caption(&grid, showcase),
                false => caption_of_people(&grid, showcase),
            };
            output.pages.push(("fig6".into(), page::html(&grid, &study.design.title, &caption)));
            let scene = draw::scene(&grid);
            output.figures.push(Figure { name: "fig6".into(), caption, scene, data: listed(&grid) });
        }
    }
    Ok((!output.tables.is_empty() || !output.figures.is_empty()).then_some(output))
}

/// The prompts of which images for single users were kept.
fn kept_prompts(records: &Records) -> Vec<u32> {
    let of_user = |picture: &&Picture| {
        picture.method == records.hero.name
            && records.profiles.keys().any(|user| condition(*user).to_string() == picture.kept.condition)
    };
    let mut prompts: Vec<u32> =
        records.study.pictures.iter().filter(of_user).map(|picture| picture.kept.prompt).collect();
    prompts.sort_unstable();
    prompts.dedup();
    prompts
}

/// Users by lot: an unseen one, a seen one, and so on in turn; where one kind is used up, the other goes on.
fn drawn_users(records: &Records, showcase: &Showcase) -> Vec<i64> {
    let deck = |kind: Kind, purpose: &str| {
        let mut ids: Vec<i64> = records.users.evaluated(kind).collect();
        stream(showcase.seed, purpose, 0).shuffle(&mut ids);
        // What was drawn does not depend on whom something was written about.
        ids.retain(|user| records.profiles.contains_key(user));
        ids
    };
    let (unseen, seen) =
        (deck(Kind::Unseen, "showcase unseen users"), deck(Kind::Seen, "showcase seen users"));
    let turns = (0..unseen.len().max(seen.len())).flat_map(|turn| [unseen.get(turn), seen.get(turn)]);
    turns.flatten().copied().take(showcase.users).collect()
}

fn gather<'a>(records: &Records<'a>, showcase: &Showcase, mut prompts: Vec<u32>) -> Result<Grid<'a>> {
    let study = records.study;
    stream(showcase.seed, "showcase prompts", 0).shuffle(&mut prompts);
    prompts.truncate(showcase.prompts);
    prompts.sort_unstable();
    let rows: HashMap<Key, &Row> = study.rows().iter().map(|row| (row.key(), row)).collect();
    let mut methods: Vec<&Method> =
        study.design.methods.iter().filter(|method| method.role != Role::Control).collect();
    let mut lines = Vec::new();
    for user in drawn_users(records, showcase) {
        let words = records.words(user);
        let own: Vec<u32> = match study.design.own_prompts {
            Some(each) => records.users.prompts_of_user(user, each).take(showcase.prompts).collect(),
            None => prompts.clone(),
        };
        for &prompt in &own {
            let Some(own) = kept(study, records.hero, user, prompt, None) else { continue };
            let noise = own.kept.noise_seed;
            let mut images = Vec::new();
            for method in &methods {
                let picture = kept(study, method, user, prompt, Some(noise));
                images.push(picture.map(|picture| look(records, &rows, picture, &words)).transpose()?);
            }
            lines.push(Line {
                user,
                kind: of_identifier(user).0,
                profile: records.profiles.get(&user).copied().unwrap_or_default(),
                words: words.clone(),
                prompt: original(study, prompt).unwrap_or(&own.kept.text),
                images,
            });
        }
    }
    // Methods without a single image to show.
    let empty = |at: usize| lines.iter().all(|line: &Line| line.images[at].is_none());
    let left: Vec<bool> = (0..methods.len()).map(|at| !empty(at)).collect();
    let keep = |at: usize| left.get(at) == Some(&true);
    let mut place = 0..;
    methods.retain(|_| place.next().is_some_and(keep));
    for line in &mut lines {
        let mut place = 0..;
        line.images.retain(|_| place.next().is_some_and(keep));
    }
    Ok(Grid { methods, lines })
}

/// An image beside what its row says of it.
fn look<'a>(
    records: &Records,
    rows: &HashMap<Key, &Row>,
    picture: &'a Picture,
    words: &[&str],
) -> Result<Shown<'a>> {
    let Picture { method, train_seed, kept, .. } = picture;
    let key = Key::new(method, &kept.condition, *train_seed, kept.prompt, kept.noise_seed);
    let row = rows.get(&key).copied();
    let features = row.and_then(people::seen);
    Ok(Shown {
        picture,
        png: picture.png()?,
        agrees: features
            .map(|features| words.iter().map(|word| talk::agrees(word, &features) == Some(true)).collect()),
        alignment: row.and_then(people::alignment),
        base: records.base.get(&(kept.prompt, kept.noise_seed)).copied(),
        neglects: row.and_then(|row| records.neglects(row)) == Some(true),
    })
}

/// The kept image that a method has for a user, of its first training seed.
fn kept<'a>(
    study: &'a Study,
    method: &Method,
    user: i64,
    prompt: u32,
    noise: Option<u64>,
) -> Option<&'a Picture> {
    let condition = condition_for(method, user)?;
    let of = |picture: &&Picture| {
        picture.method == method.name
            && picture.kept.condition == condition
            && picture.kept.prompt == prompt
            && noise.is_none_or(|noise| noise == picture.kept.noise_seed)
    };
    study.pictures.iter().filter(of).min_by_key(|picture| (picture.train_seed, picture.kept.noise_seed))
}

/// The prompt as it was given: methods that know people by words keep it with a profile behind it, so it is the shortest
/// text that the records hold.
fn original(study: &Study, prompt: u32) -> Option<&str> {
    let texts = study.pictures.iter().filter(|picture| picture.kept.prompt == prompt);
    texts.map(|picture| picture.kept.text.as_str()).min_by_key(|text| (text.len(), *text))
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn caption(grid: &Grid, showcase: &Showcase) -> String {
    let distinct = |of: &dyn Fn(&Line) -> String| {
        grid.lines.iter().map(of).collect::<std::collections::BTreeSet<_>>().len()
    };
    let users = plural(distinct(&|line| line.user.to_string()), "user");
    let prompts = plural(distinct(&|line| line.prompt.to_owned()), "prompt");
    format!(
        "Images for {users} and {prompts}, all of a row from the same noise. Nothing is picked: users are drawn by seed {} among \
         the evaluated ones about whom a profile was written, an unseen and a seen one in turn, and prompts among those of \
         which images are kept. Below each image stand the profile's words: highlighted and underlined where the measured \
         image agrees, by at least {} standard deviations of the base's samples; grey where it does not. A red frame and a \
         cross mark a neglected caption: the alignment with the prompt, in [0, 1], is more than {NEGLECT} below that of the \
         base's image of the same noise.",
        showcase.seed.get(),
        talk::STANDS_OUT,
    )
}

/// The same of people whose utilities, and what they see, are unknown.
fn caption_of_people(grid: &Grid, showcase: &Showcase) -> String {
    format!(
        "Images for {}, each under a caption of her own, all of a row from the same noise. Nothing is picked: users are drawn by \
         seed {} among the evaluated ones about whom a profile was written, an unseen and a seen one in turn. What people see \
         in an image is not measured, so that no word is marked.",
        plural(
            grid.lines.iter().map(|line| line.user).collect::<std::collections::BTreeSet<_>>().len(),
            "user"
        ),
        showcase.seed.get(),
    )
}

/// What the figure shows, image by image.
fn listed(grid: &Grid) -> Table {
    let columns = [
        ("user", Column::Words),
        ("kind", Column::Words),
        ("profile", Column::Words),
        ("prompt", Column::Words),
        ("text", Column::Words),
        ("method", Column::Words),
        ("training seed", Column::Words),
        ("condition", Column::Words),
        ("noise seed", Column::Words),
        ("words that agree", Column::Words),
        ("words that do not", Column::Words),
        ("alignment", Column::Numbers),
        ("alignment of the base", Column::Numbers),
        ("caption neglected", Column::Words),
        ("SHA-256", Column::Words),
    ];
    let columns = columns.map(|(head, kind)| (head.to_owned(), kind)).to_vec();
    let mut table = Table::new("The images shown, and what they follow", columns);
    for line in &grid.lines {
        for (method, shown) in grid.methods.iter().zip(&line.images) {
            let Some(shown) = shown else { continue };
            let words = |agree: bool| match &shown.agrees {
                None => Cell::Missing,
                Some(agrees) => {
                    let words = line.words.iter().zip(agrees).filter(|(_, agrees)| **agrees == agree);
                    Cell::text(words.map(|(word, _)| *word).collect::<Vec<_>>().join(" "))
                }
            };
            let Picture { train_seed, kept, .. } = shown.picture;
            table.push(vec![
                Cell::text(line.user.to_string()),
                Cell::text(people::kind_label(Some(line.kind))),
                Cell::text(line.profile),
                Cell::text(kept.prompt.to_string()),
                Cell::text(line.prompt),
                Cell::text(method.name.as_str()),
                Cell::text(train_seed.to_string()),
                Cell::text(kept.condition.as_str()),
                Cell::text(kept.noise_seed.to_string()),
                words(true),
                words(false),
                Cell::number(shown.alignment, 3),
                Cell::number(shown.base, 3),
                Cell::text(if shown.neglects { "yes" } else { "no" }),
                Cell::text(kept.digest.hex()),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests;
