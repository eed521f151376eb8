//! Words that people read.

use std::fmt::Display;

/// A number with its noun: `1 change`, `2 changes`.
pub fn counted(count: impl Display, noun: &str) -> String {
    let count = count.to_string();
    let plural = if count == "1" { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_none_is_not() {
        assert_eq!(
            [0, 1, 2, 11].map(|count| counted(count, "row")),
            ["0 rows", "1 row", "2 rows", "11 rows"]
        );
    }
}
