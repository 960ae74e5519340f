//! Figure 5: how much people would rather have the images that were made for them.
//!
//! The desk's people have known utilities over what is measured of an image, so the preference is the true one: the
//! probability, by Bradley-Terry, that the user would choose our image over the other of the same caption and noise, and
//! beside it how often her utility of ours is higher. What a judge would say of the same images is a study of its own.
//! Where people chose, their utilities are unknown, and the figure shows what judges say.

mod draw;
mod judged;
mod likeness;
mod shots;

use std::collections::{BTreeMap, BTreeSet};

use self::draw::{Point, draw};
use super::people::{self, KINDS, kind_label};
use super::study::{BOOTSTRAP, LEVEL, Method, NOBODY, RESAMPLES, Role, Study};
use super::table::{Cell, Kind as Column, Table};
use super::{Figure, Output, Result};
use crate::data::desk::users;
use crate::scenes::population::SAMPLES;
use crate::scenes::tastes::{self, Features, Kind, Taste, Tastes};
use crate::spec::Users;
use crate::spec::users::{Claim, FARTHEST, MEAN_USER, NULL_USER, Over};
use crate::stats::contrast::holm;
use crate::stats::ordered_pairs::projected;
use crate::stats::{Crossed, Direction, Estimate, Inference, Rule, Verdict};

/// The probability that ours is preferred, and whether its utility is higher.
type Preferred = [f64; 2];

/// What each image of one method, under one condition, shows: by prompt and noise, then by training seed; nothing where
/// nobody knows what people see.
type Seen = BTreeMap<(u32, u64), BTreeMap<u64, Option<Features>>>;

/// The images that are compared with each other: of one training seed, where both sides have several; a side with a single
/// one (the base) stands beside every training of the other.
fn paired<'a>(
    ours: &'a BTreeMap<u64, Option<Features>>,
    theirs: &'a BTreeMap<u64, Option<Features>>,
) -> impl Iterator<Item = [&'a Option<Features>; 2]> {
    let of = |side: &'a BTreeMap<u64, Option<Features>>, seed: &u64| match side.len() {
        1 => side.values().next(),
        _ => side.get(seed),
    };
    let trained = if ours.len() == 1 { theirs } else { ours };
    trained.keys().filter_map(move |seed| Some([of(ours, seed)?, of(theirs, seed)?]))
}

/// The people with what was made for them.
struct People<'a> {
    study: &'a Study,
    users: &'a Users,
    tastes: BTreeMap<i64, Taste>,
    seen: BTreeMap<(String, String), Seen>,
}

impl<'a> People<'a> {
    fn new(study: &'a Study, users: &'a Users) -> Self {
        let population = Tastes::new(users.seed, tastes::Config::desk(SAMPLES));
        let simulated = users.choices.is_simulated();
        let everybody = users.evaluated(Kind::Seen).chain(users.evaluated(Kind::Unseen));
        let known = everybody.filter(|_| simulated);
        let tastes = known.map(|id| (id, users::taste(&population, id))).collect();
        let mut seen: BTreeMap<(String, String), Seen> = BTreeMap::new();
        for row in study.rows() {
            let features = people::seen(row);
            if row.failure.is_some() || (simulated && features.is_none()) {
                continue;
            }
            let images = seen.entry((row.method.clone(), row.condition.clone())).or_default();
            images.entry((row.prompt, row.noise_seed)).or_default().insert(row.train_seed, features);
        }
        Self { study, users, tastes, seen }
    }

    fn of_kind(&self, kind: Option<Kind>) -> Vec<i64> {
        people::of_kind(self.users, kind)
    }

    /// What a method made for a user; what it made for nobody in particular where it knows no people.
    fn images(&self, method: &Method, user: i64) -> Option<&Seen> {
        self.made(method, user).map(|(_, seen)| seen)
    }

    /// The same with the method and the condition.
    fn made(&self, method: &Method, user: i64) -> Option<(Made, &Seen)> {
        let name = people::condition_for(method, user)?.to_owned();
        let key = (method.name.clone(), name);
        self.seen.get(&key).map(|seen| (key, seen))
    }

