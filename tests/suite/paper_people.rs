//! The paper's study of people through the real binary: recorded choices of a small data set in Pick-a-Pic's schema, tiny models in
//! the published layouts from a hub on loopback, and a judge server on loopback.

use std::path::Path;

use ppd::data::Preference;
use ppd::data::pick_a_pic::Writer;
use ppd::image::{self, Format};
use ppd::judgement::truth;
use ppd::pixels::Image;

use crate::judge_server::{Behaviour, Server};
use crate::local_hub::LocalHub;
use crate::paper::{Run, fixture, hub, publish};

/// People, and how often each chose; every ninth time she could not decide.
const PEOPLE: usize = 8;
const CHOICES: usize = 18;
/// The pair of which a picture cannot be decoded.
const BROKEN: usize = 40;
const KEY: &str = "sk-planted-9876543210";

/// Everybody's pairs, in two files, those of one person not together.
fn people(folder: &Path) {
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let picture = |number: usize, side: usize| {
        let pixel = |i: usize| {
            [(i * (number + 1)) as u8, (i / 40 * (side + 2)) as u8, (7 * number + 90 * side) as u8]
        };
        image::encode(&Image::new(40, 44, (0..40 * 44).flat_map(pixel).collect()), Format::Jpeg(90)).unwrap()
    };
    let row = |number: usize| Preference {
        caption: format!("what person {} asked for, number {}", number % PEOPLE, number / PEOPLE),
        images: Some([
            picture(number, 0),
            if number == BROKEN { b"torn".to_vec() } else { picture(number, 1) },
        ]),
        label: Some(match (number / PEOPLE % 9, number % 3) {
            (0, _) => [0.5, 0.5],
            (_, 0) => [0.0, 1.0],
            _ => [1.0, 0.0],
        }),
        user_id: Some(500 + (number % PEOPLE) as i64),
        ranking_id: Some(number as i64),
        image_uids: [Some(format!("{number}-0")), Some(format!("{number}-1"))],
        ..Preference::default()
    };
    let rows: Vec<Preference> = (0..PEOPLE * CHOICES).map(row).collect();
    for (at, part) in rows.chunks(rows.len() / 2).enumerate() {
        let mut writer =
            Writer::create(folder.join(format!("data/train-0000{at}-of-00002.parquet"))).unwrap();
        part.chunks(20).for_each(|group| writer.write(group).unwrap());
        writer.finish().unwrap();
    }
}

/// What the tiny data set, and the judge's address, change of a study's smoke run.
fn settings(study: &str, url: &str) -> Vec<String> {
    let set = |more: &[&str]| {
        more.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]).collect::<Vec<_>>()
    };
    let url = format!("users.judges.gpt-4o.judge.base_url=\"{url}\"");
    let of_users = [
        url.as_str(),
        "users.judges.gpt-4o.judge.key_env=\"JUDGE_KEY\"",
        "users.judges.gpt-4o.judge.limits={ concurrency = 4, backoff_seconds = 0.001, longest_backoff_seconds = 0.004 }",
        "users.choices={ kind = \"recorded\", unseen_users = 0.4, validation = 0.0, held_out = 0.4 }",
    ];
    [
        vec!["reproduce".to_owned(), study.to_owned(), "--quick".to_owned()],
        match study {
            "fig2" => set(&[]),
            _ => set(&of_users),
        },
    ]
    .concat()
}

struct Stage {
    scratch: tempfile::TempDir,
    root: tempfile::TempDir,
    hub: LocalHub,
}

impl Stage {
    fn new() -> Self {
        let (scratch, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let hub = hub(scratch.path());
        let folder = scratch.path().join("people");
        people(&folder);
        publish(&hub, "datasets/liuhuohuo2/pick-a-pic-v2", &folder);
        std::fs::create_dir(root.path().join("experiments")).unwrap();
        std::fs::copy(fixture("paper_tiny/paper-tiny.toml"), root.path().join("paper-tiny.toml")).unwrap();
        Self { scratch, root, hub }
    }

    fn ppd(&self, arguments: &[String], key: Option<&str>) -> (i32, String) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let key = key.map(|key| ("JUDGE_KEY", key));
        let run = Run { root: self.root.path(), hub: &self.hub };
        let (code, out, err) = run.ppd(&arguments, &key.into_iter().collect::<Vec<_>>());
        (code, out + &err)
    }

    fn fetch(&self, only: &[&str]) {
        let only = only.iter().flat_map(|name| ["--only", name]);
        let arguments: Vec<String> = ["fetch"].into_iter().chain(only).map(str::to_owned).collect();
        let (code, said) = self.ppd(&arguments, None);
        assert_eq!(code, 0, "{said}");
    }

    /// The only file of this name below a folder.
    fn read(&self, below: &str, name: &str) -> String {
        let files = walkdir::WalkDir::new(self.root.path().join(below)).into_iter().map(Result::unwrap);
        let found: Vec<_> = files.filter(|entry| entry.file_name().to_str() == Some(name)).collect();
        assert_eq!(found.len(), 1, "{name} below {below}: {found:?}");
        std::fs::read_to_string(found[0].path()).unwrap()
    }
}

