//! The house's rules, read from the source itself: floors, who prints, who draws random numbers, sizes, docs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Modules by floor, lowest first; a module imports from lower floors only.
const FLOORS: [&[&str]; 6] = [
    &["error", "judgement", "pixels", "progress", "rng", "stats", "template", "units"],
    &["adapter", "diffusion", "models", "nn", "objective", "reward", "scenes"],
    &[
        "base",
        "cache",
        "checkpoint",
        "data",
        "decoder",
        "encoder",
        "hub",
        "image",
        "judge",
        "prior",
        "provenance",
        "record",
        "reward_checkpoint",
        "vlm",
        "weights",
    ],
    &["collective", "embed", "evaluate", "generate", "identify", "launch", "pretrain", "spec", "train"],
    &["report"],
    &["cmd"],
];

/// The imports on one floor that are allowed, each with its reason.
const PAIRS: &[(&str, &str, &str)] = &[
    ("pixels", "error", "every constructor refuses"),
    ("progress", "error", "stopping is an error"),
    ("rng", "units", "a stream belongs to a seed"),
    ("stats", "error", "an estimate refuses an empty sample"),
    ("stats", "rng", "resamples are drawn"),
    ("stats", "units", "from a seed"),
    ("judgement", "error", "a table that is none is refused"),
    ("judgement", "stats", "pairs and calls are handed on to what counts them"),
    ("judgement", "units", "a judgement names its template by digest"),
    ("template", "error", "a template that is none is refused"),
    ("units", "error", "every constructor refuses"),
    ("models", "nn", "a model is made of operations"),
    ("adapter", "nn", "its projector is one too"),
    ("reward", "models", "a reward is a model with a scale"),
    ("reward", "nn", "the aesthetic head is a stack of layers"),
    ("record", "provenance", "a header holds where it comes from"),
    ("train", "collective", "ranks share each batch"),
    ("launch", "spec", "a launcher runs a plan's cells"),
    ("spec", "pretrain", "the desk\'s weights are checked against the manifest of their training"),
    ("embed", "spec", "a study says which people are embedded"),
    ("identify", "embed", "users are told apart by their embeddings"),
    ("identify", "evaluate", "or by a reward's"),
    ("identify", "pretrain", "with heads that are trained here"),
    ("identify", "spec", "as a study says"),
    ("pretrain", "embed", "the vision-language model is taught the prompt that users are embedded with"),
    ("base", "weights", "a base model is opened from weight files"),
    ("base", "prior", "a base is a prior and a codec"),
    ("base", "decoder", "which is Stable Cascade's decoder"),
    ("base", "encoder", "and its encoder"),
    ("reward_checkpoint", "weights", "a reward is opened from weight files"),
    ("reward_checkpoint", "prior", "configurations are read, and memory is asked for, in one way"),
    ("prior", "weights", "a prior is opened from weight files"),
    ("prior", "provenance", "a device without room for it is refused before it is loaded"),
    ("weights", "record", "both replace a file whole"),
    ("cache", "weights", "rows are kept as tensors"),
    ("cache", "record", "both replace a file whole"),
    ("decoder", "weights", "a decoder is opened from weight files"),
    ("decoder", "prior", "its repository's text encoder and tokenizer are found as a prior's are"),
    ("encoder", "weights", "an encoder is opened from a weight file"),
    ("vlm", "weights", "a vision-language model is opened from weight files"),
    ("vlm", "prior", "its config files are read, and the room for its weights is checked, in the same way"),
    ("judge", "image", "an endpoint takes encoded pictures"),
    ("judge", "record", "what an endpoint can is replaced whole"),
    ("judge", "vlm", "one of the judges is a vision-language model"),
    ("checkpoint", "weights", "a checkpoint is a weight file with a position"),
    ("data", "image", "a pair holds encoded pictures"),
    ("data", "record", "what is known of pictures is replaced whole"),
    ("hub", "provenance", "a disk without room is refused before a download; files are digested"),
    ("hub", "record", "its lock is replaced whole"),
];

/// The only files that may print.
const PRINTERS: [&str; 2] = ["cmd", "main"];
/// The most lines of a source file.
const LINES: usize = 600;

struct Source {
    path: PathBuf,
    /// The module of the crate's root that the file belongs to.
    module: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    for entry in walkdir::WalkDir::new(&root).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.path().extension().is_some_and(|extension| extension == "rs") {
            let path = entry.path().strip_prefix(&root).unwrap().to_path_buf();
            let first = path.components().next().unwrap().as_os_str().to_string_lossy();
            let module = first.trim_end_matches(".rs").to_owned();
            sources.push(Source { path, module, text: std::fs::read_to_string(entry.path()).unwrap() });
        }
    }
    assert!(sources.len() > 30, "the sources were not found");
    sources
}

/// The code without comments and without what is compiled for tests only.
fn code(source: &Source) -> String {
    let is_test_file = source
        .path
        .file_name()
        .is_some_and(|name| ["tests.rs", "testing.rs", "synthetic.rs"].iter().any(|test| name == *test));
    if is_test_file {
        return String::new();
    }
    let mut lines = Vec::new();
    let mut skipping = false;
    for line in source.text.lines() {
        if line == "#[cfg(test)]" {
            skipping = true;
        }
        if !skipping && !line.trim_start().starts_with("//") {
            lines.push(line);
        }
        // An item for tests ends at the next line that closes at the margin, or at once where it is a declaration.
        if skipping && (line == "}" || (line.ends_with(';') && !line.starts_with(' '))) {
            skipping = false;
        }
    }
    lines.join("\n")
}

