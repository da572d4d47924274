//! States of a device's two ends (`public/io/xenbus.h`).

open_enum! {
    /// `enum xenbus_state`, written in decimal to each end's `state` node.
    pub struct XenbusState(u32) {
        /// No node, or nonsense.
        UNKNOWN = 0,
        /// Beginning.
        INITIALISING = 1,
        /// Waiting for the peer or for a script.
        INIT_WAIT = 2,
        /// Waiting for the peer to connect.
        INITIALISED = 3,
        /// At work.
        CONNECTED = 4,
        /// Ending.
        CLOSING = 5,
        /// Ended.
        CLOSED = 6,
        /// Changing.
        RECONFIGURING = 7,
        /// Changed.
        RECONFIGURED = 8,
    }
}
