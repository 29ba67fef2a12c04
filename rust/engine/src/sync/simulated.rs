//! What the engine is built with for `tests/simulation`: threads, locks and a clock that a seed decides.

pub use blockcow_simulation::*;
