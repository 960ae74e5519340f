//! Training state: write, fsync, rename.
