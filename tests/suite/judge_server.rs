//! A judge on loopback that fails in every way a seed draws, and answers in the end: what each question's answer is follows from
//! the question alone.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use ppd::rng::{Stream, stream};
use ppd::units::{Digest, Seed};
use serde_json::{Value, json};

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// What its faults are drawn from.
    pub seed: u64,
    /// The most faults before an answer; 0 for a server without any.
    pub faults: usize,
    /// Whether it sees.
    pub sees: bool,
    /// Whether it keeps to a schema: refuses one, ignores one, or keeps to it.
    pub schema: Schema,
    /// How many tokens' log-probabilities it lists at most; more are refused.
    pub top_logprobs: u64,
    /// How long an answer takes.
    pub delay: Duration,
    /// The key that it wants.
    pub key: Option<String>,
    /// Whether what it answers is always a verdict.
    pub plain: bool,
    /// More calls at a time than this get status 429.
    pub at_a_time: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schema {
    Refused,
    Ignored,
    Kept,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            seed: 0,
            faults: 0,
            sees: true,
            schema: Schema::Kept,
            top_logprobs: 20,
            delay: Duration::ZERO,
            key: None,
            plain: false,
            at_a_time: usize::MAX,
        }
    }
}

/// What the server was asked.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// For each question: how often it came, and how often it was answered.
    pub questions: BTreeMap<String, (usize, usize)>,
    /// Requests that showed the two colours.
    pub probes: usize,
    /// The most requests at a time.
    pub busiest: usize,
    active: usize,
}

impl Log {
    /// Requests for questions that were answered before.
    pub fn asked_again(&self) -> usize {
        self.questions.values().map(|(_, answered)| answered.saturating_sub(1)).sum()
    }
}

pub struct Server {
    pub url: String,
    log: Arc<Mutex<Log>>,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Server {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (log, behaviour) = (Arc::new(Mutex::new(Log::default())), Arc::new(Mutex::new(behaviour)));
        let (shared, changing) = (log.clone(), behaviour.clone());
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (log, behaviour) = (shared.clone(), changing.lock().unwrap().clone());
                std::thread::spawn(move || {
                    let _ = serve(connection, &behaviour, &log);
                });
            }
        });
        Self { url, log, behaviour }
    }

    pub fn log(&self) -> Log {
        self.log.lock().unwrap().clone()
    }

    /// Starts a new log; requests that still hang, because their client has gone, stay counted as active.
    pub fn forget(&self) {
        let mut log = self.log.lock().unwrap();
        *log = Log { active: log.active, ..Log::default() };
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }
}

fn serve(mut connection: TcpStream, behaviour: &Behaviour, log: &Mutex<Log>) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let (mut length, mut key, mut line) = (0, String::new(), String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let header = line.trim();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "authorization" => key = value.trim().to_owned(),
                _ => {}
            }
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let busy = {
        let mut log = log.lock().unwrap();
        log.active += 1;
        log.busiest = log.busiest.max(log.active);
        log.active
    };
    let done = answer(&mut connection, &body, &key, busy, behaviour, log);
    log.lock().unwrap().active -= 1;
    done
}

fn reply(to: &mut TcpStream, status: &str, headers: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(to, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}")
}

