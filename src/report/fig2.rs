//! Figure 2: how often a user is found among all, from the features of a few of her choices, beside chance, content alone and
//! what can be known at all; and how much of that each layer holds.

mod knowledge;

use std::collections::BTreeMap;
use std::path::Path;

use super::panel::{Axis, Panel, legend, legend_height};
use super::plot::{COLUMN, Color, Look, Scene};
use super::study::{BOOTSTRAP, LEVEL, RESAMPLES};
use super::table::{Cell, Kind, Table};
use super::{Figure, Output};
use crate::error::{Error, Result};
use crate::pretrain::classify::Head;
use crate::record;
use crate::spec::Identification;
use crate::spec::identify::{
    Claim, Features, Method, Published, RANK, Separation, World, rank_by, row_method,
};
use crate::stats::contrast::holm;
use crate::stats::{Clusters, Direction, Estimate, Inference, Rule, Verdict};

/// Whether a setting is the paper's own: its groups are random ones, of people, or, at desk scale, of users with topics of
/// their own.
fn is_papers((world, separation): (World, Separation)) -> bool {
    world != World::Shared && separation == Separation::Random
}

/// What the finished cells of a study say.
#[derive(Debug)]
pub struct Found<'a> {
    study: &'a Identification,
    /// For each kind of rows and each score: the user and the value of every asked group.
    ranks: BTreeMap<(String, String), Vec<(u64, f64)>>,
}

impl<'a> Found<'a> {
    /// Reads all finished cells below `folder`.
    ///
    /// # Errors
    /// Where a record is corrupt, or two of them hold the same group.
    pub fn load(study: &'a Identification, folder: &Path) -> Result<Self> {
        let mut rows = Vec::new();
        for (header, own) in record::read_records(folder)? {
            if header.finished.is_some() {
                rows.extend(own);
            }
        }
        Self::new(study, rows)
    }

    /// Sets rows beside what was asked.
    ///
    /// # Errors
    /// Where a row names no user, or two rows are of the same group.
    pub fn new(study: &'a Identification, rows: Vec<record::Row>) -> Result<Self> {
        let mut seen = std::collections::HashSet::new();
        let mut ranks: BTreeMap<(String, String), Vec<(u64, f64)>> = BTreeMap::new();
        for row in rows {
            let user = row.condition.strip_prefix("user-").and_then(|user| user.parse().ok());
            let user: u64 = user.ok_or_else(|| {
                Error::Spec(format!(
                    "{}: condition `{}`, expected `user-` and a number",
                    row.method, row.condition
                ))
            })?;
            if !seen.insert(row.key()) {
                return Err(Error::Spec(format!(
                    "two records hold {}; remove the folder of the one whose settings are out of date",
                    row.key()
                )));
            }
            for (score, rank) in row.scores {
                ranks.entry((row.method.clone(), score)).or_default().push((user, rank));
            }
        }
        Ok(Self { study, ranks })
    }

    /// The share of groups whose user is among the first `rank`, clustered by user.
    fn share(&self, rows: &str, score: &str, rank: usize) -> Result<Option<Inference>> {
        let Some(ranks) = self.ranks.get(&(rows.to_owned(), score.to_owned())) else { return Ok(None) };
        let found: Vec<f64> = ranks.iter().map(|(_, own)| f64::from(u8::from(*own <= rank as f64))).collect();
        let users: Vec<u64> = ranks.iter().map(|(user, _)| *user).collect();
        Clusters::new(&found, &users)?.rate_inference(RESAMPLES, BOOTSTRAP).map(Some)
    }

