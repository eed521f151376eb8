//! A pod's output as text: whatever bytes a program writes, none of them may cost the rest of its log.
//!
//! What is no UTF-8 becomes U+FFFD; a character that two pieces share, or that a cut goes through, is no such.

use std::str::{Utf8Chunk, from_utf8};

/// The last `limit` bytes of a log at most.
pub(crate) fn tail(log: &[u8], limit: usize) -> String {
    let cut = log.len().saturating_sub(limit);
    let mut end = log.get(cut..).unwrap_or_default();
    // What is left of a character that the cut went through: up to three bytes that continue one.
    for _ in 0..3 {
        match end.split_first() {
            Some((first, rest)) if cut > 0 && first & 0xC0 == 0x80 => end = rest,
            Some(_) | None => break,
        }
    }
    let mut text = String::from_utf8_lossy(end).into_owned();
    // A replacement is longer than the byte that it stands for.
    let start = text.ceil_char_boundary(text.len().saturating_sub(limit));
    text.drain(..start);
    text
}

/// A log that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    unfinished: Vec<u8>,
}

impl Pieces {
    /// The text of the next piece; the begin of a character at its end waits for the next one.
    pub(crate) fn text(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.unfinished);
        bytes.extend_from_slice(piece);
        self.unfinished = bytes.split_off(bytes.len() - unfinished(&bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What still waits when nothing more comes.
    pub(crate) fn rest(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.unfinished)).into_owned()
    }
}

/// How many bytes at the end begin a character without ending it.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk: Utf8Chunk<'_>| chunk.invalid());
    if from_utf8(last).is_err_and(|cause| cause.error_len().is_none()) { last.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_no_text_costs_only_itself() {
        assert_eq!(tail(b"step 1\n\xff\xfestep 2\n", 100), "step 1\n\u{fffd}\u{fffd}step 2\n");
    }

    #[test]
    fn a_cut_through_a_character_leaves_nothing_of_it() {
        let log = "aé€😀z".as_bytes();
        let tails: Vec<String> = (0..=log.len()).map(|limit| tail(log, limit)).collect();
        assert_eq!(tails, ["", "z", "z", "z", "z", "😀z", "😀z", "😀z", "€😀z", "€😀z", "é€😀z", "aé€😀z"]);
    }

    #[test]
    fn a_tail_of_bytes_that_are_no_text_is_not_longer_than_its_limit() {
        let text = tail(&[0xff; 300], 100);
        assert_eq!((text.len(), text.chars().all(|char| char == '\u{fffd}')), (99, true));
    }

    #[test]
    fn a_character_that_two_pieces_share_arrives_whole() {
        let mut pieces = Pieces::default();
        let log = b"a\xc3\xa9\xff\xe2\x82\xacb";
        let text: String = log.iter().map(|byte| pieces.text(&[*byte])).collect();
        assert_eq!(text + &pieces.rest(), "aé\u{fffd}€b");
        assert_eq!(pieces.text(b"end \xe2\x82"), "end ");
        assert_eq!(pieces.rest(), "\u{fffd}");
        assert_eq!(pieces.rest(), "");
    }
}