fn answer(
    to: &mut TcpStream,
    body: &[u8],
    key: &str,
    busy: usize,
    behaviour: &Behaviour,
    log: &Mutex<Log>,
) -> std::io::Result<()> {
    let request: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let refuse = |to: &mut TcpStream, status: &str, message: &str| {
        reply(to, status, "", &json!({"error": {"message": message}}).to_string())
    };
    if behaviour.key.as_ref().is_some_and(|wanted| key != format!("Bearer {wanted}")) {
        // As careless servers do.
        return refuse(to, "401 Unauthorized", &format!("wrong key: {key}"));
    }
    let wants_schema = request["response_format"]["type"] == "json_schema";
    if wants_schema && behaviour.schema == Schema::Refused {
        return refuse(to, "400 Bad Request", "response_format is not supported");
    }
    let listed = request["top_logprobs"].as_u64().unwrap_or(0);
    if listed > behaviour.top_logprobs {
        return refuse(to, "400 Bad Request", &format!("top_logprobs above {}", behaviour.top_logprobs));
    }
    let parts =
        request["messages"].as_array().and_then(|messages| messages.last()?["content"].as_array().cloned());
    let parts = parts.unwrap_or_default();
    let text: String = parts.iter().filter_map(|part| part["text"].as_str()).collect();
    let images: Vec<&str> = parts.iter().filter_map(|part| part["image_url"]["url"].as_str()).collect();
    let in_form = |letter: &str| match wants_schema && behaviour.schema == Schema::Kept {
        true => json!({"answer": letter}).to_string(),
        false => letter.to_owned(),
    };
    if text.contains("images is red") {
        log.lock().unwrap().probes += 1;
        let letter = if behaviour.sees && !is_red(images[0]) { "B" } else { "A" };
        return reply(to, "200 OK", "", &completion(&in_form(letter), letter, listed, 0.0));
    }
    let digest = Digest::of(request.to_string().as_bytes());
    let (attempt, faults) = {
        let mut log = log.lock().unwrap();
        let count = log.questions.entry(digest.hex().to_owned()).or_default();
        count.0 += 1;
        let mut draws = stream(Seed::new(behaviour.seed), &format!("faults {digest}"), 0);
        (count.0 - 1, if behaviour.faults > 0 { draws.below(behaviour.faults + 1) } else { 0 })
    };
    std::thread::sleep(behaviour.delay);
    if busy > behaviour.at_a_time {
        return refuse(to, "429 Too Many Requests", "too many at a time");
    }
    if attempt < faults {
        let draws = stream(Seed::new(behaviour.seed), &format!("fault {digest}"), attempt as u64);
        return fail(to, draws, key);
    }
    let mut draws = stream(Seed::new(0), &format!("answer {digest}"), 0);
    let letter = if draws.chance(0.5) { "A" } else { "B" };
    let odds = draws.between(0.1, 3.0) * if letter == "A" { 1.0 } else { -1.0 };
    let said = match draws.below(100) {
        _ if behaviour.plain => in_form(letter),
        0..80 => in_form(letter),
        80..87 => format!("I'm sorry, but I cannot compare these ({key})."),
        87..94 => format!("A has warmer colours, while B is sharper ({key})."),
        _ => json!({"preference": letter}).to_string(),
    };
    log.lock().unwrap().questions.entry(digest.hex().to_owned()).or_default().1 += 1;
    reply(to, "200 OK", "", &completion(&said, letter, listed, odds))
}

/// One of the ways in which a server does not answer.
fn fail(to: &mut TcpStream, mut draws: Stream, key: &str) -> std::io::Result<()> {
    let error = json!({"error": {"message": format!("try again, {key}")}}).to_string();
    match draws.below(10) {
        0 => reply(to, "429 Too Many Requests", "", &error),
        1 => reply(to, "429 Too Many Requests", "Retry-After: 0\r\n", &error),
        2 => reply(to, "429 Too Many Requests", "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n", &error),
        3 => reply(to, "500 Internal Server Error", "", "oops"),
        4 => reply(to, "503 Service Unavailable", "Retry-After: 0\r\n", ""),
        // Nothing, at once and for long.
        5 => Ok(()),
        6 => {
            std::thread::sleep(Duration::from_millis(700));
            Ok(())
        }
        7 => {
            let whole = completion("A", "A", 0, 0.0);
            let half = &whole[..whole.len() / 2];
            write!(
                to,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{half}",
                whole.len()
            )
        }
        8 => reply(to, "200 OK", "", "{\"choices\": [{\"message\": {\"content\": \"A\"}"),
        _ => reply(to, "200 OK", "", &json!({"result": "A", "by": key}).to_string()),
    }
}

/// Whether a data URL's picture is red.
fn is_red(url: &str) -> bool {
    let bytes = url.rsplit_once(',').map_or("", |(_, bytes)| bytes);
    let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
    let pixel = ppd::image::decode(&bytes, "a picture").unwrap().at(5, 5);
    pixel[0] > pixel[2]
}

fn completion(said: &str, letter: &str, listed: u64, odds: f64) -> String {
    let p = 1.0 / (1.0 + (-odds).exp());
    let entry = |token: &str, p: f64| json!({"token": token, "logprob": p.ln()});
    let logprobs = (listed > 0).then(|| {
        let all = [entry("A", p), entry("B", 1.0 - p)];
        json!({"content": [{"token": "{\"", "logprob": 0.0, "top_logprobs": []},
                           {"token": letter, "logprob": p.ln(), "top_logprobs": all}]})
    });
    json!({
        "model": "judge-1",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": logprobs,
                     "message": {"role": "assistant", "content": said, "refusal": null}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 5},
    })
    .to_string()
}
