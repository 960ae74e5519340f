use std::collections::BTreeSet;
use std::path::Path;

use super::super::panel::faults;
use super::super::plot::{Color, OKABE_ITO};
use super::super::study::Design;
use super::*;
use crate::record::{Header, Recorder};
use crate::scenes::measure::Measured;
use crate::scenes::population::SAMPLES;
use crate::scenes::tastes::{FEATURES, Features};
use crate::spec::{Request, Spec};

/// The study of users with people of each kind, its base also asked with profiles.
fn design(evaluated: usize, showcase: bool) -> Design {
    let request = Request {
        study: "users".into(),
        experiments: Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments"),
        set: vec![format!("users.evaluated={evaluated}")],
        ..Request::default()
    };
    let mut spec = Spec::load(&request).unwrap();
    spec.methods.retain(|method| !["base-words", "dpo-words"].contains(&method.name.as_str()));
    for method in &mut spec.methods {
        // Neither other numbers of choices nor other ones.
        method.conditions.retain(|condition| !condition.to_string().contains('@'));
    }
    let mut told = spec.methods.iter().find(|method| method.name == "base").unwrap().clone();
    let ppd = spec.methods.iter().find(|method| method.name == "ppd").unwrap();
    told.name = "base-told".into();
    told.label = "Base, profile in the caption".into();
    told.role = crate::spec::Role::Baseline;
    told.captions = crate::spec::Captions::WithProfile;
    told.conditions = ppd.conditions[..2 * evaluated].to_vec();
    spec.methods.retain(|method| method.name != "base-told");
    spec.methods.insert(2, told);
    let mut design = Design::of(&spec).unwrap();
    let users = design.people.as_mut().unwrap();
    users.showcase = showcase.then_some(Showcase { seed: users.seed, users: 4, prompts: 2 });
    design
}

/// A row whose image has these features.
fn row(method: &str, condition: &str, (prompt, noise_seed): (u32, u64), features: &Features) -> Row {
    let scores = Measured::NAMES
        .iter()
        .enumerate()
        .map(|(k, name)| ((*name).to_owned(), SAMPLES.mean[k] + SAMPLES.deviation[k] * features[k]));
    let alignment = 0.7 + 0.2 * features[FEATURES - 1];
    Row {
        method: method.into(),
        condition: condition.into(),
        prompt,
        noise_seed,
        scores: scores.chain([(people::ALIGNMENT.to_owned(), alignment)]).collect(),
        ..Row::default()
    }
}

const PROMPTS: [&str; 3] = ["a small red star", "two <b> blue & green circles", "a large yellow square"];

/// A profile of three words for each user; the last one of each kind is written about in a sentence.
fn profile(user: i64) -> String {
    let words = ["bright warm close", "dark vivid centred", "cool crisp faithful"];
    match user % 100_000 {
        3 => "She prefers <dark>, vivid pictures of unexhaustiblyoverlongdescribedthings & centred ones."
            .into(),
        user => words[user as usize % words.len()].into(),
    }
}

/// What a method makes for a user: PPD what the first and second word say, the last too little; the told base the first
/// and neglects the caption at the second prompt.
fn made(method: &str, user: i64, prompt: u32) -> Features {
    let mut features = [0.0; FEATURES];
    for (place, word) in talk::words_in(&profile(user)).into_iter().enumerate() {
        let (feature, sign) = talk::meaning(word).unwrap();
        features[feature] = sign
            * match (method, place) {
                ("ppd", 0 | 1) => 1.2,
                ("ppd", _) => 0.5,
                (_, 0) => 0.9,
                _ => -0.9,
            };
    }
    if method == "base-told" && prompt == 1 {
        features[FEATURES - 1] = -1.5;
    }
    features
}

/// A picture of its own for each image.
fn png(features: &Features, place: usize) -> Vec<u8> {
    let level = |k: usize| (128.0 + 60.0 * features[k]).clamp(0.0, 255.0) as u8;
    let mut rgb = [level(0), level(1), level(2)].repeat(16 * 16);
    rgb[..3].copy_from_slice(&[(place % 256) as u8, (place / 256) as u8, 7]);
    super::super::export::encode_png(&rgb, 16, 16).unwrap()
}

