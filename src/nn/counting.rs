//! Counts work that a frozen network must not do.

use std::cell::Cell;

thread_local! {
    static WEIGHT_GRADIENTS: Cell<u64> = const { Cell::new(0) };
}

/// Notes that a weight's gradient is being computed on this thread.
pub fn weight_gradient() {
    WEIGHT_GRADIENTS.with(|count| count.set(count.get() + 1));
}

/// Weight gradients computed so far on this thread.
pub fn weight_gradients() -> u64 {
    WEIGHT_GRADIENTS.with(Cell::get)
}
