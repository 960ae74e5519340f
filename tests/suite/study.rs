//! The whole study as a person runs it, through the real binary, on models that have barely been trained: pairs are
//! made, adapters trained, images sampled and scored, tables rendered; twice, interrupted, and from records alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ppd::base::open_codec;
use ppd::pretrain::Optimisation;
use ppd::pretrain::aesthetic::{self, AestheticConfig};
use ppd::pretrain::clip::{self, ClipConfig};
use ppd::pretrain::codec::{self, CodecConfig};
use ppd::pretrain::denoiser::{self, DenoiserConfig};
use ppd::pretrain::hps::{self, HpsConfig};
use ppd::reward::aesthetic::HeadConfig;
use ppd::units::Seed;

/// `ppd` with these arguments, the shared assets, and every other folder inside `root`.
fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ppd"));
    command.current_dir(root).args(arguments).arg("--assets").arg(assets()).args(["--threads", "2"]);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program prints UTF-8")
}

fn expect(root: &Path, code: i32, arguments: &[&str]) -> Output {
    let output = command(root, arguments).output().expect("the binary runs");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    output
}

/// Models of the desk's architectures, tiny and after a few steps, with pairs sampled from them; made once.
fn assets() -> &'static Path {
    static ASSETS: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = ASSETS.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let assets = root.path().join("assets");
        train_models(&assets.join("desk"));
        let prompts = root.path().join("experiments/prompts");
        std::fs::create_dir_all(&prompts).unwrap();
        for name in ["desk-validation.tsv", "desk-test.tsv"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/prompts").join(name);
            std::fs::copy(from, prompts.join(name)).unwrap();
        }
        let made = Command::new(env!("CARGO_BIN_EXE_ppd"))
            .current_dir(root.path())
            .args(["data", "make", "--pairs", "40", "--num-steps", "2", "--assets", "assets"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        assert!(text(&made.stdout).contains("agrees with raw labels"), "{}", text(&made.stdout));
        (root, assets)
    });
    path
}

