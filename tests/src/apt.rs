//! apt's package index as a table: real data that every Debian machine has.
//!
//! Format: deb822 stanzas, one a package (Debian policy, section 5.1). Continuation lines begin with a
//! space and belong to the field before.

use crate::shell::{self, ShellError};
use crate::table::{Table, Type};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Columns of the table, in order. `id` is the row number in index order.
const COLUMNS: [(&str, Type); 14] = [
    ("id", Type::UInt32),
    ("section", Type::UInt16),
    ("priority", Type::UInt8),
    ("essential", Type::UInt8),
    ("arch_all", Type::UInt8),
    ("multi_arch", Type::UInt8),
    ("depends", Type::UInt16),
    ("recommends", Type::UInt16),
    ("provides", Type::UInt16),
    ("tags", Type::UInt16),
    ("description_chars", Type::UInt16),
    ("name_chars", Type::UInt8),
    ("size_bytes", Type::UInt64),
    ("installed_kib", Type::UInt64),
];

/// The compressed index files of this machine, largest first.
///
/// # Errors
/// When apt's folder cannot be read.
pub fn index_files(lists: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(lists)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains("_binary-amd64_Packages") {
            found.push((entry.metadata()?.len(), entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Reads the index files through apt's own decompressor.
///
/// # Errors
/// When `apt-helper` fails.
pub fn read(files: &[PathBuf]) -> Result<Table, ShellError> {
    let mut builder = Builder::default();
    for file in files {
        let text = shell::capture("/usr/lib/apt/apt-helper", &["cat-file", &file.to_string_lossy()])?;
        builder.add_index(&text);
    }
    Ok(builder.finish())
}

/// Codes for words (sections) are given in order of first appearance.
#[derive(Default)]
struct Builder {
    sections: BTreeMap<String, usize>,
    tsv: String,
    rows: usize,
}

impl Builder {
    fn add_index(&mut self, text: &str) {
        for stanza in text.split("\n\n").filter(|stanza| stanza.contains("Package:")) {
            self.add(stanza);
        }
    }

    fn add(&mut self, stanza: &str) {
        let fields: BTreeMap<&str, &str> = stanza
            .lines()
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split_once(':'))
            .collect();
        let get = |name: &str| fields.get(name).map_or("", |value| value.trim());
        let count = |name: &str| get(name).split(',').filter(|part| !part.trim().is_empty()).count();
        let number = |name: &str| get(name).parse::<u64>().unwrap_or(0);
        let next = self.sections.len() + 1;
        let section = *self.sections.entry(get("Section").to_owned()).or_insert(next);
        let priority = ["required", "important", "standard", "optional"]
            .iter()
            .position(|word| *word == get("Priority"));
        let row = [
            self.rows as u64,
            section as u64,
            priority.map_or(4, |rank| rank as u64),
            u64::from(get("Essential") == "yes"),
            u64::from(get("Architecture") == "all"),
            u64::from(!get("Multi-Arch").is_empty()),
            (count("Depends") + count("Pre-Depends")) as u64,
            count("Recommends") as u64,
            count("Provides") as u64,
            count("Tag") as u64,
            get("Description").chars().count() as u64,
            get("Package").chars().count().min(255) as u64,
            number("Size"),
            number("Installed-Size"),
        ];
        for (index, value) in row.iter().enumerate() {
            let tab = if index == 0 { "" } else { "\t" };
            let _infallible = write!(self.tsv, "{tab}{value}");
        }
        self.tsv.push('\n');
        self.rows += 1;
    }

    fn finish(self) -> Table {
        let columns = COLUMNS.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
        Table { columns, tsv: self.tsv, rows: self.rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_becomes_one_row_in_column_order() {
        let mut builder = Builder::default();
        builder.add_index(
            "Package: a\nArchitecture: all\nDepends: x, y (>= 1)\n continued\nSection: net\nPriority: optional\nSize: 12\nInstalled-Size: 3\nDescription: four\n\nPackage: b\nSection: net\n\n",
        );
        let table = builder.finish();
        assert_eq!(table.rows, 2);
        assert_eq!(table.tsv.lines().next(), Some("0\t1\t3\t0\t1\t0\t2\t0\t0\t0\t4\t1\t12\t3"));
        assert!(table.create("t").starts_with("CREATE TABLE t (`id` UInt32, `section` UInt16"));
    }
}
