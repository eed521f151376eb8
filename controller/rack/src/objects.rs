//! The cluster's own objects: what must be in the API besides servers and jobs. Pure.
//!
//! An object is as wanted when everything that we say about it is so; what others added stays theirs.

use rackwright_core::inventory::{Inventory, Role, Server};
use rackwright_wire::step::Difference;
use serde_json::{Value, json};

/// Field manager of everything that is applied here.
pub const MANAGER: &str = "rackwright";
/// Group of people with all rights, bound here instead of the irrevocable `system:masters`.
pub const ADMINS: &str = "rackwright:admins";
/// Group of `rackwright serve`.
pub const CONTROLLERS: &str = "rackwright:controllers";
/// Group of the API server where it talks to kubelets.
pub const KUBELET_CLIENTS: &str = "rackwright:kubelet-clients";
/// Name of the CSI driver.
pub const CSI_DRIVER: &str = "data.rackwright.dev";

/// All objects that the cluster must have, in the order in which they are applied.
pub fn wanted() -> Vec<Value> {
    vec![
        binding("rackwright:admins", "cluster-admin", ADMINS),
        binding("rackwright:kubelet-clients", "system:kubelet-api-admin", KUBELET_CLIENTS),
        serve_role(),
        binding("rackwright:serve", "rackwright:serve", CONTROLLERS),
        csi_driver(),
    ]
}

fn binding(name: &str, role: &str, group: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group }],
    })
}

/// What the scheduler and the data plane need, and nothing else: no secrets, no roles, no exec.
fn serve_role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": "rackwright:serve" },
        "rules": [
            rule("", &["pods"], &["get", "list", "watch", "create", "patch", "delete"]),
            rule("", &["pods/log"], &["get"]),
            rule("", &["pods/binding"], &["create"]),
            rule("", &["nodes"], &["get", "list", "watch", "patch"]),
            rule("", &["namespaces"], &["get", "list", "watch", "create", "patch"]),
            rule("", &["events"], &["get", "list", "watch"]),
            rule("coordination.k8s.io", &["leases"], &["get"]),
            rule("storage.k8s.io", &["csinodes"], &["get", "list", "watch"]),
        ],
    })
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}

fn csi_driver() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {
            "name": CSI_DRIVER,
            // Lets pods of the restricted profile use it inline.
            "labels": { "security.kubernetes.io/csi-ephemeral-volume-profile": "restricted" },
        },
        "spec": {
            "attachRequired": false,
            "fsGroupPolicy": "None",
            "podInfoOnMount": true,
            "volumeLifecycleModes": ["Ephemeral"],
        },
    })
}

/// What an hour of a server costs: caps on a job's money count with it.
const PRICE: &str = "rackwright.dev/price-per-hour";

/// Label, annotation and taints that a server's role and contract mean for its node.
fn node_marks(server: &Server) -> (Value, Value, Vec<Value>) {
    let role = server.role;
    let taint = |key: &str| vec![json!({ "key": key, "effect": "NoSchedule" })];
    let taints = match role {
        Role::Control => taint("rackwright.dev/control"),
        Role::Ml => taint("rackwright.dev/jobs"),
        Role::Data | Role::Results | Role::Dev => Vec::new(),
    };
    let annotations = match &server.contract {
        Some(contract) => json!({ PRICE: contract.hourly().to_string() }),
        None => json!({}),
    };
    (json!({ "rackwright.dev/role": role.name() }), annotations, taints)
}

