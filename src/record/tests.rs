use super::*;

fn header() -> Header {
    Header {
        study: "table1".into(),
        profile: "desk".into(),
        cell: "ppd-0-abc".into(),
        method: "ppd".into(),
        scores: vec!["clip".into(), "aesthetic".into()],
        config: serde_json::json!({"beta": 0.5}),
        ..Header::default()
    }
}

fn row(prompt: u32) -> Row {
    Row {
        method: "ppd".into(),
        condition: "clip=0.50+aesthetic=0.50".into(),
        train_seed: 3,
        prompt,
        noise_seed: 7,
        scores: [("clip".into(), 31.25 + f64::from(prompt)), ("aesthetic".into(), -0.5)].into(),
        failure: None,
    }
}

fn failed(prompt: u32, reason: &str) -> Row {
    Row { scores: BTreeMap::new(), failure: Some(reason.into()), ..row(prompt) }
}

#[test]
fn a_record_reads_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), header()).unwrap();
    recorder.append(&row(0)).unwrap();
    recorder.append(&failed(1, "not finite, \"at\" step 3\nsecond line")).unwrap();
    let trace = vec![Step { step: 0, loss: 0.712_345_6, margin: Some(1e-9), ..Step::default() }];
    recorder.write_trace(&trace).unwrap();
    recorder.finish().unwrap();

    let records = read_records(folder.path()).unwrap();
    let (header, rows) = &records[0];
    assert_eq!(header.counts["rows"], 2);
    assert_eq!(header.counts["failures"], 1);
    assert!(header.finished.is_some() && header.rows_digest.is_some());
    assert_eq!(rows[0], row(0));
    assert_eq!(rows[1].failure.as_deref(), Some("not finite, \"at\" step 3 / second line"));
    assert!(rows[1].scores.is_empty());
    let steps = read_trace(folder.path()).unwrap();
    assert_eq!((steps[0].loss, steps[0].margin, steps[0].saturation), (0.712346, Some(1e-9), None));
}

#[test]
fn a_packed_record_reads_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), header()).unwrap();
    recorder.append(&row(0)).unwrap();
    recorder.write_trace(&[Step { loss: 0.5, ..Step::default() }]).unwrap();
    recorder.finish().unwrap();
    let read = || (read_cell(folder.path()).unwrap(), read_trace(folder.path()).unwrap());
    let plain = read();
    for name in ["header.json", "rows.csv", "trace.csv"] {
        let path = folder.path().join(name);
        let file = File::create(with_suffix(&path, ".gz")).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
        encoder.write_all(&std::fs::read(&path).unwrap()).unwrap();
        encoder.finish().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
    assert!(is_record(folder.path()));
    assert_eq!(cell_folders(folder.path()).unwrap(), [folder.path()]);
    assert_eq!(read(), plain);
    std::fs::write(folder.path().join("rows.csv.gz"), "torn").unwrap();
    let message = read_cell(folder.path()).unwrap_err().to_string();
    assert!(message.contains("rows.csv.gz") && message.contains("cannot be unpacked"), "{message}");
}

#[test]
fn numbers_have_six_digits_and_no_more() {
    for (value, text) in [
        (0.0, "0"),
        (-0.0, "0"),
        (31.0, "31"),
        (31.234_567_89, "31.2346"),
        (-0.001_234_567_8, "-0.00123457"),
        (1.5e-12, "1.5e-12"),
        (123_456_789.0, "123457000"),
        (f64::from(0.1f32), "0.1"),
    ] {
        assert_eq!(six_digits(value), text);
    }
}

#[test]
fn a_torn_last_line_is_dropped_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), header()).unwrap();
    (0..3).for_each(|prompt| recorder.append(&row(prompt)).unwrap());
    drop(recorder);
    let path = folder.path().join("rows.csv");
    let whole = std::fs::read(&path).unwrap();
    // Torn anywhere, the header line included: what is left reads, and the record can be completed.
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let left = read_records(folder.path()).unwrap().remove(0).1.len();
        let mut recorder = Recorder::open(folder.path(), header()).unwrap();
        assert_eq!(recorder.rows(), left);
        for prompt in 0..3 {
            if !recorder.has(&row(prompt).key()) {
                recorder.append(&row(prompt)).unwrap();
            }
        }
        assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
    }
    // Every session that went on with it is named.
    assert_eq!(read_header(folder.path()).unwrap().resumed.len(), whole.len());
}

