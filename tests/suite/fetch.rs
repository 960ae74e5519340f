//! `ppd fetch` against a hub on loopback: what it brings, what it keeps, and what it says of every fault.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ppd::hub::{Hub, Lock};
use ppd::units::Digest;

use crate::local_hub::{Faults, LocalHub, Request, TOKEN};

/// A hub, a folder to work in, and a profile with a model, a data set and a plain file.
struct Bench {
    hub: LocalHub,
    root: tempfile::TempDir,
    /// Of the model's `main`.
    commit: String,
}

/// The model's weights: not a round number of bytes.
fn weights() -> Vec<u8> {
    (0..300_007u32).map(|i| (i.wrapping_mul(i) % 251) as u8).collect()
}

const PROFILE: &str = r#"
schema = 1
name = "tiny"
title = "What the tests fetch"
rewards = ["clip", "aesthetic", "hps"]
[set.rewards]
twins = false

[artefacts.model]
repository = "acme/tiny"
files = ["sub/config.json", "sub/model.safetensors"]
licence = "acme-nc"
non_commercial = true

[artefacts.data]
kind = "dataset"
repository = "acme/pairs"
files = ["data/*.parquet"]
mirrors = ["acme/other", "acme/third"]
licence = "mit"
data = true

[artefacts.table]
kind = "url"
repository = "ENDPOINT/plain"
files = ["a b+c.tsv"]
licence = "mit"
on_request = true
"#;

impl Bench {
    fn new() -> Self {
        let hub = LocalHub::start();
        let commit = hub.publish(
            "models/acme/tiny",
            &[
                ("README.md", b"hello"),
                ("sub/config.json", b"{\"a\":1}"),
                ("sub/model.safetensors", &weights()),
            ],
        );
        hub.publish(
            "datasets/acme/pairs",
            &[("data/0.parquet", b"zero"), ("data/1.parquet", b"one!"), ("x", b"")],
        );
        hub.state().plain.insert("a%20b+c.tsv".into(), b"x\ty\n".to_vec());
        let root = tempfile::tempdir().unwrap();
        let profile = PROFILE.replace("ENDPOINT", &hub.endpoint);
        std::fs::write(root.path().join("tiny.toml"), profile).unwrap();
        Self { hub, root, commit }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ppd"));
        command.current_dir(self.root.path()).args(["fetch", "--profile", "tiny.toml"]).args(arguments);
        for name in ["HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"] {
            command.env_remove(name);
        }
        command.envs(self.hub.environment(&self.home()));
        command
    }

    fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    /// Fetches where it must end with `code`; the result is all that was said.
    fn expect(&self, code: i32, arguments: &[&str]) -> String {
        said(code, &self.command(arguments).output().unwrap())
    }

    /// Fetches the model where that must fail, and what is said must hold all `parts`.
    fn fails(&self, arguments: &[&str], parts: &[&str]) {
        let said = self.expect(1, arguments);
        for part in parts {
            assert!(said.contains(part), "{part:?} in {said}");
        }
    }

    fn lock(&self) -> Lock {
        Lock::read(&self.root.path().join("experiments/hub.lock")).unwrap()
    }

    fn snapshot(&self, file: &str) -> PathBuf {
        let folder = self.home().join("hub/models--acme--tiny/snapshots").join(&self.commit);
        folder.join(file)
    }

    /// Requests for bytes since the last call.
    fn gets(&self) -> Vec<Request> {
        let log = self.hub.requests().into_iter();
        log.filter(|request| request.method == "GET" && !request.path.starts_with("/api/")).collect()
    }

    /// Files that have a final name, or an incomplete one.
    fn blobs(&self) -> (usize, usize) {
        let files = walkdir::WalkDir::new(self.home()).into_iter().flatten();
        let names: Vec<PathBuf> = files
            .filter(|entry| entry.file_type().is_file() && entry.path().iter().any(|part| part == "blobs"))
            .map(|entry| entry.into_path())
            .collect();
        let parts =
            names.iter().filter(|path| path.extension().is_some_and(|ending| ending == "part")).count();
        (names.len() - parts, parts)
    }
}

fn said(code: i32, output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains(TOKEN), "the token is never said: {text}");
    text
}

