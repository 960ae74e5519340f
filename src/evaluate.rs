//! Images to rows.
