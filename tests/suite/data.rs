//! Preference data as others write it: files that pyarrow made (tests/reference/pick_a_pic.py), read back.

use std::path::{Path, PathBuf};
use std::process::Command;

use ppd::data::pick_a_pic::{self, Columns};
use ppd::data::prompts;
use ppd::data::{Preference, Split};
use ppd::scenes;
use ppd::units::Digest;
use serde_json::{Value, json};

use crate::packed;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

/// A row in the words of the fixture.
fn told(row: &Preference, column: &str) -> Value {
    let picture = |side: usize| {
        let images = row.images.as_ref().expect("pictures were read");
        json!(&Digest::of(&images[side]).hex()[..8])
    };
    match column {
        "are_different" => json!(row.are_different),
        "best_image_uid" => json!(row.best_image_uid),
        "caption" => json!(row.caption),
        "created_at" => json!(row.created_at),
        "has_label" => json!(row.has_label),
        "image_0_uid" => json!(row.image_uids[0]),
        "image_0_url" => json!(row.image_urls[0]),
        "image_1_uid" => json!(row.image_uids[1]),
        "image_1_url" => json!(row.image_urls[1]),
        "jpg_0" => picture(0),
        "jpg_1" => picture(1),
        "label_0" => json!(row.label.map(|label| label[0])),
        "label_1" => json!(row.label.map(|label| label[1])),
        "model_0" => json!(row.models[0]),
        "model_1" => json!(row.models[1]),
        "ranking_id" => json!(row.ranking_id),
        "user_id" => json!(row.user_id),
        "num_example_per_prompt" => json!(row.num_example_per_prompt),
        "__index_level_0__" => json!(row.index),
        other => panic!("{other} is not a column"),
    }
}

fn expected() -> serde_json::Map<String, Value> {
    let text = String::from_utf8(packed::bytes(&fixture("pick_a_pic.json"))).unwrap();
    let Value::Object(mut columns) = serde_json::from_str(&text).unwrap() else { panic!("a table") };
    assert_eq!(columns.len(), 20, "nineteen columns, and the rows of the mirror");
    columns.shift_remove("mirror");
    columns
}

#[test]
fn every_column_of_a_pyarrow_file_is_read_exactly() {
    let rows = pick_a_pic::load(fixture("pick_a_pic.parquet"), Split::Train, Columns::All).unwrap();
    assert_eq!(rows.len(), 620);
    for (column, values) in expected() {
        for (row, value) in rows.iter().zip(values.as_array().unwrap()) {
            assert_eq!(&told(row, &column), value, "{column} of {:?}", row.ranking_id);
        }
    }
    for row in &rows {
        for side in 0..2 {
            let image = row.image(side, "pick_a_pic.parquet").unwrap();
            assert_eq!((image.width(), image.height()), (4, 4));
        }
    }
}

#[test]
fn a_mirror_with_other_types_gives_the_same_pairs() {
    let text = String::from_utf8(packed::bytes(&fixture("pick_a_pic.json"))).unwrap();
    let table: Value = serde_json::from_str(&text).unwrap();
    let kept: Vec<usize> = table["mirror"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| table["ranking_id"].as_array().unwrap().iter().position(|other| other == id).unwrap())
        .collect();
    let rows = pick_a_pic::read(fixture("mirror.parquet"), Columns::All).unwrap();
    assert_eq!(rows.len(), kept.len());
    for column in ["caption", "label_0", "label_1", "user_id", "jpg_0", "jpg_1", "created_at"] {
        for (row, &place) in rows.iter().zip(&kept) {
            assert_eq!(told(row, column), table[column][place], "{column} of row {place}");
        }
    }
    assert!(rows.iter().all(|row| row.ranking_id.is_none() && row.models == [None, None]));
}

#[test]
fn a_file_that_this_build_cannot_unpack_says_how_to_write_it() {
    let message = pick_a_pic::read(fixture("zstd.parquet"), Columns::All).unwrap_err().to_string();
    assert!(message.contains("zstd.parquet: column \"caption\"") && message.contains("snappy"), "{message}");
}

