//! `rackwright`: builds racks, serves jobs, keeps the books.

mod cli;
mod client;
mod out;
mod report;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    abort_on_panic();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    cli::Cli::parse().run()
}

/// A panic in any task ends the process: state lives in the store, the journal and the cluster, and a
/// restart observes them anew. `panic = "abort"` would compile everything twice (tests ignore it).
fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
}
