//! A table of fixed-width numbers, as the demo loads it into ClickHouse.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Column types that numpy maps without parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Unsigned, 8 bits.
    UInt8,
    /// Unsigned, 16 bits.
    UInt16,
    /// Unsigned, 32 bits.
    UInt32,
    /// Unsigned, 64 bits.
    UInt64,
    /// A number that stands for a word, 32 bits.
    Code,
    /// IEEE double.
    Float64,
}

impl Type {
    /// ClickHouse's name of the type.
    pub fn clickhouse(self) -> &'static str {
        match self {
            Self::UInt8 => "UInt8",
            Self::UInt16 => "UInt16",
            Self::UInt32 | Self::Code => "UInt32",
            Self::UInt64 => "UInt64",
            Self::Float64 => "Float64",
        }
    }
}

/// Named, typed columns and rows of decimal text, one tab-separated line a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Name and type of each column, in order.
    pub columns: Vec<(String, Type)>,
    /// Tab-separated rows with a trailing line feed each.
    pub tsv: String,
    /// Number of rows.
    pub rows: usize,
}

/// A quarter of the rows is held out, and what is left must be more than a table has columns.
const FEWEST_ROWS: usize = 200;

impl Table {
    /// Why a fit that predicts `target` from the other columns would say nothing, if so.
    pub fn unfit(&self, target: &str) -> Option<String> {
        let Some(place) = self.columns.iter().position(|(name, _)| name == target) else {
            let names: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
            return Some(format!("no column {target:?}, but {}", names.join(" ")));
        };
        let values: BTreeSet<&str> =
            self.tsv.lines().filter_map(|line| line.split('\t').nth(place)).collect();
        // The first column is the row's number.
        if self.columns.len() < 3 {
            Some("one column only".to_owned())
        } else if self.rows < FEWEST_ROWS {
            Some(format!("{} rows; a fit needs {FEWEST_ROWS}", self.rows))
        } else if self.columns.get(place).is_some_and(|(_, kind)| *kind == Type::Code) {
            Some(format!("words in {target:?}, not numbers"))
        } else if values.len() < 2 {
            Some(format!("one value only in {target:?}"))
        } else {
            None
        }
    }

    /// The statement that creates it as `name`, ordered by its first column.
    pub fn create(&self, name: &str) -> String {
        let mut text = format!("CREATE TABLE {name} (");
        for (index, (column, kind)) in self.columns.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let _infallible = write!(text, "{comma}`{column}` {}", kind.clickhouse());
        }
        let key = self.columns.first().map_or("tuple()", |(column, _)| column.as_str());
        let _infallible = write!(text, ") ENGINE = MergeTree ORDER BY `{key}`");
        text
    }
}

#[cfg(test)]
mod tests {
    use crate::csv;

    #[test]
    fn what_no_fit_can_be_made_of_is_said() {
        let table = |rows: usize, line: &dyn Fn(usize) -> String| {
            let lines: String = (0..rows).map(|row| line(row) + "\n").collect();
            csv::read(&format!("a,b,c\n{lines}")).unwrap()
        };
        let good = table(200, &|row| format!("{row},{},x", row % 7));
        assert_eq!(good.unfit("a"), None);
        assert!(good.unfit("d").unwrap().starts_with("no column \"d\", but id a b c"));
        assert_eq!(good.unfit("c").unwrap(), "words in \"c\", not numbers");
        assert_eq!(table(20, &|row| format!("{row},1,x")).unfit("a").unwrap(), "20 rows; a fit needs 200");
        assert_eq!(table(200, &|row| format!("{row},1,x")).unfit("b").unwrap(), "one value only in \"b\"");
        // Rust reads these as numbers, and a mean over them is none.
        assert_eq!(
            table(200, &|row| format!("{row},NaN,x")).unfit("b").unwrap(),
            "words in \"b\", not numbers"
        );
    }
}
