//! Strict reading of one TOML table: every key is asked for by name, and what was not asked for is a finding.
//!
//! A value that is missing or wrong becomes a finding and `None`; the caller goes on, so that one run
//! shows everything.

use crate::finding::{Findings, nearest};
use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A table being read, with the name that findings call it by.
pub(crate) struct Table<'a, 'i> {
    name: String,
    span: Range<usize>,
    entries: &'a DeTable<'i>,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) at: Range<usize>,
}

impl<'a, 'i> Table<'a, 'i> {
    /// Wraps a table and reports every key that is not in `known`.
    pub(crate) fn new(
        name: &str,
        span: Range<usize>,
        table: &'a DeTable<'i>,
        known: &[&str],
        findings: &mut Findings<'_>,
    ) -> Self {
        for key in table.keys() {
            let word = key.get_ref().as_ref();
            if !known.contains(&word) {
                findings.add(
                    &key.span(),
                    "unknown-key",
                    format!("unknown key `{word}` in {name}"),
                    nearest(word, known.iter().copied()).map_or_else(
                        || format!("known keys: {}", known.join(", ")),
                        |meant| format!("did you mean `{meant}`?"),
                    ),
                );
            }
        }
        Self { name: name.to_owned(), span, entries: table }
    }

    /// Where the table stands.
    pub(crate) fn span(&self) -> &Range<usize> {
        &self.span
    }

    /// The raw value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.entries.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Reports a key that is required and not there.
    pub(crate) fn missing(&self, key: &str, example: &str, findings: &mut Findings<'_>) {
        findings.add(
            &self.span,
            "missing-key",
            format!("{} has no `{key}`", self.name),
            format!("add `{key} = {example}`"),
        );
    }

    /// A text, if the key is there.
    pub(crate) fn text(&self, key: &str, findings: &mut Findings<'_>) -> Option<Located<&'a str>> {
        let value = self.get(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, "a text in quotes", value, findings);
        }
        text.map(|text| Located { value: text, at: value.span() })
    }

    /// A text that must be there and not be empty.
    pub(crate) fn need_text(
        &self,
        key: &str,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Located<&'a str>> {
        if self.get(key).is_none() {
            self.missing(key, example, findings);
        }
        let text = self.text(key, findings)?;
        if text.value.is_empty() {
            findings.add(
                &text.at,
                "empty",
                format!("`{key}` is empty"),
                format!("write `{key} = {example}`"),
            );
            return None;
        }
        Some(text)
    }

    /// A text that reads as `T`, if the key is there. `code` names the finding when it does not read, and
    /// `example` is what to write instead.
    pub(crate) fn parse<T>(
        &self,
        key: &str,
        code: &'static str,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Located<T>>
    where
        T: FromStr<Err: Display>,
    {
        let value = self.get(key)?;
        let Some(text) = value.get_ref().as_str() else {
            let message = format!("`{key}` in {} is {}", self.name, kind(value.get_ref()));
            findings.add(&value.span(), code, message, format!("write `{key} = {example}`"));
            return None;
        };
        match text.parse() {
            Ok(read) => Some(Located { value: read, at: value.span() }),
            Err(error) => {
                let hint = format!("such as `{key} = {example}`");
                findings.add(&value.span(), code, format!("`{key}`: {error}"), hint);
                None
            }
        }
    }

    /// A text that must be there and read as `T`.
    pub(crate) fn need<T>(
        &self,
        key: &str,
        code: &'static str,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Located<T>>
    where
        T: FromStr<Err: Display>,
    {
        if self.get(key).is_none() {
            self.missing(key, example, findings);
        }
        self.parse(key, code, example, findings)
    }

    /// A whole number within bounds, if the key is there.
    pub(crate) fn integer<T: TryFrom<i64>>(
        &self,
        key: &str,
        within: std::ops::RangeInclusive<i64>,
        findings: &mut Findings<'_>,
    ) -> Option<Located<T>> {
        let value = self.get(key)?;
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong_type(key, "a whole number without quotes", value, findings);
            return None;
        };
        let read = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let fits = read.filter(|number| within.contains(number)).and_then(|number| T::try_from(number).ok());
        if fits.is_none() {
            let (low, high) = (within.start(), within.end());
            let hint = format!("write a number from {low} to {high}");
            findings.add(&value.span(), "out-of-range", format!("`{key}` is out of range"), hint);
        }
        fits.map(|number| Located { value: number, at: value.span() })
    }

    /// A list of texts; empty when the key is not there.
    pub(crate) fn texts(&self, key: &str, findings: &mut Findings<'_>) -> Vec<Located<&'a str>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(key, "a list of texts", value, findings);
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in list {
            match item.get_ref().as_str() {
                Some(text) => texts.push(Located { value: text, at: item.span() }),
                None => self.wrong_type(key, "a list of texts", item, findings),
            }
        }
        texts
    }

    /// A table inside, if the key is there.
    pub(crate) fn table(
        &self,
        key: &str,
        name: &str,
        known: &[&str],
        findings: &mut Findings<'_>,
    ) -> Option<Table<'a, 'i>> {
        let value = self.get(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(key, "a table", value, findings);
        }
        table.map(|table| Table::new(name, value.span(), table, known, findings))
    }

    /// The entries of a table whose keys are free names, in the order of the file.
    pub(crate) fn entries(
        &self,
        key: &str,
        findings: &mut Findings<'_>,
    ) -> Vec<(Located<&'a str>, &'a Spanned<DeValue<'i>>)> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, "a table", value, findings);
            return Vec::new();
        };
        let mut entries: Vec<_> = table
            .iter()
            .map(|(name, value)| (Located { value: name.get_ref().as_ref(), at: name.span() }, value))
            .collect();
        entries.sort_by_key(|(name, _)| name.at.start);
        entries
    }

    /// Reports a value of another type than expected.
    pub(crate) fn wrong_type(
        &self,
        key: &str,
        expected: &str,
        value: &Spanned<DeValue<'_>>,
        findings: &mut Findings<'_>,
    ) {
        let message = format!("`{key}` in {} is {}, expected {expected}", self.name, kind(value.get_ref()));
        findings.add(&value.span(), "wrong-type", message, "");
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
