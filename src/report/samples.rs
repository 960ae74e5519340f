//! The images that records keep, for people to look at: methods beside each other, and one prompt over the simplex.

use super::plot::{Anchor, COLUMN, Label, PAGE, SMALL, Scene};
use super::study::{Method, Picture, Study, reward_label};
use super::table::{Cell, Kind, Table};
use super::{Figure, Output, Result};

/// The most prompts of a sheet.
const COLUMNS: usize = 3;

/// Renders a sheet with one line for each method and user and one column for each of the first prompts; `None` where no image was
/// kept. Mixtures of users are left to Figure 4.
///
/// # Errors
/// Where a kept image is missing or was changed.
pub fn render(study: &Study) -> Result<Option<Output>> {
    let lines: Vec<(&Method, &str, Vec<&Picture>)> = study
        .design
        .methods
        .iter()
        .flat_map(|method| {
            let plain = method.conditions.iter().filter(|user| !user.condition.contains('='));
            plain.map(move |user| {
                let condition = user.condition.as_str();
                (method, condition, of_first_seed(study, &method.name, condition))
            })
        })
        .filter(|(.., pictures)| !pictures.is_empty())
        .collect();
    // A sweep's many points say little as images.
    if lines.is_empty() || study.design.sweep.is_some() {
        return Ok(None);
    }
    let mut prompts: Vec<(u32, &str)> =
        lines.iter().flat_map(|line| &line.2).map(|p| (p.kept.prompt, p.kept.text.as_str())).collect();
    prompts.sort_unstable();
    prompts.dedup();
    prompts.truncate(COLUMNS);

    const LEFT: f64 = 104.0;
    const GAP: f64 = 4.0;
    const TOP: f64 = 4.0;
    let side = ((PAGE - LEFT) / prompts.len() as f64 - GAP).min(62.0);
    let legend: Vec<String> =
        prompts.iter().enumerate().map(|(at, (_, text))| format!("{}  {text}", at + 1)).collect();
    let height = TOP + 10.0 + (side + GAP) * lines.len() as f64 + 4.0 + 9.0 * legend.len() as f64;
    let mut scene = Scene::new(PAGE, height);
    scene.pixels_alone = true;
    for at in 0..prompts.len() {
        let x = LEFT + (side + GAP) * at as f64 + side / 2.0;
        scene.label(Label::new((x, TOP + 3.0), format!("{}", at + 1)).anchored(Anchor::Middle));
    }
    for (row, (method, condition, pictures)) in lines.iter().enumerate() {
        let y = TOP + 10.0 + (side + GAP) * row as f64;
        scene.label(Label::new((2.0, y + side / 2.0 - 4.5), method.label.as_str()).small());
        if *condition != super::study::NOBODY {
            let user = format!("for {}", reward_label(condition));
            scene.label(Label::new((2.0, y + side / 2.0 + 4.5), user).small());
        }
        for picture in pictures {
            let Some(at) = prompts.iter().position(|(prompt, _)| *prompt == picture.kept.prompt) else {
                continue;
            };
            scene.picture((LEFT + (side + GAP) * at as f64, y), side, picture.png()?);
        }
    }
    let below = TOP + 10.0 + (side + GAP) * lines.len() as f64 + 6.0;
    for (at, text) in legend.into_iter().enumerate() {
        scene.label(Label::new((LEFT, below + 9.0 * at as f64), text).small());
    }
    let is_shown = |picture: &&Picture| prompts.iter().any(|(prompt, _)| *prompt == picture.kept.prompt);
    let shown: Vec<&Picture> =
        lines.iter().flat_map(|line| line.2.iter().copied()).filter(is_shown).collect();
    let figure = Figure {
        name: "samples".into(),
        caption: "The first prompts' images, all from the same noise, under the first training seed: nothing is picked."
            .into(),
        scene,
        data: listed(&shown),
    };
    Ok(Some(Output { name: "samples".into(), figures: vec![figure], ..Output::default() }))
}