fn study(folder: &Path, evaluated: usize, showcase: bool) -> Study {
    let design = design(evaluated, showcase);
    let (mut rows, mut pictures, mut headers) = (Vec::new(), Vec::new(), Vec::new());
    for method in &design.methods {
        let folder = folder.join(&method.name);
        let mut recorder =
            Recorder::open(&folder, Header { method: method.name.clone(), ..Header::default() }).unwrap();
        for user in &method.conditions {
            let addressee = crate::spec::users::Addressee::parse(&user.condition);
            let written = addressee.filter(|_| ["ppd", "base-told"].contains(&&*method.name));
            if let Some(one) = written {
                recorder.keep_profile(&user.condition, &profile(one.user));
            }
            for (prompt, text) in PROMPTS.iter().enumerate() {
                for &noise in &design.noise_seeds {
                    let prompt = prompt as u32;
                    let features =
                        addressee.map_or([0.0; FEATURES], |one| made(&method.name, one.user, prompt));
                    let row = row(&method.name, &user.condition, (prompt, noise), &features);
                    // Of the last prompt no image is kept.
                    if prompt < 2 && Some(&noise) == design.noise_seeds.first() {
                        let told = written.filter(|_| method.name == "base-told");
                        let text =
                            told.map_or((*text).to_owned(), |one| format!("{text} {}", profile(one.user)));
                        recorder.keep_image(&row, &text, &png(&features, rows.len())).unwrap();
                    }
                    rows.push(row);
                }
            }
        }
        let header = recorder.finish().unwrap();
        pictures.extend(header.images.iter().map(|kept| Picture {
            method: method.name.clone(),
            train_seed: 0,
            kept: kept.clone(),
            folder: folder.clone(),
        }));
        headers.push(header);
    }
    let mut study = Study::new(design, rows);
    (study.pictures, study.headers) = (pictures, headers);
    study
}

fn grid(study: &Study) -> Grid<'_> {
    let records = Records::new(study).unwrap();
    let showcase = records.users.showcase.unwrap();
    gather(&records, &showcase, kept_prompts(&records)).unwrap()
}

#[test]
fn words_and_neglected_captions_are_marked_as_measured() {
    let folder = tempfile::tempdir().unwrap();
    let study = study(folder.path(), 1, true);
    let grid = grid(&study);
    let labels: Vec<&str> = grid.methods.iter().map(|method| method.name.as_str()).collect();
    assert_eq!(labels, ["base", "dpo", "base-told", "ppd", "number", "posterior", "oracle"]);
    // An unseen user and a seen one, two prompts each.
    let lines: Vec<_> = grid.lines.iter().map(|line| (line.user, line.prompt)).collect();
    let [first, second, ..] = PROMPTS;
    assert_eq!(lines, [(100_000, first), (100_000, second), (0, first), (0, second)]);
    for line in &grid.lines {
        assert_eq!((line.profile, line.words.len()), (&*profile(line.user), 3));
        let told = line.images[2].as_ref().unwrap();
        assert_eq!(told.agrees.as_deref(), Some(&[true, false, false][..]));
        assert_eq!(told.neglects, line.prompt == second);
        let ppd = line.images[3].as_ref().unwrap();
        assert_eq!(ppd.agrees.as_deref(), Some(&[true, true, false][..]));
        let base = line.images[0].as_ref().unwrap();
        assert_eq!(base.agrees.as_deref(), Some(&[false; 3][..]));
        assert!(!ppd.neglects && !base.neglects);
        // A number stands for a seen user alone.
        assert_eq!(line.images[4].is_some(), line.kind == Kind::Seen);
    }
    let data = listed(&grid).csv();
    assert!(data.contains("bright warm,close"), "{data}");
    assert_eq!(data.matches(",yes,").count(), 2, "{data}");
}

#[test]
fn the_figure_is_clean_and_repeats_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let study = study(folder.path(), 4, true);
    let output = render(&study).unwrap().unwrap();
    let figure = &output.figures[0];
    assert_eq!(faults(&figure.scene), Vec::<String>::new());
    let svg = figure.scene.to_svg("x").unwrap();
    assert_eq!(svg.matches("<image").count(), figure.data.rows.len());
    let Color(r, g, b) = OKABE_ITO[2];
    let words = figure.scene.labels().filter(|label| label.color != Color::GREY);
    assert!(words.filter(|label| label.text == "dark").count() > 0);
    assert!(svg.contains(&format!("#{r:02X}{g:02X}{b:02X}")), "the underlines are green");
    let files = output.files().unwrap();
    assert!(
        files == render(&study).unwrap().unwrap().files().unwrap(),
        "the same records are the same bytes"
    );
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["md", "csv", "tex"].map(|ending| format!("fig6-agreement.{ending}"));
    let expected = expected.into_iter().chain(["pdf", "png", "csv", "html"].map(|e| format!("fig6.{e}")));
    assert_eq!(names, expected.collect::<Vec<_>>());
    // A place to look at the figure while working on it.
    if let Some(folder) = std::env::var_os("PPD_LOOK") {
        super::super::write(&[output], Path::new(&folder)).unwrap();
    }
}

