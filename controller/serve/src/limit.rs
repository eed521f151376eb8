//! Requests a second per token: a token bucket each, refilled by time that is passed in.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// More callers than this are not remembered apart; the fullest buckets are forgotten first.
const REMEMBERED: usize = 4096;

/// Token buckets by caller.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_second: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimit {
    /// Allows `per_second` requests a second, and as many at once.
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second.max(1)), buckets: Mutex::default() }
    }

    /// Takes one request off the caller's bucket.
    ///
    /// # Errors
    /// How long until the next one is allowed.
    pub(crate) fn take(&self, caller: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(caller) {
            let full = self.per_second;
            buckets.retain(|_, bucket| bucket.refilled(now, full) < full);
        }
        let full = Bucket { left: self.per_second, at: now };
        let bucket = buckets.entry(caller.to_owned()).or_insert(full);
        let left = bucket.refilled(now, self.per_second);
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) / self.per_second));
        }
        *bucket = Bucket { left: left - 1.0, at: now };
        Ok(())
    }
}

impl Bucket {
    fn refilled(&self, now: Instant, per_second: f64) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + passed * per_second).min(per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_over_its_rate_waits_and_others_do_not() {
        let limit = RateLimit::new(2);
        let start = Instant::now();
        assert!(limit.take("a", start).is_ok());
        assert!(limit.take("a", start).is_ok());
        let wait = limit.take("a", start).unwrap_err();
        assert!(wait <= Duration::from_millis(500));
        assert!(limit.take("b", start).is_ok());
        assert!(limit.take("a", start + wait).is_ok());
    }
}
