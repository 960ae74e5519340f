//! Figure 4: the user moves over the simplex between the rewards.
//!
//! One triangle for each reward, shaded by its mean at each mixture of users, and for each edge the two rewards at
//! its ends against the weight. The table holds Spearman's coefficient of weight and reward: within a prompt (over
//! all mixtures, averaged over prompts and training seeds) and of the mean curve (the mean reward at each weight).
//! Rewards have their own units, so curves are in the base's standard deviations between images of one prompt, around
//! the mean over mixtures.

use super::panel::{Axis, Panel, legend, legend_height, number};
use super::plot::{Anchor, COLUMN, Color, Label, Look, SMALL, Scene};
use super::study::{BOOTSTRAP, LEVEL, Method, RESAMPLES, Role, Study, Values, reward_label, twin};
use super::table::{Cell, Kind, Table};
use super::{Figure, Output, Result};
use crate::stats::bootstrap::Resamples;
use crate::stats::correlation::spearman;
use crate::stats::crossed::{CONDITIONAL, LEAST_SEEDS};
use crate::stats::{Crossed, Estimate, Inference};

/// One score at every mixture of users.
pub(super) struct Surface {
    /// The weights of each mixture, over the design's rewards.
    pub weights: Vec<Vec<f64>>,
    /// The score at each mixture, prompts × training seeds, all over the same prompts.
    values: Vec<Crossed>,
}

impl Surface {
    /// The score over all mixtures of a method's users; `None` below three mixtures.
    pub fn of(study: &Study, method: &Method, score: &str) -> Result<Option<Self>> {
        let mut points: Vec<(Vec<f64>, Values)> = Vec::new();
        for user in &method.conditions {
            if user.weights.iter().sum::<f64>() > 0.0
                && let Some(values) = study.values(&method.name, &user.condition, score)
            {
                points.push((user.weights.clone(), values));
            }
        }
        if points.len() < 3
            || points.iter().all(|(weights, _)| weights.iter().filter(|w| **w > 0.0).count() < 2)
        {
            return Ok(None);
        }
        // Only images that every mixture has: a failure under one user leaves its image out under all.
        let shared = points[1..]
            .iter()
            .fold(points[0].1.clone(), |shared, (_, values)| shared.combine(values, |a, _| a));
        let (weights, values) = points
            .into_iter()
            .map(|(weights, values)| Ok((weights, values.combine(&shared, |a, _| a).gathered()?.values)))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        Ok(Some(Self { weights, values }))
    }

    /// The mean at each mixture.
    pub fn means(&self) -> Vec<f64> {
        self.values.iter().map(Crossed::mean).collect()
    }

    /// The mean at each distinct weight of reward number `reward`, weights ascending.
    fn curve(&self, reward: usize, means: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let mut levels: Vec<f64> = self.weights.iter().map(|weights| weights[reward]).collect();
        levels.sort_unstable_by(f64::total_cmp);
        levels.dedup_by(|a, b| (*a - *b).abs() < 1e-9);
        let at = |level: &f64| {
            let near: Vec<f64> = (self.weights.iter().zip(means))
                .filter(|(weights, _)| (weights[reward] - level).abs() < 1e-9)
                .map(|(_, mean)| *mean)
                .collect();
            near.iter().sum::<f64>() / near.len() as f64
        };
        let means = levels.iter().map(at).collect();
        (levels, means)
    }

    /// Spearman of weight and score over the mixtures, for each prompt and training seed.
    ///
    /// # Errors
    /// Where nothing varies.
    pub fn within(&self, reward: usize) -> Result<Crossed> {
        let weights: Vec<f64> = self.weights.iter().map(|weights| weights[reward]).collect();
        let first = &self.values[0];
        let coefficients = (0..first.values().len())
            .map(|at| {
                let scores: Vec<f64> = self.values.iter().map(|values| values.values()[at]).collect();
                // Images that do not change at all with the user go neither with nor against its weight.
                Ok(spearman(&weights, &scores)?.map_or(0.0, |correlation| correlation.coefficient))
            })
            .collect::<Result<Vec<_>>>()?;
        Crossed::new(first.seeds(), first.prompts(), coefficients)
    }

