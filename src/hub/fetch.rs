//! What is to be fetched, and the fetching, artefact by artefact.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::cache::{Shelf, Stamps, place, same};
use super::client::{self, About, Client, Head, Sibling, shown};
use super::download::{download, partial};
use super::lock::{Entry, Lock, Source};
use super::{Artefact, Hub, Kind, Located, Origin, pattern};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provenance::free_bytes;
use crate::units::Digest;

/// Room that is left on the disk for everything else.
const SPARE: u64 = 64 << 20;

/// One file of a plan.
#[derive(Debug, Clone)]
pub struct Item {
    /// The artefact's name.
    pub artefact: String,
    /// The file's path in its repository.
    pub file: String,
    /// Its size; none where no server says it.
    pub bytes: Option<u64>,
    /// Bytes of it that are on this disk.
    pub here: u64,
    pub(super) sha256: Option<Digest>,
    from: From,
}

/// Where a file's bytes come from.
#[derive(Debug, Clone)]
enum From {
    /// They have their name already.
    Here(PathBuf),
    /// They lie elsewhere on this disk; a link suffices.
    Disk(PathBuf),
    /// They are to be downloaded, under this tag; only the server's own lets an earlier download go on.
    Web { url: String, tag: String, resumes: bool },
}

impl Item {
    /// Whether something is to be downloaded.
    pub fn is_missing(&self) -> bool {
        matches!(self.from, From::Web { .. })
    }

    /// Bytes to download.
    fn missing(&self) -> u64 {
        match self.from {
            From::Web { .. } => self.bytes.unwrap_or(0).saturating_sub(self.here),
            _ => 0,
        }
    }
}

/// An artefact whose files are known.
struct Ready<'a> {
    name: &'a str,
    artefact: &'a Artefact,
    about: About<'a>,
    commit: Option<String>,
    items: Vec<Item>,
}

/// What is to be fetched.
pub struct Plan<'a> {
    parts: Vec<Ready<'a>>,
    client: Option<Client>,
}

impl Plan<'_> {
    /// Every file, artefact by artefact.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.parts.iter().flat_map(|part| &part.items)
    }

    /// Bytes to download.
    pub fn missing_bytes(&self) -> u64 {
        self.items().map(Item::missing).fold(0, u64::saturating_add)
    }

    /// The commit that each artefact's revision was resolved to, where it has one.
    pub fn commits(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.parts.iter().map(|part| (part.name, part.commit.as_deref()))
    }
}

impl Hub {
    /// Finds out what is missing and how large it is; nothing is written.
    ///
    /// # Errors
    /// All that stands in the way, at once: what is gated, gone, not reachable, or not what was first fetched.
    pub fn plan<'a>(&self, wanted: &[(&'a str, &'a Artefact)], progress: &Progress) -> Result<Plan<'a>> {
        let lock = self.read_lock()?;
        let mut plan = Plan { parts: Vec::new(), client: None };
        let mut faults = Vec::new();
        progress.begin("ask", wanted.len());
        for (name, artefact) in wanted {
            match self.ready(name, artefact, &lock, &mut plan.client, progress) {
                Ok(part) => plan.parts.push(part),
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(fault) => faults.push(fault),
            }
            progress.advance(1);
        }
        one(faults)?;
        Ok(plan)
    }

    /// Fetches what a plan lacks, checks all of it, and notes it in the lock; where each artefact lies is the result.
    /// `recheck` computes the digests again of what was checked before and not written to since.
    ///
    /// # Errors
    /// Where the disk has no room for all of it, before anything is fetched. Else all that failed, at once; what was
    /// fetched is kept, and what was cut goes on the next time.
    pub fn fetch(
        &self,
        profile: &str,
        plan: &Plan,
        recheck: bool,
        progress: &Progress,
    ) -> Result<Vec<Located>> {
        self.check_room(plan)?;
        self.show_licences(plan, progress)?;
        let mut stamps = Stamps::read(&self.home);
        let (mut located, mut faults) = (Vec::new(), Vec::new());
        for part in &plan.parts {
            let fetched = self.fetch_part(part, plan.client.as_ref(), (&mut stamps, recheck), progress);
            stamps.write();
            match fetched.and_then(|()| self.locate(profile, part.name, part.artefact)) {
                Ok(found) => located.push(found),
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(fault) => faults.push(fault),
            }
        }
        one(faults)?;
        Ok(located)
    }

