//! A run that is killed again and again ends with the rows of one that nobody disturbed, and pays for hardly more.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ppd::rng::stream;
use ppd::units::Seed;

use crate::judge_server::{Behaviour, Server};

const KILLS: usize = 50;
const PICTURES: usize = 150;

fn pictures(root: &std::path::Path) {
    let mut prompts = String::from("image,prompt\n");
    for i in 0..PICTURES {
        for (salt, folder) in ["ours", "theirs", "s"].into_iter().enumerate() {
            std::fs::create_dir_all(root.join(folder)).unwrap();
            let bytes = (0..192).map(|k| ((i * 7 + salt * 31) * k % 251) as u8).collect();
            ppd::image::write(
                root.join(format!("{folder}/{i:03}.png")),
                &ppd::pixels::Image::new(8, 8, bytes),
            )
            .unwrap();
        }
        prompts.push_str(&format!("{i:03}.png,prompt {i}\n"));
    }
    std::fs::write(root.join("prompts.csv"), prompts).unwrap();
    let line = |user: &str| {
        format!(
            "{{\"user\": \"{user}\", \"shots\": [{{\"caption\": \"c\", \"chosen\": \"s/000.png\", \"rejected\": \"s/001.png\"}}]}}\n"
        )
    };
    std::fs::write(root.join("shots.jsonl"), line("ann") + &line("bob")).unwrap();
}

fn start(root: &std::path::Path, cache: &str, out: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_ppd"))
        .args([
            "judge",
            "--judge",
            "judge.toml",
            "--users",
            "shots.jsonl",
            "--left",
            "ours",
            "--right",
            "theirs",
        ])
        .args(["--prompts", "prompts.csv", "--cache", cache, "--out", out])
        .current_dir(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// How many questions the server has answered.
fn answered(server: &Server) -> usize {
    server.log().questions.values().filter(|(_, answered)| *answered > 0).count()
}

#[test]
fn soak_a_judging_killed_fifty_times_ends_with_the_same_rows() {
    let behaviour =
        Behaviour { seed: 9, faults: 2, delay: Duration::from_millis(60), ..Behaviour::default() };
    let server = Server::start(behaviour);
    let root = tempfile::tempdir().unwrap();
    pictures(root.path());
    let config = format!(
        "kind = \"openai\"\nbase_url = \"{}\"\nmodel = \"judge\"\nseed = 7\n[limits]\nconcurrency = 4\nattempts = 9\n\
         timeout_seconds = 0.5\nbackoff_seconds = 0.001\nlongest_backoff_seconds = 0.01\n",
        server.url
    );
    std::fs::write(root.path().join("judge.toml"), config).unwrap();
    assert!(start(root.path(), "undisturbed", "undisturbed.csv").wait().unwrap().success());
    let calm = server.log();
    assert_eq!((calm.questions.len(), calm.asked_again()), (4 * PICTURES, 0));
    server.forget();
    let mut moments = stream(Seed::new(1), "kills", 0);
    let mut killed = 0;
    while killed < KILLS {
        let mut child = start(root.path(), "killed", "killed.csv");
        // Some before the first question; the others anywhere up to a dozen answers later, on a slow machine as on a fast one.
        if killed % 5 > 0 {
            let enough = answered(&server) + moments.below(12);
            while answered(&server) < enough && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        std::thread::sleep(Duration::from_secs_f64(moments.between(0.0, 0.15)));
        let finished = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!finished, "all was asked after {killed} kills: nothing is left to disturb");
        killed += 1;
    }
    let before = answered(&server);
    assert!(start(root.path(), "killed", "killed.csv").wait().unwrap().success());
    let read = |name: &str| std::fs::read_to_string(root.path().join(name)).unwrap();
    assert_eq!(read("killed.csv"), read("undisturbed.csv"));
    // Only calls that were on their way at a kill are asked again: at most four a kill.
    let log = server.log();
    println!(
        "{killed} kills, {before} of {} questions answered by then, {} answers asked for again",
        log.questions.len(),
        log.asked_again()
    );
    assert!(log.asked_again() <= 4 * KILLS, "{}", log.asked_again());
    let lines: usize = walkdir::WalkDir::new(root.path().join("killed"))
        .into_iter()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "jsonl"))
        .map(|entry| std::fs::read_to_string(entry.path()).unwrap().lines().count())
        .sum();
    assert_eq!(lines, 4 * PICTURES, "one line a question");
}