    /// Spearman of the mean curve with its bootstrap: value, low, high, and the share of resamples at or below `least`.
    ///
    /// # Errors
    /// Where the curve cannot be correlated.
    pub fn of_curve(&self, reward: usize, least: f64) -> Result<Option<(Estimate, f64)>> {
        let coefficient = |means: &[f64]| -> Result<Option<f64>> {
            let (levels, curve) = self.curve(reward, means);
            Ok(spearman(&levels, &curve)?.map(|correlation| correlation.coefficient))
        };
        let means = self.means();
        let Some(value) = coefficient(&means)? else { return Ok(None) };
        // A mean's deviation is what the drawn prompts do plus what the drawn seeds do; the same draws at each mixture.
        let part = |of: &dyn Fn(&Crossed) -> Vec<f64>, purpose: &str| -> Vec<Vec<f64>> {
            let parts = self.values.iter().zip(&means).map(|(values, mean)| {
                let levels = of(values);
                let n = levels.len() as f64;
                let deviations: Vec<f64> = levels.iter().map(|level| (level - mean) / n).collect();
                Resamples::draw(levels.len(), RESAMPLES, BOOTSTRAP, purpose).sums(&deviations)
            });
            parts.collect()
        };
        let by_prompt = part(&Crossed::prompt_means, "bootstrap prompts");
        let seeds = self.values[0].seeds();
        let crossed = seeds >= LEAST_SEEDS;
        let by_seed = crossed.then(|| part(&Crossed::seed_means, "bootstrap seeds"));
        let mut drawn = Vec::with_capacity(RESAMPLES);
        for resample in 0..RESAMPLES {
            let moved: Vec<f64> = means
                .iter()
                .enumerate()
                .map(|(at, mean)| {
                    mean + by_prompt[at][resample]
                        + by_seed.as_ref().map_or(0.0, |by_seed| by_seed[at][resample])
                })
                .collect();
            drawn.push(coefficient(&moved)?.unwrap_or(0.0));
        }
        drawn.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - LEVEL) / 2.0;
        let quantile = |q: f64| crate::stats::sample::quantile(&drawn, q).unwrap_or(value);
        let ends = (quantile(tail).min(value), quantile(1.0 - tail).max(value));
        let below = drawn.iter().filter(|coefficient| **coefficient <= least).count();
        let p = (below + 1) as f64 / (RESAMPLES + 1) as f64;
        let estimate = Estimate::new(value, ends, LEVEL, crate::stats::Method::Percentile);
        Ok(Some((if crossed { estimate } else { estimate.with_note(CONDITIONAL) }, p)))
    }
}

