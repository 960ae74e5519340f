//! Preference pairs and their readers.
