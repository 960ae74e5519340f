//! The state of the git repository that the program runs in.

use std::path::{Path, PathBuf};

use git2::{DiffFormat, DiffOptions, ErrorCode, Repository, StatusOptions};
use sha2::Digest as _;

use super::{Git, Untracked, file_digest};
use crate::error::{Error, Result};
use crate::units::Digest;

/// The text of `git diff --binary HEAD`, cut at [`Git::DIFF_BYTES`], under the digest of the whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The digest of the whole text.
    pub digest: Digest,
    /// The text, or its beginning.
    pub text: Vec<u8>,
}

/// The repository around `folder` and how its files differ from HEAD; `None` where there is no repository. What lies
/// below `outputs`, the folders that runs write to, says nothing of the code and is left out.
///
/// # Errors
/// Where a repository is there but cannot be read.
pub fn git(folder: &Path, outputs: &[&Path]) -> Result<Option<(Git, Option<Difference>)>> {
    let fault = |fault: git2::Error| Error::data(folder, format!("git repository: {}", fault.message()));
    let repository = match Repository::discover(folder) {
        Ok(repository) => repository,
        Err(none) if none.code() == ErrorCode::NotFound => return Ok(None),
        // Owned by somebody else, or damaged: unknown, as outside a repository; git itself would refuse too.
        Err(other) if other.code() == ErrorCode::Owner => return Ok(None),
        Err(other) => return Err(fault(other)),
    };
    let mut git = Git::default();
    let mut tree = None;
    match repository.head() {
        Ok(head) => {
            let commit = head.peel_to_commit().map_err(fault)?;
            git.commit = Some(commit.id().to_string());
            if head.is_branch() {
                git.branch = head.shorthand().ok().map(str::to_owned);
            }
            tree = Some(commit.tree().map_err(fault)?);
        }
        Err(unborn) if matches!(unborn.code(), ErrorCode::UnbornBranch | ErrorCode::NotFound) => {}
        Err(other) => return Err(fault(other)),
    }
    git.remote =
        repository.find_remote("origin").ok().and_then(|remote| remote.url().ok().and_then(shareable));

    let outputs = within(repository.workdir(), outputs);
    let is_output = |path: &Path| outputs.iter().any(|output| path.starts_with(output));
    let mut options = DiffOptions::new();
    options.show_binary(true);
    let diff =
        repository.diff_tree_to_workdir_with_index(tree.as_ref(), Some(&mut options)).map_err(fault)?;
    let mut hasher = sha2::Sha256::new();
    let mut text = Vec::new();
    let mut whole = 0;
    diff.print(DiffFormat::Patch, |delta, _, line| {
        if delta.new_file().path().or_else(|| delta.old_file().path()).is_some_and(is_output) {
            return true;
        }
        let mut keep = |bytes: &[u8]| {
            hasher.update(bytes);
            whole += bytes.len();
            let room = Git::DIFF_BYTES.saturating_sub(text.len());
            text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        };
        if matches!(line.origin(), '+' | '-' | ' ') {
            keep(&[line.origin() as u8]);
        }
        keep(line.content());
        true
    })
    .map_err(fault)?;
    let difference = (whole > 0).then(|| Difference { digest: Digest::from_hasher(hasher), text });
    git.diff = difference.as_ref().map(|difference| difference.digest.clone());
    git.diff_cut = whole > Git::DIFF_BYTES;

    list_untracked(&repository, is_output, &mut git).map_err(fault)?;
    Ok(Some((git, difference)))
}

/// The folders, as paths within the work tree; those that are not there, or not in it, drop out.
fn within(workdir: Option<&Path>, folders: &[&Path]) -> Vec<PathBuf> {
    let Some(root) = workdir.and_then(|root| root.canonicalize().ok()) else { return Vec::new() };
    let relative = |folder: &&Path| Some(folder.canonicalize().ok()?.strip_prefix(&root).ok()?.to_owned());
    folders.iter().filter_map(relative).filter(|path| !path.as_os_str().is_empty()).collect()
}