/// Renders the figure and the table; `None` where no personal model was asked for mixtures.
///
/// # Errors
/// Where rows cannot be averaged.
pub fn render(study: &Study) -> Result<Option<Output>> {
    let Some(method) = study.design.first(&Role::Personal).filter(|_| study.design.sweep.is_none()) else {
        return Ok(None);
    };
    let rewards = &study.design.rewards;
    let mut surfaces = Vec::new();
    for reward in rewards {
        match Surface::of(study, method, reward)? {
            Some(surface) => surfaces.push(surface),
            None => return Ok(None),
        }
    }
    let mut table = Table::new(
        format!(
            "Spearman's coefficient of a user's weight and its reward, over {} mixtures of users.",
            surfaces[0].weights.len()
        ),
        vec![
            ("Score".into(), Kind::Words),
            ("within a prompt, averaged".into(), Kind::Estimates),
            ("of the mean curve".into(), Kind::Estimates),
        ],
    );
    for (index, reward) in rewards.iter().enumerate() {
        for score in [reward.clone(), twin(reward)] {
            let Some(surface) = Surface::of(study, method, &score)? else { continue };
            let within: Inference = surface.within(index)?.inference(RESAMPLES, BOOTSTRAP)?;
            let curve = surface.of_curve(index, 0.0)?.map(|(estimate, _)| estimate);
            table.push(vec![
                Cell::text(reward_label(&score)),
                Cell::estimate(Some(within.estimate(LEVEL).clamped(-1.0, 1.0)), 2),
                Cell::estimate(curve, 2),
            ]);
        }
    }
    table.note_few_seeds(None);
    table.note("The mean curve has few points, so its interval (percentile bootstrap) is coarse.");
    table.note("The paper shows one prompt's images and scores and no coefficient: nothing to set beside these numbers.");
    let mut figures = vec![Figure {
        name: "fig4-curves".into(),
        caption: format!(
            "{}: each reward against the weight of its user along the edges of the simplex, in standard deviations \
             between the base's images of one prompt, around its mean over all mixtures.",
            method.label
        ),
        scene: draw_curves(study, &surfaces),
        data: plotted(study, &surfaces),
    }];
    if rewards.len() == 3 {
        figures.insert(
            0,
            Figure {
                name: "fig4-triangles".into(),
                caption: format!(
                    "{}: mean of each reward over the simplex of users; each corner is one reward's own user, each dot \
                     a mixture that was asked for.",
                    method.label
                ),
                scene: draw_triangles(study, &surfaces),
                data: plotted(study, &surfaces),
            },
        );
    }
    figures.extend(super::samples::triangle(study, method)?);
    Ok(Some(Output {
        name: "fig4".into(),
        tables: vec![("fig4-table".into(), table)],
        figures,
        ..Output::default()
    }))
}

fn plotted(study: &Study, surfaces: &[Surface]) -> Table {
    let rewards = &study.design.rewards;
    let mut columns: Vec<(String, Kind)> =
        rewards.iter().map(|reward| (format!("weight {reward}"), Kind::Numbers)).collect();
    columns.extend(rewards.iter().map(|reward| (format!("mean {reward}"), Kind::Numbers)));
    let mut table = Table::new("Means over the simplex", columns);
    let means: Vec<Vec<f64>> = surfaces.iter().map(Surface::means).collect();
    for (at, weights) in surfaces[0].weights.iter().enumerate() {
        let mut row: Vec<Cell> = weights.iter().map(|weight| Cell::number(Some(*weight), 2)).collect();
        row.extend(means.iter().map(|means| Cell::number(Some(means[at]), 4)));
        table.push(row);
    }
    table
}

/// The means around the mean over all mixtures, in `unit`.
fn standardised(surface: &Surface, unit: f64) -> Vec<f64> {
    let means = surface.means();
    let centre = means.iter().sum::<f64>() / means.len() as f64;
    means.iter().map(|mean| (mean - centre) / unit).collect()
}