#[test]
fn the_page_stands_alone_and_escapes_what_others_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let study = study(folder.path(), 4, true);
    let output = render(&study).unwrap().unwrap();
    let (name, page) = &output.pages[0];
    assert_eq!(name, "fig6");
    use base64::Engine as _;
    for shown in grid(&study).lines.iter().flat_map(|line| &line.images).flatten() {
        assert!(page.contains(&base64::engine::general_purpose::STANDARD.encode(&shown.png)));
    }
    assert_eq!(page.matches("<img ").count(), output.figures[0].data.rows.len());
    assert!(page.contains("two &lt;b&gt; blue &amp; green circles") && !page.contains("<b>"));
    assert!(page.contains("&lt;dark&gt;") && !page.contains("<dark>"));
    for foreign in ["<script", "http:", "https:", " on"] {
        let (_, body) = page.split_once("<section>").unwrap();
        assert!(foreign == " on" || !body.contains(foreign), "{foreign}");
    }
    assert_eq!(page::escape("<a href='x' b=\"y\">&"), "&lt;a href=&#39;x&#39; b=&quot;y&quot;&gt;&amp;");
}

#[test]
fn agreement_is_over_all_images_beside_another_users_words() {
    let folder = tempfile::tempdir().unwrap();
    let study = study(folder.path(), 4, false);
    let output = render(&study).unwrap().unwrap();
    assert!(output.figures.is_empty() && output.pages.is_empty(), "nothing is shown that was not asked for");
    let json = output.tables[0].1.json();
    let row = |label: &str, kind: &str| {
        let rows = json["rows"].as_array().unwrap().iter();
        rows.clone().find(|row| row[0] == label && row[1] == kind).map(|row| {
            let value = |at: usize| row[at]["value"].as_f64();
            (value(3), value(6), value(7))
        })
    };
    let close = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() < 1e-9;
    let (own, neglected, alignment) = row("PPD", "unseen").unwrap();
    // Two of three words.
    assert!(close(own, 200.0 / 3.0) && close(neglected, 0.0), "{own:?}");
    assert!(close(alignment, 0.7 + 0.1 / 4.0), "{alignment:?}");
    let (own, neglected, _) = row("Base, profile in the caption", "all").unwrap();
    assert!(close(own, 100.0 / 3.0) && close(neglected, 100.0 / 3.0), "{own:?} {neglected:?}");
    let (own, neglected, alignment) = row("Base", "all").unwrap();
    assert!(close(own, 0.0) && neglected.is_none() && close(alignment, 0.7));
    assert!(row("One-hot users", "seen").is_some() && row("One-hot users", "unseen").is_none());
}

#[test]
fn another_users_words_are_everybodys_once() {
    let users = design(6, false).people.unwrap();
    let who = people::of_kind(&users, None);
    let others = people::mismatched(&users, &who);
    assert!(others.iter().all(|(user, other)| user != other));
    assert_eq!(others.values().collect::<BTreeSet<_>>().len(), who.len());
}

#[test]
fn users_are_drawn_in_turn_and_by_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let study = study(folder.path(), 4, true);
    let records = Records::new(&study).unwrap();
    let showcase = |seed, users| Showcase { seed: crate::units::Seed::new(seed), users, prompts: 1 };
    let drawn = drawn_users(&records, &showcase(1, 8));
    assert!(drawn.iter().enumerate().all(|(at, user)| (*user >= 100_000) == (at % 2 == 0)), "{drawn:?}");
    assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 8);
    assert_eq!(drawn_users(&records, &showcase(1, 3)), drawn[..3]);
    assert!((2..8).any(|seed| drawn_users(&records, &showcase(seed, 8)) != drawn));
}

#[test]
fn without_people_images_or_profiles_there_is_nothing_to_show() {
    assert!(render(&super::super::testing::study()).unwrap().is_none());
    let folder = tempfile::tempdir().unwrap();
    let mut study = study(folder.path(), 1, true);
    let pictures = std::mem::take(&mut study.pictures);
    assert!(render(&study).unwrap().is_none());
    study.pictures = pictures;
    for header in &mut study.headers {
        header.profiles.clear();
    }
    assert!(render(&study).unwrap().is_none());
}

#[test]
fn texts_are_broken_to_fit() {
    let lines = draw::wrap("a supercalifragilisticexpialidocious word", 6.0, 40.0);
    assert!(lines.len() > 3);
    assert!(lines.iter().all(|line| super::super::plot::text_width(line, 6.0) <= 40.0));
    assert_eq!(lines.concat().replace(' ', ""), "asupercalifragilisticexpialidociousword");
    assert!(draw::wrap("  ", 6.0, 40.0).is_empty());
}
