//! Reads a job that a person wrote, and says everything that is wrong with it at once.
//!
//! Fields are read one by one, so that a wrong unit in one does not hide an unknown key beside it.
//! Nothing here touches anything: a body with findings changes nothing.

use super::fields::{Fields, shortened};
use super::once::Once;
use super::spec::{
    Array, Checkpointing, Class, DEFAULT_MAX_RUN_TIME_S, DEFAULT_PRIORITY, DEFAULT_PROJECT, DatasetRef, Gang,
    JobSpec, Resources, TASK_INDEX_ENV,
};
use rackwright_wire::id::{JobName, Project};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a deadline is, for people.
pub const DEADLINE_HINT: &str = "give seconds since the epoch, as `date -d tomorrow +%s` prints them";

/// One thing that is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Finding {
    /// Dotted path, such as `resources.memory`; empty for the whole body.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: String,
}

impl Finding {
    /// A finding about `field`.
    pub fn new(field: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "the body" } else { self.field.as_str() };
        write!(formatter, "{field}: {} ({})", self.message, self.hint)
    }
}

/// What a cluster accepts. Every list and text is bounded, so that one job's row stays below 100 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Priority classes by name; larger goes first.
    pub priorities: BTreeMap<String, i32>,
    /// Tasks of an array.
    pub array_tasks: u32,
    /// Pods of a gang.
    pub gang_pods: u32,
    /// Retries.
    pub retries: u32,
    /// Seconds that one attempt may run.
    pub max_run_time_s: u64,
    /// Entries of each list: command, args, env, datasets, dependencies.
    pub list_entries: usize,
    /// Bytes of all texts of command, args and env together.
    pub text_bytes: usize,
    /// Whether nodes can share a GPU (needs dynamic resource allocation).
    pub gpu_shares: bool,
}

impl Default for Limits {
    fn default() -> Self {
        let priorities = [("low", -100), (DEFAULT_PRIORITY, 0), ("high", 100)];
        Self {
            priorities: priorities.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            array_tasks: 100_000,
            gang_pods: 256,
            retries: 100,
            max_run_time_s: 30 * 24 * 3600,
            list_entries: 256,
            text_bytes: 64 * 1024,
            gpu_shares: false,
        }
    }
}

impl JobSpec {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// All findings, in the order of the fields, the first hundred and how many more; never an empty list.
    pub fn from_json(body: &[u8], limits: &Limits) -> Result<Self, Vec<Finding>> {
        let Once(value) = serde_json::from_slice(body).map_err(|error| {
            let hint = "send one JSON object, such as {\"name\": \"fit\", \"image\": \"…\"}";
            let message = if error.is_data() { error.to_string() } else { format!("is no JSON: {error}") };
            vec![Finding::new("", message, hint)]
        })?;
        let Value::Object(map) = value else {
            return Err(vec![Finding::new("", "is no JSON object", "send one JSON object")]);
        };
        let mut findings = Vec::new();
        let spec = read_spec(Fields::new("", map, &mut findings));
        if let Some(spec) = &spec {
            spec.check(limits, &mut findings);
        }
        match spec {
            Some(spec) if findings.is_empty() => Ok(spec),
            _ => Err(shortened(findings)),
        }
    }