    /// What one kind of features finds more than another, group by group, clustered by user.
    fn difference(&self, claim: &Claim) -> Result<Option<Inference>> {
        let rows = |method: &str| {
            let known = self.study.methods.iter().find(|known| known.name == method)?;
            let key = (row_method(method, claim.world, claim.separation), score_of(known, claim.head));
            self.ranks.get(&key)
        };
        let (Some(ours), Some(theirs)) = (rows(&claim.method), rows(&claim.over)) else { return Ok(None) };
        let found = |rank: f64| f64::from(u8::from(rank <= claim.rank as f64));
        let pairs = ours.iter().zip(theirs);
        if ours.len() != theirs.len() || pairs.clone().any(|((a, _), (b, _))| a != b) {
            return Err(Error::Spec(format!(
                "claim {}: `{}` and `{}` were asked about other groups",
                claim.id, claim.method, claim.over
            )));
        }
        let differences: Vec<f64> = pairs.map(|((_, a), (_, b))| found(*a) - found(*b)).collect();
        let users: Vec<u64> = ours.iter().map(|(user, _)| *user).collect();
        Clusters::new(&differences, &users)?.inference(RESAMPLES, BOOTSTRAP).map(Some)
    }
}

fn score_of(method: &Method, head: Head) -> String {
    if method.features == Features::KnownUtilities { RANK.to_owned() } else { rank_by(head) }
}

fn is_layer(method: &Method) -> Option<usize> {
    match method.features {
        Features::Embedding { layer, .. } => layer,
        _ => None,
    }
}

/// Tables and figures, and whether all claims hold.
///
/// # Errors
/// Where rows cannot be averaged.
pub fn render(found: &Found) -> Result<(Vec<Output>, bool)> {
    let study = found.study;
    let mut output = Output { name: "fig2".into(), ..Output::default() };
    output.tables.push(("fig2-table".into(), table(found)?));
    let curves = curves(found)?;
    output.figures.push(Figure {
        name: "fig2".into(),
        caption: format!(
            "Share of few-shot groups whose user is among the first k of {}, from the features of {} choices (linear \
             head; bars: 95 % over users). Open diamond: the paper{}.",
            study.users.count,
            study.groups.shots,
            if study.is_recorded() { "" } else { ", whose world and data are others" }
        ),
        scene: draw_curves(found, &curves),
        data: plotted(&curves),
    });
    if let Some(figure) = layers(found)? {
        output.figures.push(figure);
    }
    output.tables.extend(knowledge::table(found)?.map(|table| ("fig2-knowledge".into(), table)));
    let mut outputs = vec![output];
    let mut holds = true;
    if !study.claims.is_empty() {
        let (table, all) = claims(found)?;
        holds = all;
        outputs.push(Output {
            name: "fig2-claims".into(),
            tables: vec![("fig2-claims".into(), table)],
            ..Output::default()
        });
    }
    Ok((outputs, holds))
}

/// Every cell in the study's order.
fn settings(study: &Identification) -> impl Iterator<Item = (World, Separation)> + '_ {
    let separations = &study.groups.separations;
    study
        .users
        .worlds
        .iter()
        .flat_map(move |&world| separations.iter().map(move |&separation| (world, separation)))
}

fn words(world: World, separation: Separation) -> String {
    let world = match world {
        World::Shared => "same prompts",
        World::Topics => "topics",
        World::Recorded => "people",
    };
    let separation = match separation {
        Separation::Random => "any captions",
        Separation::CaptionDisjoint => "new captions",
    };
    format!("{world}, {separation}")
}

