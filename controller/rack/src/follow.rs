//! What is known about one server's run of its plan, from events alone.
//!
//! A pure state machine: events in, in any number of connections, with gaps never and repetitions at
//! will; out comes what the controller must answer and what people should see.

use rackwright_wire::event::{Ask, Event, What};
use serde::Serialize;
use std::collections::BTreeMap;

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Step id.
    pub step: String,
    /// Code of the error catalogue.
    pub code: String,
    /// The error chain.
    pub error: String,
    /// Unit log or command output.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub evidence: String,
}

impl Failure {
    /// What the operator can do, where that follows from the code alone. `docs/codes.md` has every code.
    pub fn help(&self) -> Option<&'static str> {
        Some(match self.code.as_str() {
            "disk-full" => {
                "free space there (`df -h`) and run `rackwright apply` again: it goes on at the step"
            }
            "controller-absent" => "run `rackwright apply` again: it goes on at the step",
            "read-only" => {
                "find out why its file system is read-only (`dmesg`), then run `rackwright apply` again"
            }
            "package-network" => "look at its DNS, its route and its sources.list",
            "package-locked" => {
                "another package manager was at work: run `rackwright apply` again when it is done"
            }
            "artifact-refused" => "`rackwright artifacts verify`, then `rackwright artifacts fetch`",
            _ => return None,
        })
    }
}

/// The numbers that the agent finished with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Finished {
    /// Steps that changed something.
    pub changed: u32,
    /// Steps that failed or could not be tried.
    pub failed: u32,
}

/// What is known about one run.
#[derive(Debug, Clone, Default)]
pub struct Follower {
    seen: u64,
    asks: BTreeMap<String, Ask>,
    failures: BTreeMap<String, Failure>,
    done: u32,
    changed: u32,
    finished: Option<Finished>,
}

/// What an event means for the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// It was seen before.
    Old,
    /// It is for people only.
    News,
    /// The step waits for an answer.
    Asked {
        /// The step.
        step: String,
        /// What it asks.
        ask: Ask,
    },
    /// The run is over.
    Over(Finished),
}

impl Follower {
    /// Takes one event.
    pub fn observe(&mut self, event: &Event) -> Meaning {
        if event.seq <= self.seen {
            return Meaning::Old;
        }
        self.seen = event.seq;
        match &event.what {
            // After a restart of the agent every open question is asked again.
            What::Started { .. } => {
                self.asks.clear();
                Meaning::News
            }
            What::Applying { step, .. } => {
                self.failures.remove(step);
                Meaning::News
            }
            What::Applied { step, .. } | What::Unchanged { step } => {
                self.asks.remove(step);
                self.failures.remove(step);
                self.done += 1;
                self.changed += u32::from(matches!(event.what, What::Applied { .. }));
                Meaning::News
            }
            What::Asking { step, ask } => {
                self.asks.insert(step.clone(), ask.clone());
                Meaning::Asked { step: step.clone(), ask: ask.clone() }
            }
            What::Failed { step, code, error, evidence } => {
                self.asks.remove(step);
                let failure = Failure {
                    step: step.clone(),
                    code: code.clone(),
                    error: error.clone(),
                    evidence: evidence.clone(),
                };
                self.failures.insert(step.clone(), failure);
                Meaning::News
            }
            What::Finished { changed, failed } => {
                let finished = Finished { changed: *changed, failed: *failed };
                self.finished = Some(finished);
                Meaning::Over(finished)
            }
        }
    }

    /// The sequence number to follow from after a lost connection.
    pub fn next_seq(&self) -> u64 {
        self.seen + 1
    }

    /// Questions without an end yet: after a lost connection all of them are answered again, because
    /// nobody knows which answers arrived. The agent takes late and doubled answers without harm.
    pub fn open_asks(&self) -> impl Iterator<Item = (&str, &Ask)> {
        self.asks.iter().map(|(step, ask)| (step.as_str(), ask))
    }

    /// Steps that are as they should be.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// Steps that changed something, as far as is known.
    pub fn changed(&self) -> u32 {
        self.finished.map_or(self.changed, |finished| finished.changed)
    }