/// The modules that code names after `crate::`, groups included.
fn imports(code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue; // Another crate whose name ends in `crate`.
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                // The first word of each entry at depth one.
                let (mut depth, mut start) = (1, true);
                for (offset, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 1 => start = true,
                        c if start && depth == 1 && !c.is_whitespace() => {
                            found.insert(word(&group[offset..]));
                            start = false;
                        }
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            None => {
                found.insert(word(rest));
            }
        }
    }
    found
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::error::{Error, Result};\nuse crate::{spec::{Plan, Cell}, units::Seed};\nlet x = crate::rng::stream();\nuse mycrate::other;";
    assert_eq!(imports(code).into_iter().collect::<Vec<_>>(), ["error", "rng", "spec", "units"]);
}

#[test]
fn every_module_imports_only_from_below() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| !["lib", "main"].contains(&source.module.as_str())) {
        let from = floor(&source.module).unwrap_or_else(|| panic!("{} stands on no floor", source.module));
        for to in imports(&code(source)) {
            let Some(below) = floor(&to) else { continue };
            let allowed = to == source.module
                || below < from
                || PAIRS.iter().any(|(a, b, _)| *a == source.module && *b == to);
            if !allowed {
                faults.push(format!("{}: {} must not import {to}", source.path.display(), source.module));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn numbers_and_tables_need_no_tensor_library() {
    for source in sources().iter().filter(|source| {
        ["stats", "report", "record", "provenance", "judgement"].contains(&source.module.as_str())
    }) {
        assert!(!code(source).contains("candle_"), "{} names the tensor library", source.path.display());
    }
}

#[test]
fn only_the_roof_prints() {
    for source in sources().iter().filter(|source| !PRINTERS.contains(&source.module.as_str())) {
        for printer in ["println!", "print!(", "eprintln!", "eprint!(", "dbg!"] {
            assert!(!code(source).contains(printer), "{} prints with {printer}", source.path.display());
        }
    }
}

#[test]
fn plain_values_and_mathematics_touch_no_file() {
    let values = [FLOORS[0], FLOORS[1], &["collective", "generate"]].concat();
    for source in sources().iter().filter(|source| values.contains(&source.module.as_str())) {
        for name in ["std::fs", "File::open", "File::create", "walkdir"] {
            assert!(!code(source).contains(name), "{} uses {name}", source.path.display());
        }
    }
}

#[test]
fn only_trainings_go_backward() {
    // Beside them only the operation that makes its activations again on the way back.
    for source in sources().iter().filter(|source| !["train", "pretrain"].contains(&source.module.as_str())) {
        let goes_back = code(source).contains(".backward()");
        assert!(
            !goes_back || source.path.ends_with("recompute.rs"),
            "{} goes backward",
            source.path.display()
        );
    }
}

#[test]
fn models_multiply_and_convolve_through_nn() {
    // The tensor library's own would compute the gradients of frozen weights, or convolve group by group.
    for source in sources().iter().filter(|source| ["models", "adapter"].contains(&source.module.as_str())) {
        for name in [".matmul(", ".conv1d(", ".conv2d(", "candle_nn::ops", "candle_nn::linear"] {
            assert!(!code(source).contains(name), "{} uses {name}", source.path.display());
        }
    }
}

#[test]
fn only_one_module_draws_random_numbers() {
    for source in sources().iter().filter(|source| source.module != "rng") {
        for name in ["rand_chacha", "rand::", "thread_rng", "getrandom", "rand_like", "Tensor::rand"] {
            assert!(!code(source).contains(name), "{} uses {name}", source.path.display());
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines <= LINES, "{} has {lines} lines, at most {LINES}", source.path.display());
        let is_tests = source.path.file_name().is_some_and(|name| name == "tests.rs");
        assert!(
            is_tests || source.text.starts_with("//!"),
            "{} does not begin with //!",
            source.path.display()
        );
        for name in ["utils", "helpers", "common", "manager", "misc"] {
            assert!(source.path.iter().all(|part| part.to_string_lossy().trim_end_matches(".rs") != name));
        }
    }
}

#[test]
fn outside_tests_nothing_unwraps_or_panics() {
    for source in sources() {
        for word in [".unwrap()", "panic!(", "todo!(", "unimplemented!("] {
            assert!(!code(&source).contains(word), "{} has {word}", source.path.display());
        }
    }
}

#[test]
fn every_experiment_file_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
    let mut count = 0;
    for study in ppd::spec::library::studies(&folder) {
        let request = ppd::spec::Request { study, experiments: folder.clone(), ..Default::default() };
        match ppd::spec::Identification::is_asked_for(&request).unwrap() {
            true => drop(ppd::spec::Identification::load(&request).unwrap()),
            false => drop(ppd::spec::Spec::load(&request).unwrap()),
        }
        count += 1;
    }
    assert!(count >= 12, "{count}");
}

#[test]
fn what_is_published_is_what_its_records_give() {
    let ppd = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ppd"))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "ppd {}: {said}", arguments.join(" "));
        said
    };
    assert!(!ppd(&["verify", "results/released"]).contains(" 0 complete"), "there are records");
    ppd(&["report", "--released", "--check", "--splice", "README.md"]);
}

#[test]
fn the_tracked_tree_stays_small() {
    // A packed source tree has no index, and nothing to hold.
    let Ok(repository) = git2::Repository::open(env!("CARGO_MANIFEST_DIR")) else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tracked = repository.index().unwrap();
    let size = |entry: git2::IndexEntry| {
        let path = root.join(String::from_utf8(entry.path).unwrap());
        std::fs::metadata(path).map_or(0, |file| file.len())
    };
    let bytes: u64 = tracked.iter().map(size).sum();
    assert!(bytes > 1 << 20, "the index lists the tree");
    assert!(
        bytes <= 40 << 20,
        "the tracked tree has {:.1} MiB, at most 40 are allowed",
        bytes as f64 / 1048576.0
    );
}
