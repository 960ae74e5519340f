//! Requests to the Hub and to plain web addresses, and what each refusal means for whoever asked.

use std::io::Read;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::cache::repository;
use super::{Hub, Kind};
use crate::error::{Error, Result, nearest};
use crate::progress::Progress;
use crate::units::Digest;

/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 5;
/// The longest that a server's wish to wait is granted, in seconds.
const LONGEST_WAIT: u64 = 60;
/// How long a connection, an answer and a part of one may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// The same request would fail again.
    Final(Error),
    /// The same request may succeed, in a while that the server may have named, in seconds.
    Passing(Error, Option<u64>),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Whose file is asked for, for messages.
#[derive(Debug, Clone)]
pub(super) struct About<'a> {
    /// The artefact's name in the profile.
    pub(super) name: &'a str,
    /// The repository or address.
    pub(super) source: String,
    /// The repository's page, where its terms are; none for a plain address.
    pub(super) page: Option<String>,
    /// Other repositories with the same.
    pub(super) mirrors: &'a [String],
}

impl About<'_> {
    /// A fault that names the artefact and what to do.
    pub(super) fn fault(&self, message: impl std::fmt::Display) -> Error {
        Error::hub(self.name, format!("{}: {message}", self.source))
    }

    /// How to use something else instead.
    fn instead(&self) -> String {
        let name = self.name;
        match self.mirrors {
            [] => format!("--mirror {name}=PATH_OR_URL lets a folder or another address stand for it"),
            mirrors => format!(
                "mirrors: {}; --mirror {name}=hf://{} uses one, --mirror {name}=PATH_OR_URL a folder or another address",
                mirrors.join(", "),
                mirrors[0]
            ),
        }
    }
}

/// A repository at a commit.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    /// The commit.
    pub(super) sha: String,
    #[serde(default)]
    pub(super) siblings: Vec<Sibling>,
}

/// A file of a repository.
#[derive(Debug, Deserialize)]
pub(super) struct Sibling {
    #[serde(rename = "rfilename")]
    pub(super) name: String,
    size: Option<u64>,
    lfs: Option<Large>,
}

/// What git keeps of a large file.
#[derive(Debug, Deserialize)]
struct Large {
    sha256: Option<String>,
}

impl Sibling {
    /// What the repository's description says of the file: of large files all there is.
    pub(super) fn head(&self) -> Head {
        let sha256 = self.lfs.as_ref().and_then(|large| large.sha256.clone());
        let sha256 = sha256.and_then(|digest| Digest::try_from(digest).ok());
        Head { tag: sha256.as_ref().map(|digest| digest.hex().to_owned()), bytes: self.size, sha256 }
    }
}

/// What a server says of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    /// A name for the bytes: the digest where the server has one.
    pub(super) tag: Option<String>,
    pub(super) bytes: Option<u64>,
    /// The digest, where the Hub says it.
    pub(super) sha256: Option<Digest>,
}

impl Head {
    /// Whether there is no need to ask further.
    pub(super) fn is_complete(&self) -> bool {
        self.tag.is_some() && self.bytes.is_some() && self.sha256.is_some()
    }

    /// This, or where it says nothing, `other`.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            tag: self.tag.or(other.tag),
            bytes: self.bytes.or(other.bytes),
            sha256: self.sha256.or(other.sha256),
        }
    }
}

