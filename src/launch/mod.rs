//! Who executes the cells of a plan.
//!
//! A launcher knows which cells are pending and what to do when one fails or when the work should stop; what a cell
//! *is*, it is told by a closure. [`local`] runs them one after another in this process.

pub mod local;
mod ranks;
mod session;

pub use ranks::Ranks;
pub use session::Session;

#[cfg(test)]
mod tests;