fn draw_curves(study: &Study, surfaces: &[Surface]) -> Scene {
    let rewards = &study.design.rewards;
    // Without a base there is no unit: then a reward stays in its own.
    let values: Vec<Vec<f64>> = surfaces
        .iter()
        .zip(rewards)
        .map(|(surface, reward)| standardised(surface, study.deviation(reward).unwrap_or(1.0)))
        .collect();
    let edges: Vec<(usize, usize)> =
        (0..rewards.len()).flat_map(|a| (a + 1..rewards.len()).map(move |b| (a, b))).collect();
    let entries: Vec<(Look, String)> =
        rewards.iter().enumerate().map(|(index, reward)| (Look::nth(index), reward_label(reward))).collect();
    let y = Axis::covering(values.iter().flatten().copied(), 4).named("reward, SD");
    let left = y.room_at_left() + 1.0;
    let top = legend_height(COLUMN - left, &entries) + 6.0;
    let gap = 9.0;
    let width = (COLUMN - left - 5.0 - gap * (edges.len() - 1) as f64) / edges.len() as f64;
    const HEIGHT: f64 = 70.0;
    let mut blank = y.clone().named("");
    blank.ticks.iter_mut().for_each(|(_, text)| text.clear());
    let mut scene = Scene::new(COLUMN, top + HEIGHT + 20.0);
    legend(&mut scene, (left, 1.0), COLUMN - left, &entries);
    for (index, (a, b)) in edges.iter().enumerate() {
        let mut x = Axis::linear(-0.05, 1.05, 2);
        x.ticks = vec![(0.0, "0".into()), (0.5, "½".into()), (1.0, "1".into())];
        let x = x.named(format!("{} → {}", reward_label(&rewards[*a]), reward_label(&rewards[*b])));
        let y = if index == 0 { y.clone() } else { blank.clone() };
        let panel = Panel { left: left + (width + gap) * index as f64, top, width, height: HEIGHT, x, y };
        panel.frame(&mut scene);
        let mut points: Vec<usize> = (0..surfaces[0].weights.len())
            .filter(|at| (surfaces[0].weights[*at][*a] + surfaces[0].weights[*at][*b] - 1.0).abs() < 1e-9)
            .collect();
        points.sort_by(|p, q| surfaces[0].weights[*p][*b].total_cmp(&surfaces[0].weights[*q][*b]));
        for reward in [*a, *b] {
            let look = Look::nth(reward);
            let path: Vec<(f64, f64)> =
                points.iter().map(|at| panel.at(surfaces[0].weights[*at][*b], values[reward][*at])).collect();
            scene.path(path.clone(), 1.0, look.color);
            path.into_iter().for_each(|at| scene.marker(at, 2.0, look));
        }
    }
    scene
}

/// Where a mixture lies in a triangle of side `side`: the first reward at the lower left, the second at the lower
/// right, the third on top, as barycentric coordinates ask.
fn corner_point(left: f64, bottom: f64, side: f64, weights: &[f64]) -> (f64, f64) {
    (left + side * (weights[1] + 0.5 * weights[2]), bottom - side * 0.75f64.sqrt() * weights[2])
}

/// From almost white to the reward's colour.
fn shade(color: Color, share: f64) -> Color {
    color.tint(0.08 + 0.87 * share)
}

