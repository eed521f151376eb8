//! Harness, demo and end-to-end stories.