    /// The true preference of each user for `ours` over `theirs`, users × prompts, over the images that all have: the
    /// probability, and whether the utility is higher.
    fn preference<'s>(
        &'s self,
        who: &[i64],
        ours: impl Fn(i64) -> Option<&'s Seen>,
        theirs: impl Fn(i64) -> Option<&'s Seen>,
    ) -> Result<Option<[Crossed; 2]>> {
        let mut rows = Vec::new();
        for &user in who {
            let (Some(ours), Some(theirs)) = (ours(user), theirs(user)) else { return Ok(None) };
            let by_prompt = self.by_prompt(user, ours, theirs);
            rows.extend(by_prompt.into_iter().map(|(prompt, means)| (user, prompt, means)));
        }
        crossed(&rows)
    }

    /// A user's mean preference for our images over theirs of the same prompts and noises.
    fn by_prompt(&self, user: i64, ours: &Seen, theirs: &Seen) -> BTreeMap<u32, Preferred> {
        let Some(taste) = self.tastes.get(&user) else { return BTreeMap::new() };
        let mut values: BTreeMap<u32, Vec<Preferred>> = BTreeMap::new();
        for ((prompt, noise), ours) in ours {
            let Some(theirs) = theirs.get(&(*prompt, *noise)) else { continue };
            for both in paired(ours, theirs) {
                let [Some(a), Some(b)] = both else { continue };
                let sign = match taste.utility(a).partial_cmp(&taste.utility(b)) {
                    Some(std::cmp::Ordering::Greater) => 1.0,
                    Some(std::cmp::Ordering::Less) => 0.0,
                    _ => 0.5,
                };
                values.entry(*prompt).or_default().push([taste.prefers(a, b), sign]);
            }
        }
        let mean = |values: Vec<Preferred>| {
            [0, 1].map(|which| values.iter().map(|value| value[which]).sum::<f64>() / values.len() as f64)
        };
        values.into_iter().map(|(prompt, values)| (prompt, mean(values))).collect()
    }

    /// The preference of each user for her own images over every other user's: values of one user whose mean is that over
    /// all ordered pairs.
    fn over_others(&self, who: &[i64], method: &Method) -> Result<Option<[Crossed; 2]>> {
        let mut made = Vec::new();
        for &user in who {
            let Some(images) = self.images(method, user) else { return Ok(None) };
            made.push((user, images));
        }
        let mut rows = Vec::new();
        let prompts: BTreeSet<u32> =
            made.iter().flat_map(|(_, images)| images.keys()).map(|(prompt, _)| *prompt).collect();
        let pairs: Vec<Vec<BTreeMap<u32, Preferred>>> = made
            .iter()
            .map(|(user, ours)| made.iter().map(|(_, theirs)| self.by_prompt(*user, ours, theirs)).collect())
            .collect();
        for prompt in prompts {
            let of = |which: usize| -> Option<Vec<f64>> {
                let row = |row: &Vec<BTreeMap<u32, Preferred>>| {
                    row.iter().map(|means| means.get(&prompt).map(|mean| mean[which])).collect()
                };
                Some(projected(&pairs.iter().map(row).collect::<Option<Vec<_>>>()?))
            };
            // A prompt whose image failed for somebody is left out.
            let (Some(probabilities), Some(signs)) = (of(0), of(1)) else { continue };
            let users = made.iter().zip(probabilities.into_iter().zip(signs));
            rows.extend(users.map(|((user, _), (probability, sign))| (*user, prompt, [probability, sign])));
        }
        crossed(&rows)
    }

    /// For each user the one whose image she is shown instead.
    fn others(&self, who: &[i64], over: &Over) -> BTreeMap<i64, i64> {
        match over {
            Over::Farthest => who
                .iter()
                .filter_map(|&user| {
                    let taste = self.tastes.get(&user)?;
                    let likeness =
                        |other: &i64| self.tastes.get(other).map_or(1.0, |other| taste.likeness(other));
                    let others = who.iter().filter(|other| **other != user);
                    let farthest = others.min_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
                    Some((user, *farthest))
                })
                .collect(),
            Over::Method(_) | Over::Condition(_) | Over::Others | Over::Mismatched => {
                people::mismatched(self.users, who)
            }
        }
    }

    /// The preference of a kind of users for a method's images over others.
    fn compared(&self, method: &str, over: &Over, kind: Option<Kind>) -> Result<Option<[Crossed; 2]>> {
        let design = &self.study.design;
        let Some(method) = design.method(method) else { return Ok(None) };
        let who = self.of_kind(kind);
        let ours = |user: i64| self.images(method, user);
        match over {
            Over::Method(rival) => match design.method(rival) {
                Some(rival) => self.preference(&who, ours, |user| self.images(rival, user)),
                None => Ok(None),
            },
            Over::Condition(condition) => {
                let theirs = self.seen.get(&(method.name.clone(), condition.clone()));
                self.preference(&who, ours, |_| theirs)
            }
            Over::Others => self.over_others(&who, method),
            Over::Mismatched | Over::Farthest => {
                let others = self.others(&who, over);
                self.preference(&who, ours, |user| self.images(method, *others.get(&user)?))
            }
        }
    }
}

