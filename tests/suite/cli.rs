//! The program as a person runs it: the real binary, its output, its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs the program in `folder`, with the checkout's experiments built in.
fn ppd(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ppd"))
        .current_dir(folder)
        .args(arguments)
        .env_remove("NO_COLOR")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program prints UTF-8")
}

/// Runs it where it must end with `code`; the result is standard output and standard error.
fn expect(folder: &Path, code: i32, arguments: &[&str]) -> (String, String) {
    let output = ppd(folder, arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    (out, err)
}

/// A folder with files of the desk profile's names: weight files without tensors, a few pairs, and the prompts.
fn with_assets() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let profile: toml::Table = toml::from_str(include_str!("../../experiments/profiles/desk.toml")).unwrap();
    let mut empty = 8u64.to_le_bytes().to_vec();
    empty.extend(b"{}      ");
    for (section, bytes) in
        [("weights", empty.as_slice()), ("data", include_bytes!("../fixtures/data/mirror.parquet"))]
    {
        for file in profile[section].as_table().unwrap().values() {
            let path = root.path().join("assets").join(file.as_str().unwrap());
            // The prompts are the checkout's own: plans count them.
            let prompts = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/prompts");
            let own = prompts.join(path.file_name().unwrap());
            let bytes = std::fs::read(own).unwrap_or(bytes.to_vec());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    std::fs::write(root.path().join("assets/desk/pairs.scores.csv"), "").unwrap();
    root
}

#[test]
fn help_has_examples_and_costs_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (out, _) = expect(root.path(), 0, &["--help"]);
    assert!(out.contains("Examples:") && out.contains("ppd reproduce table1 --quick"), "{out}");
    for command in ["reproduce", "sweep", "verify", "clean"] {
        assert!(expect(root.path(), 0, &[command, "--help"]).0.contains("--dry-run"));
    }
    expect(root.path(), 2, &[]);
    assert!(expect(root.path(), 0, &["--version"]).0.starts_with("ppd "));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn bad_usage_ends_with_2_and_says_what_was_meant() {
    let root = with_assets();
    for (arguments, expected) in [
        (&["reproduce", "tabel1"][..], "did you mean `table1`?"),
        (&["reproduce", "table1", "--set", "outputs=[\"tabel1\"]"], "did you mean `table1`?"),
        (&["reproduc", "table1"], "reproduce"),
        (&["reproduce", "table1", "--sed", "3"], "--seeds"),
        (&["reproduce", "table1", "--seeds", "0"], "zero seeds"),
        (&["reproduce", "table1", "--threads", "0"], "--threads"),
        (&["reproduce", "table1", "--device", "cuda:0"], "CPU only"),
        (&["reproduce", "table1", "--profile", "dekc"], "did you mean `desk`?"),
        (&["reproduce", "table1", "--set", "train.stepps=1"], "--set train.stepps=1: unknown key `stepps`"),
        (&["reproduce", "table1", "--set", "methods.ppd.objective.beta=0"], "above 0, got 0"),
        (&["reproduce", "table1", "--set", "sample.guidance_scale=0.9"], "at least 1"),
        (&["reproduce", "table1", "--set", "data.num_prompts=0"], "at least 1, got 0"),
        (&["reproduce", "table1", "--set", "rewards.users=[\"clip\",\"hpps\"]"], "did you mean `hps`?"),
        (&["sweep", "table1"], "no [sweep], expected one of beta"),
        (&["reproduce", "missing.toml"], "missing.toml: cannot be read"),
        (&["verify", "nowhere"], "nowhere: no folder of records"),
        (&["pretrain", "clip", "--dry-run"], "`ppd pretrain` does not take --dry-run"),
        (&["score", "x.png", "--quick"], "does not take --quick, only --json"),
        (&["report", "table1", "--seeds", "3"], "`ppd report` does not take --seeds"),
    ] {
        let output = ppd(root.path(), arguments);
        let err = text(&output.stderr);
        assert!(err.contains(expected), "{arguments:?}: {err}");
        assert!(!err.contains('\x1b'), "colours in a pipe: {err}");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
    }
}

#[test]
fn ranks_and_devices_that_cannot_be_are_refused_before_anything_is_read() {
    // No assets: whoever looks for them first speaks of them.
    let root = tempfile::tempdir().unwrap();
    let run = |ranks: Option<&str>, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ppd"));
        command.current_dir(root.path()).args(arguments);
        if let Some(count) = ranks {
            command.env("RANK", "1").env("WORLD_SIZE", count).env("LOCAL_RANK", "1");
        }
        let output = command.output().expect("the binary runs");
        (output.status.code(), text(&output.stderr))
    };
    for (ranks, arguments, expected) in [
        (Some("5"), &["reproduce", "table1"][..], "which 5 ranks do not divide"),
        (Some("5"), &["sweep", "beta"], "which 5 ranks do not divide"),
        (None, &["reproduce", "table1", "--device", "cuda:77"], "--device cuda:77"),
        (None, &["reproduce", "fig2", "--device", "cuda:77"], "--device cuda:77"),
        (None, &["sweep", "beta", "--device", "cuda:77"], "--device cuda:77"),
    ] {
        let (code, err) = run(ranks, arguments);
        assert!(err.contains(expected), "{arguments:?}: {err}");
        assert!(!err.contains("assets"), "{arguments:?}: {err}");
        assert_eq!(code, Some(2), "{arguments:?}: {err}");
    }
    assert!(run(None, &["reproduce", "table1"]).1.contains("assets"), "the test's own condition");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn an_unknown_key_of_a_file_names_file_and_line() {
    let root = with_assets();
    let folder = root.path().join("experiments");
    let table = include_str!("../../experiments/table1.toml").replace("pairs_per_step", "pair_per_step");
    let line = 1 + table.lines().position(|line| line.starts_with("pair_per_step")).unwrap();
    std::fs::write(folder.join("table1.toml"), &table).unwrap();
    let (_, err) = expect(root.path(), 2, &["reproduce", "table1"]);
    assert!(err.contains(&format!("experiments/table1.toml:{line}: unknown key `pair_per_step`")), "{err}");
    assert!(err.contains("did you mean `pairs_per_step`?"), "{err}");
}

#[test]
fn missing_and_damaged_weights_are_named_all_at_once() {
    let root = with_assets();
    let assets = root.path().join("assets");
    std::fs::remove_file(assets.join("desk/codec/codec.safetensors")).unwrap();
    let clip = assets.join("desk/clip/model.safetensors");
    let whole = std::fs::read(&clip).unwrap();
    std::fs::write(&clip, &whole[..10]).unwrap();
    let (_, err) = expect(root.path(), 2, &["reproduce", "table1"]);
    assert!(
        err.contains("2 problems")
            && err.contains("desk/codec/codec.safetensors")
            && err.contains("desk/clip/model.safetensors"),
        "{err}"
    );
    assert!(!root.path().join("results").exists(), "refused before anything is written");
    let (_, err) = expect(root.path(), 2, &["reproduce", "table1", "--assets", "elsewhere"]);
    assert!(err.contains("--assets DIR"), "{err}");
}

#[test]
fn a_dry_run_prints_the_matrix_and_leaves_nothing_behind() {
    let root = with_assets();
    let (out, err) = expect(root.path(), 0, &["reproduce", "table1", "--dry-run", "--seeds", "3,5"]);
    assert!(err.is_empty(), "{err}");
    for part in ["dpo-pooled", "dpo-aesthetic", "15 cells, 0 complete", "14 trainings", "to do"] {
        assert!(out.contains(part), "{out}");
    }
    let (out, _) = expect(root.path(), 0, &["sweep", "beta", "--dry-run", "--json", "--quick"]);
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["cells"].as_array().unwrap().len(), 19);
    assert_eq!(plan["profile"], "desk-quick");
    assert!(!root.path().join("results").exists() && !root.path().join("cache").exists());
}

/// Writes a record by hand, as an earlier run would have left it.
fn record(root: &Path, finished: bool) -> PathBuf {
    use ppd::record::{Header, Recorder, Row};
    let folder = root.join("results/table1/desk/cells/a");
    let header =
        Header { study: "table1".into(), cell: "a".into(), scores: vec!["clip".into()], ..Header::default() };
    let mut recorder = Recorder::open(&folder, header).unwrap();
    for prompt in 0..3 {
        recorder
            .append(&Row {
                method: "base".into(),
                condition: "none".into(),
                prompt,
                scores: [("clip".to_owned(), 30.5)].into(),
                ..Row::default()
            })
            .unwrap();
    }
    if finished {
        recorder.finish().unwrap();
    }
    folder
}

#[test]
fn verify_finds_what_was_changed() {
    let root = tempfile::tempdir().unwrap();
    let folder = record(root.path(), true);
    let (out, _) = expect(root.path(), 0, &["verify"]);
    assert!(out.contains("1 complete records, 0 unfinished, 3 rows"), "{out}");
    let rows = folder.join("rows.csv");
    let whole = std::fs::read_to_string(&rows).unwrap();
    std::fs::write(&rows, whole.replacen("30.5", "31.5", 1)).unwrap();
    let (out, _) = expect(root.path(), 3, &["verify", "--json"]);
    assert!(out.contains("was changed after the run"), "{out}");
    std::fs::write(&rows, &whole).unwrap();
    std::fs::write(folder.join("header.json"), "{").unwrap();
    let (out, _) = expect(root.path(), 3, &["verify", "results/table1"]);
    assert!(out.contains("header.json: is not a record's header"), "{out}");
}

#[test]
fn clean_says_what_it_frees_and_keeps_what_is_complete() {
    let root = tempfile::tempdir().unwrap();
    let adapters = root.path().join("cache/adapters");
    std::fs::create_dir_all(&adapters).unwrap();
    std::fs::write(adapters.join("x"), vec![0; 5000]).unwrap();
    let kept = record(root.path(), true);
    let (out, _) = expect(root.path(), 0, &["clean", "--dry-run"]);
    assert!(out.contains("5 kB  cache/adapters") && out.contains("would be freed"), "{out}");
    assert!(adapters.exists());
    let run = ppd::record::FolderLock::share(&root.path().join("cache")).unwrap();
    assert!(expect(root.path(), 0, &["clean"]).1.contains("cache: in use, left alone"));
    assert!(adapters.exists(), "a run works with it");
    drop(run);
    expect(root.path(), 0, &["clean"]);
    assert!(!adapters.exists() && kept.exists());
    assert!(expect(root.path(), 0, &["clean"]).0.contains("nothing to free"));
    expect(root.path(), 0, &["clean", "--records"]);
    assert!(!kept.exists());
}

#[test]
fn a_folder_in_use_is_refused_with_the_process() {
    let root = with_assets();
    let _lock = ppd::record::FolderLock::acquire(&root.path().join("results/table1/desk")).unwrap();
    let (_, err) = expect(root.path(), 1, &["reproduce", "table1"]);
    assert!(err.contains(&format!("process {} is running here", std::process::id())), "{err}");
}
