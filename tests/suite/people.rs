//! The real-user study from choices to tables: embeddings, trainings, images, judges, and the four figures.

use std::path::Path;
use std::process::Command;

fn reproduce(root: &Path) -> String {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let output = Command::new(env!("CARGO_BIN_EXE_ppd"))
        .current_dir(root)
        .args(["reproduce", "users", "--quick", "--threads", "2", "--assets"])
        .arg(assets)
        .output()
        .unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{out}\n{err}");
    out + &err
}

#[test]
fn the_whole_study_runs_and_a_second_run_finds_all_of_it() {
    let root = tempfile::tempdir().unwrap();
    reproduce(root.path());
    let figures =
        |study: &str, file: &str| root.path().join("figures").join(study).join("desk-quick").join(file);
    for (study, file) in [
        ("fig5", "fig5.png"),
        ("fig5", "fig5-shots.md"),
        ("fig5", "fig5-claims.md"),
        ("fig5", "audit-rates.md"),
        ("fig5", "audit-judges.md"),
        ("fig6", "fig6.html"),
        ("fig6", "fig6.pdf"),
        ("fig6", "fig6-agreement.md"),
        ("fig2", "fig2.png"),
    ] {
        assert!(figures(study, file).is_file(), "{study}/{file}");
    }
    let judged = root.path().join("results/users/desk-quick/judged");
    let table =
        |judge: &str, set: &str| std::fs::read(judged.join(judge).join(format!("{set}.csv"))).unwrap();
    for judge in ["oracle", "desk", "desk-shared"] {
        let rows = ppd::judgement::read(&String::from_utf8(table(judge, "own")).unwrap(), judge).unwrap();
        // Three users of each kind, four choices, both orders; the oracle is asked twice.
        assert_eq!(rows.len(), if judge == "oracle" { 96 } else { 48 }, "{judge}");
        assert!(rows.iter().all(|row| row.shots == 4));
    }
    let (pairs, page) = (table("oracle", "pairs"), std::fs::read(figures("fig6", "fig6.html")).unwrap());
    let again = reproduce(root.path());
    assert!(again.contains("nothing to do: 8 cells complete"), "{again}");
    assert!(pairs == table("oracle", "pairs"), "the oracle answers the same again");
    assert!(page == std::fs::read(figures("fig6", "fig6.html")).unwrap());
}