fn train_models(desk: &Path) {
    let folder = |name: &str| {
        let folder = desk.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    let short = |optimisation: Optimisation| Optimisation { steps: 2, micro_batch: 8, ..optimisation };
    codec::run(&CodecConfig::smoke(), &folder("codec"), 1, &mut |_| true).unwrap();

    let recipe = DenoiserConfig::smoke().unwrap();
    let codec = open_codec(&desk.join("codec/codec.safetensors"), &candle_core::Device::Cpu).unwrap();
    denoiser::run(&recipe, codec, &folder("shipped"), &folder("denoiser"), 1, &mut |_| true).unwrap();

    for (clip_name, hps_name, aesthetic_name, seed) in
        [("clip", "hps", "aesthetic", 1), ("clip-twin", "hps-twin", "aesthetic-twin", 2)]
    {
        let recipe = ClipConfig { seed: Seed::new(seed), ..ClipConfig::smoke() };
        let clip = folder(clip_name);
        clip::run(&recipe, &clip, 1, &mut |_| true).unwrap().unwrap();
        let recipe = HpsConfig::reward();
        let recipe = HpsConfig { optimisation: short(recipe.optimisation.clone()), ..recipe };
        hps::run(&recipe, &clip, &folder(hps_name), 1, &mut |_| true).unwrap().unwrap();
        let recipe = AestheticConfig::reward();
        let recipe = AestheticConfig {
            pictures: 32,
            head: HeadConfig { widths: [8, 8, 8, 4] },
            optimisation: short(recipe.optimisation.clone()),
            ..recipe
        };
        aesthetic::run(&recipe, &clip, &folder(aesthetic_name), 1, &mut |_| true).unwrap().unwrap();
    }
}

/// Every file under `root` whose name ends in one of `endings`, by its path from there.
fn files(root: &Path, endings: &[&str]) -> BTreeMap<PathBuf, Vec<u8>> {
    walkdir::WalkDir::new(root)
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .filter(|entry| endings.iter().any(|end| entry.file_name().to_string_lossy().ends_with(end)))
        .map(|entry| {
            (entry.path().strip_prefix(root).unwrap().to_owned(), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// What must be the same however often a study runs: rows and traces.
fn records(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let records = files(&root.join("results"), &["rows.csv", "trace.csv"]);
    assert!(!records.is_empty());
    records
}

const STUDY: [&str; 3] = ["reproduce", "table1", "--quick"];

#[test]
fn a_study_runs_once_and_renders_the_same_from_records_alone() {
    let root = tempfile::tempdir().unwrap();
    let first = expect(root.path(), 0, &STUDY);
    let table = text(&first.stdout);
    for part in ["PPD", "Diffusion-DPO (raw labels)", "SFT", "CLIP", "twin"] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
    let figures = files(&root.path().join("figures"), &[".md", ".csv", ".tex", ".svg", ".png", ".pdf"]);
    for ending in [".md", ".csv", ".tex", ".svg", ".png", ".pdf"] {
        assert!(figures.keys().any(|path| path.to_string_lossy().ends_with(ending)), "no {ending}");
    }
    let again = expect(root.path(), 0, &STUDY);
    assert!(text(&again.stderr).contains("nothing to do"), "{}", text(&again.stderr));
    assert_eq!(text(&again.stdout), table);

    std::fs::rename(root.path().join("figures"), root.path().join("former")).unwrap();
    // Records are enough: neither weights nor pairs are there.
    let report = Command::new(env!("CARGO_BIN_EXE_ppd"))
        .current_dir(root.path())
        .args(["report", "table1", "--quick", "--assets", "nowhere"])
        .output()
        .unwrap();
    assert!(report.status.success(), "{}", text(&report.stderr));
    let ours = files(&root.path().join("figures"), &[""]);
    let former = files(&root.path().join("former"), &[""]);
    assert_eq!(ours.keys().collect::<Vec<_>>(), former.keys().collect::<Vec<_>>());
    let changed: Vec<_> =
        ours.iter().filter(|(path, bytes)| former[*path] != **bytes).map(|(path, _)| path).collect();
    assert!(changed.is_empty(), "rendered otherwise from the same records: {changed:?}");
    expect(root.path(), 0, &["verify"]);
}

#[test]
fn the_same_seed_gives_the_same_bytes_interrupted_or_not() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    expect(whole.path(), 0, &STUDY);
    // Stopped politely once some rows are there, then killed, then left to end.
    let stopped = interrupt(parts.path(), 3, &["-INT"]);
    assert_eq!(stopped.status.code(), Some(1), "{}", text(&stopped.stderr));
    assert!(text(&stopped.stderr).contains("run the same command again"), "{}", text(&stopped.stderr));
    interrupt(parts.path(), 6, &["-KILL"]);
    expect(parts.path(), 0, &STUDY);
    let (whole, parts) = (records(whole.path()), records(parts.path()));
    assert_eq!(whole.keys().collect::<Vec<_>>(), parts.keys().collect::<Vec<_>>());
    for (path, bytes) in &whole {
        assert_eq!(text(bytes), text(&parts[path]), "{}", path.display());
    }
}

/// Starts the study, sends it a signal once `cells` cells have rows, and waits for its end.
fn interrupt(root: &Path, cells: usize, signal: &[&str]) -> Output {
    let mut command = command(root, &STUDY);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(100) && rows_of(root) < cells {
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Command::new("kill").args(signal).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success(), "the study had ended before {cells} cells had rows");
    child.wait_with_output().unwrap()
}

fn rows_of(root: &Path) -> usize {
    let cells = walkdir::WalkDir::new(root.join("results")).into_iter().flatten();
    cells
        .filter(|entry| entry.file_name() == "rows.csv" && entry.metadata().is_ok_and(|m| m.len() > 100))
        .count()
}

#[test]
fn images_are_made_and_scored_and_faults_say_the_way_out() {
    let root = tempfile::tempdir().unwrap();
    fn generate<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["generate"], more, &["--set", "sample.num_steps=2"]].concat()
    }
    let two = ["a red star", "a small blue ring", "--images", "2", "--out", "images", "--grid", "grid.png"];
    expect(root.path(), 0, &generate(&two));
    assert!(root.path().join("grid.png").exists());
    let looks = root.path().join("results/test-looks.csv");
    assert!(!looks.exists(), "none of these is a test prompt");
    let test = format!("{}/experiments/prompts/desk-test.tsv", env!("CARGO_MANIFEST_DIR"));
    expect(root.path(), 0, &generate(&["--prompts", &test, "--count", "1", "--grid", "test.png"]));
    assert!(std::fs::read_to_string(looks).unwrap().contains(",ppd generate,desk"));
    let scored = expect(root.path(), 0, &["score", "images", "--retrieval", "2"]);
    assert!(text(&scored.stderr).contains("retrieval of 2 by clip-twin"), "{}", text(&scored.stderr));
    let scored = text(&scored.stdout);
    let lines: Vec<&str> = scored.lines().collect();
    assert_eq!(lines.len(), 5, "{scored}");
    for name in ["clip", "aesthetic-twin", "hps", "brightness", "alignment"] {
        assert!(lines[0].contains(name), "{scored}");
    }
    let json = expect(root.path(), 0, &["score", "images/00000.png", "--prompt", "a red star", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let first: f64 = lines[1].rsplit(',').next().unwrap().parse().unwrap();
    let scores = rows[0]["scores"].as_object().unwrap();
    assert!(scores.values().any(|score| score.as_f64() == Some(first)), "{rows} against {}", lines[1]);

    for (code, arguments, part) in [
        (2, &["a star", "--grid", "g.png", "--method", "pdp"][..], "did you mean `ppd`"),
        (2, &["a star", "--grid", "g.png", "--user", "clip"], "--method"),
        (2, &["a star"], "--out"),
        (2, &["a star", "--grid", "g.png", "--method", "ppd"], "ppd reproduce table1"),
    ] {
        let err = text(&expect(root.path(), code, &generate(arguments)).stderr);
        assert!(err.contains(part), "{arguments:?}: {err}");
    }
    let err = text(&expect(root.path(), 2, &["score", "images/00000.png"]).stderr);
    assert!(err.contains("--prompt"), "{err}");
}