#[test]
fn files_come_once_in_the_hubs_layout_and_are_noted() {
    let bench = Bench::new();
    let planned = bench.expect(0, &["--dry-run"]);
    for part in
        ["model: models/acme/tiny@main, acme-nc", "300 kB  sub/model.safetensors  (to fetch)", "GB free"]
    {
        assert!(planned.contains(part), "{planned}");
    }
    assert!(!planned.contains("table") && !bench.home().join("hub").exists(), "{planned}");
    let said = bench.expect(0, &[]);
    assert!(said.contains("model: 2 files, 300 kB") && said.contains("forbids commercial use"), "{said}");
    assert_eq!(std::fs::read(bench.snapshot("sub/model.safetensors")).unwrap(), weights());
    assert!(std::fs::symlink_metadata(bench.snapshot("sub/config.json")).unwrap().is_symlink());
    let reference = bench.home().join("hub/models--acme--tiny/refs/main");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), bench.commit);
    let lock = bench.lock();
    let source = &lock.sources["models/acme/tiny@main"];
    assert_eq!(source.commit.as_deref(), Some(bench.commit.as_str()));
    assert_eq!(source.files["sub/model.safetensors"].sha256, Digest::of(&weights()));
    assert_eq!(lock.sources["datasets/acme/pairs@main"].files.len(), 2);
    assert!(lock.non_commercial["acme-nc"].contains("models/acme/tiny@main"));

    // A second time nothing is asked, offline or not, and the licence is not shown again.
    bench.hub.requests();
    let again = bench.expect(0, &[]);
    assert!(!again.contains("forbids"), "{again}");
    let offline = bench.command(&[]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    self::said(0, &offline);
    assert_eq!(bench.hub.requests().len(), 0);
    assert_eq!(bench.lock(), lock);
    // The crate that other programs use finds the files.
    let cache = hf_hub::Cache::new(bench.home().join("hub")).model("acme/tiny".into());
    assert_eq!(cache.get("sub/config.json").unwrap(), bench.snapshot("sub/config.json"));
}

#[test]
fn a_program_finds_what_was_fetched_and_says_how_to_fetch_the_rest() {
    let bench = Bench::new();
    bench.expect(0, &["--only", "model"]);
    let request = ppd::spec::Request {
        study: "table1".into(),
        profile: bench.root.path().join("tiny.toml").display().to_string(),
        ..Default::default()
    };
    let profile = ppd::spec::Spec::load(&request).unwrap().profile;
    let home = bench.home().display().to_string();
    let lock = bench.root.path().join("experiments/hub.lock");
    let hub = Hub::new(lock, |name| (name == "HF_HOME").then(|| home.clone())).unwrap();
    let found = profile.locate("model", &hub).unwrap();
    assert_eq!(found.path, bench.snapshot("sub"));
    assert_eq!(found.file(".safetensors").unwrap().path, bench.snapshot("sub/model.safetensors"));
    assert_eq!(found.commit.as_deref(), Some(bench.commit.as_str()));
    let message = profile.locate("data", &hub).unwrap_err().to_string();
    assert!(message.contains("run `ppd fetch --profile tiny --only data`"), "{message}");
    let message = profile.locate("modle", &hub).unwrap_err().to_string();
    assert!(message.contains("did you mean `model`?"), "{message}");
    assert_eq!(profile.non_commercial().into_iter().collect::<Vec<_>>(), [("model", "acme-nc")]);

    // One byte changed on the disk is found, although the size is the same.
    let mut changed = weights();
    changed[77] ^= 1;
    std::fs::write(bench.snapshot("sub/model.safetensors"), &changed).unwrap();
    let message = profile.locate("model", &hub).unwrap_err().to_string();
    for part in ["model.safetensors", Digest::of(&weights()).hex(), Digest::of(&changed).hex(), "remove it"] {
        assert!(message.contains(part), "{message}");
    }
    bench.fails(&["--only", "model"], &["is not the file that was first fetched"]);
}

