//! PNG and JPEG to and from pixels, and the named preprocessings.