/// Values of users and prompts as matrices, where there are any.
fn crossed(rows: &[(i64, u32, Preferred)]) -> Result<Option<[Crossed; 2]>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let of = |which: usize| -> Result<Crossed> {
        let values = rows.iter().map(|(user, prompt, means)| (*user as u64, *prompt, means[which]));
        Ok(Crossed::gather(values)?.values)
    };
    Ok(Some([of(0)?, of(1)?]))
}

/// One comparison of the figure.
struct Compared {
    label: String,
    kind: Option<Kind>,
    users: usize,
    probability: Inference,
    sign: Inference,
}

/// Renders the figure and its tables; `None` where the study has no people or no personal model.
///
/// # Errors
/// Where rows cannot be averaged.
pub fn render(study: &Study) -> Result<Option<Output>> {
    let (Some(users), Some(hero)) = (&study.design.people, study.design.first(&Role::Personal)) else {
        return Ok(None);
    };
    if !users.choices.is_simulated() {
        return judged::render(study, hero);
    }
    let people = People::new(study, users);
    let compared = comparisons(&people, hero)?;
    if compared.is_empty() {
        return Ok(None);
    }
    let mut output = Output { name: "fig5".into(), ..Output::default() };
    output.tables.push(("fig5-table".into(), table(hero, &compared, study)));
    if !users.claims.is_empty() {
        output.tables.push(("fig5-claims".into(), claims(&people)?));
    }
    output.tables.extend(shots::table(&people, hero)?.map(|table| ("fig5-shots".into(), table)));
    output.figures.push(Figure {
        name: "fig5".into(),
        caption: format!(
            "True preference for {}'s images, made for the user, over others of the same caption and noise: mean \
             probability that the user chooses ours (95 % over users and captions). Dashed: no preference.",
            hero.label
        ),
        scene: draw(&points(&compared), "true preference, %"),
        data: plotted(&compared),
    });
    output.figures.extend(likeness::figure(&people, hero)?);
    Ok(Some(output))
}

/// What is compared: a method's images with others.
struct Comparison {
    label: String,
    method: String,
    over: Over,
}

/// Every comparison: against the other methods, against images made for others, and of the other methods that know people
/// against the base.
fn all_comparisons(people: &People, hero: &Method) -> Vec<Comparison> {
    let design = &people.study.design;
    let of =
        |label: String, method: &Method, over: Over| Comparison { label, method: method.name.clone(), over };
    let mut all = Vec::new();
    for rival in design.methods.iter().filter(|method| method.name != hero.name) {
        let label = format!("{} over {}", hero.label, rival.label);
        all.push(of(label, hero, Over::Method(rival.name.clone())));
    }
    let others = [
        (Over::Others, "all other users'"),
        (Over::Mismatched, "another user's"),
        (Over::Farthest, "the farthest user's"),
    ];
    for (over, words) in others {
        all.push(of(format!("{} over {words}", hero.label), hero, over));
    }
    // Images made for nobody: by what all have in common, or by what is learned from everybody's choices.
    let has = |condition: &str| hero.conditions.iter().any(|user| user.condition == condition);
    let nobody =
        [(NOBODY, "the zero user's"), (MEAN_USER, "the mean user's"), (NULL_USER, "the null user's")];
    for (name, words) in nobody {
        if has(name) {
            all.push(of(format!("{} over {words}", hero.label), hero, Over::Condition(name.into())));
        }
    }
    if let Some(base) = design.first(&Role::Base) {
        let others =
            design.methods.iter().filter(|other| other.name != hero.name && other.role != Role::Base);
        for other in others {
            let label = format!("{} over {}", other.label, base.label);
            all.push(of(label, other, Over::Method(base.name.clone())));
        }
    }
    all
}

