//! A cluster in memory, for what a real one cannot be made to do on command: lose a reply, be away for
//! exactly this call, refuse a pod. Its kubelets do what the test says.

use crate::cluster::{Change, Cluster, ClusterError, Created, Snapshot};
use crate::seen::{self, PodSeen};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rackwright_wire::id::NodeName;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// The cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeCluster(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Pod>,
    namespaces: Vec<String>,
    watchers: Vec<mpsc::UnboundedSender<Change>>,
    creations: BTreeMap<String, u32>,
    next_uid: u32,
    away: bool,
    lose_replies: u32,
    silent_logs: u32,
    lists: u32,
    hold_lists: bool,
    held_lists: u32,
}

impl FakeCluster {
    /// A cluster with one ready ml node of 4 CPUs and 4 GiB.
    pub(crate) fn with_node(name: &str) -> Self {
        let cluster = Self::default();
        cluster.node(name, true);
        cluster
    }

    /// Adds or changes a node.
    pub(crate) fn node(&self, name: &str, ready: bool) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"rackwright.dev/role": "ml"},
                "annotations": {"rackwright.dev/price-per-hour": "3600 EUR"}},
            "spec": {"taints": [{"key": "rackwright.dev/jobs", "effect": "NoSchedule"}]},
            "status": {
                "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
                "capacity": {"cpu": "4", "memory": "4Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}],
            },
        }))
        .unwrap();
        let change = Change::Node(Box::new(seen::node(&node).unwrap()));
        let mut state = self.0.lock().unwrap();
        state.nodes.insert(name.to_owned(), node);
        state.tell(&change);
    }

    /// Whether the apiserver answers; while it does not, watches show nothing either.
    pub(crate) fn set_away(&self, away: bool) {
        self.0.lock().unwrap().away = away;
    }

    /// The next creations happen, but their answers are lost.
    pub(crate) fn lose_replies(&self, count: u32) {
        self.0.lock().unwrap().lose_replies = count;
    }

    /// The next readings of a log are never answered.
    pub(crate) fn silence_logs(&self, count: u32) {
        self.0.lock().unwrap().silent_logs = count;
    }

    /// While lists are held, what is there is read at once and answered only afterwards.
    pub(crate) fn hold_lists(&self, hold: bool) {
        self.0.lock().unwrap().hold_lists = hold;
    }

    /// Lists that were read, and how many of them were held.
    pub(crate) fn lists(&self) -> (u32, u32) {
        let state = self.0.lock().unwrap();
        (state.lists, state.held_lists)
    }

    /// Names of the pods that are there.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().pods.keys().cloned().collect()
    }

    /// How often each pod name was really created.
    pub(crate) fn creations(&self) -> BTreeMap<String, u32> {
        self.0.lock().unwrap().creations.clone()
    }

    /// Namespaces that were made.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        self.0.lock().unwrap().namespaces.clone()
    }

    /// A pod as the apiserver has it.
    pub(crate) fn get(&self, name: &str) -> Option<Pod> {
        self.0.lock().unwrap().pods.get(name).cloned()
    }

    /// The kubelet writes a pod's status.
    pub(crate) fn status(&self, name: &str, status: serde_json::Value) {
        self.0.lock().unwrap().status(name, status);
    }

    /// The kubelet starts a pod's container.
    pub(crate) fn run(&self, name: &str) {
        self.status(name, json!({"phase": "Running", "startTime": jiff::Timestamp::now()}));
    }

    /// The container ends.
    pub(crate) fn end(&self, name: &str, exit_code: i32) {
        self.0.lock().unwrap().ended(name, exit_code);
    }

    /// The container ends, and the apiserver is away before anybody can ask about it.
    pub(crate) fn end_and_leave(&self, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.ended(name, 0);
        state.away = true;
    }

    /// Somebody deletes a pod: its kubelet ends the container, says so, and removes the record.
    pub(crate) fn delete_by_hand(&self, name: &str) {
        let mut state = self.0.lock().unwrap();
        let now = Time(jiff::Timestamp::now());
        state.pods.get_mut(name).unwrap().metadata.deletion_timestamp = Some(now);
        state.ended(name, 143);
        let pod = state.pods.remove(name).unwrap();
        state.tell(&Change::PodGone(Box::new(seen::pod(&pod))));
    }

    fn away(&self, doing: &str) -> Result<(), ClusterError> {
        if self.0.lock().unwrap().away {
            return Err(ClusterError::Away { doing: doing.to_owned(), source: "switched off".into() });
        }
        Ok(())
    }

    fn create_pod(&self, pod: &Pod) -> Result<Created, ClusterError> {
        self.away("create")?;
        let mut state = self.0.lock().unwrap();
        let name = pod.metadata.name.clone().unwrap();
        if let Some(there) = state.pods.get(&name) {
            let (there, wanted) = (seen::pod(there), seen::pod(pod));
            return Ok(if there.ours == wanted.ours {
                Created::Here(there.uid)
            } else {
                Created::Taken(there.name)
            });
        }
        state.next_uid += 1;
        let uid = format!("uid-{}", state.next_uid);
        let mut made = pod.clone();
        made.metadata.uid = Some(uid.clone());
        state.pods.insert(name.clone(), made.clone());
        *state.creations.entry(name).or_default() += 1;
        if state.lose_replies > 0 {
            state.lose_replies -= 1;
            return Err(ClusterError::Away { doing: "create".to_owned(), source: "reply lost".into() });
        }
        state.tell(&Change::Pod(Box::new(seen::pod(&made))));
        Ok(Created::Here(uid))
    }

    /// With grace the kubelet of a ready node confirms it at once, and that of another one never.
    fn remove(&self, name: &str, uid: &str, grace_s: u32) -> Result<(), ClusterError> {
        self.away("delete")?;
        let mut state = self.0.lock().unwrap();
        let matches = state.pods.get(name).is_some_and(|pod| pod.metadata.uid.as_deref() == Some(uid));
        let confirmed = grace_s == 0 || state.pods.get(name).is_some_and(|pod| state.is_ready(pod));
        if matches
            && confirmed
            && let Some(pod) = state.pods.remove(name)
        {
            state.tell(&Change::PodGone(Box::new(seen::pod(&pod))));
        }
        Ok(())
    }
}

