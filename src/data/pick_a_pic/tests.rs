use super::*;
use crate::data::Preference;

/// A pair with every column filled, or only the required ones.
fn pair(index: i64, full: bool) -> Preference {
    let both = |word: &str| [0, 1].map(|side| full.then(|| format!("{word} {index} {side}")));
    Preference {
        caption: format!("a red circle, number {index} ✓"),
        images: Some([vec![index as u8; 9], vec![255; index as usize % 4]]),
        label: (index % 5 != 0).then(|| [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]][index as usize % 3]),
        user_id: full.then_some(index % 7),
        ranking_id: full.then_some(index),
        image_uids: both("uid"),
        image_urls: both("url"),
        models: both("model"),
        best_image_uid: full.then(|| "tie".into()),
        are_different: full.then_some(true),
        has_label: full.then_some(index % 5 != 0),
        created_at: full.then_some(1_700_000_000_000_000_123),
        num_example_per_prompt: full.then_some(3),
        index: full.then_some(-index),
    }
}

fn write(path: &Path, groups: &[Vec<Preference>]) {
    let mut writer = Writer::create(path).unwrap();
    for group in groups {
        writer.write(group).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_is_written_is_read_back_whole_and_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/train-00000-of-00001.parquet");
    let groups: Vec<Vec<Preference>> = [(0, 300), (300, 301), (301, 700)]
        .into_iter()
        .map(|(from, to)| (from..to).map(|index| pair(index, index % 3 != 0)).collect())
        .collect();
    write(&path, &groups);
    let all = groups.concat();
    assert_eq!(read(&path, Columns::All).unwrap(), all);
    let again = folder.path().join("again.parquet");
    write(&again, &groups);
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
    let without = read(&path, Columns::WithoutImages).unwrap();
    assert!(without.iter().zip(&all).all(|(bare, full)| {
        bare.images.is_none() && Preference { images: full.images.clone(), ..bare.clone() } == *full
    }));
    let sizes: Vec<usize> =
        Batches::open(&path, Columns::All).unwrap().map(|batch| batch.unwrap().len()).collect();
    assert_eq!(sizes, [256, 44, 1, 256, 143]);
}

#[test]
fn a_file_takes_its_name_only_when_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.parquet");
    let mut writer = Writer::create(&path).unwrap();
    writer.write(&[pair(1, true)]).unwrap();
    drop(writer);
    assert!(!path.exists());
}

#[test]
fn torn_and_foreign_files_are_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.parquet");
    write(&path, &[(0..50).map(|index| pair(index, true)).collect()]);
    let whole = std::fs::read(&path).unwrap();
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read(&path, Columns::All).unwrap_err().to_string()
    };
    for length in [4, 100, whole.len() / 2, whole.len() - 1] {
        let message = message(&whole[..length]);
        assert!(message.contains("pairs.parquet: the parquet file is cut short"), "{message}");
    }
    assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
    assert!(message(b"<html>").contains("something else"));
    assert!(message(b"").contains("0 bytes"));
    assert!(
        read(folder.path().join("absent"), Columns::All).unwrap_err().to_string().contains("cannot read")
    );
}

#[test]
fn damage_anywhere_is_an_error_or_leaves_rows_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.parquet");
    write(&path, &[(0..20).map(|index| pair(index, true)).collect()]);
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for place in (4..whole.len()).step_by(37) {
        let mut bytes = whole.clone();
        bytes[place] ^= if place % 2 == 0 { 0xff } else { 1 << (place % 8) };
        std::fs::write(&path, &bytes).unwrap();
        match read(&path, Columns::All) {
            Ok(rows) => assert!(rows.len() <= 20),
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("pairs.parquet"), "{error}");
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn labels_out_of_range_name_their_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.parquet");
    let mut rows: Vec<Preference> = (0..300).map(|index| pair(index, true)).collect();
    rows[280].label = Some([2.0, -1.0]);
    write(&path, &[rows]);
    let message = read(&path, Columns::All).unwrap_err().to_string();
    assert!(message.contains("row 280, column \"label_0\"") && message.contains("label_0 = 2"), "{message}");
    let mut batches = Batches::open(&path, Columns::All).unwrap();
    assert!(batches.next().unwrap().is_ok() && batches.next().unwrap().is_err() && batches.next().is_none());
}

#[test]
fn shards_are_found_by_their_part() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let one = [pair(1, true)];
    let names = [
        shard_name(Split::Train, 1, 2),
        shard_name(Split::Train, 0, 2),
        shard_name(Split::Validation, 0, 1),
        "validation_unique-00000-of-00001-0123456789abcdef.parquet".into(),
    ];
    for name in &names {
        write(&data.join(name), &[one.to_vec()]);
    }
    let found = |path: &Path, split| -> Vec<String> {
        let shards = shards(path, split).unwrap();
        shards.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(found(folder.path(), Split::Train), [names[1].clone(), names[0].clone()]);
    assert_eq!(found(&data, Split::Validation), [names[2].clone()]);
    assert_eq!(found(&data, Split::ValidationUnique), [names[3].clone()]);
    assert_eq!(found(&data.join(&names[2]), Split::Train), [names[2].clone()], "a file is taken as it is");
    assert_eq!(load(folder.path(), Split::Train, Columns::All).unwrap().len(), 2);
    let message = shards(folder.path(), Split::Test).unwrap_err().to_string();
    assert!(message.contains("test-*.parquet") && message.contains(&names[0]), "{message}");
    let files = shards(folder.path(), Split::Train).unwrap();
    let bytes: Vec<u8> = files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(digest(&files).unwrap(), Digest::of(&bytes));

    let other = tempfile::tempdir().unwrap();
    write(&other.path().join("pairs.parquet"), &[one.to_vec()]);
    assert_eq!(found(other.path(), Split::Train), ["pairs.parquet"]);
    assert!(shards(other.path(), Split::Test).is_err());
}

#[test]
fn ranges_are_taken_in_order_across_files() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Preference> = (0..900).map(|index| pair(index, true)).collect();
    for (index, part) in [(0, &rows[..300]), (1, &rows[300..310]), (2, &rows[310..])] {
        write(&folder.path().join(shard_name(Split::Train, index, 3)), &[part.to_vec()]);
    }
    let mut reader = Rows::open(folder.path(), Split::Train, Columns::All).unwrap();
    for range in [5..8, 8..305, 305..306, 700..702] {
        assert!(reader.take(range.clone()).unwrap() == rows[range.clone()], "{range:?}");
    }
    let message = reader.take(3..4).err().unwrap().to_string();
    assert!(message.contains("3..4") && message.contains("702"), "{message}");
    let message = reader.take(890..901).err().unwrap().to_string();
    assert!(message.contains("901") && message.contains("900"), "{message}");
}