#[test]
fn a_gated_repository_wants_a_token_that_nobody_else_sees() {
    let bench = Bench::new();
    bench.hub.state().repositories.get_mut("models/acme/tiny").unwrap().gated = true;
    bench.fails(
        &["--only", "model"],
        &["401", "gated", "accept its terms", "/acme/tiny", "HF_TOKEN", "no token"],
    );
    let wrong = bench.command(&["--only", "model"]).env("HF_TOKEN", "hf_wrong").output().unwrap();
    let text = said(1, &wrong);
    assert!(text.contains("403") && text.contains("may not read it") && !text.contains("hf_wrong"), "{text}");
    bench.hub.requests();
    said(0, &bench.command(&["--only", "model"]).env("HF_TOKEN", TOKEN).output().unwrap());
    for request in bench.hub.requests() {
        let told = request.headers.contains_key("authorization");
        assert_eq!(told, !request.path.starts_with("/storage/"), "{request:?}");
    }
    for file in walkdir::WalkDir::new(bench.root.path()).into_iter().flatten() {
        let kept = std::fs::read(file.path()).unwrap_or_default();
        assert!(!kept.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()), "{}", file.path().display());
    }
    // A plain address is not the Hub.
    bench.hub.requests();
    said(0, &bench.command(&["--only", "table"]).env("HF_TOKEN", TOKEN).output().unwrap());
    let plain = bench.hub.requests();
    assert!(plain.iter().any(|request| request.method == "GET"));
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let bench = Bench::new();
    bench.hub.faults(Faults { cut: 2, ..Faults::default() });
    bench.expect(0, &["--only", "model"]);
    let ranges: Vec<String> =
        bench.gets().iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert!(!ranges.is_empty() && ranges.iter().all(|range| range != "bytes=0-"), "{ranges:?}");
    assert_eq!(std::fs::read(bench.snapshot("sub/model.safetensors")).unwrap(), weights());
    assert_eq!(bench.blobs().1, 0);
}

#[test]
fn a_download_that_stays_cut_is_kept_and_goes_on_the_next_time() {
    let bench = Bench::new();
    bench.hub.faults(Faults { at_most: Some(1000), ..Faults::default() });
    bench.fails(
        &["--only", "model"],
        &["was cut: expected 300007 bytes, got 20000", "is kept", "run the same command"],
    );
    assert!(!bench.snapshot("sub/model.safetensors").exists(), "nothing partial has the final name");
    assert_eq!(bench.blobs().1, 1);
    let planned = bench.expect(0, &["--dry-run", "--only", "model"]);
    assert!(planned.contains("20 kB are here"), "{planned}");
    bench.hub.faults(Faults::default());
    bench.hub.requests();
    bench.expect(0, &["--only", "model"]);
    assert!(
        bench.gets().iter().any(|request| request.headers.get("range").is_some_and(|r| r == "bytes=20000-"))
    );
    assert_eq!(std::fs::read(bench.snapshot("sub/model.safetensors")).unwrap(), weights());

    // A server that brings nothing at all is given up sooner.
    let bench = Bench::new();
    bench.hub.faults(Faults { at_most: Some(0), ..Faults::default() });
    bench.fails(&["--only", "model"], &["was cut", "got 0"]);
}

#[test]
fn a_server_without_ranges_or_head_serves_too() {
    let bench = Bench::new();
    bench.hub.faults(Faults { cut: 2, no_ranges: true, no_head: true, ..Faults::default() });
    bench.expect(0, &["--only", "model"]);
    assert_eq!(std::fs::read(bench.snapshot("sub/model.safetensors")).unwrap(), weights());
}

#[test]
fn what_was_changed_on_the_way_is_refused_and_not_kept() {
    let bench = Bench::new();
    let storage = Digest::of(&weights());
    bench.hub.faults(Faults { tampered: ["model.safetensors".to_owned()].into(), ..Faults::default() });
    bench.fails(
        &["--only", "model"],
        &["model.safetensors", "expected SHA-256", storage.hex(), "--mirror model="],
    );
    assert!(!bench.snapshot("sub/model.safetensors").exists());
    assert_eq!(bench.blobs(), (1, 0), "the configuration alone");
}

