//! Fixtures that are kept compressed: what the repository has room for.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

/// What a fixture holds; beside its own name it may stand as `NAME.gz`.
pub fn bytes(path: &Path) -> Vec<u8> {
    if path.exists() {
        return std::fs::read(path).unwrap();
    }
    let packed = PathBuf::from(format!("{}.gz", path.display()));
    let file = std::fs::File::open(&packed).unwrap_or_else(|fault| panic!("{}: {fault}", packed.display()));
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}
