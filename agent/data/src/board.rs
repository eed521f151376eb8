//! Which peer to ask next: best first, as the controller listed them, minus those that failed lately.
//!
//! Pure bookkeeping: the time comes in. A peer that failed is left alone for a while, twice as long
//! each time; one that sent bytes which do not hash is out for the whole fetch.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Scores of the peers in one fetch.
#[derive(Debug, Default)]
pub(crate) struct Board {
    scores: HashMap<String, Score>,
    liars: HashSet<String>,
}

#[derive(Debug, Default)]
struct Score {
    strikes: u32,
    until: Option<Instant>,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Ask the peer at this place of the list.
    Ask(usize),
    /// All are paused: the first comes back then.
    Wait(Instant),
    /// Nobody is left who ever told the truth.
    Nobody,
}

impl Board {
    /// The best peer of `names` that is not paused.
    pub(crate) fn pick(&self, names: &[&str], now: Instant) -> Pick {
        let honest = || names.iter().enumerate().filter(|(_, name)| !self.liars.contains(**name));
        let until =
            |name: &str| self.scores.get(name).and_then(|score| score.until).filter(|until| *until > now);
        if let Some((place, _)) = honest().find(|(_, name)| until(name).is_none()) {
            return Pick::Ask(place);
        }
        honest().filter_map(|(_, name)| until(name)).min().map_or(Pick::Nobody, Pick::Wait)
    }

    /// It sent a chunk that hashed.
    pub(crate) fn good(&mut self, name: &str) {
        let score = self.scores.entry(name.to_owned()).or_default();
        (score.strikes, score.until) = (0, None);
    }

    /// It failed, stalled, or has nothing.
    pub(crate) fn pause(&mut self, name: &str, now: Instant) {
        let score = self.scores.entry(name.to_owned()).or_default();
        // Several chunks in flight fail together when a peer dies: that is one strike.
        if score.until.is_none_or(|until| until <= now) {
            let pause = FIRST_PAUSE.saturating_mul(1 << score.strikes.min(10)).min(LONGEST_PAUSE);
            (score.strikes, score.until) = (score.strikes.saturating_add(1), Some(now + pause));
        }
    }

    /// It alone sent a chunk that does not hash.
    pub(crate) fn lied(&mut self, name: &str) {
        self.liars.insert(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_peer_comes_back_later_each_time_and_a_liar_never() {
        let start = Instant::now();
        let mut board = Board::default();
        let names = ["ml1", "data1"];
        assert_eq!(board.pick(&names, start), Pick::Ask(0));
        board.pause("ml1", start);
        board.pause("ml1", start);
        assert_eq!(board.pick(&names, start), Pick::Ask(1));
        assert_eq!(
            board.pick(&names, start + FIRST_PAUSE),
            Pick::Ask(0),
            "two failures at once are one strike"
        );
        board.pause("ml1", start + FIRST_PAUSE);
        assert_eq!(board.pick(&names, start + 2 * FIRST_PAUSE), Pick::Ask(1));
        board.lied("data1");
        assert_eq!(board.pick(&names, start + 2 * FIRST_PAUSE), Pick::Wait(start + 3 * FIRST_PAUSE));
        board.lied("ml1");
        assert_eq!(board.pick(&names, start + 9 * FIRST_PAUSE), Pick::Nobody);
    }
}
