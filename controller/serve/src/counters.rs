//! Counters of what the controller did, and their Prometheus text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Upper bounds of the latency buckets, seconds.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Counts by name, and how long requests took.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    totals: BTreeMap<&'static str, u64>,
    requests: BTreeMap<(&'static str, u16), u64>,
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
    count: u64,
}

impl Counters {
    /// One more.
    pub(crate) fn add(&self, name: &'static str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        *inner.totals.entry(name).or_default() += 1;
    }

    /// One request to a route of the table was answered.
    pub(crate) fn request(&self, route: &'static str, status: u16, seconds: f64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        *inner.requests.entry((route, status)).or_default() += 1;
        for (bucket, bound) in inner.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
        inner.seconds += seconds;
        inner.count += 1;
    }

    /// The counters as Prometheus reads them.
    pub(crate) fn text(&self) -> String {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, total) in &inner.totals {
            counter(&mut text, name, *total);
        }
        let name = "rackwright_http_requests_total";
        let _infallible = writeln!(text, "# TYPE {name} counter");
        for ((route, status), count) in &inner.requests {
            let _infallible = writeln!(text, "{name}{{route=\"{route}\",status=\"{status}\"}} {count}");
        }
        let name = "rackwright_http_request_seconds";
        let _infallible = writeln!(text, "# TYPE {name} histogram");
        for (count, bound) in inner.buckets.iter().zip(BUCKETS) {
            let _infallible = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let (count, seconds) = (inner.count, inner.seconds);
        let _infallible = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _infallible = writeln!(text, "{name}_sum {seconds}\n{name}_count {count}");
        text
    }
}

fn counter(text: &mut String, name: &str, total: u64) {
    let _infallible =
        writeln!(text, "# TYPE rackwright_{name}_total counter\nrackwright_{name}_total {total}");
}

/// One gauge as Prometheus reads it.
pub(crate) fn gauge(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _infallible = writeln!(text, "# TYPE rackwright_{name} gauge\nrackwright_{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fall_into_every_bucket_that_holds_them() {
        let counters = Counters::default();
        counters.add("pods_created");
        counters.request("/v1/jobs", 201, 0.004);
        let text = counters.text();
        assert!(text.contains("rackwright_pods_created_total 1\n"));
        assert!(text.contains("rackwright_http_request_seconds_bucket{le=\"0.005\"} 1\n"));
        assert!(text.contains("rackwright_http_request_seconds_bucket{le=\"0.0025\"} 0\n"));
        assert!(text.contains("route=\"/v1/jobs\",status=\"201\"} 1\n"));
    }
}