#[test]
fn what_is_not_a_row_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), header()).unwrap();
    recorder.append(&row(0)).unwrap();
    let mut cases = vec![(row(0), "already holds")];
    let with = |name: &str, score: f64| {
        let mut row = row(1);
        row.scores.insert(name.into(), score);
        row
    };
    cases.push((with("hps", 1.0), "not a column"));
    cases.push((with("clip", f64::NAN), "finite"));
    cases.push((Row { scores: BTreeMap::new(), ..row(1) }, "no failure says why"));
    cases.push((Row { failure: Some("x".into()), ..row(1) }, "has no scores"));
    cases.push((failed(1, "\n"), "needs its reason"));
    let before = std::fs::read(folder.path().join("rows.csv")).unwrap();
    for (row, expected) in cases {
        let message = recorder.append(&row).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(std::fs::read(folder.path().join("rows.csv")).unwrap(), before);
}

#[test]
fn corrupt_records_name_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), header()).unwrap();
    (0..3).for_each(|prompt| recorder.append(&row(prompt)).unwrap());
    drop(recorder);
    let path = folder.path().join("rows.csv");
    let good = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    for (bad, expected) in [
        (good.replace("31.25", "31.x25"), "line 2: clip is \"31.x25\""),
        (good.replace("32.25", ""), "line 3: clip is empty"),
        (good.replace("33.25", "inf"), "line 4: clip is inf"),
        (format!("{good}{}\n", lines[1]), "line 5: a second row for ppd"),
        (good.replace(",aesthetic,", ",taste,"), "line 1: expected the columns"),
        (good.replace(",32.25,", ","), "line 3"),
    ] {
        std::fs::write(&path, bad).unwrap();
        let message = read_cell(folder.path()).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("rows.csv"), "{message}");
        assert!(message.contains("run again"), "no way out: {message}");
        assert!(Recorder::open(folder.path(), header()).is_err());
    }
}

#[test]
fn a_sealed_record_refuses_edits_and_additions() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), header()).unwrap();
    recorder.append(&row(0)).unwrap();
    recorder.finish().unwrap();
    let message = Recorder::open(folder.path(), header()).unwrap_err().to_string();
    assert!(message.contains("complete"), "{message}");
    let path = folder.path().join("rows.csv");
    let edited = std::fs::read_to_string(&path).unwrap().replace("31.25", "31.26");
    std::fs::write(&path, edited).unwrap();
    assert!(read_cell(folder.path()).unwrap_err().to_string().contains("changed after the run"));
    let other = Header { cell: "other".into(), ..header() };
    assert!(Recorder::open(folder.path(), other).unwrap_err().to_string().contains("belongs to cell"));
    std::fs::write(folder.path().join("header.json"), "{\"schema\": 1").unwrap();
    assert!(read_cell(folder.path()).unwrap_err().to_string().contains("header.json"));
}

#[test]
fn one_writer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = Recorder::open(folder.path(), header()).unwrap();
    assert!(Recorder::open(folder.path(), header()).unwrap_err().to_string().contains("another process"));
    drop(first);
    Recorder::open(folder.path(), header()).unwrap();

    let lock = FolderLock::acquire(folder.path()).unwrap();
    let message = FolderLock::acquire(folder.path()).unwrap_err().to_string();
    assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
    drop(lock);
    // A lock file that a dead process left behind is no lock.
    std::fs::write(folder.path().join(".lock"), "999999\n").unwrap();
    FolderLock::acquire(folder.path()).unwrap();
}

#[test]
fn who_shares_a_folder_keeps_it_from_being_taken() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = [(); 2].map(|()| FolderLock::share(folder.path()).unwrap());
    drop(first);
    assert!(FolderLock::acquire(folder.path()).unwrap_err().to_string().contains("another process"));
    drop(second);
    let alone = FolderLock::acquire(folder.path()).unwrap();
    assert!(FolderLock::share(folder.path()).unwrap_err().to_string().contains("ppd clean"));
    drop(alone);
    FolderLock::share(folder.path()).unwrap();
}

#[test]
fn the_same_image_in_two_records_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for cell in ["a", "b"] {
        let mut recorder =
            Recorder::open(&root.path().join(cell), Header { cell: cell.into(), ..header() }).unwrap();
        recorder.append(&row(0)).unwrap();
    }
    let message = read_records(root.path()).unwrap_err().to_string();
    assert!(message.contains("also holds ppd"), "{message}");
}
