//! What the agent can make true on a server: facts, typed steps, journal.
