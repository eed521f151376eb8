//! The static agent on every server.
fn main() {}
