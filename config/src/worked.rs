//! Sums of memory sizes, with their terms.

use crate::bytes::Bytes;
use std::fmt;

/// A sum with its terms, for a message: `2 x 256MiB + 1GiB = 1536MiB`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worked {
    terms: Vec<String>,
    total_bytes: u64,
}

impl Worked {
    /// Adds `count` times `each_bytes`, named `what`.
    pub fn add(mut self, what: &str, count: u64, each_bytes: u64) -> Self {
        let each = Bytes(each_bytes).rounded();
        self.terms.push(if count == 1 {
            format!("{what} {each}")
        } else {
            format!("{what} {count} x {each}")
        });
        self.total_bytes = self.total_bytes.saturating_add(count.saturating_mul(each_bytes));
        self
    }

    /// Returns the sum, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }
}

impl fmt::Display for Worked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.terms.join(" + "), Bytes(self.total_bytes).rounded())
    }
}
