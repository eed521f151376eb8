//! From TOML to templates. Everything that can be known without a server is checked here.

use super::render::{engine, plain};
use super::{Need, Parameter, Playbook, Template, Text};
use crate::finding::{Finding, Findings, nearest};
use crate::inventory::Role;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The kinds that the agent implements, as playbooks write them.
const KINDS: [&str; 15] = [
    "package",
    "file",
    "directory",
    "unit",
    "sysctl",
    "module",
    "mount",
    "artifact",
    "image",
    "certificate",
    "key_pair",
    "user",
    "slice",
    "wait",
    "command",
];

pub(super) fn playbook(file: &str, text: &str) -> Result<Playbook, Vec<Finding>> {
    let mut findings = Findings::new(file, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        findings.add(&error.span().unwrap_or(0..0), "syntax", error.message().replace('\n', ", "), "");
    }
    if !errors.is_empty() {
        return Err(findings.into_vec());
    }
    let layer = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".toml").to_owned();
    let mut playbook =
        Playbook { file: file.to_owned(), layer: layer.clone(), title: String::new(), steps: Vec::new() };
    for (key, value) in document.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("title", DeValue::String(title)) => playbook.title = title.clone().into_owned(),
            ("step", DeValue::Array(steps)) => {
                let mut reader = Reader { layer: &layer, findings: &mut findings };
                playbook.steps = steps.iter().filter_map(|step| reader.step(step)).collect();
            }
            (other, _) => {
                let message = format!("unexpected key or type of `{other}`");
                findings.add(&key.span(), "unknown-key", message, "a playbook has `title` and `[[step]]`");
            }
        }
    }
    duplicates(&playbook, &mut findings);
    findings.finish(Some(playbook))
}

fn duplicates(playbook: &Playbook, findings: &mut Findings<'_>) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for step in &playbook.steps {
        if let Some(line) = seen.insert(&step.id, step.line) {
            let message = format!("two steps are called `{}`", step.id);
            findings.add_at(
                step.line,
                1,
                "duplicate-step",
                message,
                format!("the other one is on line {line}"),
            );
        }
    }
}

struct Reader<'r, 't> {
    layer: &'r str,
    findings: &'r mut Findings<'t>,
}

impl Reader<'_, '_> {
    fn step(&mut self, item: &Spanned<DeValue<'_>>) -> Option<Template> {
        let Some(table) = item.get_ref().as_table() else {
            self.findings.add(&item.span(), "wrong-type", "`step` is no table", "write [[step]]");
            return None;
        };
        let (line, _) = self.findings.position(item.span().start);
        let mut step = Template {
            id: String::new(),
            kind: String::new(),
            needs: Vec::new(),
            roles: Vec::new(),
            when: None,
            parameters: Vec::new(),
            line,
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            match key.get_ref().as_ref() {
                "id" => step.id = self.word(value, "id").map(|id| format!("{}/{id}", self.layer))?,
                "kind" => step.kind = self.kind(value)?,
                "needs" => step.needs = self.needs(value),
                "roles" => step.roles = self.roles(value),
                "when" => step.when = self.when(value),
                name => step.parameters.extend(self.parameter(value).map(|value| (name.to_owned(), value))),
            }
        }
        for (name, value) in [("id", &step.id), ("kind", &step.kind)] {
            if value.is_empty() {
                self.findings.add(&item.span(), "missing-key", format!("a step has no `{name}`"), "");
            }
        }
        Some(step)
    }

    fn word<'v>(&mut self, value: &'v Spanned<DeValue<'_>>, key: &str) -> Option<&'v str> {
        let word = value.get_ref().as_str().filter(|word| !word.is_empty() && !word.contains(['/', '*']));
        if word.is_none() {
            self.findings.add(&value.span(), "wrong-type", format!("`{key}` is no plain word"), "");
        }
        word
    }

    fn kind(&mut self, value: &Spanned<DeValue<'_>>) -> Option<String> {
        let kind = self.word(value, "kind")?;
        if !KINDS.contains(&kind) {
            let hint = nearest(kind, KINDS).map_or_else(
                || format!("one of {}", KINDS.join(", ")),
                |meant| format!("did you mean `{meant}`?"),
            );
            self.findings.add(&value.span(), "unknown-kind", format!("unknown kind of step `{kind}`"), hint);
        }
        Some(kind.to_owned())
    }

    fn texts<'v>(&mut self, value: &'v Spanned<DeValue<'_>>, key: &str) -> Vec<(&'v str, Range<usize>)> {
        let list = value.get_ref().as_array();
        if list.is_none_or(|list| list.iter().any(|item| !item.get_ref().is_str())) {
            self.findings.add(&value.span(), "wrong-type", format!("`{key}` is no list of texts"), "");
        }
        let texts = list.into_iter().flatten();
        texts.filter_map(|item| Some((item.get_ref().as_str()?, item.span()))).collect()
    }

    fn needs(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<Need> {
        let needs = self.texts(value, "needs");
        let full = |id: &str| {
            if id.contains('/') { id.to_owned() } else { format!("{}/{id}", self.layer) }
        };
        needs
            .into_iter()
            .map(|(id, at)| {
                let (line, column) = self.findings.position(at.start);
                Need { id: full(id), line, column }
            })
            .collect()
    }

    fn roles(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<Role> {
        let mut roles = Vec::new();
        for (name, at) in self.texts(value, "roles") {
            match name.parse::<Role>() {
                Ok(role) => roles.push(role),
                Err(error) => self.findings.add(&at, "unknown-role", error.to_string(), ""),
            }
        }
        roles
    }

    fn when(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Text> {
        let Some(text) = value.get_ref().as_str() else {
            self.findings.add(&value.span(), "wrong-type", "`when` is no text", "an expression in quotes");
            return None;
        };
        if let Err(error) = engine().compile_expression(text) {
            self.findings.add(&value.span(), "template", format!("`when`: {}", plain(&error)), "");
        }
        Some(Text { text: text.to_owned(), line: self.findings.position(value.span().start).0 })
    }

    fn parameter(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Parameter> {
        Some(match value.get_ref() {
            DeValue::String(text) => Parameter::Text(self.template(text, &value.span())),
            DeValue::Boolean(is) => Parameter::Boolean(*is),
            DeValue::Integer(number) => {
                Parameter::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()?)
            }
            DeValue::Array(items) => {
                Parameter::List(items.iter().filter_map(|item| self.parameter(item)).collect())
            }
            DeValue::Table(table) => Parameter::Table(
                table
                    .iter()
                    .filter_map(|(key, value)| Some((key.get_ref().to_string(), self.parameter(value)?)))
                    .collect(),
            ),
            DeValue::Float(_) | DeValue::Datetime(_) => {
                let message = "no step takes a fraction or a date";
                self.findings.add(&value.span(), "wrong-type", message, "write it as a text in quotes");
                return None;
            }
        })
    }

    /// A text and the line of its first character; TOML drops a newline right after the opening quotes.
    fn template(&mut self, text: &str, at: &Range<usize>) -> Text {
        let raw = self.findings.text_at(at);
        let opening = usize::from(raw.starts_with("'''\n") || raw.starts_with("\"\"\"\n"));
        let line = self.findings.position(at.start).0 + opening;
        if let Err(error) = engine().template_from_str(text) {
            let line = line + error.line().unwrap_or(1).saturating_sub(1);
            self.findings.add_at(line, 1, "template", format!("no template: {}", plain(&error)), "");
        }
        Text { text: text.to_owned(), line }
    }
}
