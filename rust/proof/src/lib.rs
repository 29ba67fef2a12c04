//! What the proving tests share: each counts what it tried and found, and leaves a record that `scripts/proof_table.py` sums up.

mod corpus;
mod mutate;
mod tally;

pub use corpus::corpus;
pub use mutate::fuzz;
pub use tally::Tally;
