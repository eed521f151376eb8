//! From templates to steps for one server.

use super::{Context, Need, Parameter, Playbook, Template, Text, order};
use crate::finding::{Finding, nearest};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value};
use rackwright_wire::step::{Step, StepKind};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

/// Renders all steps of one server, in an order that respects `needs`.
///
/// Steps of other roles, and those whose `when` is false, are left out; needs that point at them are dropped.
/// All findings of all playbooks are returned at once.
pub fn render(playbooks: &[Playbook], context: &Context) -> Result<Vec<Step>, Vec<Finding>> {
    let mut renderer = Renderer { engine: engine(), context, findings: Vec::new() };
    let mut chosen: Vec<(&Playbook, &Template)> = Vec::new();
    for playbook in playbooks {
        for step in &playbook.steps {
            if renderer.applies(playbook, step) {
                chosen.push((playbook, step));
            }
        }
    }
    let known: BTreeSet<&str> =
        playbooks.iter().flat_map(|playbook| &playbook.steps).map(|step| step.id.as_str()).collect();
    let here: BTreeSet<&str> = chosen.iter().map(|(_, step)| step.id.as_str()).collect();
    let mut steps = Vec::new();
    for (playbook, step) in &chosen {
        let needs = renderer.needs(playbook, step, &known, &here);
        let kind = renderer.kind(playbook, step);
        steps.extend(kind.map(|kind| Step { id: step.id.clone(), needs, kind }));
    }
    let sorted = order::sort(steps).map_err(|circle| circle_finding(&chosen, &circle));
    match sorted {
        Ok(steps) if renderer.findings.is_empty() => Ok(steps),
        Ok(_) => Err(renderer.sorted_findings()),
        Err(circle) => {
            renderer.findings.extend(circle);
            Err(renderer.sorted_findings())
        }
    }
}

/// The template engine: strict about undefined names, exact about white space.
pub(super) fn engine() -> Environment<'static> {
    let mut engine = Environment::new();
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true);
    if let Ok(syntax) = syntax.build() {
        engine.set_syntax(syntax);
    }
    engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    engine.add_filter("xml", xml);
    engine.add_filter("quoted", quoted);
    engine
}

/// Text as the content of an XML element.
fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Text in double quotes with escapes that TOML, JSON, YAML and systemd read alike.
fn quoted(text: &str) -> String {
    Json::from(text).to_string()
}

struct Renderer<'r> {
    engine: Environment<'static>,
    context: &'r Context,
    findings: Vec<Finding>,
}