    /// The files of one artefact, and where each of them is to come from.
    fn ready<'a>(
        &self,
        name: &'a str,
        artefact: &'a Artefact,
        lock: &Lock,
        client: &mut Option<Client>,
        progress: &Progress,
    ) -> Result<Ready<'a>> {
        let about = |page| About { name, source: artefact.source(), page, mirrors: &artefact.mirrors };
        if let Some(fault) = artefact.fault() {
            return Err(Error::Spec(format!("artefacts.{name}: {fault}")));
        }
        let empty = Source::default();
        let known = lock.sources.get(&artefact.source()).unwrap_or(&empty);
        let expected = |file: &str| Expected::of(artefact, known, file);
        let stands = self.mirrors.contains_key(name) || self.mirrors.contains_key(&artefact.repository);
        // What was fetched before needs nobody's answer.
        if artefact.files.iter().all(|file| known.covers(file)) && (!stands || artefact.local.is_some()) {
            let root = self.root(name, artefact, known.commit.as_deref())?;
            let files = known.matching(&artefact.files);
            if files.iter().all(|(file, _)| place(&root, file).is_file()) {
                let here = |(file, entry): &(&String, &Entry)| Item {
                    here: entry.bytes,
                    ..item(name, file, expected(file), From::Here(place(&root, file)))
                };
                let items = files.iter().map(here).collect();
                return Ok(Ready { name, artefact, about: about(None), commit: known.commit.clone(), items });
            }
        }
        let origin = self.origin(name, artefact)?;
        if let Origin::Folder(folder) = &origin {
            let own = artefact.local.is_some() && !stands;
            let about = about(None);
            let mut items = Vec::new();
            for file in in_folder(folder, artefact, &about)? {
                let path = file_below(folder, &file, artefact);
                let bytes = std::fs::metadata(&path).map_err(Error::io("read", &path))?.len();
                let from = if own { From::Here(path) } else { From::Disk(path) };
                let expected = expected(&file);
                let expected = Expected { bytes: expected.bytes.or(Some(bytes)), ..expected };
                items.push(Item { here: bytes, ..item(name, &file, expected, from) });
            }
            return Ok(Ready { name, artefact, about, commit: known.commit.clone(), items });
        }
        if self.offline {
            return Err(about(None).fault(format!(
                "is not all on this disk, and HF_HUB_OFFLINE forbids asking for it; unset it, or let a folder stand for \
                 it: --mirror {name}=PATH"
            )));
        }
        if client.is_none() {
            *client = Some(Client::new(self)?);
        }
        let Some(client) = client.as_ref() else { unreachable!("one was just made") };
        let shelf = self.shelf(name, artefact);
        let mut items = Vec::new();
        let (commit, about) = match &origin {
            Origin::Hub { kind, repository, revision } => {
                let about = About {
                    source: format!("{repository}@{revision}"),
                    ..about(Some(client.page(*kind, repository)))
                };
                let own = *kind == artefact.kind && *repository == artefact.repository;
                // What the lock knows is asked for by its commit, whatever the branch has moved to since.
                let asked = known.commit.as_deref().filter(|_| own).unwrap_or(revision);
                let info = client.info((*kind, repository, asked), &about, progress)?;
                let commit = if own { Some(info.sha.clone()) } else { known.commit.clone() };
                let names: Vec<&str> = info.siblings.iter().map(|file| file.name.as_str()).collect();
                for file in among(&names, artefact, &about)? {
                    let url = client.url(*kind, repository, &info.sha, &file);
                    let told = info.siblings.iter().find(|told| told.name == file).map(Sibling::head);
                    let told = told.unwrap_or_default();
                    // A gated repository shows its description to everybody: one file is asked for in any case.
                    let head = if told.is_complete() && !items.is_empty() {
                        told
                    } else {
                        client.head(&url, &file, &about, progress)?.or(told)
                    };
                    let expected = expected(&file).with(&head, &file, &about)?;
                    items.push(on_the_web(&shelf, commit.as_deref(), (name, &file), expected, url, head));
                }
                (commit, about)
            }
            Origin::Web(base) => {
                let about = About { source: shown(base), ..about(None) };
                let names: Vec<&str> = known.files.keys().map(String::as_str).collect();
                for file in &artefact.files {
                    if pattern::is_open(file) && !known.covers(file) {
                        return Err(about.fault(format!(
                            "a plain address cannot be searched for `{file}`; name the files one by one in the \
                             profile, or use a folder"
                        )));
                    }
                }
                let commit = known.commit.clone();
                let closed: Vec<&str> = artefact
                    .files
                    .iter()
                    .map(String::as_str)
                    .filter(|file| !pattern::is_open(file))
                    .collect();
                for file in among(&[names, closed].concat(), artefact, &about)? {
                    let url =
                        if base.rsplit('/').next() == file.rsplit('/').next() && artefact.files.len() == 1 {
                            base.clone()
                        } else {
                            format!("{base}/{}", client::encoded(&file))
                        };
                    let head = client.head(&url, &file, &about, progress)?;
                    let expected = expected(&file).with(&head, &file, &about)?;
                    items.push(on_the_web(&shelf, commit.as_deref(), (name, &file), expected, url, head));
                }
                (commit, about)
            }
            Origin::Folder(_) => unreachable!("folders were handled above"),
        };
        Ok(Ready { name, artefact, about, commit, items })
    }

    /// Refuses a plan that the disk has no room for.
    fn check_room(&self, plan: &Plan) -> Result<()> {
        let needed = plan.missing_bytes();
        let folder = self.folder();
        match free_bytes(folder) {
            Some(free) if needed > 0 && free < needed.saturating_add(SPARE) => Err(Error::hub(
                folder.display().to_string(),
                format!(
                    "expected room for {needed} bytes ({:.1} GB) to download, got {free} ({:.1} GB) free; free some, set \
                     HF_HOME to a folder on a larger disk, or fetch less with --only NAME",
                    needed as f64 / 1e9,
                    free as f64 / 1e9
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Shows each licence that forbids commercial use once, and notes that it was shown.
    fn show_licences(&self, plan: &Plan, progress: &Progress) -> Result<()> {
        let mut lock = self.read_lock()?;
        let mut changed = false;
        for part in plan.parts.iter().filter(|part| part.artefact.non_commercial) {
            let licence = &part.artefact.licence;
            let bound = lock.non_commercial.entry(licence.clone()).or_default();
            if bound.is_empty() {
                let page = match part.artefact.kind {
                    Kind::Url => shown(&part.artefact.repository),
                    Kind::Model => format!("https://huggingface.co/{}", part.artefact.repository),
                    Kind::Dataset => format!("https://huggingface.co/datasets/{}", part.artefact.repository),
                };
                progress.note(&format!(
                    "licence: {} is under `{licence}`, which forbids commercial use of it and of what is made from it; \
                     its terms: {page}",
                    part.artefact.repository
                ));
            }
            changed |= bound.insert(part.artefact.source());
        }
        if changed { lock.write(&self.lock) } else { Ok(()) }
    }

    fn fetch_part(
        &self,
        part: &Ready,
        client: Option<&Client>,
        (stamps, recheck): (&mut Stamps, bool),
        progress: &Progress,
    ) -> Result<()> {
        let shelf = self.shelf(part.name, part.artefact);
        let all = part.items.iter().map(|item| item.bytes.unwrap_or(0)).fold(0, u64::saturating_add);
        progress.enter(part.name);
        progress.begin_bytes("fetch", all);
        for item in &part.items {
            progress.check()?;
            let got = match &item.from {
                From::Here(path) => {
                    let got = if recheck { stamps.measure_again(path)? } else { stamps.measure(path)? };
                    same(path, "first fetched", item.bytes, item.sha256.as_ref(), &got)?;
                    progress.advance(as_usize(got.bytes));
                    got
                }
                From::Disk(path) => {
                    let got = if recheck { stamps.measure_again(path)? } else { stamps.measure(path)? };
                    same(path, "first fetched", item.bytes, item.sha256.as_ref(), &got)?;
                    shelf.name(part.commit.as_deref(), &item.file, path)?;
                    progress.advance(as_usize(got.bytes));
                    got
                }
                From::Web { url, tag, resumes } => {
                    let Some(client) = client else { unreachable!("what is on the web was asked for") };
                    let blob = shelf.blob(tag);
                    let got = download(client, item, (url, *resumes), &blob, &part.about, progress)?;
                    stamps.note(&blob, &got.sha256)?;
                    shelf.name(part.commit.as_deref(), &item.file, &blob)?;
                    got
                }
            };
            self.note(part, |source| {
                source.files.insert(item.file.clone(), Entry { bytes: got.bytes, sha256: got.sha256 });
            })?;
        }
        let open: BTreeSet<String> =
            part.artefact.files.iter().filter(|file| pattern::is_open(file)).cloned().collect();
        self.note(part, |source| source.complete.extend(open))
    }

    /// Changes an artefact's entry in the lock; what others wrote meanwhile stays.
    fn note(&self, part: &Ready, change: impl FnOnce(&mut Source)) -> Result<()> {
        let mut lock = self.read_lock()?;
        let before = lock.clone();
        let source = lock.sources.entry(part.artefact.source()).or_default();
        source.licence.clone_from(&part.artefact.licence);
        source.commit.clone_from(&part.commit);
        change(source);
        if lock == before { Ok(()) } else { lock.write(&self.lock) }
    }
}

/// What a file must be, as far as it is known before it comes.
#[derive(Debug, Clone)]
struct Expected {
    bytes: Option<u64>,
    sha256: Option<Digest>,
    /// Who says so.
    says: &'static str,
}

impl Expected {
    fn of(artefact: &Artefact, known: &Source, file: &str) -> Self {
        match known.files.get(file) {
            Some(entry) => Self {
                bytes: Some(entry.bytes),
                sha256: Some(entry.sha256.clone()),
                says: "what was first fetched (experiments/hub.lock)",
            },
            None => Self {
                bytes: artefact.bytes.get(file).copied(),
                sha256: artefact.sha256.get(file).cloned(),
                says: "what the profile says",
            },
        }
    }

    /// Adds what the server says; where the two differ, nothing is worth fetching.
    fn with(self, head: &Head, file: &str, about: &About) -> Result<Self> {
        let differ = |expected: String, got: String| {
            about.fault(format!(
                "`{file}` differs from {}: expected {expected}, got {got} by the server's own word; the file was \
                 changed there, or on the way: use a mirror that has it, or, to take the new one on purpose, remove \
                 its table from experiments/hub.lock (or its digest from the profile)",
                self.says
            ))
        };
        match (&self.sha256, &head.sha256) {
            (Some(expected), Some(got)) if expected != got => {
                return Err(differ(format!("SHA-256 {expected}"), got.to_string()));
            }
            _ => {}
        }
        match (self.bytes, head.bytes) {
            (Some(expected), Some(got)) if expected != got => {
                return Err(differ(format!("{expected} bytes"), got.to_string()));
            }
            _ => {}
        }
        Ok(Self {
            bytes: self.bytes.or(head.bytes),
            sha256: self.sha256.or_else(|| head.sha256.clone()),
            says: self.says,
        })
    }
}

fn item(artefact: &str, file: &str, expected: Expected, from: From) -> Item {
    Item {
        artefact: artefact.into(),
        file: file.into(),
        bytes: expected.bytes,
        here: 0,
        sha256: expected.sha256,
        from,
    }
}

/// A file that a server has; where the cache has it too, that is enough.
fn on_the_web(
    shelf: &Shelf,
    commit: Option<&str>,
    (name, file): (&str, &str),
    expected: Expected,
    url: String,
    head: Head,
) -> Item {
    let named = place(&shelf.root(commit), file);
    if let Ok(metadata) = std::fs::metadata(&named) {
        return Item { here: metadata.len(), ..item(name, file, expected, From::Here(named)) };
    }
    // Without a tag of the server's the address itself names the bytes.
    let resumes = head.tag.is_some();
    let tag = head.tag.unwrap_or_else(|| Digest::of(url.as_bytes()).hex().to_owned());
    let size = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len()).ok();
    let blob = shelf.blob(&tag);
    let here = size(&blob).or_else(|| size(&partial(&blob))).unwrap_or(0);
    Item { here, ..item(name, file, expected, From::Web { url, tag, resumes }) }
}

/// The names of a repository's files that an artefact wants.
fn among(names: &[&str], artefact: &Artefact, about: &About) -> Result<BTreeSet<String>> {
    let mut wanted = BTreeSet::new();
    for file in &artefact.files {
        let found = names.iter().filter(|name| pattern::matches(file, name));
        let before = wanted.len();
        wanted.extend(found.map(|name| (*name).to_owned()));
        if wanted.len() == before && !names.iter().any(|name| pattern::matches(file, name)) {
            return Err(client::lacks(about, file, names));
        }
    }
    Ok(wanted)
}

/// The same of a folder, or of the one file that stands for the artefact.
fn in_folder(folder: &Path, artefact: &Artefact, about: &About) -> Result<BTreeSet<String>> {
    if folder.is_file() {
        return match artefact.files.as_slice() {
            [only] if !pattern::is_open(only) => Ok([only.clone()].into()),
            _ => Err(about.fault(format!(
                "expected a folder with {}, got the one file {}; give the folder",
                artefact.files.join(", "),
                folder.display()
            ))),
        };
    }
    let files = walkdir::WalkDir::new(folder).follow_links(true).sort_by_file_name();
    let names: Vec<String> = files
        .into_iter()
        .filter_map(|entry| entry.ok().filter(|entry| entry.file_type().is_file()))
        .filter_map(|entry| {
            let parts = entry.path().strip_prefix(folder).ok()?.iter();
            Some(parts.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/"))
        })
        .collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    // One file may lie in the folder without the repository's own folders.
    if let [only] = artefact.files.as_slice()
        && !names.contains(&only.as_str())
        && only.rsplit('/').next().is_some_and(|name| names.contains(&name))
    {
        names.push(only);
    }
    let about = About { source: folder.display().to_string(), ..about.clone() };
    among(&names, artefact, &about)
}

/// A file's place in a folder that stands for a repository.
fn file_below(folder: &Path, file: &str, artefact: &Artefact) -> PathBuf {
    let path = place(folder, file);
    match file.rsplit('/').next() {
        Some(name) if !path.exists() && artefact.files.len() == 1 => folder.join(name),
        _ => path,
    }
}

/// A count of bytes as progress takes it.
pub(super) fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Several faults as one.
fn one(faults: Vec<Error>) -> Result<()> {
    match faults.len() {
        0 => Ok(()),
        1 => Err(faults.into_iter().next().unwrap_or(Error::Stopped)),
        count => {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            Err(Error::hub(format!("{count} problems"), format!("\n  - {}", lines.join("\n  - "))))
        }
    }
}
