//! A table of fixed-width numbers, as the demo loads it into ClickHouse.

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
    /// IEEE double.
    Float64,
}

impl Type {
    /// ClickHouse's name of the type.
    pub fn clickhouse(self) -> &'static str {
        match self {
            Self::UInt8 => "UInt8",
            Self::UInt16 => "UInt16",
            Self::UInt32 => "UInt32",
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

impl Table {
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