    /// Everything that is wrong with a specification whose fields are readable each by itself.
    fn check(&self, limits: &Limits, findings: &mut Vec<Finding>) {
        check_container(self, limits, findings);
        check_resources(&self.resources, limits, findings);
        check_shape(self, limits, findings);
        check_lists(self, limits, findings);
        if !limits.priorities.contains_key(&self.priority) {
            let known: Vec<&str> = limits.priorities.keys().map(String::as_str).collect();
            let message = format!("{:?} is no priority class", self.priority);
            findings.push(Finding::new("priority", message, format!("use one of {}", known.join(", "))));
        }
        if self.retries > limits.retries {
            let hint = format!("ask for at most {}", limits.retries);
            findings.push(Finding::new("retries", format!("{} are too many", self.retries), hint));
        }
        if self.max_run_time_s == 0 || self.max_run_time_s > limits.max_run_time_s {
            let hint = format!("give seconds between 1 and {}", limits.max_run_time_s);
            findings.push(Finding::new("max_run_time_s", "is out of range", hint));
        }
        if self.deadline_s == Some(0) {
            findings.push(Finding::new("deadline_s", "is 0", DEADLINE_HINT));
        }
        if self.checkpoint.is_some_and(|checkpoint| checkpoint.interval_s == 0) {
            findings.push(Finding::new("checkpoint.interval_s", "is 0", "give seconds between checkpoints"));
        }
        if self.money_cap.is_some_and(|cap| cap.micros() <= 0) {
            findings.push(Finding::new("money_cap", "is not above 0", "write it like 12.50 EUR"));
        }
        if let Some(key) = &self.cache_key
            && (key.is_empty() || key.len() > 256)
        {
            findings.push(Finding::new("cache_key", "has no usable length", "use 1 to 256 bytes"));
        }
    }
}

fn check_container(spec: &JobSpec, limits: &Limits, findings: &mut Vec<Finding>) {
    let image = &spec.image;
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    let begins = image.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let ends = image.bytes().next_back().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !begins || !ends || image.len() > 512 || !image.bytes().all(usable) {
        let hint = "write a reference such as docker.io/library/python:3.13";
        findings.push(Finding::new("image", format!("{image:?} is no image reference"), hint));
    }
    for name in spec.env.keys() {
        let first = name.bytes().next();
        let usable = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let field = format!("env.{name}");
        if first.is_none_or(|byte| byte.is_ascii_digit()) || !name.bytes().all(usable) {
            let hint = "use letters, digits and `_`, not starting with a digit";
            findings.push(Finding::new(&field, "is no name of a variable", hint));
        } else if name.starts_with("RACKWRIGHT_") {
            let hint = format!("use another name; {TASK_INDEX_ENV} and others are set for you");
            findings.push(Finding::new(&field, "starts with a prefix that is ours", hint));
        }
    }
    let words = spec.command.iter().chain(&spec.args);
    let mut refuse_nul = |field: &str, text: &String| {
        if text.contains('\0') {
            findings.push(Finding::new(field, "holds a NUL", "no program can be given one: leave it out"));
        }
    };
    spec.command.iter().for_each(|word| refuse_nul("command", word));
    spec.args.iter().for_each(|word| refuse_nul("args", word));
    spec.env.iter().for_each(|(name, value)| refuse_nul(&format!("env.{name}"), value));
    let pairs = spec.env.iter().flat_map(|(name, value)| [name, value]);
    let bytes: usize = words.chain(pairs).map(String::len).sum();
    if bytes > limits.text_bytes {
        let message = format!("command, args and env hold {bytes} bytes together");
        let hint = format!("keep them under {}; put data into a dataset", limits.text_bytes);
        findings.push(Finding::new("command", message, hint));
    }
}

fn check_resources(resources: &Resources, limits: &Limits, findings: &mut Vec<Finding>) {
    if resources.cpu.is_zero() {
        findings.push(Finding::new("resources.cpu", "is 0", "ask for at least 1m"));
    }
    if resources.memory < Bytes::mib(4) {
        let hint = "ask for at least 4MiB: a container does not start with less";
        findings.push(Finding::new("resources.memory", format!("{} is too little", resources.memory), hint));
    }
    let gpu = resources.gpu.get();
    if !gpu.is_multiple_of(1000) && !limits.gpu_shares {
        let hint = "ask for whole GPUs; this cluster does not share them";
        findings.push(Finding::new("resources.gpu", format!("{} is not whole", resources.gpu), hint));
    } else if gpu > 1000 && !gpu.is_multiple_of(1000) {
        let hint = "ask for whole GPUs, or for a share of one";
        findings.push(Finding::new(
            "resources.gpu",
            format!("{} is more than one and not whole", resources.gpu),
            hint,
        ));
    }
    if resources.gpu.is_zero() && resources.gpu_type.is_some() {
        let hint = "say how many with resources.gpu, or leave the type out";
        findings.push(Finding::new("resources.gpu_type", "is given without a number of GPUs", hint));
    }
}