    /// How it ended, if it did.
    pub fn finished(&self) -> Option<Finished> {
        self.finished
    }

    /// Steps that failed, by id.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.failures.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::event::EVENT_VERSION;

    fn events(whats: Vec<What>) -> Vec<Event> {
        (1..).zip(whats).map(|(seq, what)| Event { version: EVENT_VERSION, seq, at_ms: 0, what }).collect()
    }

    fn tell(follower: &mut Follower, events: &[Event]) {
        for event in events {
            follower.observe(event);
        }
    }

    fn step(name: &str) -> String {
        name.to_owned()
    }

    fn asking(name: &str) -> What {
        What::Asking { step: step(name), ask: Ask::State { state: "api:ready".to_owned() } }
    }

    fn history() -> Vec<Event> {
        events(vec![
            What::Started { plan: step("p") },
            What::Unchanged { step: step("a") },
            What::Applying { step: step("b"), summary: step("write b"), before: None },
            What::Applied { step: step("b"), took_ms: 1 },
            asking("c"),
            What::Failed {
                step: step("d"),
                code: step("disk-full"),
                error: step("no room"),
                evidence: String::new(),
            },
            What::Applied { step: step("c"), took_ms: 2 },
            What::Finished { changed: 2, failed: 1 },
        ])
    }

    #[test]
    fn a_connection_lost_anywhere_changes_nothing_about_the_end() {
        let history = history();
        let mut whole = Follower::default();
        tell(&mut whole, &history);
        for cut in 0..history.len() {
            let mut cut_off = Follower::default();
            tell(&mut cut_off, &history[..cut]);
            // The journal is followed from the next event, or replayed from the start: both must do.
            let from = cut_off.next_seq();
            let mut replayed = cut_off.clone();
            let rest: Vec<Event> = history.iter().filter(|event| event.seq >= from).cloned().collect();
            tell(&mut cut_off, &rest);
            tell(&mut replayed, &history);
            for follower in [&cut_off, &replayed] {
                assert_eq!(follower.finished(), whole.finished());
                assert_eq!(follower.done(), whole.done());
                assert!(follower.failures().eq(whole.failures()));
                assert_eq!(follower.open_asks().count(), 0);
            }
        }
    }

    #[test]
    fn what_was_changed_is_known_before_the_end_and_the_agents_word_counts() {
        let history = history();
        let mut follower = Follower::default();
        tell(&mut follower, &history[..7]);
        assert_eq!(follower.changed(), 2);
        tell(&mut follower, &history);
        assert_eq!(follower.changed(), 2);
    }

    #[test]
    fn an_open_question_is_answered_again_after_a_reconnect() {
        let mut follower = Follower::default();
        tell(&mut follower, &history()[..5]);
        assert_eq!(follower.open_asks().map(|(step, _)| step).collect::<Vec<_>>(), ["c"]);
        assert_eq!(follower.next_seq(), 6);
    }

    #[test]
    fn a_restarted_agent_asks_anew() {
        let mut follower = Follower::default();
        let mut twice =
            events(vec![What::Started { plan: step("p") }, asking("c"), What::Started { plan: step("p") }]);
        tell(&mut follower, &twice);
        assert_eq!(follower.open_asks().count(), 0);
        twice.push(Event { version: EVENT_VERSION, seq: 4, at_ms: 0, what: asking("c") });
        assert!(matches!(follower.observe(&twice[3]), Meaning::Asked { .. }));
        assert_eq!(follower.observe(&twice[3]), Meaning::Old);
    }

    #[test]
    fn a_step_that_failed_and_then_succeeded_is_no_failure() {
        let mut follower = Follower::default();
        let failed =
            What::Failed { step: step("a"), code: step("io"), error: step("x"), evidence: String::new() };
        let all = events(vec![failed, What::Applied { step: step("a"), took_ms: 1 }]);
        tell(&mut follower, &all);
        assert_eq!(follower.failures().count(), 0);
    }
}
