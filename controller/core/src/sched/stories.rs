//! What the scheduler does, example by example.
