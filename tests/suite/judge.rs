//! Judges: every call ends in a named state, whatever the server does; what was paid for is not asked again.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use ppd::image;
use ppd::judge::{Answer, Asked, Cache, Caps, Config, Judge, Judged, Picture, Plan, Protocol, Shot};
use ppd::judgement::{Calls, Order, Outcome, Row, Slot, Tally, pairs, read};
use ppd::pixels::Image;
use ppd::progress::Progress;
use ppd::units::Digest;

use crate::judge_server::{Behaviour, Schema, Server};

fn picture(name: &str) -> Image {
    let digest = Digest::of(name.as_bytes());
    let shade = |i: usize| u8::from_str_radix(&digest.hex()[2 * i..2 * i + 2], 16).unwrap();
    Image::new(8, 8, (0..192).map(|i| shade(i % 16)).collect())
}

/// Pairs of two users, who have two and no pairs of their own.
fn asked(count: usize) -> Vec<Asked> {
    let new = |name: String| Picture::new(name.clone(), picture(&name));
    let shot = |i: usize| Shot {
        caption: format!("thing {i}"),
        chosen: new(format!("chosen {i}")),
        rejected: new(format!("rejected {i}")),
    };
    let shots: [Arc<[Shot]>; 2] = [Arc::new([shot(0), shot(1)]), Arc::new([])];
    (0..count)
        .map(|i| Asked {
            user: format!("user {}", i % 2),
            prompt: format!("prompt {i}"),
            left: new(format!("left {i}")),
            right: new(format!("right {i}")),
            shots: shots[i % 2].clone(),
            log_odds: Some(i as f64 / 10.0 - 2.0),
        })
        .collect()
}

/// An endpoint's configuration with pauses as short as tests need them.
fn endpoint(url: &str, more: &str) -> String {
    format!(
        "kind = \"openai\"\nbase_url = \"{url}\"\nmodel = \"judge\"\nseed = 7\n{more}\n[limits]\nconcurrency = 6\nattempts = 9\n\
         timeout_seconds = 0.4\nbackoff_seconds = 0.001\nlongest_backoff_seconds = 0.004\nlongest_wait_seconds = 5.0\n\
         [price]\ninput_per_million = 10.0\noutput_per_million = 100.0\n"
    )
}

fn open(text: &str, folder: Option<&Path>) -> ppd::error::Result<Judge> {
    let config = Config::parse(text, "judge.toml")?;
    let mut judge = Judge::open(config, &Device::Cpu, |name| (name == "A_KEY").then(|| "sk-planted".into()))?;
    judge.prepare(folder, &Progress::silent())?;
    Ok(judge)
}

fn ask(judge: &Judge, asked: &[Asked], cache: Option<&Cache>, caps: Caps) -> Judged {
    Plan::new(judge, &Protocol::default(), asked, cache).unwrap().ask(caps, &Progress::silent()).unwrap()
}

fn cache(judge: &Judge, folder: &Path) -> Cache {
    Cache::open(folder, &judge.identity().digest()).unwrap()
}