#[test]
fn what_does_not_exist_is_named_with_mirrors() {
    let bench = Bench::new();
    bench.hub.state().repositories.remove("datasets/acme/pairs");
    bench.fails(
        &["--only", "data"],
        &[
            "404",
            "does not exist any more",
            "mirrors: acme/other, acme/third",
            "--mirror data=hf://acme/other",
        ],
    );
    let change = |from: &str, to: &str| {
        let text = PROFILE.replace("ENDPOINT", &bench.hub.endpoint).replace(from, to);
        std::fs::write(bench.root.path().join("tiny.toml"), text).unwrap();
    };
    change("files = [\"sub/config.json\"", "revision = \"v2\"\nfiles = [\"sub/config.json\"");
    bench.fails(&["--only", "model"], &["no revision `v2`", "name another one"]);
    change("sub/config.json", "sub/confog.json");
    bench.fails(&["--only", "model"], &["expected a file `sub/confog.json`", "`sub/config.json` is near"]);
    change("sub/config.json", "../config.json");
    let said = bench.expect(2, &["--only", "model"]);
    assert!(said.contains("artefacts.model: files: expected a path below the repository"), "{said}");
    // All at once.
    bench.hub.state().repositories.clear();
    change("on_request = true", "on_request = false");
    bench.fails(&[], &["2 problems", "acme/tiny", "acme/pairs"]);
}

#[test]
fn a_server_that_is_busy_is_waited_for_but_not_for_ever() {
    let bench = Bench::new();
    bench.hub.faults(Faults { too_many: Some((1, "1".into())), unavailable: 1, ..Faults::default() });
    let said = bench.expect(0, &["--only", "model"]);
    assert!(said.contains("going on in 1 s"), "{said}");
    bench.hub.faults(Faults { too_many: Some((9, "3600".into())), ..Faults::default() });
    bench.fails(&["--only", "data"], &["429", "asks to wait 3600 s", "HF_TOKEN"]);
    bench.hub.faults(Faults { unavailable: 99, ..Faults::default() });
    bench.fails(&["--only", "data"], &["503", "later"]);
    let nowhere =
        bench.command(&["--only", "data"]).env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap();
    assert!(self::said(1, &nowhere).contains("cannot be reached"));
}

#[test]
fn a_disk_without_room_is_refused_before_anything_comes() {
    let bench = Bench::new();
    let announced = [("sub/model.safetensors".to_owned(), 1 << 60)].into();
    bench.hub.faults(Faults { announced, ..Faults::default() });
    bench.fails(&["--only", "model"], &["expected room for 1152921504606846", "free some", "HF_HOME"]);
    assert!(bench.gets().is_empty() && bench.blobs() == (0, 0));
}

#[test]
fn a_branch_that_moves_changes_nothing_that_was_fetched() {
    let bench = Bench::new();
    bench.expect(0, &["--only", "model"]);
    let lock = bench.lock();
    bench.hub.publish("models/acme/tiny", &[("sub/config.json", b"{}"), ("sub/model.safetensors", b"new")]);
    // Another machine, with the same lock and nothing in its cache.
    std::fs::remove_dir_all(bench.home()).unwrap();
    bench.expect(0, &["--only", "model"]);
    assert_eq!(std::fs::read(bench.snapshot("sub/model.safetensors")).unwrap(), weights());
    assert_eq!(bench.lock(), lock);
    // The same commit with other bytes is somebody's doing.
    std::fs::remove_dir_all(bench.home()).unwrap();
    let mut state = bench.hub.state();
    let kept = state.repositories.get_mut("models/acme/tiny").unwrap();
    kept.commits.get_mut(&bench.commit).unwrap().insert("sub/model.safetensors".into(), b"other".to_vec());
    drop(state);
    bench.fails(&["--only", "model"], &["differs from what was first fetched", "hub.lock", "own word"]);
    assert_eq!(bench.blobs(), (0, 0));
}