fn table(found: &Found) -> Result<Table> {
    let study = found.study;
    let mut columns = vec![("World, asked groups".into(), Kind::Words), ("Features".into(), Kind::Words)];
    columns.push(("Head".into(), Kind::Words));
    columns.extend(study.ranks.iter().map(|rank| (format!("top {rank}, %"), Kind::Estimates)));
    let is_ceiling = |method: &&Method| method.features == Features::KnownUtilities;
    let published =
        study.published.first().filter(|_| study.methods.iter().any(|method| is_ceiling(&method)));
    let at = published.map(|published| published.rank);
    if let Some(rank) = at {
        columns.push((format!("of Bayes, top {rank}, %"), Kind::Numbers));
    }
    let mut table = Table::new(
        format!(
            "Share of few-shot groups ({} choices) whose user is among the first k of {}.",
            study.groups.shots, study.users.count
        ),
        columns,
    );
    for (world, separation) in settings(study) {
        table.rule();
        let ceiling = study.methods.iter().find(is_ceiling);
        for method in study.methods.iter().filter(|method| is_layer(method).is_none()) {
            let rows = row_method(&method.name, world, separation);
            let heads: Vec<Option<Head>> = match method.features {
                Features::KnownUtilities => vec![None],
                _ => study.heads.iter().map(|head| Some(head.head)).collect(),
            };
            for head in heads {
                let score = head.map_or(RANK.to_owned(), rank_by);
                let mut row = vec![
                    Cell::text(words(world, separation)),
                    Cell::text(&method.label),
                    Cell::text(head.map_or("none", Head::name)),
                ];
                for &rank in &study.ranks {
                    let share = found.share(&rows, &score, rank)?;
                    row.push(Cell::estimate(share.map(|share| percent(share.estimate(LEVEL))), 1));
                }
                if let Some(rank) = at {
                    let ceiling = match ceiling {
                        Some(ceiling) => {
                            found.share(&row_method(&ceiling.name, world, separation), RANK, rank)?
                        }
                        None => None,
                    };
                    let own = found.share(&rows, &score, rank)?;
                    let share = own.zip(ceiling).map(|(own, most)| 100.0 * own.value() / most.value());
                    row.push(Cell::number(share.filter(|share| share.is_finite()), 0));
                }
                table.push(row);
            }
        }
        let mut chance = vec![Cell::text(words(world, separation)), Cell::text("Chance"), Cell::text("none")];
        let shares = study.ranks.iter().map(|&rank| 100.0 * rank as f64 / study.users.count as f64);
        chance.extend(shares.map(|share| Cell::number(Some(share), 1)));
        chance.extend(at.map(|_| Cell::Missing));
        table.push(chance);
    }
    notes(study, &mut table);
    Ok(table)
}

fn notes(study: &Identification, table: &mut Table) {
    for Published { rank, accuracy } in &study.published {
        let reports =
            format!("The paper reports {:.0} % at top {rank} over 300 users of Pick-a-Pic", 100.0 * accuracy);
        table.note(match study.is_recorded() {
            true => format!(
                "{reports}, under groups about any captions, which tell a user by what she asks for too. People's utilities are \
                 unknown, and with them what could be found at most."
            ),
            false => format!(
                "{reports}, whose groups share topics; here users have known utilities, and four choices bound what can be \
                 found (the rows of Bayes' rule)."
            ),
        });
    }
    if !study.is_recorded() {
        table.note(
            "The model that embeds was trained by us on this task over other users, captions and pictures.",
        );
    }
    table
        .note("A user's number among those learned from finds every one of them, and can serve nobody else.");
}

fn percent(estimate: Estimate) -> Estimate {
    estimate.percent()
}

/// The curve of one kind of features in one setting.
struct Curve {
    setting: (World, Separation),
    label: String,
    look: Look,
    points: Vec<(usize, Estimate)>,
}

fn curves(found: &Found) -> Result<Vec<Curve>> {
    let study = found.study;
    let mut curves = Vec::new();
    for setting in settings(study) {
        let methods = study.methods.iter().filter(|method| is_layer(method).is_none());
        for (place, method) in methods.enumerate() {
            let head = study.heads.first().map_or(Head::Linear, |head| head.head);
            let mut points = Vec::new();
            for &rank in &study.ranks {
                let rows = row_method(&method.name, setting.0, setting.1);
                if let Some(share) = found.share(&rows, &score_of(method, head), rank)? {
                    points.push((rank, percent(share.estimate(LEVEL))));
                }
            }
            if !points.is_empty() {
                curves.push(Curve { setting, label: method.label.clone(), look: Look::nth(place), points });
            }
        }
    }
    Ok(curves)
}

