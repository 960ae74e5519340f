//! Who executes the cells of a plan.
