//! What is wrong with a file that a person wrote: where, what, and what helps.
//!
//! Findings are collected, never thrown at the first: everything wrong is shown at once, in the order
//! of the file, and nothing has been touched.

use serde::Serialize;
use std::fmt;
use std::ops::Range;

/// One thing that is wrong, with its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Stable code, such as `unknown-key`.
    pub code: &'static str,
    /// What is wrong. Never holds a secret's value.
    pub message: String,
    /// What helps; empty when the message says it all.
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {} [{}]", self.file, self.line, self.column, self.message, self.code)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "\n    help: {}", self.hint) }
    }
}

/// Collects the findings of one file and knows where its bytes lie.
#[derive(Debug)]
pub struct Findings<'t> {
    file: String,
    text: &'t str,
    found: Vec<Finding>,
}

impl<'t> Findings<'t> {
    /// An empty collection over the text of one file.
    pub fn new(file: &str, text: &'t str) -> Self {
        Self { file: file.to_owned(), text, found: Vec::new() }
    }

    /// Adds one at the start of a byte range of the text.
    pub fn add(
        &mut self,
        at: &Range<usize>,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let (line, column) = self.position(at.start);
        self.add_at(line, column, code, message, hint);
    }

    /// Adds one at a line and column.
    pub fn add_at(
        &mut self,
        line: usize,
        column: usize,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let (message, hint) = (message.into(), hint.into());
        self.found.push(Finding { file: self.file.clone(), line, column, code, message, hint });
    }

    /// Line and column, both from 1, of a byte offset.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |tail| tail.chars().count()) + 1;
        (line, column)
    }

    /// The text of a byte range, empty when it does not lie in the file.
    pub fn text_at(&self, at: &Range<usize>) -> &'t str {
        self.text.get(at.clone()).unwrap_or_default()
    }

    /// Whether nothing was found yet.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The value if nothing was found, else everything that was, in the order of the file.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Vec<Finding>> {
        self.found.sort();
        self.found.dedup();
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => Err(self.found),
        }
    }

    /// Everything that was found, in the order of the file.
    pub fn into_vec(mut self) -> Vec<Finding> {
        self.found.sort();
        self.found.dedup();
        self.found
    }
}

/// The known word that is most likely meant, if any is near enough to be a slip of the hand.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        for ((b, above), diagonal) in right.iter().zip(row.iter().skip(1)).zip(&row) {
            let beside = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(a != *b)).min(above + 1).min(beside + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_hand_finds_the_word_that_was_meant() {
        let known = ["address", "bastion", "provider", "role"];
        assert_eq!(nearest("adress", known), Some("address"));
        assert_eq!(nearest("rolle", known), Some("role"));
        assert_eq!(nearest("colour", known), None);
    }

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let findings = Findings::new("f", "a\nüb = 1\n");
        assert_eq!(findings.position(0), (1, 1));
        assert_eq!(findings.position("a\nü".len()), (2, 2));
    }
}