fn plotted(curves: &[Curve]) -> Table {
    let columns = vec![
        ("setting".into(), Kind::Words),
        ("features".into(), Kind::Words),
        ("k".into(), Kind::Numbers),
        ("share, %".into(), Kind::Estimates),
    ];
    let mut table = Table::new("Share of groups whose user is among the first k", columns);
    for curve in curves {
        for (rank, estimate) in &curve.points {
            table.push(vec![
                Cell::text(words(curve.setting.0, curve.setting.1)),
                Cell::text(&curve.label),
                Cell::number(Some(*rank as f64), 0),
                Cell::estimate(Some(estimate.clone()), 2),
            ]);
        }
    }
    table
}

fn draw_curves(found: &Found, curves: &[Curve]) -> Scene {
    let study = found.study;
    let mut entries: Vec<(Look, String)> = Vec::new();
    for curve in curves {
        if !entries.iter().any(|(_, label)| *label == curve.label) {
            entries.push((curve.look, curve.label.clone()));
        }
    }
    let paper = Look { color: Color::INK, ..Look::nth(3) }.opened();
    if !study.published.is_empty() && settings(study).any(is_papers) {
        entries.push((paper, "the paper".into()));
    }
    let ranks: Vec<f64> = study.ranks.iter().map(|&rank| rank as f64).collect();
    let y = Axis::linear(0.0, 100.0, 4).named("users found, %");
    let mut blank = y.clone().named("");
    blank.ticks.iter_mut().for_each(|(_, text)| text.clear());
    let left = y.room_at_left() + 1.0;
    let columns = study.groups.separations.len().max(1);
    let rows = study.users.worlds.len().max(1);
    const GAP: f64 = 9.0;
    const HEIGHT: f64 = 74.0;
    const TITLE: f64 = 13.0;
    let width = (COLUMN - left - 5.0 - GAP * (columns - 1) as f64) / columns as f64;
    let above = legend_height(COLUMN - left, &entries) + 4.0;
    let below = Axis::logarithmic(&ranks).named("k").room_below() + 2.0;
    let mut scene = Scene::new(COLUMN, above + rows as f64 * (TITLE + HEIGHT + below));
    legend(&mut scene, (left, 1.0), COLUMN - left, &entries);
    for (at, setting) in settings(study).enumerate() {
        let (row, column) = (at / columns, at % columns);
        let panel = Panel {
            left: left + (width + GAP) * column as f64,
            top: above + row as f64 * (TITLE + HEIGHT + below) + TITLE,
            width,
            height: HEIGHT,
            x: Axis::logarithmic(&ranks).named("k"),
            y: if column == 0 { y.clone() } else { blank.clone() },
        };
        panel.frame(&mut scene);
        panel.title(&mut scene, &words(setting.0, setting.1));
        let chance = |rank: f64| panel.at(rank, 100.0 * rank / study.users.count as f64);
        for pair in ranks.windows(2) {
            scene.dashed(chance(pair[0]), chance(pair[1]), 0.6, Color::GREY);
        }
        for curve in curves.iter().filter(|curve| curve.setting == setting) {
            let path = curve.points.iter().map(|(rank, share)| panel.at(*rank as f64, share.value));
            scene.path(path.clone().collect(), 1.0, curve.look.color);
            for (rank, share) in &curve.points {
                panel.whisker(&mut scene, *rank as f64, (share.low, share.high), curve.look.color);
            }
            path.for_each(|at| scene.marker(at, 1.8, curve.look));
        }
        if is_papers(setting) {
            for published in &study.published {
                scene.marker(panel.at(published.rank as f64, 100.0 * published.accuracy), 2.2, paper);
            }
        }
    }
    scene
}

