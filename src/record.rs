//! Run records: write, flush, read back, refuse duplicates.
