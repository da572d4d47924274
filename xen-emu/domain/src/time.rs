//! Time as an argument.

/// The clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Guest system time: nanoseconds since the domain started, as its pvclock tells it.
    pub system_ns: u64,
    /// Wall clock: nanoseconds since 1970 (UTC).
    pub wall_ns: u64,
}