/// What each layer finds, at the rank that the paper reports, or at the largest.
fn layers(found: &Found) -> Result<Option<Figure>> {
    let study = found.study;
    let rank = study.published.first().map(|published| published.rank).or(study.ranks.last().copied());
    let (Some(rank), Some(head)) = (rank, study.heads.first().map(|head| head.head)) else { return Ok(None) };
    let mut by_layer: Vec<(usize, &Method)> =
        study.methods.iter().filter_map(|method| Some((is_layer(method)?, method))).collect();
    by_layer.sort_by_key(|(layer, _)| *layer);
    let Some((deepest, _)) = by_layer.last().copied() else { return Ok(None) };
    // What names no layer is the last one's.
    let last = study.methods.iter().find(|method| {
        matches!(
            method.features,
            Features::Embedding { choices: crate::spec::identify::Choices::Own, layer: None, model: None }
        )
    });
    by_layer.extend(last.map(|method| (deepest + 1, method)));
    let columns = vec![
        ("setting".into(), Kind::Words),
        ("layer".into(), Kind::Numbers),
        (format!("top {rank}, %"), Kind::Estimates),
    ];
    let mut data = Table::new(format!("Users found among the first {rank}, by layer"), columns);
    let mut lines: Vec<(String, Vec<(usize, Estimate)>)> = Vec::new();
    for (world, separation) in settings(study) {
        let mut line = Vec::new();
        for (layer, method) in &by_layer {
            let rows = row_method(&method.name, world, separation);
            let Some(share) = found.share(&rows, &rank_by(head), rank)? else { continue };
            let share = percent(share.estimate(LEVEL));
            data.push(vec![
                Cell::text(words(world, separation)),
                Cell::number(Some(*layer as f64), 0),
                Cell::estimate(Some(share.clone()), 2),
            ]);
            line.push((*layer, share));
        }
        if !line.is_empty() {
            lines.push((words(world, separation), line));
        }
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let entries: Vec<(Look, String)> =
        lines.iter().enumerate().map(|(index, (label, _))| (Look::nth(index), label.clone())).collect();
    let values =
        lines.iter().flat_map(|(_, line)| line.iter().flat_map(|(_, share)| [share.low, share.high]));
    let y = Axis::covering(values.chain([0.0]), 4).named(format!("top {rank}, %"));
    let x = Axis::categories((0..=deepest + 1).map(|layer| layer.to_string())).named("layer");
    let left = y.room_at_left() + 1.0;
    let top = legend_height(COLUMN - left, &entries) + 6.0;
    let below = x.room_below() + 2.0;
    const HEIGHT: f64 = 80.0;
    let mut scene = Scene::new(COLUMN, top + HEIGHT + below);
    legend(&mut scene, (left, 1.0), COLUMN - left, &entries);
    let panel = Panel { left, top, width: COLUMN - left - 5.0, height: HEIGHT, x, y };
    panel.frame(&mut scene);
    for (index, (_, line)) in lines.iter().enumerate() {
        let look = Look::nth(index);
        let path: Vec<(f64, f64)> =
            line.iter().map(|(layer, share)| panel.at(*layer as f64, share.value)).collect();
        scene.path(path.clone(), 1.0, look.color);
        for (layer, share) in line {
            panel.whisker(&mut scene, *layer as f64, (share.low, share.high), look.color);
        }
        path.into_iter().for_each(|at| scene.marker(at, 2.0, look));
    }
    let caption = format!(
        "Users found among the first {rank}, from each layer's hidden state at the last written position (layer 0: the \
         embeddings); linear head."
    );
    Ok(Some(Figure { name: "fig2-layers".into(), caption, scene, data }))
}

fn claims(found: &Found) -> Result<(Table, bool)> {
    let columns = vec![
        ("Claim".into(), Kind::Words),
        ("Difference, points".into(), Kind::Estimates),
        ("Smallest effect".into(), Kind::Numbers),
        ("Verdict".into(), Kind::Words),
    ];
    let mut table =
        Table::new("Claims that were fixed before looking, and what the records say about them.", columns);
    let rule = |claim: &Claim| Rule {
        direction: Direction::Greater,
        null: 0.0,
        smallest_effect: claim.smallest_effect,
    };
    let claims = &found.study.claims;
    let differences = claims.iter().map(|claim| found.difference(claim)).collect::<Result<Vec<_>>>()?;
    let tested = claims
        .iter()
        .zip(&differences)
        .filter_map(|(claim, inference)| inference.as_ref().map(|inference| rule(claim).p(inference)));
    let mut adjusted = holm(&tested.collect::<Vec<_>>()).into_iter();
    let mut holds = true;
    for (claim, difference) in claims.iter().zip(&differences) {
        let difference = difference.as_ref().map(|inference| inference.estimate(LEVEL));
        let verdict = difference.as_ref().map(|estimate| rule(claim).verdict(estimate, adjusted.next()));
        holds &= verdict == Some(Verdict::Holds);
        table.push(vec![
            Cell::text(&claim.text),
            Cell::estimate(difference.map(percent), 1),
            Cell::number(Some(100.0 * claim.smallest_effect), 1),
            Cell::text(verdict.map_or("no records", Verdict::label)),
        ]);
    }
    table.note("Holm's correction runs across the claims; intervals are over users.");
    Ok((table, holds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Row;
    use crate::spec::Request;

    pub(super) fn study() -> Identification {
        let request = Request {
            study: "fig2".into(),
            experiments: Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments"),
            ..Request::default()
        };
        Identification::load(&request).unwrap()
    }

    /// Two groups of each of forty users: the embedding has rank 3 and 20, everything else 150.
    fn rows(study: &Identification) -> Vec<Row> {
        let mut rows = Vec::new();
        for (world, separation) in settings(study) {
            for method in &study.methods {
                for user in 0..40 {
                    for group in 0..2u32 {
                        let rank = match (&method.features, group) {
                            (Features::KnownUtilities, _) => 1.0,
                            (_, 0) if method.name == "embedding" => 3.0,
                            (_, 1) if method.name == "embedding" => 20.0,
                            _ => 150.0,
                        };
                        let scores = match method.features {
                            Features::KnownUtilities => vec![RANK.to_owned()],
                            _ => study.heads.iter().map(|head| rank_by(head.head)).collect(),
                        };
                        rows.push(Row {
                            method: row_method(&method.name, world, separation),
                            condition: format!("user-{user}"),
                            prompt: group,
                            scores: scores.into_iter().map(|score| (score, rank)).collect(),
                            ..Row::default()
                        });
                    }
                }
            }
        }
        rows
    }

    #[test]
    fn shares_count_the_groups_whose_user_is_found() {
        let study = study();
        let found = Found::new(&study, rows(&study)).unwrap();
        let share = |rank| {
            let rows = row_method("embedding", World::Shared, Separation::Random);
            found.share(&rows, &rank_by(Head::Linear), rank).unwrap().unwrap().value()
        };
        assert_eq!([1, 2, 4, 16, 32].map(share), [0.0, 0.0, 0.5, 0.5, 1.0]);
        let (outputs, holds) = render(&found).unwrap();
        // Half of the groups at rank 16 more than content alone finds, which is none.
        assert!(holds);
        let claims = &outputs[1].tables[0].1;
        assert_eq!(claims.rows.len(), 2);
        assert!(matches!(&claims.rows[0][3], Cell::Text(verdict) if verdict == "holds"));
        for figure in &outputs[0].figures {
            assert_eq!(super::super::panel::faults(&figure.scene), Vec::<String>::new(), "{}", figure.name);
        }
    }

    #[test]
    fn records_that_hold_a_group_twice_or_no_user_are_refused() {
        let study = study();
        let mut rows = rows(&study);
        rows.push(rows[0].clone());
        assert!(Found::new(&study, rows.clone()).unwrap_err().to_string().contains("two records"));
        rows.truncate(1);
        rows[0].condition = "clip".into();
        assert!(Found::new(&study, rows).unwrap_err().to_string().contains("`clip`"));
    }
}
