use super::*;
use crate::scenes::tastes::Kind;

const PAIRS: &[u8] = include_bytes!("../../tests/fixtures/data/mirror.parquet");
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments");

fn request(study: &str, set: &[&str]) -> Request {
    Request {
        study: study.into(),
        set: set.iter().map(|setting| (*setting).to_owned()).collect(),
        experiments: FOLDER.into(),
        ..Request::default()
    }
}

fn refusal(request: &Request) -> String {
    match Spec::load(request) {
        Ok(spec) => spec.resolve(&places(Path::new("/nowhere"))).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

fn places(root: &Path) -> Places {
    Places {
        results: root.join("results"),
        figures: root.join("figures"),
        cache: root.join("cache"),
        assets: root.join("assets"),
    }
}

/// Assets of the right names: weight files without tensors, a few pairs; the prompts are the checkout's.
pub(crate) fn with_assets() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let spec = Spec::load(&request("table1", &[])).unwrap();
    let empty = safetensors::serialize(std::iter::empty::<(String, safetensors::tensor::TensorView)>(), None)
        .unwrap();
    for (bytes, files) in [(empty.as_slice(), &spec.profile.weights), (PAIRS, &spec.profile.data)] {
        for file in files.values() {
            let path = root.path().join("assets").join(file);
            let prompts = Path::new(FOLDER).join("prompts").join(path.file_name().unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, std::fs::read(prompts).unwrap_or(bytes.to_vec())).unwrap();
        }
    }
    std::fs::write(root.path().join("assets/desk/pairs.scores.csv"), "").unwrap();
    root
}

pub(crate) fn plan(root: &Path, study: &str, set: &[&str]) -> Plan {
    Spec::load(&request(study, set)).unwrap().resolve(&places(root)).unwrap()
}

/// Studies of rewards; those of other kinds are read in their own way.
fn reward_studies() -> impl Iterator<Item = String> {
    let studies = library::experiments(Path::new(FOLDER)).into_iter();
    studies.filter(|study| !Identification::is_asked_for(&request(study, &[])).unwrap())
}

#[test]
fn a_study_of_another_kind_is_read_and_refused_with_its_place() {
    let read = |set: &[&str]| Identification::load(&request("fig2", set));
    for size in [Size::Standard, Size::Quick, Size::Released] {
        let elsewhere = Request { experiments: "/nowhere".into(), size, ..request("fig2", &[]) };
        let study = Identification::load(&elsewhere).unwrap();
        assert_eq!(study, Identification::load(&Request { size, ..request("fig2", &[]) }).unwrap());
        assert_eq!(study.label == "desk", size != Size::Quick);
    }
    for (set, expected) in [
        ("users.cuont=3", "--set users.cuont=3: unknown key `cuont`"),
        ("users.count=0", "users.count is 0, expected at least 1"),
        ("users.pairs_per_user=39", "pairs_per_user is 39, and 8 + 2 groups of 4 need 40"),
        ("ranks=[1, 301]", "ranks has 301, expected 1 to users.count"),
        ("methods.clip.name=clap", "claim above-clip: no method `clip`"),
    ] {
        let message = read(&[set]).unwrap_err().to_string();
        assert!(message.contains(expected), "{set}: {message}");
    }
    let paper =
        |set: &[&str]| Identification::load(&Request { profile: "paper".into(), ..request("fig2", set) });
    let study = paper(&[]).unwrap();
    assert!(study.is_recorded() && study.methods.len() == 3 && study.label == "paper");
    for (set, part) in [
        ("users.worlds=[\"shared\"]", "users.worlds are of simulated users"),
        ("users.worlds=[\"recorded\", \"topics\"]", "stand alone"),
        ("only=[\"bayes\"]", "methods.bayes: `known-utilities`"),
        ("only=[\"base\"]", "only: unknown method `base`"),
        (
            "knowledge={ seed = 1, folds = 2, epochs = 1, batch = 1, learning_rate = 0.1, weight_decay = 0.0 }",
            "[knowledge]",
        ),
    ] {
        let message = paper(&[set]).unwrap_err().to_string();
        assert!(message.contains(part), "{set}: {message}");
    }
}

#[test]
fn what_needs_peoples_utilities_is_refused_where_choices_are_recorded() {
    let load =
        |set: &[&str]| Spec::load(&Request { profile: "paper".into(), ..request("users", set) }).unwrap();
    let study = load(&[]);
    let users = study.users.as_ref().unwrap();
    assert_eq!((users.evaluated.of(Kind::Seen), users.evaluated.of(Kind::Unseen)), (277, 192));
    assert_eq!((users.judges.len(), users.claims.len(), users.labelled), (1, 0, None));
    assert!(!study.profile.measured.iter().any(|name| name == "alignment"));
    let refused = |set: &[&str]| {
        let mut problems = Problems::default();
        load(set).check(&mut problems);
        problems.into_lines().join("\n")
    };
    assert_eq!(refused(&[]), "");
    for (set, part) in [
        ("users.choices={ kind = \"simulated\" }", "[profiles.paper]"),
        ("methods.ppd.conditioning={ kind = \"utilities\" }", "conditioning `utilities`"),
        ("users.labelled={ seed = 1, users = 4 }", "not correctable"),
        (
            "users.claims=[{ id = \"a\", text = \"b\", method = \"ppd\", over = \"mismatched\", users = \"seen\", smallest_effect = 0.1 }]",
            "users.claims are about true preferences",
        ),
        (
            "users.judges.gpt-4o.judge={ kind = \"oracle\", bias = 0.0, noise = 0.0, seed = 1 }",
            "an oracle says what is true",
        ),
        ("users.judges.gpt-4o.over=[\"farthest\"]", "over `farthest`"),
        ("users.judges.gpt-4o.foresees=2", "held-out choices behind them"),
        ("users.held_out=0", "users.held_out is 0"),
        ("users.choices.held_out=1.0", "must be in [0, 1)"),
        ("users.evaluated=200", "200 unseen users, expected 1 to 192"),
        ("users.pairs_per_user=7", "expected at least 8"),
    ] {
        let message = refused(&[set]);
        assert!(message.contains(part), "{set}: {message}");
    }
    let desk = Spec::load(&request("users", &["users.held_out=1"])).unwrap();
    let mut problems = Problems::default();
    desk.check(&mut problems);
    assert!(problems.into_lines().join("\n").contains("users.held_out is for recorded choices"));
}

#[test]
fn other_choices_are_told_of_as_many_users_as_the_study_says() {
    let spec = |set: &[&str]| Spec::load(&request("users", set)).unwrap();
    let conditions = |set: &[&str], told: &str| -> usize {
        let study = spec(set);
        let all = &study.method("ppd").unwrap().conditions;
        all.iter().filter(|user| user.to_string().ends_with(told)).count()
    };
    let all = ["users.evaluated={ seen = 5, unseen = 9 }"];
    assert_eq!(conditions(&all, "@8"), 9);
    let some = [all[0], "users.varied=4"];
    assert_eq!((conditions(&some, "@8"), conditions(&some, "@4.1")), (4, 4));
    assert_eq!(conditions(&some, "user-100008"), 1, "everybody's usual choices are told");
    let mut problems = Problems::default();
    spec(&["users.varied=1"]).check(&mut problems);
    assert!(problems.into_lines().join("\n").contains("users.varied is 1, expected at least 2"));
}

#[test]
fn everybody_answers_captions_of_her_own_and_a_stranger_answers_them_too() {
    let study = Spec::load(&Request {
        profile: "paper".into(),
        ..request("users", &["data.num_prompts=2", "users.held_out=2"])
    })
    .unwrap();
    let users = study.users.as_ref().unwrap();
    let of =
        |method: &str, name: &str| study.prompts_of(study.method(method).unwrap(), &Condition::user(name));
    assert_eq!(study.prompts_of(study.method("base").unwrap(), &Condition::none()).len(), 2 * 469);
    assert_eq!(of("base-words", "user-3"), [6, 7]);
    assert_eq!(of("base-words", "user-100001"), [2 * 278, 2 * 278 + 1]);
    for kind in [Kind::Seen, Kind::Unseen] {
        let who: Vec<i64> = users.evaluated(kind).collect();
        for (user, stranger) in users.strangers(&who) {
            let own = of("base-words", &format!("user-{user}"));
            let of_stranger = of("ppd", &format!("user-{stranger}"));
            assert!(own.iter().all(|prompt| of_stranger.contains(prompt)) && of_stranger.len() == 4);
        }
    }
    assert!(study.keeps_image_of(4) && !study.keeps_image_of(5), "one of each user's two");
}

#[test]
fn a_study_changes_under_a_profile_what_its_section_says() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(Path::new(FOLDER).join("table1.toml")).unwrap();
    let write = |section: &str| {
        let path = folder.path().join("own.toml");
        std::fs::write(&path, format!("{text}\n[profiles.paper]\n{section}\n")).unwrap();
        path.display().to_string()
    };
    let load = |section: &str, profile: &str| {
        Spec::load(&Request { study: write(section), profile: profile.into(), ..Request::default() })
    };
    let section = "without = [\"data.spread_seeds\"]\n[profiles.paper.train]\nsteps = 7";
    let (paper, desk) = (load(section, "paper").unwrap(), load(section, "desk").unwrap());
    assert!(paper.methods.iter().all(|method| method.train.steps == 7) && paper.data.spread_seeds.is_none());
    assert!(desk.methods.iter().all(|method| method.train.steps != 7) && desk.data.spread_seeds.is_some());
    let misspelt = Request { profile: "paper".into(), ..request("users", &["users.choices.held_uot=0.1"]) };
    let message = Spec::load(&misspelt).unwrap_err().to_string();
    assert!(message.contains("held_uot"), "{message}");
    for (section, part) in [
        ("without = [\"data.spread\"]", "the study has no `data.spread`"),
        ("without = 3", "must be a list of keys"),
        ("[profiles.paper.train]\nstops = 7", "unknown key `stops`"),
    ] {
        let message = load(section, "paper").unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn every_experiment_is_read_under_every_profile_at_every_size() {
    for study in reward_studies() {
        for profile in library::profiles(Path::new(FOLDER)) {
            for size in [Size::Standard, Size::Quick, Size::Released] {
                let request = Request { profile: profile.clone(), size, ..request(&study, &[]) };
                let spec = Spec::load(&request).unwrap_or_else(|error| panic!("{study} {profile}: {error}"));
                assert_eq!(spec.name, study);
                assert_eq!(spec.label == profile, size != Size::Quick);
            }
        }
    }
}

#[test]
fn the_built_in_copies_are_the_files() {
    for study in reward_studies() {
        let elsewhere = Request { experiments: "/nowhere".into(), ..request(&study, &[]) };
        assert_eq!(Spec::load(&elsewhere).unwrap(), Spec::load(&request(&study, &[])).unwrap());
    }
}

#[test]
fn what_is_unknown_is_refused_with_its_place() {
    for (study, set, expected) in [
        (
            "tabel1",
            "",
            "unknown study `tabel1`, expected one of beta, controls, fig2, fig2-ablation, fig3, fig4, fig5, fig6, sensitivity, table1, users, or a path that ends in .toml; did you mean `table1`?",
        ),
        (
            "users",
            "users.judges=[{name=\"gpt\", label=\"GPT\", judge={kind=\"openai\"}, shots=4, block=1, foresees=2}]",
            "users.judges: gpt: an endpoint may cost money; set max_calls or max_cost",
        ),
        ("table1", "train.stepps=3", "--set train.stepps=3: unknown key `stepps`"),
        ("table1", "trian.steps=3", "--set trian.steps=3: unknown key `trian`, expected one of schema"),
        ("table1", "methods.ppd.objective.beta=0", "Beta must be a finite number above 0, got 0"),
        (
            "table1",
            "methods.ppd.objective.kind=dop",
            "unknown value `dop`, expected `sft` or `dpo`; did you mean `dpo`?",
        ),
        (
            "table1",
            "sample.guidance_scale=0.5",
            "--set sample.guidance_scale=0.5: GuidanceScale must be at least 1",
        ),
        (
            "table1",
            "sample.guidance_interval=[0.8,0.2]",
            "--set sample.guidance_interval=[0.8,0.2]: timesteps must be [from, to] with 0 ≤ from < to ≤ 1, got [0.8, 0.2]",
        ),
        (
            "table1",
            "sample.unconditional_every=0",
            "--set sample.unconditional_every=0: must be at least 1, got 0",
        ),
        ("table1", "data.num_prompts=0", "--set data.num_prompts=0: must be at least 1, got 0"),
        ("table1", "seeds=0", "--set seeds=0: zero seeds: expected at least one"),
        (
            "table1",
            "rewards.users=[\"clip\",\"hsp\"]",
            "unknown reward `hsp`, expected one of clip, aesthetic, hps; did you mean `hps`?",
        ),
        ("table1", "rewards.users=[\"clip\"]", "methods.ppd: condition `hps`: unknown user `hps`"),
        (
            "table1",
            "methods.dpo.conditioning.kind=none",
            "methods.dpo: has an objective but conditioning `none`",
        ),
        ("table1", "methods.dpo.conditions=[\"clip\"]", "the method takes no users"),
        (
            "table1",
            "methods.dpo.train.warmup_steps=1000",
            "methods.dpo: warmup_steps is 1000, more than the 150 steps",
        ),
        ("fig3", "only=[\"bsae\"]", "no method named `bsae`, expected one of base, dpo"),
    ] {
        let settings: Vec<&str> = Some(set).filter(|set| !set.is_empty()).into_iter().collect();
        let message = refusal(&request(study, &settings));
        assert!(message.contains(expected), "{set}: {message}");
    }
    let message = refusal(&request(
        "table1",
        &["methods.ppd.objective.beta=-1", "data.num_prompts=0", "sample.num_steps=0"],
    ));
    assert!(message.starts_with("3 problems:"), "{message}");
    for saved in ["sample.guidance_interval=[0.2,0.8]", "sample.unconditional_every=2"] {
        let message = refusal(&request("table1", &["sample.guidance_scale=1", saved]));
        assert!(message.contains("sample.guidance_scale is 1, which is none"), "{saved}: {message}");
    }
    let unknown_profile = Request { profile: "dsek".into(), ..request("table1", &[]) };
    assert!(refusal(&unknown_profile).contains("did you mean `desk`"));
}

#[test]
fn missing_damaged_and_empty_files_are_refused_all_at_once() {
    let root = with_assets();
    std::fs::remove_file(root.path().join("assets/desk/clip/model.safetensors")).unwrap();
    std::fs::write(root.path().join("assets/desk/hps/model.safetensors"), b"not weights").unwrap();
    std::fs::write(root.path().join("assets/desk/pairs.parquet"), b"").unwrap();
    let message =
        Spec::load(&request("table1", &[])).unwrap().resolve(&places(root.path())).unwrap_err().to_string();
    assert!(message.starts_with("3 problems:"), "{message}");
    for part in [
        "desk/clip/model.safetensors: cannot be read",
        "--assets DIR",
        "desk/hps/model.safetensors",
        "pairs.parquet: is empty",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn pairs_that_are_cut_short_are_refused() {
    let root = with_assets();
    std::fs::write(root.path().join("assets/desk/pairs.parquet"), &PAIRS[..PAIRS.len() / 2]).unwrap();
    let message =
        Spec::load(&request("table1", &[])).unwrap().resolve(&places(root.path())).unwrap_err().to_string();
    assert!(message.contains("pairs.parquet: the parquet file is cut short"), "{message}");
}

#[test]
fn labels_by_other_weights_than_the_rewards_have_now_are_refused() {
    let root = with_assets();
    let refusal = || {
        Spec::load(&request("table1", &[])).unwrap().resolve(&places(root.path())).unwrap_err().to_string()
    };
    let scores = root.path().join("assets/desk/pairs.scores.csv");
    let stale = [("hps".to_owned(), Digest::of(b"former weights"))].into();
    crate::data::scores::write_judges(&scores, &stale).unwrap();
    let message = refusal();
    assert!(
        message.contains("`hps` scored the pairs by weights") && message.contains("ppd data score"),
        "{message}"
    );
    // Pairs without scores are scored on the way.
    std::fs::remove_file(&scores).unwrap();
    Spec::load(&request("table1", &[])).unwrap().resolve(&places(root.path())).unwrap();
}

#[test]
fn too_few_prompts_and_files_that_their_manifest_does_not_know_are_refused() {
    let root = with_assets();
    let refuse = |set: &[&str]| {
        Spec::load(&request("table1", set)).unwrap().resolve(&places(root.path())).unwrap_err().to_string()
    };
    let message = refuse(&["data.num_prompts=513"]);
    assert!(message.contains("desk-test.tsv: holds 512 prompts, data.num_prompts asks for 513"), "{message}");

    let folder = root.path().join("assets/desk/codec");
    let digest = crate::provenance::file_digest(&folder.join("codec.safetensors")).unwrap();
    let manifest = |name: &str, digest: &str| {
        let text = serde_json::json!({
            "kind": "codec", "recipe": {}, "steps": 1, "files": {name: digest}, "evaluation": {},
            "date": "", "version": "", "commit": null,
        });
        std::fs::write(folder.join("manifest.json"), text.to_string()).unwrap();
    };
    manifest("codec.safetensors", digest.hex());
    plan(root.path(), "table1", &[]);
    manifest("codec.safetensors", &"0".repeat(64));
    assert!(refuse(&[]).contains("codec.safetensors: its SHA-256 is"), "{}", refuse(&[]));
    manifest("other.safetensors", digest.hex());
    assert!(refuse(&[]).contains("other.safetensors"));
}

#[test]
fn an_id_hashes_its_inputs_and_nothing_else() {
    let root = with_assets();
    let table = plan(root.path(), "table1", &[]);
    let find = |plan: &Plan, method: &str| {
        plan.cells.iter().find(|cell| cell.method.name == method).unwrap().clone()
    };
    let ppd = find(&table, "ppd");
    assert_eq!(table, plan(root.path(), "table1", &[]), "the same plan twice");
    assert_eq!(find(&table, "base").train_key, None);
    assert_eq!(ppd.rows, 3 * 256);

    // A sampling setting changes the cell and keeps its training; a training setting changes both.
    let sampled = find(&plan(root.path(), "table1", &["sample.num_steps=20"]), "ppd");
    assert_ne!(sampled.id, ppd.id);
    assert_eq!(sampled.train_key, ppd.train_key);
    // The same said in words is the same; what changes images changes the cell, and keeps its training.
    let every = ["sample.guidance_interval=[0,1]", "sample.unconditional_every=1"];
    let ids = |plan: &Plan| plan.cells.iter().map(|cell| cell.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&plan(root.path(), "table1", &every)), ids(&table));
    // Nor does a study that says nothing of them name them in what is hashed.
    let hashed = serde_json::to_value(table.spec.sample).unwrap();
    let names: Vec<&String> = hashed.as_object().unwrap().keys().collect();
    assert_eq!(names, ["num_steps", "guidance_scale", "unconditional_user", "x0_clamp"]);
    for saved in ["sample.guidance_interval=[0.2,0.8]", "sample.unconditional_every=2"] {
        let other = find(&plan(root.path(), "table1", &[saved]), "ppd");
        assert_ne!(other.id, ppd.id, "{saved}");
        assert_eq!(other.train_key, ppd.train_key, "{saved}");
    }
    let trained = find(&plan(root.path(), "table1", &["methods.ppd.objective.beta=0.2"]), "ppd");
    assert_ne!(trained.id, ppd.id);
    assert_ne!(trained.train_key, ppd.train_key);
    let other = find(&plan(root.path(), "table1", &["methods.ppd.objective.beta=0.2"]), "dpo");
    assert_eq!(other.id, find(&table, "dpo").id);

    // Figure 4 samples table1's adapter; figure 3 looks at table1's records.
    assert_eq!(find(&plan(root.path(), "fig4", &[]), "ppd").train_key, ppd.train_key);
    let fig3 = plan(root.path(), "fig3", &[]);
    assert_eq!(find(&fig3, "ppd").folder, ppd.folder);
    assert_eq!(fig3.cells.len(), 5);

    // Other weights, another cell; a twin is never trained on.
    let twin = root.path().join("assets/desk/clip-twin/model.safetensors");
    let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
    std::fs::write(&twin, safetensors::serialize([("a", tensor)], None).unwrap()).unwrap();
    let retwinned = find(&plan(root.path(), "table1", &[]), "ppd");
    assert_ne!(retwinned.id, ppd.id);
    assert_eq!(retwinned.train_key, ppd.train_key);
}

#[test]
fn a_sweep_is_every_combination_of_its_axes() {
    let root = with_assets();
    let beta = plan(root.path(), "beta", &[]);
    let names: Vec<&str> = beta.spec.methods.iter().map(|method| method.name.as_str()).collect();
    assert_eq!(names.len(), 1 + 18);
    assert!(names.contains(&"ppd beta=0.1 learning_rate=0.0003"), "{names:?}");
    let sweep = beta.spec.sweep.as_ref().unwrap();
    assert_eq!(sweep.values_of("ppd beta=2 learning_rate=0.0001"), Some(vec![2.0, 0.0001]));
    assert_eq!(sweep.values_of("base"), None);
    let keys: std::collections::BTreeSet<_> = beta.cells.iter().map(|cell| &cell.train_key).collect();
    assert_eq!(keys.len(), names.len());
    // One point is table1's own setting and shares its adapter.
    let table = plan(root.path(), "table1", &[]);
    assert!(table.cells.iter().any(|cell| cell.method.name == "ppd" && keys.contains(&cell.train_key)));
}

#[test]
fn seeds_and_labels_follow_the_request() {
    let request =
        Request { seeds: Some("3,5".parse().unwrap()), size: Size::Quick, ..request("table1", &["seeds=7"]) };
    let spec = Spec::load(&request).unwrap();
    assert_eq!(spec.seeds.get().iter().map(|seed| seed.get()).collect::<Vec<_>>(), [3, 5]);
    assert!(spec.label.starts_with("desk-quick-set-"), "{}", spec.label);
    assert_eq!(spec.method("ppd").unwrap().train.steps, 3);
    let root = with_assets();
    let plan = spec.resolve(&places(root.path())).unwrap();
    assert_eq!(plan.cells.len(), 1 + 7 * 2);
    let estimate = plan.estimate(spec.profile.cost).unwrap();
    assert_eq!(estimate.trainings, 14);
    let cost = plan.spec.profile.cost;
    let (pairs, images) = ((14 * 3 * 6) as f64, estimate.images as f64);
    let expected = pairs * cost.pair_seconds.unwrap()
        + images * (4.0 * 2.0 * cost.evaluation_seconds.unwrap() + cost.score_seconds.unwrap());
    assert!((estimate.core_seconds.unwrap() - expected).abs() < 1e-9 * expected, "{estimate:?}");
}
