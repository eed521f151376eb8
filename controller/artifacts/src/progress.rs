//! What is going on while artifacts are had, as values; the caller shows them.

use crate::resolved::Resolved;
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// Another run has the cache; this one goes on when it is done.
    Waiting,
    /// Work lies ahead.
    Plan {
        /// Artifacts that are not in the cache.
        missing: usize,
        /// How long making all of them usually takes, on 2 cores with nothing cached.
        usually: Duration,
    },
    /// A cached file had other bytes than its name says; it is fetched again.
    Corrupt {
        /// The artifact.
        name: &'a str,
    },
    /// One source is tried.
    Start {
        /// The artifact.
        name: &'a str,
        /// How: `download`, `build`, `unpack`, `make`.
        how: &'static str,
        /// How long it usually takes.
        usually: Duration,
    },
    /// It goes on: a line of the builder, or bytes of a download.
    Detail {
        /// The artifact.
        name: &'a str,
        /// What, in a few words.
        text: &'a str,
    },
    /// Some time passed without an end.
    Still {
        /// The artifact.
        name: &'a str,
        /// Since the start.
        elapsed: Duration,
        /// How long it usually takes.
        usually: Duration,
    },
    /// A source did not give the artifact; the next is tried.
    Fallback {
        /// The artifact.
        name: &'a str,
        /// The source.
        source: &'static str,
        /// Why not; reads after "failed to".
        reason: &'a str,
    },
    /// The artifact is in the cache.
    Done {
        /// What was used.
        resolved: &'a Resolved,
        /// How long it took.
        took: Duration,
    },
}

/// Somebody who wants to know. Called from one task, never concurrently for one `ensure`.
pub trait Progress: Send + Sync {
    /// Takes one event; must not block.
    fn event(&self, event: &Event<'_>);
}

/// Nobody wants to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: &Event<'_>) {}
}

/// A line an event, for logs; what merely goes on is told twice a minute.
pub struct Lines<F> {
    say: F,
    told: Mutex<Instant>,
}

impl<F> fmt::Debug for Lines<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

const TELL_EVERY: Duration = Duration::from_secs(30);

impl<F: Fn(&str) + Send + Sync> Lines<F> {
    /// Hands every line to `say`.
    pub fn new(say: F) -> Self {
        Self { say, told: Mutex::new(Instant::now()) }
    }
}

impl<F: Fn(&str) + Send + Sync> Progress for Lines<F> {
    fn event(&self, event: &Event<'_>) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let quiet = match event {
            Event::Detail { .. } => true,
            Event::Still { .. } => told.elapsed() < TELL_EVERY,
            Event::Waiting
            | Event::Plan { .. }
            | Event::Corrupt { .. }
            | Event::Start { .. }
            | Event::Fallback { .. }
            | Event::Done { .. } => false,
        };
        if !quiet {
            *told = Instant::now();
            (self.say)(&event.to_string());
        }
    }
}

/// One bar on a terminal: artifacts done, the current one, its last line; what is finished scrolls above.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar on stderr.
    pub fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} [{pos}/{len}] {elapsed} {prefix} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }
}

impl Default for Bar {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Waiting => self.bar.set_message(event.to_string()),
            Event::Plan { missing, .. } => {
                self.bar.set_length(u64::try_from(*missing).unwrap_or(u64::MAX));
                self.bar.println(event.to_string());
            }
            Event::Corrupt { .. } | Event::Fallback { .. } => self.bar.println(event.to_string()),
            Event::Start { name, how, usually } => {
                self.bar.set_prefix(format!("{how} {name} (usually {})", Seconds(*usually)));
                self.bar.set_message("");
            }
            Event::Detail { text, .. } => self.bar.set_message((*text).to_owned()),
            Event::Still { .. } => {}
            Event::Done { .. } => {
                self.bar.inc(1);
                self.bar.println(event.to_string());
            }
        }
    }
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => write!(f, "waiting for another run that fetches artifacts"),
            Self::Plan { missing, usually } => write!(
                f,
                "{missing} artifacts are not cached; building all of them usually takes {} on 2 cores with nothing \
                 cached, and what is finished is kept",
                Seconds(*usually)
            ),
            Self::Corrupt { name } => write!(f, "{name}: the cached file was changed; fetching it again"),
            Self::Start { name, how, usually } => write!(f, "{name}: {how}, usually {}", Seconds(*usually)),
            Self::Detail { name, text } => write!(f, "{name}: {text}"),
            Self::Still { name, elapsed, usually } => {
                write!(f, "{name}: {} of usually {}", Seconds(*elapsed), Seconds(*usually))
            }
            Self::Fallback { name, source, reason } => {
                write!(f, "{name}: {source}: failed to {reason}; trying the next source")
            }
            Self::Done { resolved, took } => {
                let short: String = resolved.sha256.chars().take(12).collect();
                let bundled = if resolved.bundled { ", from the bundle" } else { "" };
                let (name, version, source) = (&resolved.name, &resolved.version, &resolved.source);
                write!(f, "{name} {version}: {short}, {} in {}", source, Seconds(*took))?;
                write!(f, "{bundled}")
            }
        }
    }
}

/// A duration as a person reads it.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ 0..120 => write!(f, "{seconds} s"),
            seconds => write!(f, "{} min", seconds.saturating_add(30) / 60),
        }
    }
}
