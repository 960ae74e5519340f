//! Who executes the cells of a plan.
//!
//! A launcher knows which cells are pending and what to do when one fails or when the work should stop; what a cell
//! *is*, it is told by a closure. [`local`] runs them one after another in this process; where several processes share
//! one run, [`Ranks`] says which this is, and they find each other in a [`meeting`].

pub mod local;
mod looks;
pub mod meeting;
mod ranks;
mod session;

pub use looks::Look;
pub use ranks::Ranks;
pub use session::Session;

#[cfg(test)]
mod tests;