impl Renderer<'_> {
    fn add(&mut self, playbook: &Playbook, line: usize, code: &'static str, message: String, hint: String) {
        self.findings.push(Finding { file: playbook.file.clone(), line, column: 1, code, message, hint });
    }

    fn sorted_findings(mut self) -> Vec<Finding> {
        self.findings.sort();
        self.findings.dedup();
        self.findings
    }

    fn applies(&mut self, playbook: &Playbook, step: &Template) -> bool {
        if !step.roles.is_empty() && !step.roles.contains(&self.context.role) {
            return false;
        }
        let Some(when) = &step.when else { return true };
        let message = match self.expression(&when.text) {
            Ok(value) if value.is_undefined() => format!("`{}` is undefined", when.text),
            Ok(value) => return value.is_true(),
            Err(error) => plain(&error),
        };
        let message = format!("step `{}`: `when`: {message}", step.id);
        self.add(playbook, when.line, "template", message, String::new());
        false
    }

    fn needs(
        &mut self,
        playbook: &Playbook,
        step: &Template,
        known: &BTreeSet<&str>,
        here: &BTreeSet<&str>,
    ) -> Vec<String> {
        let mut needs: Vec<String> = Vec::new();
        for need in &step.needs {
            let meant = meant(need, known);
            if meant.is_empty() {
                let hint = nearest(&need.id, known.iter().copied())
                    .map_or_else(String::new, |near| format!("did you mean `{near}`?"));
                let message = format!("step `{}` needs `{}`, which no playbook has", step.id, need.id);
                self.findings.push(Finding {
                    file: playbook.file.clone(),
                    line: need.line,
                    column: need.column,
                    code: "unknown-step",
                    message,
                    hint,
                });
            }
            needs.extend(meant.into_iter().filter(|id| here.contains(id)).map(str::to_owned));
        }
        needs.sort();
        needs.dedup();
        needs
    }

    fn kind(&mut self, playbook: &Playbook, step: &Template) -> Option<StepKind> {
        let mut fields = serde_json::Map::new();
        fields.insert("kind".to_owned(), step.kind.as_str().into());
        let mut whole = true;
        for (name, parameter) in &step.parameters {
            match self.parameter(parameter) {
                Ok(value) => drop(fields.insert(name.clone(), value)),
                Err((line, message)) => {
                    whole = false;
                    let message = format!("step `{}`: `{name}`: {message}", step.id);
                    self.add(playbook, line, "template", message, String::new());
                }
            }
        }
        if !whole {
            return None;
        }
        self.fill(playbook, step, &mut fields)?;
        match serde_json::from_value(Json::Object(fields)) {
            Ok(kind) => Some(kind),
            Err(error) => {
                let message = format!("step `{}` is no {}: {error}", step.id, step.kind);
                self.add(playbook, step.line, "bad-step", message, String::new());
                None
            }
        }
    }

    /// Fills in the hashes that the lockfile and the CAs fix.
    fn fill(
        &mut self,
        playbook: &Playbook,
        step: &Template,
        fields: &mut serde_json::Map<String, Json>,
    ) -> Option<()> {
        let (from, source, key, field) = match step.kind.as_str() {
            "artifact" | "image" => ("lockfile", &self.context.artifacts, "name", "sha256"),
            "certificate" => ("PKI", &self.context.pki, "ca", "ca_sha256"),
            _ => return Some(()),
        };
        if fields.contains_key(field) {
            return Some(());
        }
        let name = fields.get(key).and_then(Json::as_str).unwrap_or_default();
        if let Some(hash) = source.get(name) {
            fields.insert(field.to_owned(), hash.as_str().into());
            return Some(());
        }
        let hint = nearest(name, source.keys().map(String::as_str))
            .map_or_else(String::new, |near| format!("did you mean `{near}`?"));
        let message = format!("step `{}` names `{name}`, which the {from} does not have", step.id);
        self.add(playbook, step.line, "unknown-artifact", message, hint);
        None
    }

    fn parameter(&self, parameter: &Parameter) -> Result<Json, (usize, String)> {
        match parameter {
            Parameter::Text(text) => self.text(text),
            Parameter::Integer(number) => Ok((*number).into()),
            Parameter::Boolean(is) => Ok((*is).into()),
            Parameter::List(items) => items.iter().map(|item| self.parameter(item)).collect(),
            Parameter::Table(fields) => fields
                .iter()
                .map(|(name, value)| Ok((name.clone(), self.parameter(value)?)))
                .collect::<Result<serde_json::Map<_, _>, _>>()
                .map(Json::Object),
        }
    }

    fn text(&self, text: &Text) -> Result<Json, (usize, String)> {
        let at = |error: &minijinja::Error| {
            (text.line + error.line().unwrap_or(1).saturating_sub(1), plain(error))
        };
        if !text.text.contains("{{") && !text.text.contains("{%") && !text.text.contains("{#") {
            return Ok(text.text.as_str().into());
        }
        if let Some(expression) = single_expression(&text.text) {
            let value = self.expression(expression).map_err(|error| at(&error))?;
            if value.is_undefined() {
                return Err((text.line, format!("`{expression}` is undefined")));
            }
            return serde_json::to_value(&value).map_err(|error| (text.line, error.to_string()));
        }
        let rendered = self.engine.render_str(&text.text, self.context.value.clone());
        rendered.map(Json::String).map_err(|error| at(&error))
    }

    fn expression(&self, text: &str) -> Result<Value, minijinja::Error> {
        self.engine.compile_expression(text)?.eval(self.context.value.clone())
    }
}

/// The expression of a text that is nothing but one `{{ … }}`.
fn single_expression(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}") && !inner.contains("{%")).then(|| inner.trim())
}

/// The steps that a need means: one, or a whole layer.
fn meant<'k>(need: &Need, known: &BTreeSet<&'k str>) -> Vec<&'k str> {
    match need.id.strip_suffix('*') {
        Some(layer) => known.iter().copied().filter(|id| id.starts_with(layer)).collect(),
        None => known.get(need.id.as_str()).copied().into_iter().collect(),
    }
}

/// The engine's error without the name that it gives to nameless templates.
pub(super) fn plain(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    format!("{}{detail}", error.kind())
}

fn circle_finding(chosen: &[(&Playbook, &Template)], circle: &[String]) -> Vec<Finding> {
    let lines: BTreeMap<&str, (&str, usize)> = chosen
        .iter()
        .map(|(playbook, step)| (step.id.as_str(), (playbook.file.as_str(), step.line)))
        .collect();
    let first = circle.first().and_then(|id| lines.get(id.as_str()));
    let (file, line) = first.copied().unwrap_or_default();
    vec![Finding {
        file: file.to_owned(),
        line,
        column: 1,
        code: "circle",
        message: format!("steps need each other in a circle: {}", circle.join(" -> ")),
        hint: "one of these needs is not real: remove it".to_owned(),
    }]
}
