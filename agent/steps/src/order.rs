//! In which order steps may run, and which are skipped when one fails. Pure.
//!
//! Only `needs` orders; the place in the list breaks ties. A step becomes ready when everything that it
//! needs succeeded, and is skipped when anything that it needs failed or was skipped.

use std::collections::{BTreeMap, BTreeSet};

/// Why a list of steps cannot be ordered; reads after "failed to".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A step needs one that is not in the list.
    #[error("order the steps: {step} needs {needs}, which is not in the plan")]
    Unknown {
        /// The step.
        step: String,
        /// What it needs.
        needs: String,
    },
    /// An id stands twice.
    #[error("order the steps: {0} stands twice in the plan")]
    Twice(String),
    /// Steps need each other.
    #[error("order the steps: {} need each other", .0.join(", "))]
    Cycle(Vec<String>),
}

/// Steps by their index in the list.
#[derive(Debug, Clone)]
pub struct Order {
    dependants: Vec<Vec<usize>>,
    /// How many needs of each step are still open; `None` once it was handed out or skipped.
    open: Vec<Option<usize>>,
    ready: BTreeSet<usize>,
    running: BTreeSet<usize>,
}

impl Order {
    /// Orders steps given as `(id, needs)`.
    ///
    /// # Errors
    /// When an id stands twice, a need is unknown, or steps need each other.
    pub fn new<'a>(steps: impl Iterator<Item = (&'a str, &'a [String])>) -> Result<Self, OrderError> {
        let steps: Vec<_> = steps.collect();
        let mut index = BTreeMap::new();
        for (at, (id, _)) in steps.iter().enumerate() {
            if index.insert(*id, at).is_some() {
                return Err(OrderError::Twice((*id).to_owned()));
            }
        }
        let mut dependants = vec![Vec::new(); steps.len()];
        let mut open = Vec::with_capacity(steps.len());
        for (at, (id, needs)) in steps.iter().enumerate() {
            let needs: BTreeSet<&String> = needs.iter().collect();
            open.push(Some(needs.len()));
            for need in needs {
                let unknown = || OrderError::Unknown { step: (*id).to_owned(), needs: need.clone() };
                let before = *index.get(need.as_str()).ok_or_else(unknown)?;
                if let Some(dependants) = dependants.get_mut(before) {
                    dependants.push(at);
                }
            }
        }
        let ready = (0..steps.len()).filter(|at| open.get(*at) == Some(&Some(0))).collect();
        let order = Self { dependants, open, ready, running: BTreeSet::new() };
        order.clone().must_end().map_err(|stuck| {
            OrderError::Cycle(stuck.into_iter().filter_map(|at| Some(steps.get(at)?.0.to_owned())).collect())
        })?;
        Ok(order)
    }

    /// Walks through without doing anything; gives the steps that would never become ready.
    fn must_end(mut self) -> Result<(), Vec<usize>> {
        while let Some(at) = self.ready.first().copied() {
            self.start(at);
            self.succeeded(at);
        }
        let stuck: Vec<usize> =
            self.open.iter().enumerate().filter(|(_, open)| open.is_some()).map(|(at, _)| at).collect();
        if stuck.is_empty() { Ok(()) } else { Err(stuck) }
    }

    /// Steps that may start now, in list order.
    pub fn ready(&self) -> impl Iterator<Item = usize> {
        self.ready.iter().copied()
    }

    /// Hands out a ready step.
    pub fn start(&mut self, at: usize) {
        if self.ready.remove(&at) {
            self.running.insert(at);
            if let Some(open) = self.open.get_mut(at) {
                *open = None;
            }
        }
    }

    /// A step is satisfied: what needed only this becomes ready.
    pub fn succeeded(&mut self, at: usize) {
        self.running.remove(&at);
        for dependant in self.dependants.get(at).cloned().unwrap_or_default() {
            if let Some(Some(open)) = self.open.get_mut(dependant) {
                *open -= 1;
                if *open == 0 {
                    self.ready.insert(dependant);
                }
            }
        }
    }

    /// A step failed: everything that needs it, directly or not, is skipped and given back as pairs of the
    /// skipped step and the one that it needed, in list order.
    pub fn failed(&mut self, at: usize) -> Vec<(usize, usize)> {
        self.running.remove(&at);
        let mut skipped = BTreeMap::new();
        let mut causes = vec![at];
        while let Some(cause) = causes.pop() {
            for dependant in self.dependants.get(cause).cloned().unwrap_or_default() {
                if self.open.get_mut(dependant).and_then(Option::take).is_some() {
                    skipped.insert(dependant, cause);
                    causes.push(dependant);
                }
            }
        }
        skipped.into_iter().collect()
    }

    /// Whether a step was handed out and has not ended.
    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether nothing is left to start and nothing runs.
    pub fn is_done(&self) -> bool {
        self.ready.is_empty() && self.running.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(steps: &[(&str, &[&str])]) -> Result<Order, OrderError> {
        let steps: Vec<(String, Vec<String>)> = steps
            .iter()
            .map(|(id, needs)| ((*id).to_owned(), needs.iter().map(|need| (*need).to_owned()).collect()))
            .collect();
        Order::new(steps.iter().map(|(id, needs)| (id.as_str(), needs.as_slice())))
    }

    #[test]
    fn what_cannot_be_ordered_is_named() {
        assert_eq!(order(&[("a", &[]), ("a", &[])]).unwrap_err(), OrderError::Twice("a".to_owned()));
        let error = order(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])]).unwrap_err();
        assert_eq!(error.to_string(), "order the steps: a, b, c need each other");
        let error = order(&[("a", &["z"])]).unwrap_err();
        assert_eq!(error.to_string(), "order the steps: a needs z, which is not in the plan");
    }

    #[test]
    fn a_failure_skips_only_what_needs_it() {
        let mut order =
            order(&[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("d", &[]), ("e", &["d"])]).unwrap();
        assert_eq!(order.ready().collect::<Vec<_>>(), [0, 3]);
        order.start(0);
        order.start(3);
        assert_eq!(order.failed(0), [(1, 0), (2, 1)]);
        order.succeeded(3);
        assert_eq!(order.ready().collect::<Vec<_>>(), [4]);
    }

    fn number(id: &str) -> usize {
        id.trim_start_matches('s').parse().unwrap()
    }

    proptest! {
        /// Random graphs, random failures, random order of completion: each step runs or is skipped exactly
        /// once, none runs before its needs, and a step is skipped exactly when one of its needs did not succeed.
        #[test]
        fn every_step_ends_once_and_for_the_right_reason(
            edges in proptest::collection::vec((0_usize..24, 0_usize..24), 0..60),
            failing in proptest::collection::btree_set(0_usize..24, 0..6),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 64),
        ) {
            let mut needs = vec![Vec::new(); 24];
            for (a, b) in edges {
                if a != b {
                    needs[a.max(b)].push(format!("s{}", a.min(b)));
                }
            }
            let ids: Vec<String> = (0..24).map(|at| format!("s{at}")).collect();
            let mut order = Order::new(ids.iter().map(String::as_str).zip(needs.iter().map(Vec::as_slice))).unwrap();
            let (mut running, mut ended) = (Vec::new(), BTreeMap::new());
            let mut picks = picks.into_iter().cycle();
            while !order.is_done() {
                for at in order.ready().collect::<Vec<_>>() {
                    for need in &needs[at] {
                        let need = number(need);
                        prop_assert_eq!(ended.get(&need), Some(&"ok"), "{} started before {}", at, need);
                    }
                    order.start(at);
                    running.push(at);
                }
                let at = running.swap_remove(picks.next().unwrap().index(running.len()));
                if failing.contains(&at) {
                    prop_assert_eq!(ended.insert(at, "failed"), None);
                    for (skipped, _) in order.failed(at) {
                        prop_assert_eq!(ended.insert(skipped, "skipped"), None);
                    }
                } else {
                    order.succeeded(at);
                    prop_assert_eq!(ended.insert(at, "ok"), None);
                }
            }
            prop_assert_eq!(ended.len(), 24);
            for at in 0..24 {
                let broken = needs[at].iter().any(|need| ended[&number(need)] != "ok");
                prop_assert_eq!(ended[&at] == "skipped", broken, "{}", at);
            }
        }
    }
}