#[test]
fn files_of_another_shape_name_file_column_expected_and_found() {
    let message = |name: &str| pick_a_pic::read(fixture(name), Columns::All).unwrap_err().to_string();
    let cases: [(&str, &[&str]); 3] = [
        ("missing.parquet", &["column \"jpg_0\" is missing (\"jpg0\" is near)", "got caption, jpg0, jpg_1"]),
        ("wrong_type.parquet", &["column \"label_0\": expected numbers (DOUBLE), got BYTE_ARRAY (String)"]),
        ("null.parquet", &["row 1, column \"caption\": expected a value, got an empty place (null)"]),
    ];
    for (name, parts) in cases {
        let message = message(name);
        assert!(message.contains(name) && parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn the_desk_benchmarks_are_read_as_the_grammar_made_them() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("experiments/prompts");
    for (name, part) in
        [("desk-test.tsv", scenes::Split::Test), ("desk-validation.tsv", scenes::Split::Validation)]
    {
        let read = prompts::read(folder.join(name)).unwrap();
        let made = scenes::prompts::benchmark(part);
        assert_eq!(read.prompts.len(), made.len());
        for (read, made) in read.prompts.iter().zip(&made) {
            assert_eq!(
                [read.text.as_str(), &read.category, &read.challenge, &read.note],
                [made.prompt.as_str(), made.category, made.challenge, &made.note]
            );
        }
        assert_eq!(read.categories().len(), 3);
    }
}

/// Runs `ppd data inspect` where it must end well; the result is its JSON.
fn inspect(path: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_ppd"))
        .args(["data", "inspect", "--json"])
        .arg(path)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_data_set_is_counted_split_and_grouped() {
    let told = inspect(&fixture("pick_a_pic.parquet"), &["--decode", "--held-out", "0.2"]);
    let counts = &told["counts"];
    assert_eq!(counts["read"], 620);
    // As in the fixture's own table: every eleventh row is not labelled, the rest in thirds.
    let rows = pick_a_pic::load(fixture("pick_a_pic.parquet"), Split::Train, Columns::WithoutImages).unwrap();
    let ties = rows.iter().filter(|row| row.label == Some([0.5, 0.5])).count();
    assert_eq!(counts["left_out"]["unlabelled"], rows.iter().filter(|row| row.label.is_none()).count());
    assert_eq!(counts["left_out"]["tie"], ties);
    let left_out: u64 = counts["left_out"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(left_out + counts["kept"].as_u64().unwrap(), 620);
    let groups = &told["all_pairs"];
    let number = |value: &Value| value.as_u64().unwrap();
    let in_groups =
        4 * number(&groups["groups"]) + number(&groups["remainder"]) + number(&groups["pairs_of_too_few"]);
    assert_eq!(in_groups, number(&counts["kept"]));
    let parts = told["parts"].as_array().unwrap();
    let split: u64 = parts.iter().map(|part| number(&part["pairs"])).sum();
    let in_none: u64 = told["in_no_part"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!((parts.len() as u64, split + in_none), (4, number(&counts["kept"])));

    // A file without the columns says so; a mirror without users still gives its counts.
    let output = Command::new(env!("CARGO_BIN_EXE_ppd"))
        .args(["data", "inspect", "--decode"])
        .arg(fixture("missing.parquet"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("column \"jpg_0\" is missing"), "{said}");
}

/// Writes a data set of `files` shards; every picture is broken.
fn shards(folder: &Path, files: usize, rows: usize) {
    for file in 0..files {
        let name = pick_a_pic::shard_name(Split::Train, file, files);
        let mut writer = pick_a_pic::Writer::create(folder.join("data").join(name)).unwrap();
        for group in 0..4 {
            let rows: Vec<Preference> = (0..rows)
                .map(|row| {
                    let number = (file * 4 + group) * rows + row;
                    Preference {
                        caption: format!("caption {number}"),
                        images: Some([vec![number as u8; 40_000], vec![1; 40_000]]),
                        label: Some([1.0, 0.0]),
                        user_id: Some(number as i64 % 7),
                        image_uids: [Some(format!("a{number}")), Some(format!("b{number}"))],
                        ..Preference::default()
                    }
                })
                .collect();
            writer.write(&rows).unwrap();
        }
        writer.finish().unwrap();
    }
}

/// Tells the process that is a test's child which data set to read.
#[cfg(target_os = "linux")]
const DATA_SET: &str = "PPD_TEST_DATA_SET";

#[test]
#[cfg(target_os = "linux")]
fn eight_times_the_rows_take_no_more_memory() {
    if let Some(path) = std::env::var_os(DATA_SET) {
        let mut read = 0;
        let store = ppd::data::pairs::Store::at(path.as_ref(), Split::Train).unwrap();
        let mut census = ppd::data::census::Census::new(Default::default());
        store
            .each(true, &mut |pair| {
                read += usize::from(census.admit(pair, Path::new("x")).is_some());
                Ok(())
            })
            .unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        println!("read={read} peak={}", peak.trim().trim_end_matches(" kB"));
        return;
    }
    let measured = |files: usize| {
        let folder = tempfile::tempdir().unwrap();
        shards(folder.path(), files, 40);
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "data::eight_times_the_rows_take_no_more_memory",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DATA_SET, folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        let number = |name: &str| -> f64 {
            let (_, rest) = said.split_once(name).unwrap_or_else(|| panic!("{said}"));
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        assert_eq!(number("read="), (files * 160) as f64);
        number("peak=") / 1024.0
    };
    // 12.8 MB of pictures, then 102 MB: the peak may move by an allocator's whim, not by the data.
    let (few, many) = (measured(1), measured(8));
    println!("peaks: {few:.1} and {many:.1} MiB");
    assert!(many < few + 8.0, "{few:.1} MiB for 160 pairs, {many:.1} MiB for 1280");
}