fn draw_triangles(study: &Study, surfaces: &[Surface]) -> Scene {
    let rewards = &study.design.rewards;
    const GAP: f64 = 17.0;
    let side = (COLUMN - 2.0 * GAP - 18.0) / 3.0;
    let height = side * 0.75f64.sqrt();
    const TOP: f64 = 24.0;
    let mut scene = Scene::new(COLUMN, TOP + height + 36.0);
    let corners = rewards.iter().map(|reward| reward_label(reward)).collect::<Vec<_>>();
    for (index, surface) in surfaces.iter().enumerate() {
        let (left, bottom) = (9.0 + index as f64 * (side + GAP), TOP + height);
        let color = Look::nth(index).color;
        let means = surface.means();
        let triangles = triangles(&surface.weights);
        let (low, high) =
            means.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), m| (l.min(*m), h.max(*m)));
        let share = |value: f64| if high > low { (value - low) / (high - low) } else { 0.5 };
        // Small cells, each in the colour of the mixtures around it: weights fall with the square of the distance.
        const CELLS: usize = 14;
        let at = |i: usize, j: usize| {
            let (b, c) = (i as f64 / CELLS as f64, j as f64 / CELLS as f64);
            [1.0 - b - c, b, c]
        };
        for j in 0..CELLS {
            for i in 0..CELLS - j {
                let upright = [at(i, j), at(i + 1, j), at(i, j + 1)];
                let inverted = [at(i + 1, j), at(i + 1, j + 1), at(i, j + 1)];
                for cell in [Some(upright), (i + j + 1 < CELLS).then_some(inverted)].into_iter().flatten() {
                    let centre: Vec<f64> =
                        (0..3).map(|k| cell.iter().map(|p| p[k]).sum::<f64>() / 3.0).collect();
                    let fill =
                        shade(color, share(interpolated(&triangles, &surface.weights, &means, &centre)));
                    // A hair larger than the cell, yet inside the simplex, so that no seam of paper shows between two.
                    let points = cell.iter().map(|p| {
                        let grown = (0..3).map(|k| (centre[k] + (p[k] - centre[k]) * 1.15).max(0.0));
                        let grown: Vec<f64> = grown.collect();
                        let sum: f64 = grown.iter().sum();
                        corner_point(
                            left,
                            bottom,
                            side,
                            &grown.iter().map(|share| share / sum).collect::<Vec<_>>(),
                        )
                    });
                    scene.polygon(points.collect(), fill);
                }
            }
        }
        for weights in &surface.weights {
            let dot = Look { color: Color::INK, ..Look::nth(0) };
            scene.marker(corner_point(left, bottom, side, weights), 0.7, dot);
        }
        let middle = left + side / 2.0;
        let title = Label::new((middle, 5.0), corners[index].clone()).anchored(Anchor::Middle);
        scene.label(title.colored(color));
        let top = Label::new((middle, TOP - 6.0), corners[2].clone()).small().anchored(Anchor::Middle);
        scene.label(top.colored(Color::GREY));
        for (corner, x, anchor) in [(0, left - 4.0, Anchor::Start), (1, left + side + 4.0, Anchor::End)] {
            let label = Label::new((x, bottom + 6.0), corners[corner].clone()).small().anchored(anchor);
            scene.label(label.colored(Color::GREY));
        }
        // The scale: from the least to the greatest mean.
        let (bar_top, bar_left, bar_width) = (bottom + 14.0, left + side * 0.1, side * 0.8);
        for step in 0..20 {
            let x = bar_left + bar_width * f64::from(step) / 20.0;
            let next = (x + bar_width / 20.0 + 0.1, bar_top + 4.0);
            scene.rectangle((x, bar_top), next, shade(color, (f64::from(step) + 0.5) / 20.0));
        }
        let decimals = (1.0 - ((high - low) / 2.0).max(1e-9).log10().floor()).clamp(0.0, 4.0) as usize;
        for (x, value) in [(bar_left, low), (bar_left + bar_width, high)] {
            let text = number(value, decimals);
            scene.label(Label::new((x, bar_top + 5.0 + SMALL), text).small().anchored(Anchor::Middle));
        }
    }
    scene
}

/// The value between the mixtures that were asked for: linear within the smallest triangle of them around `at`.
fn interpolated(triangles: &[[usize; 3]], weights: &[Vec<f64>], means: &[f64], at: &[f64]) -> f64 {
    let area =
        |a: &[f64], b: &[f64], c: &[f64]| (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1]);
    for [i, j, k] in triangles {
        let (a, b, c) = (&weights[*i], &weights[*j], &weights[*k]);
        let whole = area(a, b, c);
        let shares = [area(at, b, c) / whole, area(a, at, c) / whole, area(a, b, at) / whole];
        if shares.iter().all(|share| *share > -1e-9) {
            return shares[0] * means[*i] + shares[1] * means[*j] + shares[2] * means[*k];
        }
    }
    // Outside all of them: the nearest mixture's.
    let distance = |weights: &[f64]| weights.iter().zip(at).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let nearest = (0..means.len()).min_by(|a, b| distance(&weights[*a]).total_cmp(&distance(&weights[*b])));
    nearest.map_or(f64::NAN, |nearest| means[nearest])
}

