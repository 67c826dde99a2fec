//! Cases of the machine beside what the explorer walks through.

mod machine;
mod state;
mod transaction;
