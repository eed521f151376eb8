//! The agent's data plane: content store, chain fetch, scrub, sealed sets, CSI node plugin.