#[test]
fn a_folder_a_file_an_address_or_another_repository_can_stand_for_one() {
    let bench = Bench::new();
    let folder = bench.root.path().join("mine");
    std::fs::create_dir_all(folder.join("data")).unwrap();
    std::fs::write(folder.join("data/0.parquet"), "zero").unwrap();
    std::fs::write(folder.join("data/1.parquet"), "one!").unwrap();
    std::fs::write(folder.join("t.tsv"), "x\ty\n").unwrap();
    let mirror = |stands: &Path| format!("data={}", stands.display());
    bench.expect(0, &["--only", "data", "--mirror", &mirror(&folder)]);
    assert_eq!(bench.lock().sources["datasets/acme/pairs@main"].commit, None);
    assert!(bench.hub.requests().is_empty(), "no network for a folder");
    bench.expect(0, &["--only", "table", "--mirror", &format!("table={}", folder.join("t.tsv").display())]);
    // The same files from elsewhere are the same; other files are not.
    std::fs::remove_dir_all(bench.home()).unwrap();
    bench.hub.publish("datasets/acme/other", &[("data/0.parquet", b"zero"), ("data/1.parquet", b"one!")]);
    bench.expect(0, &["--only", "data", "--mirror", "acme/pairs=hf://acme/other"]);
    std::fs::write(folder.join("data/1.parquet"), "two!").unwrap();
    bench.fails(&["--only", "data", "--mirror", &mirror(&folder)], &["1.parquet", "expected SHA-256"]);
    let plain = format!("{}/plain", bench.hub.endpoint);
    bench.hub.state().plain.extend([
        ("sub/config.json".to_owned(), b"{\"a\":1}".to_vec()),
        ("sub/model.safetensors".to_owned(), weights()),
    ]);
    bench.expect(0, &["--only", "model", "--mirror", &format!("model={plain}")]);
    let said = bench.expect(2, &["--only", "data", "--mirror", "data=/nowhere/at/all"]);
    assert!(said.contains("is not there; a mirror is"), "{said}");
    assert!(bench.expect(2, &["--mirror", "dota=/tmp"]).contains("did you mean `data`?"));

    // In the profile itself.
    let text = PROFILE.replace("ENDPOINT", &bench.hub.endpoint);
    let text = text.replace("mirrors = [\"acme/other\", \"acme/third\"]", "local = \"mine\"");
    std::fs::write(bench.root.path().join("tiny.toml"), text).unwrap();
    std::fs::write(folder.join("data/1.parquet"), "one!").unwrap();
    let said = bench.expect(0, &["--only", "data"]);
    assert!(said.contains("mine/data"), "{said}");
}

#[test]
fn without_a_network_only_what_is_here_is_used() {
    let bench = Bench::new();
    let offline = bench.command(&["--only", "model"]).env("HF_HUB_OFFLINE", "true").output().unwrap();
    let text = said(1, &offline);
    assert!(text.contains("HF_HUB_OFFLINE forbids") && text.contains("--mirror model=PATH"), "{text}");
    assert!(bench.hub.requests().is_empty());
    let wrong = bench.command(&[]).env("HF_ENDPOINT", "hub.example.org").output().unwrap();
    assert!(said(2, &wrong).contains("HF_ENDPOINT: expected an address"));
}

#[test]
fn files_that_other_tools_brought_are_used() {
    let bench = Bench::new();
    bench.expect(0, &["--only", "model"]);
    std::fs::remove_file(bench.root.path().join("experiments/hub.lock")).unwrap();
    bench.hub.requests();
    bench.expect(0, &["--only", "model"]);
    assert!(bench.gets().is_empty(), "checked and noted, not fetched again");
    assert_eq!(bench.lock().sources["models/acme/tiny@main"].files.len(), 2);
}

#[test]
fn the_papers_profile_names_every_artefact() {
    let request =
        ppd::spec::Request { study: "table1".into(), profile: "paper".into(), ..Default::default() };
    let profile = ppd::spec::Spec::load(&request).unwrap().profile;
    assert!(profile.artefacts.len() >= 20);
    let parti = &profile.artefacts["test"];
    assert_eq!(parti.sha256["PartiPrompts.tsv"].hex(), ppd::data::prompts::PARTI_PROMPTS);
    assert_eq!(profile.artefacts["aesthetic"].bytes.values().next(), Some(&3_714_759));
    assert!(profile.non_commercial().contains_key("denoiser"));
    let root = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ppd"))
        .current_dir(root.path())
        .args(["fetch", "--profile", "desk"])
        .output()
        .unwrap();
    assert!(said(0, &output).contains("nothing to fetch"));
    // A study says all that is not here, each with the command that fetches it.
    let output = Command::new(env!("CARGO_BIN_EXE_ppd"))
        .current_dir(root.path())
        .args(["reproduce", "table1", "--profile", "paper"])
        .env("HF_HOME", root.path())
        .output()
        .unwrap();
    let said = said(2, &output);
    for name in ["denoiser", "text-encoder", "clip", "aesthetic", "hps", "pairs", "test"] {
        assert!(said.contains(&format!("ppd fetch --profile paper --only {name}`")), "{name}: {said}");
    }
    assert!(!said.contains("image-reward"), "{said}");
}