/// All triangles of mixtures, the smallest first.
fn triangles(weights: &[Vec<f64>]) -> Vec<[usize; 3]> {
    let doubled_area = |[i, j, k]: &[usize; 3]| {
        let (a, b, c) = (&weights[*i], &weights[*j], &weights[*k]);
        ((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])).abs()
    };
    let count = weights.len();
    let mut all: Vec<[usize; 3]> = (0..count)
        .flat_map(|i| (i + 1..count).flat_map(move |j| (j + 1..count).map(move |k| [i, j, k])))
        .filter(|triangle| doubled_area(triangle) > 1e-6)
        .collect();
    all.sort_by(|a, b| doubled_area(a).total_cmp(&doubled_area(b)));
    all
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn planted_growth_gives_high_coefficients() {
        let study = testing::study();
        let output = render(&study).unwrap().unwrap();
        let table = &output.tables[0].1;
        assert_eq!(table.rows.len(), 6);
        for row in &table.rows {
            let (Cell::Estimate { estimate: within, .. }, Cell::Estimate { estimate: curve, .. }) =
                (&row[1], &row[2])
            else {
                panic!("{row:?}")
            };
            // Planted: 1.1 spreads from weight 0 to 1 against image noise of 0.3; half of that on the twins.
            assert!(within.low > 0.2 && within.value < 1.0, "{within:?}");
            assert!(curve.value > 0.9, "five levels in order: {curve:?}");
        }
        assert_eq!(output.figures.len(), 2);
        // 15 mixtures: all shares of quarters.
        assert_eq!(output.figures[0].data.rows.len(), 15);
    }

    #[test]
    fn curves_average_the_mixtures_of_one_weight() {
        let study = testing::study();
        let method = study.design.method("ppd").unwrap();
        let surface = Surface::of(&study, method, "clip").unwrap().unwrap();
        let means: Vec<f64> = surface.weights.iter().map(|weights| 10.0 * weights[0] + weights[1]).collect();
        let (levels, curve) = surface.curve(0, &means);
        assert_eq!(levels, [0.0, 0.25, 0.5, 0.75, 1.0]);
        // At weight 1/2 the second user has 0, 1/4 or 1/2.
        assert!((curve[2] - 5.25).abs() < 1e-12 && (curve[4] - 10.0).abs() < 1e-12, "{curve:?}");
    }

    #[test]
    fn between_mixtures_the_surface_is_linear() {
        let study = testing::study();
        let surface = Surface::of(&study, study.design.method("ppd").unwrap(), "clip").unwrap().unwrap();
        let plane = |at: &[f64]| 3.0 * at[0] - 2.0 * at[1] + at[2];
        let means: Vec<f64> = surface.weights.iter().map(|weights| plane(weights)).collect();
        let triangles = triangles(&surface.weights);
        for at in [[0.3, 0.3, 0.4], [0.9, 0.05, 0.05], [0.0, 0.6, 0.4]] {
            let value = interpolated(&triangles, &surface.weights, &means, &at);
            assert!((value - plane(&at)).abs() < 1e-9, "{value} at {at:?}");
        }
        // A smallest triangle has corners a quarter apart.
        let [i, j, _] = triangles[0];
        let apart =
            surface.weights[i].iter().zip(&surface.weights[j]).map(|(a, b)| (a - b).abs()).sum::<f64>();
        assert!((apart - 0.5).abs() < 1e-9, "{apart}");
    }

    #[test]
    fn a_failed_image_is_left_out_under_every_user() {
        let study = testing::study();
        let surface = Surface::of(&study, study.design.method("ppd").unwrap(), "clip").unwrap().unwrap();
        let prompts = surface.values[0].prompts();
        assert_eq!(prompts, testing::PROMPTS as usize - 1);
        assert!(surface.values.iter().all(|values| values.prompts() == prompts));
    }

    #[test]
    fn methods_without_mixtures_have_no_surface() {
        let study = testing::study();
        assert!(Surface::of(&study, study.design.method("sft").unwrap(), "clip").unwrap().is_none());
    }
}
