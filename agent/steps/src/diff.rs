//! How a change of a text reads in a plan: one line that counts, and a unified diff.

use similar::{ChangeTag, TextDiff};

/// A longer diff is cut: a plan is read by people.
const DETAIL_LIMIT: usize = 16 * 1024;

/// Summary and detail of a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TextChange {
    /// `create PATH` or `change PATH (n lines)`.
    pub(crate) summary: String,
    /// Unified diff, or `(secret)`.
    pub(crate) detail: String,
}

/// The change from `old` (absent: `None`) to `new`; a secret's content is never shown.
pub(crate) fn text(path: &str, old: Option<&[u8]>, new: &str, secret: bool) -> TextChange {
    let before = old.map(|bytes| String::from_utf8_lossy(bytes));
    let diff = TextDiff::from_lines(before.as_deref().unwrap_or_default(), new);
    let lines = diff.iter_all_changes().filter(|change| change.tag() != ChangeTag::Equal).count();
    let summary = match old {
        None => format!("create {path}"),
        Some(_) if secret => format!("change {path}"),
        Some(_) => format!("change {path} ({lines} line{})", if lines == 1 { "" } else { "s" }),
    };
    let detail = if secret {
        "(secret)".to_owned()
    } else {
        let from = if old.is_some() { path } else { "/dev/null" };
        cut(diff.unified_diff().context_radius(2).header(from, path).to_string())
    };
    TextChange { summary, detail }
}

fn cut(mut detail: String) -> String {
    if detail.len() > DETAIL_LIMIT {
        let end = (0..=DETAIL_LIMIT).rev().find(|&at| detail.is_char_boundary(at)).unwrap_or(0);
        detail.truncate(end);
        detail.push_str("\n… (cut)\n");
    }
    detail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_line_shows_both_sides() {
        let change = text("/etc/x", Some(b"a\nb\n"), "a\nc\n", false);
        assert_eq!(change.summary, "change /etc/x (2 lines)");
        assert_eq!(change.detail, "--- /etc/x\n+++ /etc/x\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n");
    }

    #[test]
    fn a_secret_never_shows() {
        let change = text("/etc/token", Some(b"hunter2"), "hunter3", true);
        assert!(!format!("{change:?}").contains("hunter"));
    }
}
