//! The desk world: caption grammar, renderer, measured style, population of users with known utilities.