#[test]
fn recorded_choices_go_from_the_hub_to_figures_5_and_6() {
    let stage = Stage::new();
    let server = Server::start(Behaviour { key: Some(KEY.into()), plain: true, ..Behaviour::default() });
    let study = |name: &str| settings(name, &server.url);

    // What is missing is said before anything runs: the model that embeds, and the judge's key.
    stage.fetch(&[]);
    let (code, said) = stage.ppd(&study("users"), Some(KEY));
    assert!(code == 2 && said.contains("--only vlm"), "{code}: {said}");
    stage.fetch(&["vlm"]);
    let (code, said) = stage.ppd(&study("users"), None);
    assert!(code == 2 && said.contains("JUDGE_KEY") && said.contains("not set"), "{code}: {said}");
    let (code, said) = stage.ppd(&[study("users"), vec!["--dry-run".into()]].concat(), None);
    assert!(code == 0 && said.contains("GPT-4o") && said.contains("JUDGE_KEY"), "{said}");
    assert_eq!(server.log().questions.len(), 0, "nothing was asked yet");
    // Where too few people chose often enough, how many did how often is said, and nothing is trained.
    let many = [study("users"), vec!["--set".into(), "users.seen=7".into()]].concat();
    let (code, said) = stage.ppd(&many, Some(KEY));
    assert!(
        code != 0 && said.contains("users.seen asks for 7") && said.contains("5 or more"),
        "{code}: {said}"
    );

    let (code, said) = stage.ppd(&study("users"), Some(KEY));
    assert_eq!(code, 0, "{said}");
    // Five methods. Two people of each kind: everybody's caption for nobody, hers alone by words, by the user branch a
    // stranger's too.
    let records = walkdir::WalkDir::new(stage.root.path().join("results")).into_iter().map(Result::unwrap);
    let rows = records.filter(|entry| entry.file_name() == "rows.csv");
    let rows: usize =
        rows.map(|entry| std::fs::read_to_string(entry.path()).unwrap().lines().count() - 1).sum();
    assert_eq!(rows, 4 + 4 + 4 + 4 + 2 * 4);
    // Both orders of twenty pairs of images, and of everybody's held-out choice after her own, a stranger's, and nobody's.
    for (set, calls) in [("pairs.csv", 40), ("own.csv", 8), ("mismatched.csv", 8), ("none.csv", 8)] {
        let rows = ppd::judgement::read(&stage.read("results", set), set).unwrap();
        let judged = rows.iter().filter(|row| row.preferred().is_some()).count();
        assert_eq!((rows.len(), judged), (calls, calls), "{set}");
    }
    let asked = server.log().questions.len();
    let own = truth::read(&stage.read("results", "own.truth.csv"), "own").unwrap();
    assert_eq!(own.len(), 4, "of each the one that was held out");
    assert!(own.iter().all(|truth| truth.probability.is_none() && truth.choice.is_some()));
    let pairs = truth::read(&stage.read("results", "pairs.truth.csv"), "pairs").unwrap();
    for user in ["0", "1", "100000", "100001"] {
        let mut prompts: Vec<&str> =
            pairs.iter().filter(|truth| truth.user == user).map(|truth| truth.prompt.as_str()).collect();
        assert_eq!(prompts.len(), 5, "four other methods, and a stranger's image");
        prompts.dedup();
        let held_out = own.iter().find(|truth| truth.user == user).unwrap();
        assert_eq!(prompts, [held_out.prompt.as_str()], "one caption a user");
    }

    for (name, file, parts) in [
        ("fig5", "fig5-table.md", ["GPT-4o", "over another user's", "Not correctable", "| 81 |"].as_slice()),
        ("fig5", "audit-rates.md", &["not identifiable", "utilities are unknown", "Not correctable"]),
        ("fig5", "audit-judges.md", &["GPT-4o", "unknown"]),
        ("fig6", "fig6.html", &["Profile:", "a caption of her own", "not measured"]),
    ] {
        let (code, said) = stage.ppd(&study(name), Some(KEY));
        assert!(code == 0 && said.contains("nothing to do: 5 cells complete"), "{said}");
        let text = stage.read("figures", file);
        assert!(parts.iter().all(|part| text.contains(part)), "{file}: {text}");
    }
    assert_eq!(
        (server.log().asked_again(), server.log().questions.len()),
        (0, asked),
        "nothing is asked twice"
    );

    // Nothing that was said or written holds the key.
    assert!(!said.contains(KEY));
    for entry in walkdir::WalkDir::new(stage.root.path()).into_iter().map(Result::unwrap) {
        if entry.file_type().is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            let found = bytes.windows(KEY.len()).any(|part| part == KEY.as_bytes());
            assert!(!found, "{} holds the key", entry.path().display());
        }
    }
    drop(stage.scratch);
}

#[test]
fn people_are_told_apart_by_what_they_chose() {
    let stage = Stage::new();
    stage.fetch(&[]);
    let study = settings("fig2", "");
    let (code, said) = stage.ppd(&study, None);
    assert!(code != 0 && said.contains("--only vlm"), "{code}: {said}");
    stage.fetch(&["vlm"]);
    let many = [study.clone(), vec!["--set".into(), "groups.learned=9".into()]].concat();
    let (code, said) = stage.ppd(&many, None);
    assert!(
        code != 0 && said.contains("users.count is 4") && said.contains("the one with the most"),
        "{said}"
    );
    let (code, said) = stage.ppd(&study, None);
    assert!(code == 0 && said.contains("3 cells done"), "{said}");
    let table = stage.read("figures", "fig2-table.md");
    for part in
        ["Embedding, sides by a coin", "CLIP, chosen minus rejected", "utilities are unknown", "people"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains("Bayes"), "{table}");
    let again = stage.ppd(&study, None).1;
    assert!(again.contains("0 cells done, 3 complete"), "{again}");
}
