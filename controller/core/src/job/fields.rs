//! Reads a JSON object field by field, so that everything wrong with it is found at once.

use super::check::Finding;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Findings that one body is answered with: who mends so many asks again, and 1 MiB may hold 100,000.
pub(super) const MOST_FINDINGS: usize = 100;

/// The first findings, and how many more there are.
pub(super) fn shortened(mut findings: Vec<Finding>) -> Vec<Finding> {
    let more = findings.len().saturating_sub(MOST_FINDINGS);
    if more > 0 {
        findings.truncate(MOST_FINDINGS);
        let message = format!("has {more} more things that are wrong");
        findings.push(Finding::new("", message, "mend these first, and send it again"));
    }
    findings
}

/// The keys of one JSON object, each read once; the rest is unknown.
pub(super) struct Fields<'a> {
    prefix: String,
    map: Map<String, Value>,
    read: Vec<&'static str>,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(prefix: &str, map: Map<String, Value>, findings: &'a mut Vec<Finding>) -> Self {
        Self { prefix: prefix.to_owned(), map, read: Vec::new(), findings }
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn required<T: DeserializeOwned>(&mut self, name: &'static str, hint: &str) -> Option<T> {
        if self.map.get(name).is_none_or(Value::is_null) {
            self.read.push(name);
            self.map.remove(name);
            self.findings.push(Finding::new(&self.path(name), "is missing", hint));
            return None;
        }
        self.optional(name)
    }

    /// The value, when it is there and readable; `null` counts as not there.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        self.read.push(name);
        let value = self.map.remove(name).filter(|value| !value.is_null())?;
        match serde_json::from_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.findings.push(unreadable(&self.path(name), &error.to_string()));
                None
            }
        }
    }

    pub(super) fn object(&mut self, name: &'static str) -> Option<Fields<'_>> {
        self.read.push(name);
        let prefix = format!("{}.", self.path(name));
        match self.map.remove(name).filter(|value| !value.is_null())? {
            Value::Object(map) => Some(Fields { prefix, map, read: Vec::new(), findings: self.findings }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                self.findings.push(unreadable(&self.path(name), "is no JSON object"));
                None
            }
        }
    }

    /// A key that somebody may expect here and that is not.
    pub(super) fn refuse(&mut self, name: &str, hint: &str) {
        if self.map.remove(name).is_some() {
            self.findings.push(Finding::new(&self.path(name), "is no known key", hint));
        }
    }

    fn nearest(&self, key: &str) -> String {
        match self.read.iter().min_by_key(|known| distance(known, key)) {
            Some(known) if distance(known, key) <= 3 => format!("did you mean {known:?}?"),
            _ => format!("known here: {}", self.read.join(", ")),
        }
    }

    pub(super) fn refuse_unknown(self) {
        for key in self.map.keys() {
            let shown: String = key.chars().take(80).collect();
            // What is over the limit is only counted: comparing it with every known key would take seconds.
            let told = self.findings.len() < MOST_FINDINGS;
            let hint = if told { self.nearest(&shown) } else { String::new() };
            let field = format!("{}{shown}", self.prefix);
            self.findings.push(Finding::new(&field, "is no known key", hint));
        }
    }
}

/// Splits `"…: hint"` texts of the unit and id doors, so that the hint stands where hints belong, and says
/// what serde says of types in the words of JSON.
fn unreadable(field: &str, error: &str) -> Finding {
    let mistyped = ["invalid type: ", "invalid value: "].iter().find_map(|start| error.strip_prefix(start));
    if let Some((found, wanted)) = mistyped.and_then(|rest| rest.split_once(", expected ")) {
        return Finding::new(
            field,
            format!("is {}", found_in_json(found)),
            format!("give {}", wanted_in_json(wanted)),
        );
    }
    match error.split_once(": ") {
        Some((message, hint)) => Finding::new(field, message, hint),
        None => Finding::new(field, error, "see the API reference for its form"),
    }
}

fn found_in_json(found: &str) -> String {
    match found.split_once(' ') {
        Some(("integer" | "boolean", value)) => value.replace('`', ""),
        Some(("floating", value)) => value.trim_start_matches("point ").replace('`', ""),
        Some(("string", value)) => format!("the text {value}"),
        _ if found == "sequence" => "a list".to_owned(),
        _ if found == "map" => "an object".to_owned(),
        _ => found.to_owned(),
    }
}

fn wanted_in_json(wanted: &str) -> &str {
    match wanted {
        "a string" => "a text",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" => "a whole number, 0 or more",
        other => other.strip_prefix("struct ").map_or(other, |_name| "an object"),
    }
}

/// Levenshtein distance in characters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.chars().enumerate() {
        let mut diagonal = line;
        let mut before = line + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&right) {
            let above = *cell;
            *cell = (diagonal + usize::from(from != *to)).min(above + 1).min(before + 1);
            diagonal = above;
            before = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
