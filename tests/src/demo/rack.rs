//! Stages 1 to 3: servers, artifacts, and the way from bare servers to five Ready nodes.

use super::{Demo, DemoError, must};
use crate::field::text;
use crate::http::wait_until;
use crate::shell;
use crate::stage;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What a script that starts the same programs by hand, and checks nothing, needed on two cores when it was recorded;
/// see docs/benchmarks.md. It is not part of this repository, so that the demo cannot run it.
const BY_HAND_S: f64 = 21.0;
/// The lasting units of the agent that run on every server; `apply` runs only while there is a plan.
const UNITS: [&str; 3] = ["proxy", "data", "node"];
/// Asks every URL of its argument, until all answer or ten seconds are over.
const ASK: &str = "
import sys, time, urllib.request
for i in range(50):
    try:
        print([urllib.request.urlopen(url, timeout=1).read() for url in sys.argv[1].split()])
        break
    except OSError:
        time.sleep(0.2)
else:
    sys.exit(1)
";
const READY: Duration = Duration::from_mins(2);

impl Demo {
    /// Stage 1.
    pub(super) fn raise_lab(&mut self) -> Result<(), DemoError> {
        let status = ["lab", "status", "--inventory", &self.inventory];
        if shell::capture(&self.rackwright, &status).is_ok() {
            stage::note("the rack of an earlier demo is up; this one starts from bare servers:");
            self.rackwright(&["lab", "down", "--inventory", &self.inventory])?;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.since_ms = now.map_or(0, |since| since.as_millis());
        self.rackwright(&["lab", "up", "--inventory", &self.inventory])?.lines().for_each(stage::note);
        Ok(())
    }

    /// Stage 2.
    pub(super) fn fetch_artifacts(&mut self) -> Result<(), DemoError> {
        self.rackwright(&["artifacts", "fetch"])?;
        Ok(())
    }

    /// Stage 3.
    pub(super) fn build_rack(&mut self) -> Result<(), DemoError> {
        let start = Instant::now();
        self.rackwright(&["check", "--inventory", &self.inventory])?;
        self.rackwright(&["plan", "--inventory", &self.inventory])?;
        let before_apply = start.elapsed().as_secs_f64();
        let applied = self.rackwright_json(&["apply", "--inventory", &self.inventory, "--yes"])?;
        let whole = start.elapsed().as_secs_f64();
        let ready = applied.get("ready_s").and_then(Value::as_f64).unwrap_or(whole);
        self.findings.ssh_to_ready_s = before_apply + ready;
        stage::command("rackwright kubeconfig --inventory inventory/lab.toml");
        self.site.open_kubernetes()?;
        self.findings.nodes_ready = wait_until("five nodes are Ready", READY, || {
            let ready = self.site.ready_nodes().len() as u64;
            Ok((ready >= 5).then_some(ready))
        })?;
        let took = self.findings.ssh_to_ready_s;
        stage::note(format_args!(
            "SSH to five Ready nodes: {took:.1} s (by hand, checking nothing, as recorded: {BY_HAND_S} s); all else: {whole:.1} s"
        ));
        self.second_apply()?;
        self.drift()?;
        self.reach_each_other()?;
        self.weigh_agents()?;
        self.site.make_operator()?;
        for team in ["vision", "ranking"] {
            self.site.make_token(team, "submitter")?;
        }
        Ok(())
    }

    /// Proportional set size of the agent's units together, on the server where they are heaviest.
    fn weigh_agents(&mut self) -> Result<(), DemoError> {
        let units = UNITS.map(|unit| format!("rackwright-{unit}")).join(" ");
        let line = format!(
            "for u in {units}; do cat /proc/$(systemctl show -p MainPID --value $u)/smaps_rollup; done"
        );
        for server in self.site.servers() {
            let said = self.site.on(server, &line)?;
            let sizes = said.lines().filter_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next());
            let sizes: Vec<u64> = sizes.filter_map(|size| size.parse().ok()).collect();
            must(sizes.len() == UNITS.len(), "every unit of the agent runs", &said)?;
            let bytes = sizes.iter().sum::<u64>() * 1024;
            self.findings.agent_bytes = self.findings.agent_bytes.max(bytes);
        }
        stage::note(format_args!(
            "agent, all units of a server: {} MB at most",
            self.findings.agent_bytes / 1_000_000
        ));
        Ok(())
    }