fn comparisons(people: &People, hero: &Method) -> Result<Vec<Compared>> {
    let mut compared = Vec::new();
    for Comparison { label, method, over } in all_comparisons(people, hero) {
        for kind in KINDS {
            if let Some([probability, sign]) = people.compared(&method, &over, kind)? {
                compared.push(Compared {
                    label: label.clone(),
                    kind,
                    users: probability.seeds(),
                    probability: probability.rate_inference(RESAMPLES, BOOTSTRAP)?,
                    sign: sign.rate_inference(RESAMPLES, BOOTSTRAP)?,
                });
            }
        }
    }
    Ok(compared)
}

/// An image of the study: its method and condition.
pub type Made = (String, String);

/// A pair of images that a judge can be asked about, and the true preference.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// What is compared.
    pub comparison: String,
    /// Whose images the left ones are compared with: a method, `mismatched`, `farthest`, or a condition.
    pub over: String,
    /// The user.
    pub user: i64,
    /// The prompt's number.
    pub prompt: u32,
    /// The noise of both images.
    pub noise: u64,
    /// The image whose win rate is counted.
    pub left: Made,
    /// The other one.
    pub right: Made,
    /// The probability that the user chooses the left one, where her utilities are known.
    pub probability: Option<f64>,
}

/// What judges can be asked of a study: the personal model's images for each user over all that it is compared with.
pub fn questions(study: &Study) -> Vec<Question> {
    let (Some(users), Some(hero)) = (&study.design.people, study.design.first(&Role::Personal)) else {
        return Vec::new();
    };
    let people = People::new(study, users);
    let mut questions = Vec::new();
    for Comparison { label, over, .. } in
        all_comparisons(&people, hero).into_iter().filter(|one| one.method == hero.name)
    {
        // Mismatched users are drawn within a kind, as in the figure.
        for kind in [Kind::Seen, Kind::Unseen] {
            let who = people.of_kind(Some(kind));
            let others = people.others(&who, &over);
            for &user in &who {
                let Some((left, ours)) = people.made(hero, user) else { continue };
                let (right, name) = match &over {
                    Over::Method(rival) => {
                        (study.design.method(rival).and_then(|rival| people.made(rival, user)), rival.clone())
                    }
                    // Too many pairs to ask about.
                    Over::Others => continue,
                    Over::Mismatched => {
                        (others.get(&user).and_then(|other| people.made(hero, *other)), MISMATCHED.into())
                    }
                    Over::Farthest => {
                        (others.get(&user).and_then(|other| people.made(hero, *other)), FARTHEST.into())
                    }
                    Over::Condition(condition) => {
                        let key = (hero.name.clone(), condition.clone());
                        (people.seen.get(&key).map(|seen| (key, seen)), condition.clone())
                    }
                };
                let Some((right, theirs)) = right else { continue };
                for ((prompt, noise), a) in ours {
                    // Judges see the images of the first training.
                    let first = theirs.get(&(*prompt, *noise)).and_then(|theirs| paired(a, theirs).next());
                    let Some([a, b]) = first else { continue };
                    // Of prompts that are people's own, each is asked about hers.
                    let foreign = |each| !users.prompts_of_user(user, each).contains(prompt);
                    if study.design.own_prompts.is_some_and(foreign) {
                        continue;
                    }
                    let known = people.tastes.get(&user).zip(*a).zip(*b);
                    questions.push(Question {
                        comparison: label.clone(),
                        over: name.clone(),
                        user,
                        prompt: *prompt,
                        noise: *noise,
                        left: left.clone(),
                        right: right.clone(),
                        probability: known.map(|((taste, a), b)| taste.prefers(&a, &b)),
                    });
                }
            }
        }
    }
    questions
}

/// How judges' settings call comparisons with images made for others.
const MISMATCHED: &str = "mismatched";

fn percent(inference: &Inference) -> Estimate {
    inference.estimate(LEVEL).clamped(0.0, 1.0).percent()
}

