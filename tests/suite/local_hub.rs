//! A hub on loopback: as much of the Hub's HTTP interface as downloads use, over tiny repositories, with faults that
//! can be switched on.
//!
//! Served are `/api/{models,datasets}/OWNER/NAME[/revision/REV]`, `…/tree/REV`, `/[datasets/]OWNER/NAME/resolve/REV/FILE`
//! (HEAD and GET; what git keeps as large files is redirected to `/storage/DIGEST`, as on the real Hub), and plain files
//! below `/plain/`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ppd::units::Digest;
use serde_json::{Value, json};

/// The token that opens gated repositories.
pub const TOKEN: &str = "hf_secret_of_the_tests";

/// One repository.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    /// Commits by branch or tag.
    pub refs: BTreeMap<String, String>,
    /// The files of each commit.
    pub commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Whether it asks for a token.
    pub gated: bool,
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// This many answers with bytes are cut in the middle.
    pub cut: usize,
    /// The most bytes that an answer brings; then it is cut.
    pub at_most: Option<usize>,
    /// This many requests are refused with 429, with this `Retry-After`.
    pub too_many: Option<(usize, String)>,
    /// This many requests are refused with 503.
    pub unavailable: usize,
    /// Files (by name) whose bytes come changed.
    pub tampered: BTreeSet<String>,
    /// Files (by name) that are announced with another size.
    pub announced: BTreeMap<String, u64>,
    /// Ranges are ignored: every answer is the whole file.
    pub no_ranges: bool,
    /// HEAD is not allowed.
    pub no_head: bool,
}

/// One request, as it was received.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What the server holds.
#[derive(Debug, Default)]
pub struct State {
    /// By `models/OWNER/NAME` or `datasets/OWNER/NAME`.
    pub repositories: BTreeMap<String, Repository>,
    /// Files below `/plain/`.
    pub plain: BTreeMap<String, Vec<u8>>,
    pub faults: Faults,
    pub log: Vec<Request>,
    /// Where large files are redirected to: the same server by another host's name.
    storage: String,
}

/// The server; it lives as long as the test's process.
pub struct LocalHub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl LocalHub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = format!("http://127.0.0.1:{port}");
        let storage = format!("http://localhost:{port}/storage");
        let state = Arc::new(Mutex::new(State { storage, ..State::default() }));
        let served = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                std::thread::spawn(move || {
                    // A client that goes away in the middle is no fault of the server.
                    let _ = answer(&stream, &state);
                });
            }
        });
        Self { endpoint, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a repository on the server, with one commit on `main`; the result is that commit.
    pub fn publish(&self, repository: &str, files: &[(&str, &[u8])]) -> String {
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let commit = Digest::of(format!("{repository} {files:?}").as_bytes()).hex()[..40].to_owned();
        let mut state = self.state();
        let kept = state.repositories.entry(repository.to_owned()).or_default();
        kept.commits.insert(commit.clone(), files);
        kept.refs.insert("main".into(), commit.clone());
        commit
    }

    /// Changes what goes wrong from here on.
    pub fn faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().log)
    }

    /// What a process needs in its environment to use this server and no other.
    pub fn environment(&self, home: &std::path::Path) -> Vec<(&'static str, String)> {
        vec![
            ("HF_ENDPOINT", self.endpoint.clone()),
            ("HF_HOME", home.display().to_string()),
            ("NO_PROXY", "127.0.0.1,localhost".into()),
            ("no_proxy", "127.0.0.1,localhost".into()),
        ]
    }
}

/// Whether git would keep a file as a large one.
fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth", ".parquet"].iter().any(|ending| name.ends_with(ending))
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The file that the body is of, where it may be cut and changed.
    file: Option<String>,
}

impl Answer {
    fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), file: None }
    }

    fn json(value: &Value) -> Self {
        Self::new("200 OK", value.to_string())
    }

    fn error(status: &'static str, code: &str) -> Self {
        Self::new(status, "{\"error\":\"no\"}").with("X-Error-Code", code)
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

fn read(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Ok(Some(Request { method, path, headers }))
}

fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let Some(request) = read(stream)? else { return Ok(()) };
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.log.push(request.clone());
    let mut answer = route(&request, &mut state);
    let mut sent = answer.body.len();
    if let Some(file) = &answer.file {
        let name = file.rsplit('/').next().unwrap_or(file).to_owned();
        if state.faults.tampered.contains(&name)
            && let Some(last) = answer.body.last_mut()
        {
            *last ^= 1;
        }
        if request.method == "GET" && state.faults.cut > 0 && sent > 1 {
            state.faults.cut -= 1;
            sent /= 2;
        }
        if request.method == "GET" {
            sent = state.faults.at_most.map_or(sent, |most| sent.min(most));
        }
    }
    drop(state);
    let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| *name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&answer.body[..sent])?;
    }
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the client is done: a socket closed with bytes unread would reset the connection under it.
    let _ = stream.read(&mut [0; 16]);
    Ok(())
}