impl State {
    fn is_ready(&self, pod: &Pod) -> bool {
        let node = pod.spec.as_ref().and_then(|spec| self.nodes.get(spec.node_name.as_deref()?));
        node.and_then(seen::node).is_some_and(|node| node.ready)
    }

    fn list(&mut self) -> (bool, Snapshot) {
        self.lists += 1;
        self.held_lists += u32::from(self.hold_lists);
        let snapshot = Snapshot {
            nodes: self.nodes.values().filter_map(seen::node).collect(),
            pods: self.pods.values().map(seen::pod).collect(),
        };
        (self.hold_lists, snapshot)
    }

    fn status(&mut self, name: &str, status: serde_json::Value) {
        let pod = self.pods.get_mut(name).unwrap();
        pod.status = serde_json::from_value(status).unwrap();
        let change = Change::Pod(Box::new(seen::pod(pod)));
        self.tell(&change);
    }

    fn ended(&mut self, name: &str, exit_code: i32) {
        let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
        let reason = if exit_code == 0 { "Completed" } else { "Error" };
        self.status(
            name,
            json!({"phase": phase, "containerStatuses": [{
                "name": "job", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": exit_code, "reason": reason}},
            }]}),
        );
    }

    fn tell(&mut self, change: &Change) {
        if !self.away {
            self.watchers.retain(|watcher| watcher.send(change.clone()).is_ok());
        }
    }
}

impl Cluster for FakeCluster {
    fn ensure_namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        async move {
            self.away("namespace")?;
            self.0.lock().unwrap().namespaces.push(name.to_owned());
            Ok(())
        }
        .boxed()
    }

    fn create<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<Created, ClusterError>> {
        async move { self.create_pod(pod) }.boxed()
    }

    fn end<'a>(&'a self, _: &'a str, name: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        async move {
            self.away("end")?;
            if self.get(name).is_none() {
                return Err(ClusterError::NotFound { doing: "end".to_owned() });
            }
            self.status(name, json!({"phase": "Failed", "reason": "DeadlineExceeded"}));
            Ok(())
        }
        .boxed()
    }

    fn delete<'a>(
        &'a self,
        _: &'a str,
        name: &'a str,
        uid: &'a str,
        grace_s: u32,
    ) -> BoxFuture<'a, Result<(), ClusterError>> {
        async move { self.remove(name, uid, grace_s) }.boxed()
    }

    fn is_alive<'a>(&'a self, node: &'a NodeName, _: Duration) -> BoxFuture<'a, Result<bool, ClusterError>> {
        async move {
            self.away("lease")?;
            let state = self.0.lock().unwrap();
            Ok(state.nodes.get(node.as_str()).and_then(seen::node).is_some_and(|node| node.ready))
        }
        .boxed()
    }

    fn pod<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodSeen>, ClusterError>> {
        async move {
            self.away("read")?;
            Ok(self.get(name).as_ref().map(seen::pod))
        }
        .boxed()
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, ClusterError>> {
        async move {
            self.away("list")?;
            let (held, snapshot) = self.0.lock().unwrap().list();
            while held && self.0.lock().unwrap().hold_lists {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(snapshot)
        }
        .boxed()
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().unwrap().watchers.push(sender);
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
            .boxed()
    }

    fn logs<'a>(
        &'a self,
        _: &'a str,
        name: &'a str,
        _: usize,
    ) -> BoxFuture<'a, Result<String, ClusterError>> {
        async move {
            self.away("log")?;
            let silent = {
                let mut state = self.0.lock().unwrap();
                let left = state.silent_logs;
                state.silent_logs = left.saturating_sub(1);
                left > 0
            };
            if silent {
                std::future::pending::<()>().await;
            }
            Ok(format!("{name} said this\n"))
        }
        .boxed()
    }

    fn follow<'a>(
        &'a self,
        _: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<Bytes, std::io::Error>>, ClusterError>> {
        let text = Bytes::from(format!("{name} said this\n"));
        async move { Ok(stream::iter([Ok(text)]).boxed()) }.boxed()
    }
}