fn table(hero: &Method, compared: &[Compared], study: &Study) -> Table {
    let columns = vec![
        ("Comparison".into(), Column::Words),
        ("Users".into(), Column::Words),
        ("Number".into(), Column::Numbers),
        ("True preference, %".into(), Column::Estimates),
        ("Higher utility, %".into(), Column::Estimates),
    ];
    let mut table = Table::new(
        "What people with known utilities would rather have, at equal captions and noises.",
        columns,
    );
    let mut last = "";
    for one in compared {
        if one.label != last {
            table.rule();
            last = &one.label;
        }
        table.push(vec![
            Cell::text(&one.label),
            Cell::text(kind_label(one.kind)),
            Cell::number(Some(one.users as f64), 0),
            Cell::estimate(Some(percent(&one.probability)), 1),
            Cell::estimate(Some(percent(&one.sign)), 1),
        ]);
    }
    table.note(
        "True preference is the mean probability, by Bradley-Terry, that the user chooses the first; an inconsistent user's \
         choices are half coins, which keeps it near 50 %.",
    );
    table.note(format!(
        "The paper asks a vision-language model instead, about {} and its base: 83 % (seen users), 78 % (unseen), 81 % (all).",
        hero.label
    ));
    table.note(
        "\"All other users'\" is the mean over ordered pairs of users of one kind; \"another user's\" is one derangement.",
    );
    let seeds: BTreeSet<u64> = study
        .headers
        .iter()
        .filter(|header| header.method == hero.name)
        .map(|header| header.train_seed)
        .collect();
    table.note(match seeds.len() {
        0 | 1 => "One training seed: intervals are over users and captions, for this training.".to_owned(),
        count => format!(
            "Means over {count} training seeds; intervals are over users and captions, for these trainings."
        ),
    });
    table
}

/// A claim with what the records say about it.
struct Judged<'a> {
    claim: &'a Claim,
    inference: Option<Inference>,
    verdict: Option<Verdict>,
}

fn judge<'a>(people: &People<'a>) -> Result<Vec<Judged<'a>>> {
    let rule = |claim: &Claim| Rule {
        direction: Direction::Greater,
        null: 0.5,
        smallest_effect: claim.smallest_effect,
    };
    let claims = &people.users.claims;
    let mut inferences = Vec::new();
    for claim in claims {
        let compared = people.compared(&claim.method, &claim.over, Some(claim.users))?;
        let inference = compared.map(|[probability, _]| probability.rate_inference(RESAMPLES, BOOTSTRAP));
        inferences.push(inference.transpose()?);
    }
    let tested = claims.iter().zip(&inferences);
    let tested = tested.filter_map(|(claim, inference)| inference.as_ref().map(|one| rule(claim).p(one)));
    let mut adjusted = holm(&tested.collect::<Vec<_>>()).into_iter();
    let judged = claims.iter().zip(inferences).map(|(claim, inference)| {
        let estimate = inference.as_ref().map(|inference| inference.estimate(LEVEL));
        let verdict = estimate.map(|estimate| rule(claim).verdict(&estimate, adjusted.next()));
        Judged { claim, inference, verdict }
    });
    Ok(judged.collect())
}

/// Whether all that is claimed of the study's people holds.
///
/// # Errors
/// Where rows cannot be averaged.
pub fn holds(study: &Study) -> Result<bool> {
    let Some(users) = &study.design.people else { return Ok(true) };
    Ok(judge(&People::new(study, users))?.iter().all(|judged| judged.verdict == Some(Verdict::Holds)))
}

fn claims(people: &People) -> Result<Table> {
    let columns = vec![
        ("Claim".into(), Column::Words),
        ("True preference, %".into(), Column::Estimates),
        ("Smallest effect, %".into(), Column::Numbers),
        ("Verdict".into(), Column::Words),
    ];
    let mut table =
        Table::new("Claims that were fixed before looking, and what the records say about them.", columns);
    for Judged { claim, inference, verdict } in judge(people)? {
        table.push(vec![
            Cell::text(&claim.text),
            Cell::estimate(inference.as_ref().map(percent), 1),
            Cell::number(Some(50.0 + 100.0 * claim.smallest_effect), 1),
            Cell::text(verdict.map_or("no records", Verdict::label)),
        ]);
    }
    table.note("Holm's correction runs across the claims; intervals are over users and captions.");
    Ok(table)
}

fn plotted(compared: &[Compared]) -> Table {
    let columns = vec![
        ("comparison".into(), Column::Words),
        ("users".into(), Column::Words),
        ("true preference, %".into(), Column::Estimates),
    ];
    let mut table = Table::new("True preference", columns);
    for one in compared {
        table.push(vec![
            Cell::text(&one.label),
            Cell::text(kind_label(one.kind)),
            Cell::estimate(Some(percent(&one.probability)), 3),
        ]);
    }
    table
}

fn points(compared: &[Compared]) -> Vec<Point> {
    let point = |one: &Compared| Point {
        label: one.label.clone(),
        kind: one.kind,
        estimate: percent(&one.probability),
    };
    compared.iter().map(point).collect()
}

#[cfg(test)]
mod tests;