#[test]
fn whatever_the_server_does_every_call_ends_in_a_state_and_none_is_asked_twice_after_its_answer() {
    let server = Server::start(Behaviour { seed: 3, faults: 4, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let judge = open(&endpoint(&server.url, ""), Some(folder.path())).unwrap();
    let asked = asked(60);
    let judged = ask(&judge, &asked, Some(&cache(&judge, folder.path())), Caps::default());
    let calls = Calls::of(&judged.rows);
    let [verdicts, refusals, unreadable, lost, over] = calls.states;
    assert_eq!((judged.rows.len(), lost, over), (120, 0, 0), "{calls:?}");
    assert!(verdicts > 80 && refusals > 2 && unreadable > 4, "{calls:?}");
    // One row a question, in order.
    for (index, row) in judged.rows.iter().enumerate() {
        assert_eq!((&row.prompt, row.order), (&asked[index / 2].prompt, Order::ALL[index % 2]));
        assert_eq!((row.shots, &*row.judge), (2 - 2 * (index as u32 / 2 % 2), "openai judge"));
        assert_eq!(row.version, "127.0.0.1 judge-1 fp_1");
        assert_eq!((row.tokens_in, row.tokens_out), (Some(1000), Some(5)));
        if let Outcome::Verdict { slot, log_odds } = row.outcome {
            assert_eq!(log_odds.unwrap() > 0.0, slot == Slot::A);
        }
    }
    let log = server.log();
    assert_eq!((log.questions.len(), log.asked_again()), (120, 0));
    assert!(log.questions.values().map(|(came, _)| came).sum::<usize>() > 250, "the server failed often");
    // A second run finds every answer, and asks nobody, not even what the endpoint can.
    server.forget();
    let again = open(&endpoint(&server.url, ""), Some(folder.path())).unwrap();
    let second = ask(&again, &asked, Some(&cache(&again, folder.path())), Caps::default());
    assert_eq!((&second.rows, second.spent.calls), (&judged.rows, 0));
    assert_eq!((server.log().questions.len(), server.log().probes), (0, 0));
}

#[test]
fn a_server_that_never_answers_leaves_named_rows_that_are_asked_again() {
    let server = Server::start(Behaviour::default());
    let folder = tempfile::tempdir().unwrap();
    let text = endpoint(&server.url, "").replace("attempts = 9", "attempts = 2");
    let judge = open(&text, Some(folder.path())).unwrap();
    server.behave(Behaviour { seed: 1, faults: 1000, ..Behaviour::default() });
    let asked = asked(5);
    let judged = ask(&judge, &asked, Some(&cache(&judge, folder.path())), Caps::default());
    let failed = |rows: &[Row]| Calls::of(rows).states[3];
    assert!(failed(&judged.rows) >= 8, "{:?}", Calls::of(&judged.rows));
    assert!(
        judged
            .rows
            .iter()
            .all(|row| row.outcome.state() != "transport-error" || !row.outcome.reason().is_empty())
    );
    server.behave(Behaviour { plain: true, ..Behaviour::default() });
    let judged = ask(&judge, &asked, Some(&cache(&judge, folder.path())), Caps::default());
    assert_eq!(Calls::of(&judged.rows).verdicts(), 10);
    // A key that is refused in the middle ends the asking, not the run.
    server.behave(Behaviour { key: Some("other".into()), ..Behaviour::default() });
    let judged = ask(&judge, &self::asked(40), Some(&cache(&judge, folder.path())), Caps::default());
    assert_eq!((failed(&judged.rows), Calls::of(&judged.rows).verdicts()), (70, 10));
    let stopped =
        judged.rows.iter().filter(|row| row.outcome.reason().contains("nothing more was asked")).count();
    assert!(stopped >= 60, "{stopped}");
}

#[test]
fn a_cap_leaves_rows_over_budget_that_a_larger_one_asks() {
    let server =
        Server::start(Behaviour { plain: true, delay: Duration::from_millis(2), ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let judge = open(&endpoint(&server.url, ""), Some(folder.path())).unwrap();
    let (asked, cache) = (asked(20), cache(&judge, folder.path()));
    let over = |judged: &Judged| Calls::of(&judged.rows).states[4];
    let estimate = Plan::new(&judge, &Protocol::default(), &asked, Some(&cache)).unwrap().estimate();
    assert_eq!((estimate.rows, estimate.answered, estimate.missing.calls), (40, 0, 40));
    for (caps, calls) in [
        (Caps { calls: Some(0), ..Caps::default() }, 0),
        (Caps { calls: Some(7), ..Caps::default() }, 7),
        // The same cap again: its calls are used up.
        (Caps { calls: Some(7), ..Caps::default() }, 0),
        // 1,005 tokens and 0.0105 a call.
        (Caps { tokens: Some(15_000), ..Caps::default() }, 7),
        (Caps { cost: Some(0.2), ..Caps::default() }, 5),
    ] {
        let judged = ask(&judge, &asked, Some(&cache), caps);
        // The estimate of an image may end the asking a little before the cap, never behind it.
        assert!(
            judged.spent.calls <= calls && judged.spent.calls + 3 >= calls,
            "{caps:?}: {:?}",
            judged.spent
        );
        assert_eq!(over(&judged) as usize, 40 - cache.len(), "{caps:?}");
        let named = judged.rows.iter().filter(|row| row.outcome.reason().contains("--max-")).count();
        assert_eq!(named as u64, over(&judged));
    }
    let judged = ask(&judge, &asked, Some(&cache), Caps::default());
    assert_eq!((over(&judged), cache.len(), server.log().asked_again()), (0, 40, 0));
    assert!((judged.spent.plus(judged.before).cost - 40.0 * 0.0105).abs() < 1e-9);
}

#[test]
fn what_an_endpoint_can_is_found_out_and_one_that_does_not_see_is_refused() {
    let abilities = |behaviour: Behaviour, more: &str| {
        let server = Server::start(behaviour);
        open(&endpoint(&server.url, more), None)
            .map(|judge| judge.identity().settings["abilities"].to_string())
    };
    let plain = Behaviour::default;
    assert_eq!(abilities(plain(), "").unwrap(), r#"{"json_schema":true,"top_logprobs":20}"#);
    assert_eq!(
        abilities(plain(), "logprobs = false\njson_schema = false").unwrap(),
        r#"{"json_schema":false,"top_logprobs":0}"#
    );
    let few = Behaviour { top_logprobs: 5, schema: Schema::Ignored, ..plain() };
    assert_eq!(abilities(few, "").unwrap(), r#"{"json_schema":false,"top_logprobs":5}"#);
    let none = Behaviour { top_logprobs: 0, schema: Schema::Refused, ..plain() };
    assert_eq!(abilities(none.clone(), "").unwrap(), r#"{"json_schema":false,"top_logprobs":0}"#);
    for (behaviour, more, parts) in [
        (Behaviour { sees: false, ..plain() }, "", ["does not see", "vision"]),
        (none.clone(), "logprobs = true", ["cannot be asked", "logprobs"]),
        (none, "json_schema = true", ["response_format", "json_schema"]),
        (Behaviour { key: Some("k".into()), ..plain() }, "", ["401", "OPENAI_API_KEY"]),
        (plain(), "key_env = \"NO_SUCH\"", ["NO_SUCH", "not set"]),
    ] {
        let message = abilities(behaviour, more).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn the_number_of_calls_at_a_time_follows_the_server() {
    let crowded =
        Behaviour { plain: true, delay: Duration::from_millis(4), at_a_time: 2, ..Behaviour::default() };
    let server = Server::start(crowded.clone());
    let text =
        endpoint(&server.url, "").replace("concurrency = 6", "concurrency = 12\nstart_concurrency = 12");
    let judge = open(&text.replace("attempts = 9", "attempts = 40"), None).unwrap();
    let judged = ask(&judge, &asked(40), None, Caps::default());
    assert_eq!(Calls::of(&judged.rows).verdicts(), 80);
    assert!(judged.concurrency < 6.0, "{}", judged.concurrency);
    server.behave(Behaviour { at_a_time: usize::MAX, ..crowded });
    server.forget();
    let judge = open(&text.replace("start_concurrency = 12", "start_concurrency = 1"), None).unwrap();
    let judged = ask(&judge, &asked(100), None, Caps::default());
    assert!(
        judged.concurrency > 10.0 && server.log().busiest > 6,
        "{} {}",
        judged.concurrency,
        server.log().busiest
    );
}

#[test]
fn a_wish_to_wait_is_granted() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let answer = |mut to: std::net::TcpStream, status: &str, header: String| {
        let mut request = [0; 65536];
        while !String::from_utf8_lossy(&request).contains("image_url") {
            let _ = to.read(&mut request).unwrap();
        }
        write!(to, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{header}\r\n").unwrap();
    };
    let thread = std::thread::spawn(move || {
        let mut connections = listener.incoming().flatten();
        answer(connections.next().unwrap(), "429 Too Many Requests", "Retry-After: 1\r\n".into());
        let told = Instant::now();
        answer(connections.next().unwrap(), "503 Service Unavailable", "Retry-After: 9\r\n".into());
        told.elapsed()
    });
    // The second wish is longer than this configuration grants.
    let message = open(&endpoint(&url, ""), None).unwrap_err().to_string();
    assert!(message.contains("503"), "{message}");
    assert!(thread.join().unwrap() >= Duration::from_millis(990));
}

#[test]
fn answers_follow_from_everything_that_is_in_their_key() {
    let server = Server::start(Behaviour { plain: true, ..Behaviour::default() });
    let folder = tempfile::tempdir().unwrap();
    let count = |text: &str, protocol: Protocol, asked: &[Asked]| {
        let judge = open(text, Some(folder.path())).unwrap();
        let cache = cache(&judge, folder.path());
        let judged = Plan::new(&judge, &protocol, asked, Some(&cache))
            .unwrap()
            .ask(Caps::default(), &Progress::silent());
        judged.unwrap().spent.calls
    };
    let (text, base) = (endpoint(&server.url, ""), asked(2));
    let plain = Protocol::default;
    assert_eq!(count(&text, plain(), &base), 4);
    assert_eq!(count(&text, plain(), &base), 0);
    assert_eq!(count(&text, Protocol { repeats: 2, ..plain() }, &base), 4, "the second repetition");
    for (from, to) in [
        ("seed = 7", "seed = 8"),
        ("seed = 7", "seed = 7\nmax_tokens = 65"),
        ("seed = 7", "seed = 7\ntemperature = 0.5"),
        ("seed = 7", "seed = 7\nimage = \"jpeg\""),
        ("seed = 7", "seed = 7\nversion = \"2\""),
        ("seed = 7", "seed = 7\nbackend = \"other\""),
        ("\"judge\"", "\"judge-2\""),
    ] {
        assert_eq!(count(&text.replace(from, to), plain(), &base), 4, "{to}");
    }
    let template = ppd::judge::Template::parse("<image><image>{pair}\n", "t").unwrap_err().to_string();
    assert!(template.contains("unknown field"), "{template}");
    let words = ppd::judge::Template::DEFAULT.replace("Now", "Then");
    let template = ppd::judge::Template::parse(&words, "t").unwrap();
    assert_eq!(count(&text, Protocol { template, ..plain() }, &base), 4);
    let mut other = base.clone();
    other[1].prompt.push('!');
    assert_eq!(count(&text, plain(), &other), 2);
    let mut other = base.clone();
    other[0].left = Picture::new("left 0", picture("another"));
    assert_eq!(count(&text, plain(), &other), 2);
    let mut other = base.clone();
    other[0].shots = other[0].shots[..1].to_vec().into();
    assert_eq!(count(&text, plain(), &other), 2);
    // Names are not shown to a judge: the same images under others are the same question, within a run too.
    let mut same = base.clone();
    same[0].left = Picture::new("renamed", picture("left 0"));
    same.extend(base.clone());
    assert_eq!(count(&text, plain(), &same), 0);
    assert_eq!(count(&text.replace("seed = 7", "seed = 9"), plain(), &same), 4);
}

#[test]
fn what_cannot_be_asked_is_refused_with_the_way_out() {
    let judge =
        Judge::open(Config::parse("kind = \"oracle\"", "o").unwrap(), &Device::Cpu, |_| None).unwrap();
    let refused = |change: &dyn Fn(&mut Asked)| {
        let mut asked = asked(1);
        change(&mut asked[0]);
        Plan::new(&judge, &Protocol::default(), &asked, None).unwrap_err().to_string()
    };
    let message = refused(&|asked| asked.left = Picture::new("wide", Image::new(9, 8, vec![0; 216])));
    assert!(
        message.contains("9×8") && message.contains("8×8") && message.contains("--allow-sizes"),
        "{message}"
    );
    let message = refused(&|asked| asked.prompt = "an <image>".into());
    assert!(message.contains("<image>"), "{message}");
    for (text, parts) in [
        ("kind = \"opnai\"", ["judge.toml", "`openai`"]),
        (
            "kind = \"openai\"\nmodel = \"m\"\nbase_url = \"http://h\"\nmax_token = 3",
            ["line 4", "`max_tokens`"],
        ),
        ("kind = \"vlm\"", ["folder", "judge.toml"]),
        ("kind = \"oracle\"\nbias = \"much\"", ["judge.toml: line 2", "much"]),
    ] {
        let message = Config::parse(text, "judge.toml").unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    for (text, part) in [
        ("kind = \"openai\"\nmodel = \"m\"\nbase_url = \"me:secret@h\"", "https://"),
        ("kind = \"openai\"\nmodel = \"m\"\nbase_url = \"http://h\"\n[limits]\nattempts = 0", "attempts"),
        (
            "kind = \"openai\"\nmodel = \"m\"\nbase_url = \"http://h\"\n[price]\noutput_per_million = -1.0",
            "price",
        ),
        ("kind = \"oracle\"\nnoise = 2.0", "noise"),
    ] {
        let config = Config::parse(text, "judge.toml").unwrap();
        let message = Judge::open(config, &Device::Cpu, |_| None).unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains("secret"), "{message}");
    }
}

#[test]
fn the_oracle_is_as_good_as_its_equation() {
    let judge = |text: &str| Judge::open(Config::parse(text, "o").unwrap(), &Device::Cpu, |_| None).unwrap();
    let mut asked = asked(2);
    asked.truncate(1);
    asked[0].log_odds = Some(1.0);
    let protocol = Protocol { repeats: 4000, ..Protocol::default() };
    let rows = |judge: &Judge| {
        Plan::new(judge, &protocol, &asked, None)
            .unwrap()
            .ask(Caps::default(), &Progress::silent())
            .unwrap()
            .rows
    };
    let fair = rows(&judge("kind = \"oracle\""));
    let p = 1.0 / (1.0 + (-1f64).exp());
    let tally = Tally::of(&pairs(&fair));
    // Ties as half are unbiased; the strict rule turns 73 % a call into 88 %. Four standard errors each.
    assert!((tally.ties_as_half().unwrap() - p).abs() < 0.02, "{tally:?}");
    assert!((tally.strict().unwrap() - p * p / (p * p + (1.0 - p) * (1.0 - p))).abs() < 0.027, "{tally:?}");
    assert!((tally.probability().unwrap() - p).abs() < 1e-9);
    assert_eq!(fair, rows(&judge("kind = \"oracle\"")), "the same seed, the same answers");
    let biased = rows(&judge("kind = \"oracle\"\nbias = 1.0\nnoise = 0.2"));
    let first = 0.8 * (1.0 / (1.0 + (-2f64).exp()) + 0.5) / 2.0 + 0.1;
    assert!((Calls::of(&biased).first_slot_rate().unwrap() - first).abs() < 0.021);
}

#[test]
fn a_model_on_this_machine_judges_by_its_logits_or_by_what_it_writes() {
    let asked = asked(4);
    let folder = crate::llava_onevision::repository();
    let cached = tempfile::tempdir().unwrap();
    let rows = |answer: &str| {
        let text =
            format!("kind = \"vlm\"\nfolder = {:?}\nanswer = \"{answer}\"\nmax_tokens = 3", folder.path());
        let judge = open(&text, None).unwrap();
        let cache = cache(&judge, cached.path());
        let judged = ask(&judge, &asked, Some(&cache), Caps::default());
        assert_eq!(ask(&judge, &asked, Some(&cache), Caps::default()).spent.calls, 0);
        judged.rows
    };
    let by_logits = rows("logits");
    assert!(by_logits.iter().all(|row| match row.outcome {
        Outcome::Verdict { slot, log_odds: Some(odds) } => (odds > 0.0) == (slot == Slot::A),
        _ => false,
    }));
    let by_words = rows("greedy");
    assert_eq!((by_logits.len(), by_words.len()), (8, 8));
    assert!(by_words.iter().all(|row| row.outcome.is_final()));
}

fn ppd(folder: &Path, key: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ppd"));
    command.args(["judge"]).args(arguments).current_dir(folder).env_remove("OPENAI_API_KEY");
    if let Some(key) = key {
        command.env("JUDGE_KEY", key);
    }
    command.output().unwrap()
}

/// A folder with two folders of images, two users, and lists of pairs.
pub fn images(count: usize) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::write(path, &picture(name)).unwrap();
    };
    let mut prompts = String::from("image,prompt\n");
    for i in 0..count {
        write(&format!("ours/{i:03}.png"));
        write(&format!("theirs/{i:03}.png"));
        prompts.push_str(&format!("{i:03}.png,prompt {i}\n"));
    }
    for name in ["s/a.png", "s/b.png"] {
        write(name);
    }
    std::fs::write(root.path().join("prompts.csv"), prompts).unwrap();
    let line = |user: &str| {
        format!(
            "{{\"user\": \"{user}\", \"shots\": [{{\"caption\": \"c\", \"chosen\": \"s/a.png\", \"rejected\": \"s/b.png\"}}]}}\n"
        )
    };
    std::fs::write(root.path().join("shots.jsonl"), line("ann") + &line("bob")).unwrap();
    root
}

const FOLDERS: [&str; 10] = [
    "--judge",
    "judge.toml",
    "--users",
    "shots.jsonl",
    "--left",
    "ours",
    "--right",
    "theirs",
    "--prompts",
    "prompts.csv",
];

#[test]
fn two_folders_are_judged_and_no_key_is_left_anywhere() {
    let key = "sk-planted-0123456789";
    let server =
        Server::start(Behaviour { seed: 5, faults: 3, key: Some(key.into()), ..Behaviour::default() });
    let root = images(30);
    let with_user = server.url.replace("http://", "http://me:pa55word@");
    let config = endpoint(&with_user, "key_env = \"JUDGE_KEY\"");
    std::fs::write(root.path().join("judge.toml"), config).unwrap();
    let run = |key: &str, more: &[&str]| {
        let output = ppd(root.path(), Some(key), &[FOLDERS.as_slice(), more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = run(key, &["--out", "rows.csv", "--dry-run"]);
    assert!(
        code == Some(0) && out.contains("120 rows, 0 answered") && out.contains("120 calls"),
        "{out}{err}"
    );
    let (code, out, err) = run(key, &["--out", "rows.csv", "--max-calls", "50"]);
    assert!(code == Some(0) && out.contains("over-budget"), "{out}{err}");
    let (code, out, err) = run(key, &["--out", "rows.csv"]);
    assert!(code == Some(0) && out.contains("0 transport-error, 0 over-budget"), "{out}{err}");
    assert!(out.contains("ties as half") && out.contains("first slot"), "{out}");
    let (code, json, _) = run(key, &["--out", "rows.csv", "--json", "--strict"]);
    assert!(
        code == Some(3) && serde_json::from_str::<serde_json::Value>(&json).unwrap()["pairs"] == 60,
        "{json}"
    );
    let (code, refused, said) = run("sk-wrong-key", &["--out", "no.csv", "--cache", "elsewhere"]);
    assert!(code == Some(1) && said.contains("refuses the key"), "{said}");
    let rows = read(&std::fs::read_to_string(root.path().join("rows.csv")).unwrap(), "rows.csv").unwrap();
    assert_eq!((rows.len(), rows[2].user.as_str(), rows[0].left.as_str()), (120, "bob", "ours/000.png"));
    assert!(rows.iter().any(|row| row.outcome.reason().contains("[the key]")), "the server repeated it");
    // Nothing that was said or written holds a key or a password.
    let mut texts = vec![out, err, json, refused, said];
    for entry in
        walkdir::WalkDir::new(root.path()).into_iter().flatten().filter(|entry| entry.file_type().is_file())
    {
        if entry.file_name() != "judge.toml" {
            texts.push(String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned());
        }
    }
    for secret in [key, "sk-wrong-key", "pa55word"] {
        assert!(texts.iter().all(|text| !text.contains(secret)), "{secret} is somewhere");
    }
}

#[test]
fn bad_input_of_the_command_is_named() {
    let root = images(2);
    let config = "kind = \"oracle\"\nbias = 0.5\n";
    std::fs::write(root.path().join("judge.toml"), config).unwrap();
    std::fs::write(root.path().join("bad.txt"), "<image><image>\n{promt}\n").unwrap();
    let pairs = "user,prompt,left,right,log_odds\nann,p,ours/000.png,theirs/000.png,1.5\nbob,p,ours/001.png,theirs/001.png,\n";
    std::fs::write(root.path().join("pairs.csv"), pairs).unwrap();
    image::write(root.path().join("theirs/001.png"), &Image::new(4, 4, vec![9; 48])).unwrap();
    let by_pairs =
        ["--judge", "judge.toml", "--users", "shots.jsonl", "--pairs", "pairs.csv", "--out", "o.csv"];
    for (more, code, parts) in [
        (&["--prompt-template", "bad.txt"][..], 1, ["line 2", "{prompt}"]),
        (&["--shots", "2"], 2, ["--shots 2", "\"ann\" (1)"]),
        (&[], 2, ["4×4", "--allow-sizes"]),
        (&["--allow-sizes"], 2, ["ours/001.png", "log_odds"]),
        (&["--left", "ours"], 2, ["--left", "--pairs"]),
    ] {
        let output = ppd(root.path(), None, &[by_pairs.as_slice(), more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{more:?}: {said}");
        assert!(!root.path().join("o.csv").exists());
    }
    std::fs::write(root.path().join("pairs.csv"), pairs.replace("bob,", "bo,")).unwrap();
    let output = ppd(root.path(), None, &by_pairs);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("\"bo\"") && said.contains("\"bob\""), "{said}");
    std::fs::write(root.path().join("pairs.csv"), pairs.replace("png,\n", "png,0.5\n")).unwrap();
    let none =
        ["--judge", "oracle", "--shots", "0", "--pairs", "pairs.csv", "--out", "o.csv", "--allow-sizes"];
    let output = ppd(root.path(), None, &none);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("calls: 4 verdict"));
}

#[test]
fn rates_are_printed_with_their_intervals() {
    let root = images(24);
    // Eight users of three captions each, out of twelve.
    let mut pairs = String::from("user,prompt,left,right,log_odds\n");
    for i in 0..24 {
        let odds = [9.0, -0.5, 0.5, 1.5, -1.0, 0.2, 3.0, -2.0][i % 8];
        pairs += &format!("user {},prompt {},ours/{i:03}.png,theirs/{i:03}.png,{odds}\n", i % 8, i / 2);
    }
    std::fs::write(root.path().join("pairs.csv"), pairs).unwrap();
    std::fs::write(root.path().join("judge.toml"), "kind = \"oracle\"\nseed = 3\n").unwrap();
    let list = ["--judge", "judge.toml", "--shots", "0", "--pairs", "pairs.csv", "--out", "o.csv"];
    let run = |more: &[&str]| {
        let output = ppd(root.path(), None, &[list.as_slice(), more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let printed = run(&[]);
    let rest = printed.split_once("0 over-budget\n").unwrap().1;
    assert_eq!(rest, PRINTED);
    let json: serde_json::Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!(json["rates"]["ties_as_half"]["users"], 8);
    assert_eq!(json["rates"]["ties_as_half"]["estimate"]["method"], "two-way-bootstrap");
    assert_eq!(json["spread"]["state"], "fitted");
    // Some of the pairs are not asked: the rate over all has bounds.
    let bounded = run(&["--max-calls", "40", "--cache", "elsewhere"]);
    assert!(bounded.contains("  over all asked pairs           ") && bounded.contains(" to "), "{bounded}");
    // A single pair has no interval, and says so.
    let one = "user,prompt,left,right,log_odds\nann,p,ours/000.png,theirs/000.png,9\n";
    std::fs::write(root.path().join("pairs.csv"), one).unwrap();
    let printed = run(&[]);
    assert!(printed.contains("a single user and a single caption: no interval"), "{printed}");
    assert!(printed.contains("how users differ: not identifiable: no user has two pairs"), "{printed}");
}

const PRINTED: &str = "\
95 % intervals, 8 users and 12 captions resampled:
  ties as half                   58.3 % [24.5, 92.2], design effect 2.53
  consistent pairs only          61.1 % [17.3, 100.0], design effect 2.42
  by log-probabilities           58.9 % [32.0, 86.5], design effect 3.29
  consistent in both orders      75.0 % [52.4, 97.6], design effect 1.01
  verdicts for the first slot    45.8 % [37.5, 55.7]
how users differ: mean 0.573 [0.262, 0.844], overdispersion 0.762 [0.251, 0.985] over 8 users with 18 pairs
";

#[test]
fn ten_thousand_cached_judgements_are_read_and_aggregated_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Digest::of(b"judge");
    let key = |i: usize| Digest::of(&i.to_le_bytes());
    let answer = |i: usize| {
        let slot = if i.is_multiple_of(3) { Slot::A } else { Slot::B };
        let log_odds = Some(i as f64 / 1e4);
        Answer {
            tokens_in: Some(5840),
            tokens_out: Some(3),
            endpoint: Some("judge-1 fp_1".into()),
            ..Answer::of(Outcome::Verdict { slot, log_odds })
        }
    };
    let keys: Vec<Digest> = (0..10_000).map(key).collect();
    let line =
        |(i, key): (usize, &Digest)| serde_json::json!({"key": key, "answer": answer(i)}).to_string() + "\n";
    let lines: String = keys.iter().enumerate().map(line).collect();
    std::fs::write(folder.path().join(format!("{}.jsonl", identity.short())), lines).unwrap();
    let aggregate = || {
        let began = Instant::now();
        let cache = Cache::open(folder.path(), &identity).unwrap();
        assert_eq!((cache.len(), cache.damaged()), (10_000, 0));
        let rows: Vec<Row> = keys
            .iter()
            .enumerate()
            .map(|(i, key)| Row {
                user: format!("user {}", i / 32),
                prompt: format!("prompt {}", i / 2),
                left: "l".into(),
                right: "r".into(),
                order: Order::ALL[i % 2],
                repeat: 0,
                shots: 4,
                judge: "openai judge".into(),
                version: String::new(),
                template: identity.clone(),
                outcome: cache.get(key).unwrap().outcome,
                tokens_in: None,
                tokens_out: None,
            })
            .collect();
        let tally = Tally::of(&pairs(&rows));
        assert_eq!((tally.asked(), tally.with_probability), (5000, 5000));
        began.elapsed()
    };
    // The machine may be busy with other tests.
    let took = (0..3).map(|_| aggregate()).min().unwrap();
    println!("10,000 judgements: {:.1} ms", took.as_secs_f64() * 1e3);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn the_examples_are_judges() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/judges");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 4);
    for file in files {
        let config = Config::read(&file).unwrap();
        if !matches!(config, Config::Vlm(_)) {
            Judge::open(config, &Device::Cpu, |_| None).unwrap();
        }
    }
}