fn check_shape(spec: &JobSpec, limits: &Limits, findings: &mut Vec<Finding>) {
    if spec.array.is_some() && spec.gang.is_some() {
        let hint = "submit one job for each gang";
        findings.push(Finding::new("array", "does not go together with gang", hint));
    }
    if let Some(Array { count }) = spec.array
        && (count == 0 || count > limits.array_tasks)
    {
        let hint = format!("use 1 to {}", limits.array_tasks);
        findings.push(Finding::new("array.count", format!("{count} is out of range"), hint));
    }
    if let Some(Gang { size, .. }) = spec.gang
        && (size == 0 || size > limits.gang_pods)
    {
        let hint = format!("use 1 to {}", limits.gang_pods);
        findings.push(Finding::new("gang.size", format!("{size} is out of range"), hint));
    }
}

fn check_lists(spec: &JobSpec, limits: &Limits, findings: &mut Vec<Finding>) {
    let lists = [
        ("command", spec.command.len()),
        ("args", spec.args.len()),
        ("env", spec.env.len()),
        ("datasets", spec.datasets.len()),
        ("depends_on", spec.depends_on.len()),
    ];
    for (field, entries) in lists {
        if entries > limits.list_entries {
            let hint = format!("use at most {}", limits.list_entries);
            findings.push(Finding::new(field, format!("has {entries} entries"), hint));
        }
    }
    let mut names = BTreeSet::new();
    for dataset in &spec.datasets {
        if !names.insert(&dataset.name) {
            let message = format!("{} is named twice", dataset.name);
            findings.push(Finding::new("datasets", message, "name each dataset once"));
        }
    }
}

fn read_spec(mut fields: Fields<'_>) -> Option<JobSpec> {
    for key in ["owner", "team"] {
        fields.refuse(key, "leave it out: owner and team come from the token");
    }
    let name: Option<JobName> = fields.required("name", "give it a name such as \"fit\"");
    let image: Option<String> = fields.required("image", "name the image that its pods run");
    let resources = fields.object("resources").map_or_else(default_resources, read_resources);
    let project = fields.optional("project").or_else(|| Project::new(DEFAULT_PROJECT).ok());
    let spec = JobSpec {
        // A placeholder stands in for what could not be read, so that the rest is checked as well; the
        // finding that was recorded for it keeps the whole from being used.
        name: name.or_else(|| JobName::new("unnamed").ok())?,
        project: project?,
        model: fields.optional("model"),
        datasets: fields.optional::<Vec<DatasetRef>>("datasets").unwrap_or_default(),
        image: image.unwrap_or_else(|| "unnamed".to_owned()),
        command: fields.optional("command").unwrap_or_default(),
        args: fields.optional("args").unwrap_or_default(),
        env: fields.optional("env").unwrap_or_default(),
        resources,
        array: fields.optional("array"),
        gang: fields.optional("gang"),
        priority: fields.optional("priority").unwrap_or_else(|| DEFAULT_PRIORITY.to_owned()),
        class: fields.optional::<Class>("class").unwrap_or_default(),
        max_run_time_s: fields.optional("max_run_time_s").unwrap_or(DEFAULT_MAX_RUN_TIME_S),
        deadline_s: fields.optional("deadline_s"),
        money_cap: fields.optional("money_cap"),
        retries: fields.optional("retries").unwrap_or_default(),
        checkpoint: fields.optional::<Checkpointing>("checkpoint"),
        results: fields.optional("results").unwrap_or_default(),
        cache_key: fields.optional("cache_key"),
        depends_on: fields.optional("depends_on").unwrap_or_default(),
    };
    fields.refuse_unknown();
    Some(spec)
}