/// One prompt's images at every mixture of three users, each where its mixture lies in the triangle; `None` where too
/// few were kept.
///
/// # Errors
/// Where a kept image is missing or was changed.
pub(super) fn triangle(study: &Study, method: &Method) -> Result<Option<Figure>> {
    let rewards = &study.design.rewards;
    let of = |condition: &str| of_first_seed(study, &method.name, condition).into_iter().next();
    let points: Vec<(&[f64], &Picture)> = method
        .conditions
        .iter()
        .filter(|user| user.weights.iter().sum::<f64>() > 0.0)
        .filter_map(|user| Some((user.weights.as_slice(), of(&user.condition)?)))
        .collect();
    if rewards.len() != 3 || points.len() < 4 {
        return Ok(None);
    }
    // Images on a grid of quarters must not touch: the triangle is four steps wide.
    const SIDE: f64 = 38.0;
    let width = COLUMN - SIDE - 4.0;
    let height = width * 0.75f64.sqrt();
    const TOP: f64 = 12.0;
    let mut scene = Scene::new(COLUMN, TOP + height + SIDE + 24.0);
    scene.pixels_alone = true;
    for (weights, picture) in &points {
        // A mixture that is no quarter (the middle) would lie over its neighbours.
        if weights.iter().any(|weight| (weight * 4.0 - (weight * 4.0).round()).abs() > 1e-6) {
            continue;
        }
        let x = 2.0 + width * (weights[1] + 0.5 * weights[2]);
        let y = TOP + height * (1.0 - weights[2]);
        scene.picture((x, y), SIDE, picture.png()?);
    }
    let middle = COLUMN / 2.0;
    let below = TOP + height + SIDE + 6.0;
    let name = |reward: usize| reward_label(&rewards[reward]);
    scene.label(Label::new((middle, 5.0), name(2)).anchored(Anchor::Middle));
    scene.label(Label::new((2.0, below), name(0)));
    scene.label(Label::new((COLUMN - 2.0, below), name(1)).anchored(Anchor::End));
    let text = points[0].1.kept.text.as_str();
    let mut size = Label::new((middle, below + 10.0), format!("“{text}”")).anchored(Anchor::Middle);
    size.size = SMALL;
    scene.label(size);
    let shown: Vec<&Picture> = points.iter().map(|(_, picture)| *picture).collect();
    Ok(Some(Figure {
        name: "fig4-images".into(),
        caption: format!(
            "{}: one prompt from one noise while the user moves over the simplex.",
            method.label
        ),
        scene,
        data: listed(&shown),
    }))
}

/// The kept images of a method under one condition, those of its first training seed.
fn of_first_seed<'a>(study: &'a Study, method: &str, condition: &str) -> Vec<&'a Picture> {
    let of = |picture: &&Picture| picture.method == method && picture.kept.condition == condition;
    let first = study.pictures.iter().find(of).map(|picture| picture.train_seed);
    study.pictures.iter().filter(of).filter(|picture| Some(picture.train_seed) == first).collect()
}

fn listed(pictures: &[&Picture]) -> Table {
    let heads = ["method", "training seed", "condition", "prompt", "noise seed", "text", "SHA-256"];
    let columns = heads.iter().map(|head| ((*head).to_owned(), Kind::Words)).collect();
    let mut table = Table::new("The images shown", columns);
    for Picture { method, train_seed, kept, .. } in pictures {
        table.push(vec![
            Cell::text(method.as_str()),
            Cell::text(train_seed.to_string()),
            Cell::text(kept.condition.as_str()),
            Cell::text(kept.prompt.to_string()),
            Cell::text(kept.noise_seed.to_string()),
            Cell::text(kept.text.as_str()),
            Cell::text(kept.digest.hex()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::panel::faults;
    use super::super::testing;
    use super::*;
    use crate::record::{Recorder, Row};

    /// The test study with images kept for PPD at every mixture and for the base, in `folder`.
    fn kept(folder: &std::path::Path) -> Study {
        let mut study = testing::study();
        study.design.methods.retain(|method| ["base", "ppd"].contains(&method.name.as_str()));
        for method in &study.design.methods {
            let folder = folder.join(&method.name);
            let mut recorder = Recorder::open(&folder, Default::default()).unwrap();
            for user in &method.conditions {
                for prompt in 0..2 {
                    let png = super::super::export::encode_png(&[90; 3 * 4], 2, 2).unwrap();
                    let row = Row { condition: user.condition.clone(), prompt, ..Row::default() };
                    recorder.keep_image(&row, "a small red star", &png).unwrap();
                }
            }
            let header = recorder.finish().unwrap();
            study.pictures.extend(header.images.into_iter().map(|kept| Picture {
                method: method.name.clone(),
                train_seed: 0,
                kept,
                folder: folder.clone(),
            }));
        }
        study
    }

    #[test]
    fn kept_images_are_drawn_and_a_changed_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let study = kept(root.path());
        let output = render(&study).unwrap().unwrap();
        let figure = &output.figures[0];
        assert_eq!(faults(&figure.scene), Vec::<String>::new());
        let svg = figure.scene.to_svg("x").unwrap();
        // The base for nobody and PPD for three users, two prompts each.
        assert_eq!(svg.matches("<image").count(), 8);
        assert_eq!(figure.data.rows.len(), 8);

        let method = study.design.method("ppd").unwrap();
        let triangle = triangle(&study, method).unwrap().unwrap();
        assert_eq!(faults(&triangle.scene), Vec::<String>::new());
        let svg = triangle.scene.to_svg("x").unwrap();
        assert_eq!(svg.matches("<image").count(), 15, "a simplex in quarters has fifteen points");
        let grey = super::super::export::to_png(&svg).unwrap();
        let drawn = crate::image::decode(&grey, "figure").unwrap();
        assert!(drawn.rgb().chunks(3).filter(|p| *p == [90; 3]).count() > 1000, "the images are there");

        let pdf = || super::super::export::to_pdf(&svg).unwrap();
        assert!(pdf() == pdf(), "the same figure is the same file");

        let picture = &study.pictures[0];
        std::fs::write(picture.folder.join("images").join(&picture.kept.file), b"x").unwrap();
        assert!(render(&study).unwrap_err().to_string().contains("digest"));
    }

    #[test]
    fn without_kept_images_there_is_nothing_to_show() {
        assert!(render(&testing::study()).unwrap().is_none());
    }
}