/// The merge patch that gives a node its server's marks, or `None` when it has them. Other people's labels,
/// annotations and taints stay.
pub fn node_patch(server: &Server, node: &Value) -> Option<Value> {
    let (labels, annotations, wanted) = node_marks(server);
    let live = |pointer| node.pointer(pointer).cloned().unwrap_or(Value::Null);
    let mut patch = serde_json::Map::new();
    let marked = contains(&live("/metadata/labels"), &labels)
        && contains(&live("/metadata/annotations"), &annotations);
    if !marked {
        patch.insert("metadata".to_owned(), json!({ "labels": labels, "annotations": annotations }));
    }
    let mut taints = live("/spec/taints").as_array().cloned().unwrap_or_default();
    let missing: Vec<Value> =
        wanted.into_iter().filter(|taint| !taints.iter().any(|live| contains(live, taint))).collect();
    if !missing.is_empty() {
        taints.extend(missing);
        patch.insert("spec".to_owned(), json!({ "taints": taints }));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// How an object differs from what is wanted, if it does. `live` is `None` when it does not exist.
pub fn difference(wanted: &Value, live: Option<&Value>) -> Option<Difference> {
    let step = format!("cluster/{}", name(wanted));
    let Some(live) = live else {
        return Some(Difference {
            step,
            summary: format!("create {}", title(wanted)),
            detail: String::new(),
        });
    };
    let mut lines = Vec::new();
    compare("", wanted, live, &mut lines);
    (!lines.is_empty()).then(|| Difference {
        step,
        summary: format!("change {}", title(wanted)),
        detail: lines.join("\n"),
    })
}

/// What is planned for a cluster whose API nobody can ask yet.
pub fn all_missing(inventory: &Inventory) -> Vec<Difference> {
    let objects = wanted();
    let objects = objects.iter().filter_map(|object| difference(object, None));
    let nodes = inventory.servers.iter().map(|server| node_difference(server, false));
    objects.chain(nodes).collect()
}

/// The difference of a node that has not its server's marks, or that does not exist.
pub fn node_difference(server: &Server, exists: bool) -> Difference {
    let verb = if exists { "mark" } else { "register" };
    Difference {
        step: node_step(&server.name),
        summary: format!("{verb} node {} as {}", server.name, server.role),
        detail: String::new(),
    }
}

/// The step that registers a node and gives it its marks.
pub fn node_step(node: &str) -> String {
    format!("cluster/node-{node}")
}

/// Whether a step is about a node.
pub fn is_node_step(step: &str) -> bool {
    step.starts_with("cluster/node-")
}

fn name(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{}-{}", text("/kind").to_lowercase(), text("/metadata/name"))
}

fn title(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}", text("/kind"), text("/metadata/name"))
}

/// Whether everything in `wanted` is so in `live`.
fn contains(live: &Value, wanted: &Value) -> bool {
    let mut lines = Vec::new();
    compare("", wanted, live, &mut lines);
    lines.is_empty()
}

/// Collects the paths at which `live` is not as wanted. Lists are compared whole.
fn compare(path: &str, wanted: &Value, live: &Value, lines: &mut Vec<String>) {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            for (key, value) in wanted {
                compare(&format!("{path}.{key}"), value, live.get(key).unwrap_or(&Value::Null), lines);
            }
        }
        (Value::Array(wanted), Value::Array(live)) if wanted.len() == live.len() => {
            for (index, (wanted, live)) in wanted.iter().zip(live).enumerate() {
                compare(&format!("{path}[{index}]"), wanted, live, lines);
            }
        }
        _ if wanted == live => {}
        _ => lines.push(format!("{}: {live} -> {wanted}", path.trim_start_matches('.'))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_as_wanted_with_foreign_additions_is_no_difference() {
        for wanted in wanted() {
            let mut live = wanted.clone();
            live["metadata"]["uid"] = json!("x");
            live["metadata"]["labels"]["somebody"] = json!("else");
            assert_eq!(difference(&wanted, Some(&live)), None);
        }
    }

    #[test]
    fn a_changed_field_is_named_exactly() {
        let mut live = csi_driver();
        live["spec"]["attachRequired"] = json!(true);
        let found = difference(&csi_driver(), Some(&live)).unwrap();
        assert_eq!(found.step, "cluster/csidriver-data.rackwright.dev");
        assert_eq!(found.detail, "spec.attachRequired: true -> false");
        let mut role = serve_role();
        role["rules"].as_array_mut().unwrap().push(rule("", &["secrets"], &["*"]));
        assert!(difference(&serve_role(), Some(&role)).unwrap().detail.starts_with("rules: "));
    }

    fn server() -> Server {
        let lab = include_str!("../../../inventory/lab.toml");
        let inventory = Inventory::parse("inventory/lab.toml", lab).unwrap();
        inventory.server("ml1").unwrap().clone()
    }

    #[test]
    fn a_node_keeps_what_others_put_on_it() {
        let node = json!({
            "metadata": { "labels": { "zone": "a" } },
            "spec": { "taints": [{ "key": "other", "effect": "NoExecute" }] },
        });
        let server = server();
        let patch = node_patch(&server, &node).unwrap();
        assert_eq!(
            patch["metadata"]["annotations"],
            json!({ "rackwright.dev/price-per-hour": "0.252054 EUR" })
        );
        assert_eq!(patch["metadata"]["labels"], json!({ "rackwright.dev/role": "ml" }));
        assert_eq!(patch["spec"]["taints"].as_array().unwrap().len(), 2);
        let marked = json!({
            "metadata": patch["metadata"],
            "spec": { "taints": [{ "key": "rackwright.dev/jobs", "effect": "NoSchedule", "timeAdded": "x" }] },
        });
        assert_eq!(node_patch(&server, &marked), None);
        let mut dearer = marked;
        dearer["metadata"]["annotations"][PRICE] = json!("0.25 EUR");
        assert!(node_patch(&server, &dearer).is_some());
    }
}
