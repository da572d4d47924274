//! A domain's surroundings for tests.
