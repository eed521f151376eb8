//! `rackwright-demo up [--data FILE.csv] [--target COLUMN] [--from STAGE]`, `rackwright-demo down`: what `make demo` runs.
#![expect(clippy::print_stderr, reason = "talks to a person")]

use rackwright_tests::demo::{Demo, DemoError, Options};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let verb = args.next().unwrap_or_default();
    if !matches!(verb.as_str(), "up" | "down") {
        return usage();
    }
    let mut options = Options::default();
    while let Some(flag) = args.next() {
        let Some(value) = args.next().filter(|value| !value.is_empty()) else { return usage() };
        match flag.as_str() {
            "--data" => options.data = Some(value.into()),
            "--target" => options.target = Some(value),
            "--from" => match value.parse() {
                Ok(stage) => options.from = stage,
                Err(_) => return usage(),
            },
            _ => return usage(),
        }
    }
    // `make` runs in the checkout, whose playbooks and inventory are the ones to use.
    let outcome =
        Demo::open(&std::env::current_dir().unwrap_or_default(), options).and_then(|demo| {
            match verb.as_str() {
                "up" => demo.up(),
                _ => demo.down(),
            }
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: rackwright-demo up [--data FILE.csv] [--target COLUMN] [--from STAGE] | down");
    ExitCode::from(2)
}

fn failed(error: &DemoError) -> ExitCode {
    eprintln!("\nerror: failed to {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        eprintln!("  caused by: {inner}");
        cause = inner.source();
    }
    eprintln!(
        "  help: a rack that is up stays up for a look (`rackwright lab status`); `make demo-down` removes it"
    );
    ExitCode::FAILURE
}
