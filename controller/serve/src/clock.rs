//! The loop's clock: the wall clock, but it never goes back.
//!
//! The scheduler's time never goes back, and its log remembers it. A wall clock that was ahead and is put back
//! would stop retries, limits and pruning for as long as it had been ahead, also after a restart. So while the
//! wall clock is behind what the scheduler knows, time goes on from there by the monotonic clock.

use std::time::Instant;

/// A wall clock that is behind by this much was put back: it is told. Less is how clocks are kept right.
const TOLD_MS: u64 = 1_000;

/// The clock: plain arithmetic on readings that others take.
#[derive(Debug)]
pub(crate) struct Clock {
    base_ms: u64,
    base: Instant,
    told: bool,
}

impl Clock {
    /// A clock that goes on from the last time that the scheduler knows.
    pub(crate) fn new(known_ms: u64, at: Instant) -> Self {
        Self { base_ms: known_ms, base: at, told: false }
    }

    /// Milliseconds since the epoch: what the wall clock shows, unless that is behind what was known before.
    pub(crate) fn now_ms(&mut self, known_ms: u64, wall_ms: u64, at: Instant) -> u64 {
        let passed_ms = at.saturating_duration_since(self.base).as_millis();
        let own_ms = self.base_ms.saturating_add(u64::try_from(passed_ms).unwrap_or(u64::MAX));
        let now_ms = own_ms.max(known_ms).max(wall_ms);
        if now_ms > own_ms {
            // Only then, or what is cut off to whole milliseconds would add up and the clock stand still.
            (self.base_ms, self.base) = (now_ms, at);
        }
        self.tell(now_ms - wall_ms);
        now_ms
    }

    fn tell(&mut self, behind_ms: u64) {
        if behind_ms == 0 {
            self.told = false;
        } else if behind_ms >= TOLD_MS && !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                behind_ms,
                "the wall clock was put back; the scheduler goes on from the time that it knows"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_wall_clock_that_is_put_back_stops_nothing() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = Clock::new(0, start);
        assert_eq!(clock.now_ms(0, 700_000, at(0)), 700_000);
        assert_eq!(clock.now_ms(700_000, 100_000, at(0)), 700_000, "put back by ten minutes");
        assert!(clock.told);
        assert_eq!(clock.now_ms(700_000, 105_000, at(5_000)), 705_000);
        assert_eq!(clock.now_ms(705_000, 800_000, at(6_000)), 800_000, "put right again");
        assert!(!clock.told);
        assert_eq!(clock.now_ms(800_000, 801_000, at(7_000)), 801_000);
    }

    #[test]
    fn a_restart_goes_on_from_what_the_log_knows() {
        let start = Instant::now();
        let mut clock = Clock::new(700_000, start);
        assert_eq!(clock.now_ms(700_000, 100_000, start), 700_000);
        assert_eq!(clock.now_ms(700_000, 103_000, start + Duration::from_secs(3)), 703_000);
    }

    #[test]
    fn what_was_accepted_just_before_the_clock_was_put_back_counts() {
        let start = Instant::now();
        let mut clock = Clock::new(100_000, start);
        assert_eq!(clock.now_ms(700_000, 100_000, start), 700_000);
        assert_eq!(clock.now_ms(700_000, 101_000, start + Duration::from_secs(1)), 701_000);
    }

    #[test]
    fn readings_within_a_millisecond_do_not_make_it_stand_still() {
        let start = Instant::now();
        let mut clock = Clock::new(700_000, start);
        let readings = (0..=20_u64).map(|step| start + Duration::from_micros(step * 500));
        assert_eq!(readings.map(|at| clock.now_ms(0, 100_000, at)).last(), Some(700_010));
    }
}