fn default_resources() -> Resources {
    Resources {
        cpu: MilliCpu::new(1000).unwrap_or_default(),
        memory: Bytes::mib(1024),
        ..Resources::default()
    }
}

fn read_resources(mut fields: Fields<'_>) -> Resources {
    let defaults = default_resources();
    let resources = Resources {
        cpu: fields.optional("cpu").unwrap_or(defaults.cpu),
        memory: fields.optional("memory").unwrap_or(defaults.memory),
        gpu: fields.optional("gpu").unwrap_or(MilliGpu::ZERO),
        gpu_type: fields.optional("gpu_type"),
    };
    fields.refuse_unknown();
    resources
}

#[cfg(test)]
mod tests {
    use super::super::fields::MOST_FINDINGS;
    use super::*;

    fn read(body: &str) -> Result<JobSpec, Vec<Finding>> {
        JobSpec::from_json(body.as_bytes(), &Limits::default())
    }

    fn fields(body: &str) -> Vec<String> {
        read(body).unwrap_err().into_iter().map(|finding| finding.field).collect()
    }

    #[test]
    fn the_shortest_job_shows_all_of_its_defaults() {
        let spec = read(r#"{"name": "fit", "image": "busybox:1"}"#).unwrap();
        let shown = serde_json::to_value(&spec).unwrap();
        assert_eq!(shown["project"], "default");
        assert_eq!(shown["priority"], "normal");
        assert_eq!(shown["class"], "flexible");
        assert_eq!(shown["max_run_time_s"], 86400);
        assert_eq!(shown["resources"], serde_json::json!({"cpu": "1", "memory": "1GiB"}));
        assert_eq!(serde_json::from_value::<JobSpec>(shown).unwrap(), spec);
    }

    #[test]
    fn wrong_types_are_said_in_the_words_of_json() {
        let body = r#"{"name": 5, "image": ["x"], "datasets": "apt", "env": [1], "retries": -1,
            "deadline_s": 1.5, "results": "yes", "array": {"count": {}}, "resources": {"cpu": 0.5}}"#;
        let findings = JobSpec::from_json(body.as_bytes(), &Limits::default()).unwrap_err();
        let said: Vec<String> = findings
            .iter()
            .map(|found| format!("{} {}: {}", found.field, found.message, found.hint))
            .collect();
        let expected = [
            "name is 5: give a text",
            "image is a list: give a text",
            "datasets is the text \"apt\": give a list",
            "env is a list: give an object",
            "array is an object: give a whole number from 0 to 4294967295",
            "deadline_s is 1.5: give a whole number, 0 or more",
            "retries is -1: give a whole number from 0 to 4294967295",
            "results is the text \"yes\": give true or false",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn null_is_no_value_and_what_no_program_or_image_can_be_is_refused() {
        let fields = |body: &str| {
            let findings = JobSpec::from_json(body.as_bytes(), &Limits::default()).unwrap_err();
            findings.into_iter().map(|found| format!("{} {}", found.field, found.message)).collect::<Vec<_>>()
        };
        assert_eq!(fields(r#"{"name": null, "image": null}"#), ["name is missing", "image is missing"]);
        for image in ["@@:::", "-x", "x:"] {
            let body = serde_json::json!({"name": "fit", "image": image}).to_string();
            assert_eq!(fields(&body), [format!("image {image:?} is no image reference")]);
        }
        let body = r#"{"name": "fit", "image": "i", "command": ["a\u0000b"], "env": {"A": "\u0000"}, "deadline_s": 0}"#;
        assert_eq!(fields(body), ["command holds a NUL", "env.A holds a NUL", "deadline_s is 0"]);
        let body = r#"{"name": "fit", "image": "i", "env": {"A": "1", "A": "2"}}"#;
        assert_eq!(fields(body), [" the key \"A\" stands twice at line 1 column 57"]);
    }

    #[test]
    fn everything_wrong_is_reported_at_once_and_nothing_is_hidden() {
        let body = r#"{
            "nam": "fit", "image": "no spaces allowed", "retires": 3,
            "resources": {"cpu": "many", "memory": "1 apple", "gpus": 1},
            "array": {"count": 100001}, "gang": {"size": 2}, "priority": "urgent",
            "env": {"1A": "x", "RACKWRIGHT_X": "y"}, "max_run_time_s": 0,
            "datasets": [{"name": "apt"}, {"name": "apt"}], "money_cap": "0 EUR"
        }"#;
        let expected = [
            "name",
            "resources.cpu",
            "resources.memory",
            "resources.gpus",
            "nam",
            "retires",
            "image",
            "env.1A",
            "env.RACKWRIGHT_X",
            "array",
            "array.count",
            "datasets",
            "priority",
            "max_run_time_s",
            "money_cap",
        ];
        assert_eq!(fields(body), expected);
    }

    #[test]
    fn of_very_many_findings_the_first_are_told_and_the_others_counted() {
        let keys: serde_json::Map<String, Value> =
            (0..5_000).map(|number| (format!("key{number}"), Value::Null)).collect();
        let mut body = serde_json::json!({"name": "fit", "image": "i", "env": {"1A": "x"}});
        body.as_object_mut().unwrap().extend(keys);
        let findings = read(&body.to_string()).unwrap_err();
        assert_eq!(findings.len(), MOST_FINDINGS + 1);
        let last = findings.last().unwrap();
        assert_eq!((last.field.as_str(), last.message.as_str()), ("", "has 4901 more things that are wrong"));
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_right_one() {
        let findings = read(r#"{"name": "fit", "image": "a", "retires": 3}"#).unwrap_err();
        assert_eq!(findings[0].hint, "did you mean \"retries\"?");
    }

    #[test]
    fn a_wrong_unit_is_answered_with_a_right_one() {
        let findings =
            read(r#"{"name": "a", "image": "a", "resources": {"memory": "4 apples"}}"#).unwrap_err();
        assert_eq!(findings[0].message, "\"4 apples\" is no amount of memory");
        assert_eq!(findings[0].hint, "write it like 512MiB, 1.5GiB or 4GB");
    }

    #[test]
    fn owner_and_team_cannot_be_claimed_in_the_body() {
        assert_eq!(fields(r#"{"name": "a", "image": "a", "owner": "root", "team": "x"}"#), ["owner", "team"]);
    }

    #[test]
    fn a_share_of_a_gpu_needs_a_cluster_that_shares_them() {
        let body = r#"{"name": "a", "image": "a", "resources": {"gpu": "500m"}}"#;
        assert_eq!(fields(body), ["resources.gpu"]);
        let sharing = Limits { gpu_shares: true, ..Limits::default() };
        assert!(JobSpec::from_json(body.as_bytes(), &sharing).is_ok());
    }

    #[test]
    fn what_is_no_object_is_refused_as_a_whole() {
        for body in ["", "[]", "null", "{", "\"x\""] {
            assert_eq!(fields(body), [""]);
        }
        assert_eq!(fields(r#"{"name": "a", "image": "a", "resources": []}"#), ["resources"]);
    }

    #[test]
    fn a_dataset_version_is_latest_or_a_whole_digest() {
        let body = |version: &str| {
            format!(
                r#"{{"name": "a", "image": "a", "datasets": [{{"name": "apt", "version": "{version}"}}]}}"#
            )
        };
        assert!(read(&body("latest")).is_ok());
        assert!(read(&body(&"0a".repeat(32))).is_ok());
        assert_eq!(fields(&body("0a0a")), ["datasets"]);
    }
}