/// Speaks to servers. The token goes to the Hub's endpoint alone.
pub(super) struct Client {
    agent: Agent,
    api: Api,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    /// A client for what the environment names.
    ///
    /// # Errors
    /// Where the system gives no connection.
    pub(super) fn new(hub: &Hub) -> Result<Self> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("ppd/", env!("CARGO_PKG_VERSION")))
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build();
        let api = ApiBuilder::from_cache(hub.cache.clone())
            .with_endpoint(hub.endpoint.clone())
            .with_token(hub.token.clone())
            .with_progress(false)
            .build()
            .map_err(|fault| Error::hub("the Hub", format!("cannot be asked: {fault}")))?;
        let agent = Agent::new_with_config(config);
        Ok(Self { agent, api, endpoint: hub.endpoint.clone(), token: hub.token.clone() })
    }

    /// The page of a repository.
    pub(super) fn page(&self, kind: Kind, name: &str) -> String {
        let prefix = if kind == Kind::Dataset { "datasets/" } else { "" };
        format!("{}/{prefix}{name}", shown(&self.endpoint))
    }

    /// The address of a file of a repository.
    pub(super) fn url(&self, kind: Kind, name: &str, commit: &str, file: &str) -> String {
        self.api.repo(repository(kind, name, commit)).url(&encoded(file))
    }

    /// Resolves a revision to a commit, with the names of its files.
    ///
    /// # Errors
    /// Where the Hub cannot be asked, or refuses.
    pub(super) fn info(
        &self,
        (kind, name, revision): (Kind, &str, &str),
        about: &About,
        progress: &Progress,
    ) -> Result<Info> {
        let repo = self.api.repo(repository(kind, name, revision));
        let mut info: Info = patiently(progress, || {
            let request = repo.info_request().query("blobs", "true").config().http_status_as_error(false);
            let request = request.timeout_connect(Some(PATIENCE)).timeout_recv_response(Some(PATIENCE));
            let mut answer = request.build().call().map_err(|fault| self.unreachable(&fault, about))?;
            if !answer.status().is_success() {
                return Err(self.refused(&answer, &format!("revision `{revision}`"), about));
            }
            let body = answer.body_mut().with_config().limit(64 << 20).read_json();
            body.map_err(|fault| {
                let told = about
                    .fault(format!("expected the Hub's description of it, got something else ({fault})"));
                Fault::Passing(told, None)
            })
        })?;
        info.sha = info.sha.trim().to_owned();
        if !info.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) || info.sha.len() < 7 {
            return Err(about.fault(format!(
                "expected a commit for revision `{revision}`, got `{}`; check HF_ENDPOINT ({})",
                info.sha,
                shown(&self.endpoint)
            )));
        }
        Ok(info)
    }

    /// What the server says of a file, without its bytes.
    ///
    /// # Errors
    /// Where it cannot be asked, or refuses.
    pub(super) fn head(&self, url: &str, file: &str, about: &About, progress: &Progress) -> Result<Head> {
        patiently(progress, || {
            let mut url = url.to_owned();
            // Redirects within the Hub (a renamed repository) are followed; the one to the storage is the answer, since
            // it carries what the Hub knows of the file.
            for _ in 0..5 {
                let request =
                    self.with_token(self.agent.head(&url), &url).header("Accept-Encoding", "identity");
                let request = request.config().max_redirects(0).max_redirects_will_error(false).build();
                let answer = request.call().map_err(|fault| self.unreachable(&fault, about))?;
                let status = answer.status();
                if status.is_redirection() && text(answer.headers(), "x-linked-etag").is_none() {
                    let Some(to) = text(answer.headers(), "location") else { break };
                    url = joined(&url, &to);
                    continue;
                }
                // A server without HEAD tells nothing; the download itself will.
                if matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
                    return Ok(Head::default());
                }
                if !status.is_success() && !status.is_redirection() {
                    return Err(self.refused(&answer, &format!("file `{file}`"), about));
                }
                return Ok(head(answer.headers(), status));
            }
            Err(Fault::Final(about.fault(format!("`{file}` is redirected without end; check the address"))))
        })
    }

    /// Asks for a file's bytes from `start` on; the answer's status is 200, 206 or 416.
    ///
    /// # Errors
    /// Where the server cannot be asked, or refuses.
    pub(super) fn get(
        &self,
        url: &str,
        start: u64,
        file: &str,
        about: &About,
    ) -> Result<Response<Body>, Fault> {
        let mut request = self.with_token(self.agent.get(url), url).header("Accept-Encoding", "identity");
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let answer = request.call().map_err(|fault| self.unreachable(&fault, about))?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(answer),
            _ => Err(self.refused(&answer, &format!("file `{file}`"), about)),
        }
    }

    /// Adds the token where the address is the Hub's own.
    fn with_token<T>(&self, request: ureq::RequestBuilder<T>, url: &str) -> ureq::RequestBuilder<T> {
        let at_the_hub = url.strip_prefix(&self.endpoint).is_some_and(|rest| rest.starts_with('/'));
        match &self.token {
            Some(token) if at_the_hub => request.header("Authorization", format!("Bearer {token}")),
            _ => request,
        }
    }

    fn unreachable(&self, fault: &ureq::Error, about: &About) -> Fault {
        let error = about.fault(format!(
            "cannot be reached ({fault}); check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT ({}), then run \
             the same command again; {}",
            shown(&self.endpoint),
            about.instead()
        ));
        Fault::Passing(error, None)
    }

    /// What a status that is no success means.
    fn refused(&self, answer: &Response<Body>, what: &str, about: &About) -> Fault {
        let status = answer.status();
        let code = text(answer.headers(), "x-error-code").unwrap_or_default();
        let instead = about.instead();
        match status.as_u16() {
            401 | 403 => {
                let token = if self.token.is_some() {
                    "the token that is set may not read it"
                } else {
                    "no token is set"
                };
                let terms = about.page.as_deref().map_or_else(String::new, |page| {
                    format!(
                        "accept its terms at {page}, make a token at {}/settings/tokens and set it as HF_TOKEN; ",
                        shown(&self.endpoint)
                    )
                });
                let gated = if code == "GatedRepo" { "it is gated" } else { "it is gated, private or gone" };
                Fault::Final(about.fault(format!(
                    "the server refuses {what} ({status}): {gated}, and {token}; {terms}{instead}"
                )))
            }
            404 | 410 => {
                let which = match code.as_str() {
                    "RevisionNotFound" => "this revision does not exist; name another one in the profile",
                    "EntryNotFound" => "this file does not exist there; check the profile's `files`",
                    "RepoNotFound" => "the repository does not exist any more, or is private",
                    _ => "the repository, revision or file does not exist (any more), or is private",
                };
                Fault::Final(about.fault(format!("the server has no {what} ({status}): {which}; {instead}")))
            }
            429 => {
                let after = text(answer.headers(), "retry-after");
                let seconds = after.as_deref().and_then(|after| after.trim().parse::<u64>().ok());
                let wait = match (&after, seconds) {
                    (_, Some(seconds)) => format!("asks to wait {seconds} s"),
                    (Some(date), None) => format!("asks to wait until {date}"),
                    (None, None) => "asks to wait".into(),
                };
                let error = about.fault(format!(
                    "too many requests ({status}): the server {wait}; run the same command again then, it goes on \
                     where it stopped; a token (HF_TOKEN) raises the limit"
                ));
                match seconds {
                    Some(seconds) if seconds > LONGEST_WAIT => Fault::Final(error),
                    None if after.is_some() => Fault::Final(error),
                    _ => Fault::Passing(error, seconds),
                }
            }
            500..=599 | 408 => {
                let seconds = text(answer.headers(), "retry-after").and_then(|after| after.parse().ok());
                let error = about.fault(format!(
                    "the server cannot answer for {what} now ({status}); run the same command again later; {instead}"
                ));
                Fault::Passing(error, seconds.filter(|seconds| *seconds <= LONGEST_WAIT))
            }
            _ => Fault::Final(about.fault(format!(
                "expected {what}, got status {status}; check HF_ENDPOINT ({}); {instead}",
                shown(&self.endpoint)
            ))),
        }
    }
}