fn list_untracked(
    repository: &Repository,
    is_output: impl Fn(&Path) -> bool,
    git: &mut Git,
) -> std::result::Result<(), git2::Error> {
    let Some(root) = repository.workdir() else { return Ok(()) };
    let mut options = StatusOptions::new();
    options.include_untracked(true).recurse_untracked_dirs(true).include_ignored(false);
    for entry in repository.statuses(Some(&mut options))?.iter() {
        let Some(path) = entry.path().ok().filter(|_| entry.status().is_wt_new()) else { continue };
        if is_output(Path::new(path)) {
            continue;
        }
        if git.untracked.len() == Git::UNTRACKED {
            git.untracked_omitted += 1;
            continue;
        }
        let file = root.join(path);
        // A file may vanish between the listing and the look at it; then it is named without a digest.
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let digest = (bytes <= Git::UNTRACKED_BYTES).then(|| file_digest(&file).ok()).flatten();
        git.untracked.push(Untracked { path: path.into(), bytes, digest });
    }
    Ok(())
}

/// A remote's URL without what stands before the `@` of its host, and without a query; `None` for a folder of this
/// machine, which means nothing elsewhere and names its owner.
fn shareable(url: &str) -> Option<String> {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    if let Some((scheme, rest)) = url.split_once("://") {
        let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
        let host = host.rsplit('@').next().unwrap_or_default();
        let path = path.map_or(String::new(), |path| format!("/{path}"));
        return (scheme != "file").then(|| format!("{scheme}://{host}{path}"));
    }
    // `user@host:path`, as git reads it: a colon before the first slash. One letter before it is a drive.
    let (host, path) = url.split_once(':')?;
    let host = host.rsplit('@').next().unwrap_or_default();
    (host.len() > 1 && !host.contains(['/', '\\'])).then(|| format!("{host}:{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_lose_credentials_and_folders_are_not_named() {
        for (url, clean) in [
            ("https://user:secret@host.org/a/b.git", Some("https://host.org/a/b.git")),
            ("https://token@host.org", Some("https://host.org")),
            ("https://host.org/a@b.git?token=secret", Some("https://host.org/a@b.git")),
            ("git@host.org:a/b.git", Some("host.org:a/b.git")),
            ("/srv/git/a.git", None),
            ("../a:b/c.git", None),
            ("file:///srv/git/a.git", None),
            ("C:\\git\\a.git", None),
        ] {
            assert_eq!(shareable(url).as_deref(), clean, "{url}");
        }
    }

    #[test]
    fn a_repository_is_described_and_its_absence_too() {
        let folder = tempfile::tempdir().unwrap();
        let git = |outputs: &[&Path]| git(folder.path(), outputs).unwrap();
        assert!(git(&[]).is_none());

        let repository = Repository::init(folder.path()).unwrap();
        let (unborn, _) = git(&[]).unwrap();
        assert_eq!(unborn.commit, None);

        std::fs::write(folder.path().join("tracked"), "one\n").unwrap();
        let mut index = repository.index().unwrap();
        index.add_path(Path::new("tracked")).unwrap();
        let tree = repository.find_tree(index.write_tree().unwrap()).unwrap();
        index.write().unwrap();
        let person = git2::Signature::now("A", "a@example.org").unwrap();
        let commit = repository.commit(Some("HEAD"), &person, &person, "first", &tree, &[]).unwrap();
        let (clean, difference) = git(&[]).unwrap();
        assert_eq!(clean.commit, Some(commit.to_string()));
        assert!(clean.branch.is_some() && clean.diff.is_none() && difference.is_none());

        std::fs::write(folder.path().join("tracked"), "two\n").unwrap();
        for number in 0..Git::UNTRACKED + 2 {
            std::fs::write(folder.path().join(format!("new{number:03}")), "text").unwrap();
        }
        let (dirty, difference) = git(&[]).unwrap();
        let difference = difference.unwrap();
        let text = String::from_utf8(difference.text.clone()).unwrap();
        assert!(text.contains("\n-one\n+two\n"), "{text}");
        assert_eq!(dirty.diff, Some(Digest::of(&difference.text)));
        assert_eq!((dirty.untracked.len(), dirty.untracked_omitted), (Git::UNTRACKED, 2));
        assert_eq!(dirty.untracked[0].digest, Some(Digest::of(b"text")));

        let results = folder.path().join("results");
        std::fs::create_dir(&results).unwrap();
        std::fs::write(results.join("rows.csv"), "text").unwrap();
        let listed = |outputs: &[&Path]| git(outputs).unwrap().0.untracked_omitted;
        assert_eq!((listed(&[]), listed(&[&results])), (3, 2), "what a run writes is no code");
        let (_, difference) = git(&[&folder.path().join("tracked")]).unwrap();
        assert!(difference.is_none(), "nor is a tracked file that it wrote anew");
    }
}
