//! The static agent on every server: one binary, and a subcommand for each of its units and for each
//! thing that the controller asks over SSH.
//!
//! Installs the TLS provider, parses, runs; nothing else.

mod apply;
mod check;
mod cli;
mod data;
mod facts;
mod failure;
mod follow;
mod input;
mod launch;
mod node;
mod output;
mod proxy;
mod receive;
#[cfg(test)]
mod rendered;
mod report;
mod run;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    abort_on_panic();
    let cli = cli::Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("RACKWRIGHT_LOG").unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
    // Fails only when one is installed already, which is as good.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit)
        }
    }
}

/// A panic in any thread ends the process: a half-dead unit would look alive. Not `panic = "abort"`,
/// which Cargo ignores for tests and would compile everything twice for.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}