/// Does something again as long as it may succeed: at most [`ATTEMPTS`] times, with pauses.
///
/// # Errors
/// The last one; [`Error::Stopped`] where somebody asked to stop.
pub(super) fn patiently<T>(progress: &Progress, mut work: impl FnMut() -> Result<T, Fault>) -> Result<T> {
    for attempt in 0.. {
        progress.check()?;
        match work() {
            Ok(value) => return Ok(value),
            Err(Fault::Final(error)) => return Err(error),
            Err(Fault::Passing(error, seconds)) => pause(attempt, error, seconds, progress)?,
        }
    }
    unreachable!("the last attempt returns")
}

/// Waits before attempt number `attempt + 1`, or gives up with `error`.
///
/// # Errors
/// `error`, where there were enough attempts; [`Error::Stopped`].
pub(super) fn pause(attempt: u32, error: Error, seconds: Option<u64>, progress: &Progress) -> Result<()> {
    if attempt + 1 >= ATTEMPTS {
        return Err(error);
    }
    let pause = seconds.map_or_else(|| Duration::from_millis(250 << attempt), Duration::from_secs);
    if let Some(seconds) = seconds.filter(|seconds| *seconds > 0) {
        progress.note(&format!("the server asks to wait; going on in {seconds} s"));
    }
    let step = Duration::from_millis(50);
    for _ in 0..pause.as_millis() / step.as_millis() {
        progress.check()?;
        std::thread::sleep(step);
    }
    Ok(())
}

