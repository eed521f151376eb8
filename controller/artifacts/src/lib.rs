//! Binaries and images by hash: what a rack is built from, and how this machine comes by it.
//!
//! The modules in the order in which data flows: the committed [`lock`] says what is wanted, the [`cache`] keeps
//! what is there by sha256, and [`ensure`](Artifacts::ensure) tries the sources in order for what is missing:
//! [`bundle`], [`release`], [`module`], [`debian`], [`image`]. Nothing enters the cache without a hash, and
//! where the lock pins the hash, nothing with another one. [`progress`] tells the caller what is going on.

mod attempt;
pub mod bundle;
pub mod cache;
mod debian;
mod ensure;
pub mod error;
pub mod findings;
mod hash;
mod image;
mod layer;
pub mod lock;
mod module;
mod oci;
pub mod progress;
mod release;
pub mod resolved;
mod tool;

pub use ensure::Artifacts;
pub use error::{Error, SourceError};
pub use lock::Lock;
pub use resolved::{Resolved, Source};
