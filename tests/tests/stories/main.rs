//! End-to-end stories on a rack of their own: real servers, real SSH, real Kubernetes.
//!
//! They need root. Without it they are skipped with one line; in CI a skipped story is a failure.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a story fails by panicking, and talks when skipped"
)]

mod data;
mod faults;
mod jobs;
mod rack;

use rackwright_tests::rack::StoryRack;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `None`, after a line about it, when the stories cannot run here.
fn story_rack(name: &str, range: &str) -> Option<StoryRack> {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        assert!(std::env::var_os("CI").is_none(), "rack stories need root, also in CI");
        eprintln!("skipped: rack stories need root (sudo make stories)");
        return None;
    }
    Some(StoryRack::prepare(&repository(), name, range).unwrap())
}
