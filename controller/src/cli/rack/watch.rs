//! Progress on the terminal: a line a server for people, plain lines in a log, JSON lines for scripts.

use crate::out::Out;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rackwright_rack::progress::{News, Progress};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Shows progress until it is ended.
pub(super) struct Watch {
    bars: Option<MultiProgress>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts to show what arrives.
    pub(super) fn start(out: Out, servers: &[String], receiver: UnboundedReceiver<Progress>) -> Self {
        let bars = out.is_interactive().then(MultiProgress::new);
        let lines = bars.as_ref().map(|bars| Lines::new(bars, servers)).unwrap_or_default();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(show(out, lines, receiver, stopped));
        Self { bars, stop, task }
    }

    /// Lets other output through.
    pub(super) fn pause(&self) {
        if let Some(bars) = &self.bars {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Shows progress again.
    pub(super) fn resume(&self) {
        if let Some(bars) = &self.bars {
            bars.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Shows what is left and gives the terminal back.
    pub(super) async fn end(self) {
        let _gone_already = self.stop.send(());
        let _over = self.task.await;
        if let Some(bars) = self.bars {
            let _no_terminal = bars.clear();
        }
    }
}

/// The bars by server; empty where nobody watches.
#[derive(Default)]
struct Lines(BTreeMap<String, ProgressBar>);

impl Lines {
    fn new(bars: &MultiProgress, servers: &[String]) -> Self {
        let width = servers.iter().map(String::len).max().unwrap_or(0).max("cluster".len());
        let style = ProgressStyle::with_template("{spinner} {prefix} {bar:20} {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let line = |name: &str| {
            let bar = bars.add(ProgressBar::new(1));
            bar.set_style(style.clone());
            bar.set_prefix(format!("{name:width$}"));
            bar.enable_steady_tick(Duration::from_millis(100));
            (name.to_owned(), bar)
        };
        Self(servers.iter().map(String::as_str).chain(["cluster"]).map(line).collect())
    }

    fn show(&self, progress: &Progress) {
        let Some(bar) = self.0.get(&progress.server) else { return };
        match &progress.news {
            News::Started { steps } => bar.set_length(u64::try_from(*steps).unwrap_or(1)),
            News::Done { done, .. } => bar.set_position(u64::from(*done)),
            News::Connecting
            | News::Compared { .. }
            | News::Absent { .. }
            | News::Untrusted { .. }
            | News::Applying { .. }
            | News::Waiting { .. }
            | News::Failed(_)
            | News::Sending { .. }
            | News::Sent { .. }
            | News::Lost { .. }
            | News::Finished(_)
            | News::Cluster { .. } => {}
        }
        bar.set_message(progress.news.to_string());
    }
}

async fn show(
    out: Out,
    lines: Lines,
    mut receiver: UnboundedReceiver<Progress>,
    mut stopped: oneshot::Receiver<()>,
) {
    let started = Instant::now();
    loop {
        tokio::select! {
            biased;
            next = receiver.recv() => match next {
                Some(progress) => one(out, &lines, &progress, started),
                None => return,
            },
            _ = &mut stopped => return,
        }
    }
}

fn one(out: Out, lines: &Lines, progress: &Progress, started: Instant) {
    if out.is_json() {
        out.json_line(progress);
    } else if out.is_interactive() {
        lines.show(progress);
    } else if is_worth_a_line(&progress.news) {
        let seconds = started.elapsed().as_secs_f64();
        out.say(format_args!("{seconds:7.2} s  {}: {}", progress.server, progress.news));
    }
}

/// A log needs what changes and what goes wrong; every step that is fine would drown it.
fn is_worth_a_line(news: &News) -> bool {
    match news {
        News::Connecting | News::Done { .. } | News::Sending { .. } | News::Waiting { .. } => false,
        News::Compared { .. }
        | News::Absent { .. }
        | News::Untrusted { .. }
        | News::Started { .. }
        | News::Applying { .. }
        | News::Failed(_)
        | News::Sent { .. }
        | News::Lost { .. }
        | News::Finished(_)
        | News::Cluster { .. } => true,
    }
}
