//! A CSV file of the user's as a table: numbers stay, words become codes.
//!
//! Quoting as in RFC 4180, but without line breaks in a cell. A column whose every cell is a finite number is
//! `Float64`; any other gets a code per distinct word in order of first appearance (`UInt32`).

use crate::table::{Table, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// A file that is no table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CsvError {
    /// No header line.
    #[error("find a header line")]
    Empty,
    /// Headers that are empty, or the same once only letters, digits and underscores are left of them.
    #[error("tell the columns apart: {0:?} is empty or there twice")]
    Names(String),
    /// A row with another number of cells than the header.
    #[error("read line {line}: {cells} cells where the header has {columns}")]
    Ragged {
        /// Line number, from 1.
        line: usize,
        /// Cells found.
        cells: usize,
        /// Cells expected.
        columns: usize,
    },
}

/// Reads a whole CSV text.
///
/// # Errors
/// [`CsvError`] names the first line that does not fit.
pub fn read(text: &str) -> Result<Table, CsvError> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().ok_or(CsvError::Empty)?;
    let names = cells(header);
    let mut seen = BTreeSet::new();
    for name in &names {
        let column = column_name(name);
        if column.is_empty() || !seen.insert(column) {
            return Err(CsvError::Names(name.clone()));
        }
    }
    let mut rows = Vec::new();
    for (index, line) in lines {
        let row = cells(line);
        if row.len() != names.len() {
            return Err(CsvError::Ragged { line: index + 1, cells: row.len(), columns: names.len() });
        }
        rows.push(row);
    }
    let numeric: Vec<bool> = (0..names.len())
        .map(|column| {
            rows.iter()
                .all(|row| row.get(column).is_some_and(|cell| cell.parse::<f64>().is_ok_and(f64::is_finite)))
        })
        .collect();
    let mut codes: Vec<BTreeMap<&str, usize>> = vec![BTreeMap::new(); names.len()];
    let mut tsv = String::new();
    for (id, row) in rows.iter().enumerate() {
        let _infallible = write!(tsv, "{id}");
        for ((cell, numeric), codes) in row.iter().zip(&numeric).zip(&mut codes) {
            if *numeric {
                let _infallible = write!(tsv, "\t{cell}");
            } else {
                let next = codes.len();
                let _infallible = write!(tsv, "\t{}", codes.entry(cell).or_insert(next));
            }
        }
        tsv.push('\n');
    }
    let mut columns = vec![("id".to_owned(), Type::UInt32)];
    let typed = names.iter().zip(&numeric);
    columns.extend(
        typed.map(|(name, numeric)| (column_name(name), if *numeric { Type::Float64 } else { Type::Code })),
    );
    Ok(Table { columns, tsv, rows: rows.len() })
}

/// A name that needs no quoting anywhere: letters, digits and underscores.
pub fn column_name(name: &str) -> String {
    let plain: String = name
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    if plain == "id" { "id_".to_owned() } else { plain }
}

fn cells(line: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(cell) = out.last_mut() else { break };
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                cell.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            other => cell.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_codes_and_numbers_stay() {
        let table = read("Time,VC,\"a \"\"b\"\"\"\n1.5,x,1\n2,\"y,z\",2\n3,x,3\n").unwrap();
        assert_eq!(table.tsv, "0\t1.5\t0\t1\n1\t2\t1\t2\n2\t3\t0\t3\n");
        let names: Vec<_> = table.columns.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["id", "time", "vc", "a__b_"]);
    }

    #[test]
    fn columns_that_cannot_be_told_apart_are_refused() {
        assert_eq!(read("a b,a_b\n1,2\n"), Err(CsvError::Names("a_b".to_owned())));
        assert_eq!(read("a,\n1,2\n"), Err(CsvError::Names(String::new())));
    }

    #[test]
    fn a_ragged_row_is_named_by_its_line() {
        assert_eq!(read("a,b\n1,2\n3\n"), Err(CsvError::Ragged { line: 3, cells: 1, columns: 2 }));
        assert_eq!(read(""), Err(CsvError::Empty));
    }
}
