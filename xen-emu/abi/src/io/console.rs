//! The console's ring page (`public/io/console.h`): two byte rings, see `ring::queued` and its neighbours.

abi_structs! {
    /// `struct xencons_interface` without its two byte rings: the words at offset 3072.
    pub struct XenconsIndices {
        /// Input: bytes taken by the guest.
        pub in_cons: u32,
        /// Input: bytes put by the back-end.
        pub in_prod: u32,
        /// Output: bytes taken by the back-end.
        pub out_cons: u32,
        /// Output: bytes put by the guest.
        pub out_prod: u32,
        /// `CONNECTED` or `DISCONNECTED` (since 4.21; one byte in the header).
        pub connection: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}

/// Bytes of the input ring, back-end to guest.
pub const IN_SIZE: u32 = 1024;
/// Bytes of the output ring, guest to back-end.
pub const OUT_SIZE: u32 = 2048;
/// Offset in the page of the input ring.
pub const IN_RING: usize = 0;
/// Offset in the page of the output ring.
pub const OUT_RING: usize = 1024;
/// Offset in the page of `in_cons` (`XenconsIndices` begins here).
pub const IN_CONS: usize = 3072;
/// Offset in the page of `in_prod`.
pub const IN_PROD: usize = 3076;
/// Offset in the page of `out_cons`.
pub const OUT_CONS: usize = 3080;
/// Offset in the page of `out_prod`.
pub const OUT_PROD: usize = 3084;
/// Offset in the page of `connection` (one byte).
pub const CONNECTION: usize = 3088;

/// `connection`: the back-end serves the ring (`XENCONSOLE_CONNECTED`).
pub const CONNECTED: u8 = 0;
/// `connection`: nobody serves the ring yet (`XENCONSOLE_DISCONNECTED`).
pub const DISCONNECTED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    layout! { XenconsIndices = 20 { in_cons: 0, in_prod: 4, out_cons: 8, out_prod: 12, connection: 16 } }

    #[test]
    fn page_offsets_follow_the_struct() {
        assert_eq!(IN_CONS, OUT_RING + OUT_SIZE as usize);
        assert_eq!(IN_PROD, IN_CONS + offset_of!(XenconsIndices, in_prod));
        assert_eq!(OUT_CONS, IN_CONS + offset_of!(XenconsIndices, out_cons));
        assert_eq!(OUT_PROD, IN_CONS + offset_of!(XenconsIndices, out_prod));
        assert_eq!(CONNECTION, IN_CONS + offset_of!(XenconsIndices, connection));
    }
}
