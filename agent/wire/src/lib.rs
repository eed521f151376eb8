//! Everything that crosses a wire or a disk: versioned formats, units and ids. No IO, no clocks.
//!
//! Modules in the order in which data flows: what a server is ([`facts`]), what it must look like
//! ([`step`]), the plan that closes the gap ([`plan`]), what happened ([`event`]), and on the data
//! side what a dataset version is ([`manifest`]), what a job leaves behind ([`sealed`]), how a pod
//! asks for either ([`volume`]) and what a node says about itself ([`report`]).
//! Every top-level format carries a `version` ([`mod@format`]) and has a golden file under `golden/`;
//! docs/formats.md lists them all.

pub mod complaint;
pub mod event;
pub mod facts;
pub mod format;
pub mod id;
pub mod manifest;
pub mod plan;
pub mod report;
pub mod sealed;
pub mod source;
pub mod step;
pub mod units;
pub mod volume;
pub mod words;
