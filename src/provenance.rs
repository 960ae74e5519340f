//! Where a run came from: git, machine, versions.