fn route(request: &Request, state: &mut State) -> Answer {
    if state.faults.unavailable > 0 {
        state.faults.unavailable -= 1;
        return Answer::new("503 Service Unavailable", "");
    }
    if let Some((times, after)) = &mut state.faults.too_many
        && *times > 0
    {
        *times -= 1;
        return Answer::new("429 Too Many Requests", "").with("Retry-After", after.clone());
    }
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if request.method == "HEAD" && state.faults.no_head {
        return Answer::new("405 Method Not Allowed", "");
    }
    if let Some(digest) = path.strip_prefix("/storage/") {
        let all = state.repositories.values().flat_map(|kept| kept.commits.values()).flatten();
        let mut found = all.filter(|(_, bytes)| Digest::of(bytes).hex() == digest);
        return match found.next() {
            Some((name, bytes)) => bytes_of(request, name, bytes, state).with("ETag", "\"storage\""),
            None => Answer::new("403 Forbidden", ""),
        };
    }
    if let Some(name) = path.strip_prefix("/plain/") {
        return match state.plain.get(name) {
            Some(bytes) => bytes_of(request, name, bytes, state)
                .with("ETag", format!("\"{}\"", &Digest::of(bytes).hex()[..32])),
            None => Answer::new("404 Not Found", "not here"),
        };
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (kind, parts) = match parts.as_slice() {
        ["api", kind @ ("models" | "datasets"), rest @ ..] => (*kind, [&["api"], rest].concat()),
        ["datasets", rest @ ..] => ("datasets", rest.to_vec()),
        rest => ("models", rest.to_vec()),
    };
    let (owner, name, rest) = match parts.as_slice() {
        ["api", owner, name, rest @ ..] | [owner, name, rest @ ..] => (*owner, *name, rest.to_vec()),
        _ => return Answer::error("404 Not Found", "RepoNotFound"),
    };
    let id = format!("{owner}/{name}");
    let Some(kept) = state.repositories.get(&format!("{kind}/{id}")) else {
        // The real Hub does not tell strangers whether a repository exists.
        return Answer::error("404 Not Found", "RepoNotFound");
    };
    let bearer = request.headers.get("authorization").map(String::as_str);
    // A gated repository's description is everybody's to read.
    if kept.gated && rest.first() == Some(&"resolve") && bearer != Some(&format!("Bearer {TOKEN}")) {
        let status = if bearer.is_none() { "401 Unauthorized" } else { "403 Forbidden" };
        return Answer::error(status, "GatedRepo");
    }
    let revision = match rest.as_slice() {
        [] => "main",
        ["revision" | "tree" | "resolve", revision, ..] => revision,
        _ => return Answer::error("404 Not Found", "RepoNotFound"),
    };
    let revision = revision.replace("%2F", "/");
    let commit = kept.refs.get(&revision).unwrap_or(&revision).clone();
    let Some(files) = kept.commits.get(&commit) else {
        return Answer::error("404 Not Found", "RevisionNotFound");
    };
    let size = |name: &str, bytes: &[u8]| *state.faults.announced.get(name).unwrap_or(&(bytes.len() as u64));
    match rest.as_slice() {
        [] | ["revision", ..] => {
            let siblings: Vec<Value> = files
                .iter()
                .map(|(name, bytes)| {
                    let mut told = json!({ "rfilename": name });
                    if query.contains("blobs=true") {
                        told["size"] = json!(size(name, bytes));
                        if is_large(name) {
                            told["lfs"] = json!({ "sha256": Digest::of(bytes), "size": size(name, bytes) });
                        }
                    }
                    told
                })
                .collect();
            Answer::json(&json!({ "id": id, "sha": commit, "gated": kept.gated, "siblings": siblings }))
        }
        ["tree", ..] => {
            let entries: Vec<Value> = files
                .iter()
                .map(|(name, bytes)| json!({ "type": "file", "path": name, "size": size(name, bytes) }))
                .collect();
            Answer::json(&Value::from(entries))
        }
        ["resolve", _, file @ ..] => {
            let file = file.join("/").replace("%20", " ");
            let Some(bytes) = files.get(&file) else {
                return Answer::error("404 Not Found", "EntryNotFound");
            };
            let digest = Digest::of(bytes);
            if is_large(&file) {
                return Answer::new("302 Found", "")
                    .with("Location", format!("{}/{digest}", state.storage))
                    .with("X-Repo-Commit", commit)
                    .with("X-Linked-Size", size(&file, bytes).to_string())
                    .with("X-Linked-ETag", format!("\"{digest}\""));
            }
            let tag = format!("\"{}\"", &digest.hex()[..40]);
            bytes_of(request, &file, bytes, state).with("X-Repo-Commit", commit).with("ETag", tag)
        }
        _ => Answer::error("404 Not Found", "RepoNotFound"),
    }
}

/// A file's bytes, or those that the request's range names.
fn bytes_of(request: &Request, name: &str, bytes: &[u8], state: &State) -> Answer {
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let mut answer = match range.and_then(|range| range.split_once('-')).filter(|_| !state.faults.no_ranges) {
        Some((start, end)) => {
            let start: usize = start.parse().unwrap_or(0);
            if start >= bytes.len() {
                return Answer::new("416 Range Not Satisfiable", "")
                    .with("Content-Range", format!("bytes */{}", bytes.len()));
            }
            let end = end.parse::<usize>().map_or(bytes.len(), |end| (end + 1).min(bytes.len()));
            Answer::new("206 Partial Content", &bytes[start..end])
                .with("Content-Range", format!("bytes {start}-{}/{}", end - 1, bytes.len()))
        }
        None => Answer::new("200 OK", bytes),
    };
    if let Some(size) = state.faults.announced.get(name) {
        answer = answer.with("Content-Length", size.to_string());
    }
    answer.file = Some(name.to_owned());
    answer
}