/// Reads a body part by part; 0 is its end.
pub(super) fn reader(answer: Response<Body>) -> impl Read {
    answer.into_body().into_with_config().limit(u64::MAX).reader()
}

/// The place of an answer's first byte in the file, and the file's size, from `Content-Range`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = text(headers, "content-range")?;
    let (span, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = span.split_once('-')?;
    Some((start.parse().ok()?, size.parse().ok()))
}

/// The size that an answer announces.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-length")?.parse().ok()
}

fn head(headers: &HeaderMap, status: StatusCode) -> Head {
    let at_the_hub = text(headers, "x-repo-commit").is_some();
    let linked = text(headers, "x-linked-etag");
    let tag = linked.clone().or_else(|| text(headers, "etag"));
    let tag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
    let linked_size = text(headers, "x-linked-size").and_then(|size| size.parse().ok());
    // A redirection's own length is that of its text.
    let bytes = linked_size.or_else(|| content_length(headers).filter(|_| status.is_success()));
    let sha256 = tag.clone().filter(|_| linked.is_some() || at_the_hub);
    Head {
        bytes,
        sha256: sha256.and_then(|tag| Digest::try_from(tag).ok()),
        tag: tag.filter(|tag| {
            (8..=128).contains(&tag.len())
                && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// An address that a server answers with, which may be relative to the one that was asked.
fn joined(asked: &str, to: &str) -> String {
    if to.contains("://") {
        return to.to_owned();
    }
    let host = asked.find("://").and_then(|at| asked[at + 3..].find('/').map(|slash| at + 3 + slash));
    let (host, path) = asked.split_at(host.unwrap_or(asked.len()));
    match to.strip_prefix('/') {
        Some(_) => format!("{host}{to}"),
        None => format!("{host}{}/{to}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
    }
}

/// A path as it stands in an address.
pub(super) fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~+,=@!$&'()*;:".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// An address without what may be secret in it: a user's name and password, and the query.
pub(super) fn shown(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.rsplit('@').next().unwrap_or(url).to_owned();
    };
    let (host, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    format!("{scheme}://{}{path}", host.rsplit_once('@').map_or(host, |(_, host)| host))
}

/// A fault that says that a repository lacks a file, and which is near.
pub(super) fn lacks(about: &About, file: &str, names: &[&str]) -> Error {
    let near = nearest(file, names.iter().copied());
    about.fault(format!(
        "expected a file `{file}`, got {} files without it{}; check the profile's `files`",
        names.len(),
        near.map(|near| format!(" (`{near}` is near)")).unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_encoded_and_shown_without_secrets() {
        assert_eq!(joined("http://h:1/a/b", "/c/d?e"), "http://h:1/c/d?e");
        assert_eq!(joined("http://h/a/b", "c"), "http://h/a/c");
        assert_eq!(joined("http://h", "https://x/y"), "https://x/y");
        assert_eq!(encoded("a b/ü+#.pth"), "a%20b/%C3%BC+%23.pth");
        assert_eq!(shown("https://me:secret@mirror.org/x?token=1"), "https://mirror.org/x");
        assert_eq!(shown("http://h"), "http://h");
    }

    #[test]
    fn a_range_is_read() {
        let mut headers = HeaderMap::new();
        assert_eq!(content_range(&headers), None);
        headers.insert("content-range", "bytes 10-19/20".parse().unwrap());
        assert_eq!(content_range(&headers), Some((10, Some(20))));
        headers.insert("content-range", "bytes 0-1/*".parse().unwrap());
        assert_eq!(content_range(&headers), Some((0, None)));
    }
}