    fn second_apply(&mut self) -> Result<(), DemoError> {
        let start = Instant::now();
        let outcome = self.rackwright_json(&["apply", "--inventory", &self.inventory, "--yes"])?;
        self.findings.second_apply_s = start.elapsed().as_secs_f64();
        self.findings.second_apply_changes =
            outcome.get("changes").and_then(Value::as_u64).unwrap_or(u64::MAX);
        must(self.findings.second_apply_changes == 0, "a second apply plans nothing", &outcome)?;
        stage::note(format_args!("second apply: nothing to do, {:.2} s", self.findings.second_apply_s));
        Ok(())
    }

    /// Changes a file, a unit and a package behind its back: the plan names exactly those.
    fn drift(&mut self) -> Result<(), DemoError> {
        self.site.on("ml1", "echo '# by hand' >> /etc/containerd/config.toml")?;
        self.site.on("ml2", "systemctl stop rackwright-proxy")?;
        self.site.on("data1", "dpkg -r --force-depends socat >/dev/null")?;
        let plan = self.rackwright_json(&["plan", "--inventory", &self.inventory])?;
        let named = differences(&plan);
        named.iter().for_each(stage::note);
        let has = |server: &str, word: &str| {
            named.iter().any(|line| line.starts_with(server) && line.contains(word))
        };
        let exact = has("ml1", "containerd") && has("ml2", "proxy") && has("data1", "socat");
        let servers = |name: &str| named.iter().filter(|line| line.starts_with(name)).count();
        must(
            exact && servers("control1") == 0 && servers("results1") == 0,
            "exactly what was changed",
            &plan,
        )?;
        self.rackwright(&["apply", "--inventory", &self.inventory, "--yes"])?;
        let left = self.rackwright_json(&["plan", "--inventory", &self.inventory])?;
        must(differences(&left).is_empty(), "nothing after the repair", &left)
    }

    /// Pods of different servers reach each other, and a Service answers by its address.
    fn reach_each_other(&self) -> Result<(), DemoError> {
        let api = self.site.kubernetes();
        let pod = |name: &str, node: &str, image: &str, command: &[&str]| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
                "spec": {
                    "nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": "main", "image": format!("docker.io/rackwright/{image}:1"), "imagePullPolicy": "Never",
                        "command": command,
                    }],
                },
            })
        };
        let pods = "/api/v1/namespaces/default/pods";
        wait_until("the default service account", READY, || {
            let answer = api.call("GET", "/api/v1/namespaces/default/serviceaccounts/default", None, &[])?;
            Ok((answer.status == 200).then_some(()))
        })?;
        let serve = "mkdir -p /tmp/w && echo reached > /tmp/w/index.html && httpd -f -p 8080 -h /tmp/w";
        api.expect("POST", pods, Some(&pod("server", "ml1", "busybox", &["/bin/sh", "-c", serve])), &[])?;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
        });
        let service = api.expect("POST", "/api/v1/namespaces/default/services", Some(&service), &[])?;
        let cluster_ip =
            service.pointer("/spec/clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
        let pod_ip = wait_until("the server pod has an address", READY, || {
            let seen = api.get(&format!("{pods}/server"))?;
            Ok(seen.pointer("/status/podIP").and_then(Value::as_str).map(str::to_owned))
        })?;
        // Python, because a static busybox cannot look up names, and its wget does even for an address.
        let urls = format!("http://{pod_ip}:8080/ http://{cluster_ip}/");
        let ask = ["/usr/bin/python3", "-c", ASK, &urls];
        api.expect("POST", pods, Some(&pod("client", "ml2", "python", &ask)), &[])?;
        let phase = wait_until("the client pod ends", READY, || {
            let seen = api.get(&format!("{pods}/client"))?;
            let phase = seen.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default().to_owned();
            Ok(matches!(phase.as_str(), "Succeeded" | "Failed").then_some(phase))
        })?;
        must(phase == "Succeeded", "a pod on ml2 reaches one on ml1, by pod and by service address", &phase)?;
        stage::note(format_args!("pod on ml2 -> pod on ml1 ({pod_ip}), and by Service ({cluster_ip})"));
        for path in ["pods/server", "pods/client", "services/server"] {
            api.call("DELETE", &format!("/api/v1/namespaces/default/{path}"), None, &[])?;
        }
        Ok(())
    }
}

/// `server: summary` of every difference of a plan.
fn differences(plan: &Value) -> Vec<String> {
    let servers = plan.pointer("/plan/servers").and_then(Value::as_array).cloned().unwrap_or_default();
    let lines = servers.iter().flat_map(|server| {
        let name = text(server, "server");
        let found = server.get("differences").and_then(Value::as_array).cloned().unwrap_or_default();
        found.into_iter().map(move |one| format!("{name}: {}: {}", text(&one, "step"), text(&one, "summary")))
    });
    lines.collect()
}
