//! The crate's error type, cut by who must act.
//!
//! Every message says what went wrong, where, what was expected, what was found, and the way out. Layers above
//! the second floor use `anyhow` and add one fact each.

use std::path::{Path, PathBuf};

/// The result of everything from the ground to the second floor.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by who must act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The person who wrote an experiment file or a command line.
    #[error("{0}")]
    Spec(String),
    /// The person who supplied data: a dataset, a record, an image, a prompt file.
    #[error("{path}: {message}", path = .path.display())]
    Data {
        /// The file that holds the fault.
        path: PathBuf,
        /// What was expected, what was found, and the way out.
        message: String,
    },
    /// The person who supplied weights.
    #[error("{path}: {message}", path = .path.display())]
    Weights {
        /// The file that holds the fault.
        path: PathBuf,
        /// What was expected, what was found, and the way out.
        message: String,
    },
    /// Whoever called a function with arguments that do not fit together.
    #[error("{0}")]
    Shape(String),
    /// A number that is not finite appeared: the training or the image that it belongs to fails.
    #[error("{what} is not finite ({value}) at {place}")]
    NonFinite {
        /// What the number is, for example `loss`.
        what: String,
        /// The number itself.
        value: f64,
        /// Where in the work, for example `step 7`.
        place: String,
    },
    /// A file of somebody else's: it is not here, cannot be had, or is not what it was.
    #[error("{what}: {message}")]
    Hub {
        /// The artefact, the repository or the file.
        what: String,
        /// What was expected, what was found, and the way out.
        message: String,
    },
    /// A judge could not be asked, or its answer could not be used.
    #[error("{0}")]
    Judge(String),
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}{}", way_out(.source), path = .path.display())]
    Io {
        /// What was attempted, a verb: `read`, `write`, `create`.
        action: &'static str,
        /// The path it was attempted on.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// Nobody's fault: whoever started the work asked it to stop.
    #[error("stopped on request")]
    Stopped,
    /// The tensor library refused.
    #[error("{0}")]
    Tensor(String),
}

impl Error {
    /// A fault in data at `path`.
    pub fn data(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Data { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// A fault in weights at `path`.
    pub fn weights(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Weights { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// A fault in what somebody else published, or in getting it.
    pub fn hub(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Hub { what: what.into(), message: message.into() }
    }

    /// An operating-system fault while doing `action` (a verb) to `path`; use as `.map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// What to do about a refusal of the system, where there is something to say.
fn way_out(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; free some room (`ppd clean` shows what it would free), or choose another disk with --results DIR, then \
             run the same command again: what is finished is kept"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; make it writable, or choose another folder with --results DIR (or --figures DIR)"
        }
        _ => "",
    }
}

/// The nearest of `known` to what somebody typed, where one is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().max(typed.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_way_through_the_tensor_library() {
        let there = candle_core::Error::from(Error::weights("a.safetensors", "no tensor `x`"));
        assert!(matches!(Error::from(there), Error::Weights { .. }));
        assert!(matches!(Error::from(candle_core::Error::UnwrapNone), Error::Tensor(_)));
    }

    #[test]
    fn nearest_suggests_only_what_is_near() {
        assert_eq!(nearest("tabel1", ["table1", "fig3"]), Some("table1"));
        assert_eq!(nearest("quantum", ["table1", "fig3"]), None);
    }
}
