//! Network device protocol (`public/io/netif.h`). All structs are the same for both widths.

use crate::xen::Gref;

/// `NETTXF_*`: flags of a transmit request.
pub mod txf {
    /// The protocol checksum is still to be filled in.
    pub const CSUM_BLANK: u16 = 1 << 0;
    /// The data was validated.
    pub const DATA_VALIDATED: u16 = 1 << 1;
    /// The packet goes on in the next request.
    pub const MORE_DATA: u16 = 1 << 2;
    /// An extra descriptor follows.
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// `NETRXF_*`: flags of a receive response.
pub mod rxf {
    /// The data was validated.
    pub const DATA_VALIDATED: u16 = 1 << 0;
    /// The protocol checksum is still to be filled in.
    pub const CSUM_BLANK: u16 = 1 << 1;
    /// The packet goes on in the next response.
    pub const MORE_DATA: u16 = 1 << 2;
    /// An extra descriptor follows.
    pub const EXTRA_INFO: u16 = 1 << 3;
    /// Deprecated.
    pub const GSO_PREFIX: u16 = 1 << 4;
}

open_enum! {
    /// `XEN_NETIF_EXTRA_TYPE_*`.
    pub struct ExtraType(u8) {
        /// Invalid.
        NONE = 0,
        /// Segmentation offload.
        GSO = 1,
        /// Join a multicast group.
        MCAST_ADD = 2,
        /// Leave it.
        MCAST_DEL = 3,
        /// Hash of the packet.
        HASH = 4,
        /// Headroom of the packet, agreed on for XDP (Linux's copy of the header).
        XDP = 5,
    }
}

/// `XEN_NETIF_CTRL_HASH_TYPE_*`: sets of kinds of hashes; an [`ExtraHash`] names one by its bit's number.
pub mod hash_type {
    /// IPv4 addresses.
    pub const IPV4: u32 = 1 << 0;
    /// IPv4 addresses and TCP ports.
    pub const IPV4_TCP: u32 = 1 << 1;
    /// IPv6 addresses.
    pub const IPV6: u32 = 1 << 2;
    /// IPv6 addresses and TCP ports.
    pub const IPV6_TCP: u32 = 1 << 3;
    /// All that there are.
    pub const ALL: u32 = IPV4 | IPV4_TCP | IPV6 | IPV6_TCP;
}

/// `XEN_NETIF_CTRL_HASH_ALGORITHM_*`.
pub mod hash_algorithm {
    /// No hash.
    pub const NONE: u32 = 0;
    /// Toeplitz.
    pub const TOEPLITZ: u32 = 1;
}

open_enum! {
    /// `XEN_NETIF_GSO_TYPE_*`.
    pub struct GsoType(u8) {
        /// None.
        NONE = 0,
        /// TCP over IPv4.
        TCPV4 = 1,
        /// TCP over IPv6.
        TCPV6 = 2,
    }
}

open_enum! {
    /// `NETIF_RSP_*`.
    pub struct NetifRsp(i16) {
        /// Done; on receive a positive status is the number of bytes.
        OKAY = 0,
        /// Failed.
        ERROR = -1,
        /// Dropped.
        DROPPED = -2,
        /// Answer to an extra descriptor.
        NULL = 1,
    }
}

open_enum! {
    /// `XEN_NETIF_CTRL_TYPE_*`: messages on the control ring.
    pub struct CtrlType(u16) {
        /// Invalid.
        INVALID = 0,
        /// Which hashes are supported.
        GET_HASH_FLAGS = 1,
        /// Which hashes to use.
        SET_HASH_FLAGS = 2,
        /// Key of the hash.
        SET_HASH_KEY = 3,
        /// Longest table of queues.
        GET_HASH_MAPPING_SIZE = 4,
        /// Length of the table of queues.
        SET_HASH_MAPPING_SIZE = 5,
        /// The table of queues.
        SET_HASH_MAPPING = 6,
        /// Which algorithm.
        SET_HASH_ALGORITHM = 7,
        /// How many grants may stay mapped.
        GET_GREF_MAPPING_SIZE = 8,
        /// Keep grants mapped.
        ADD_GREF_MAPPING = 9,
        /// Unmap them.
        DEL_GREF_MAPPING = 10,
    }
}

open_enum! {
    /// `XEN_NETIF_CTRL_STATUS_*`.
    pub struct CtrlStatus(u32) {
        /// Done.
        SUCCESS = 0,
        /// Not supported.
        NOT_SUPPORTED = 1,
        /// Invalid parameter.
        INVALID_PARAMETER = 2,
        /// Too much data.
        BUFFER_OVERFLOW = 3,
    }
}

/// Longest packet (`XEN_NETIF_MAX_TX_SIZE`).
pub const MAX_TX_SIZE: usize = 0xFFFF;
/// Slots with data that a packet may have without negotiation (`XEN_NETIF_NR_SLOTS_MIN`).
pub const NR_SLOTS_MIN: usize = 18;
/// Flag of an extra descriptor: another follows (`XEN_NETIF_EXTRA_FLAG_MORE`).
pub const EXTRA_FLAG_MORE: u8 = 1;
/// Flag of a grant to keep mapped: for reading only (`XEN_NETIF_CTRLF_GREF_readonly`).
pub const GREF_READONLY: u16 = 1;
/// Bytes of a slot on the transmit ring: requests, extra descriptors and responses are padded to it.
pub const TX_SLOT: usize = 12;
/// Bytes of a slot on the receive ring.
pub const RX_SLOT: usize = 8;
/// Bytes of a slot on the control ring.
pub const CTRL_SLOT: usize = 16;

abi_structs! {
    /// `struct netif_tx_request`.
    pub struct TxRequest {
        /// Page with the data.
        pub gref: Gref,
        /// First byte in it.
        pub offset: u16,
        /// `txf`.
        pub flags: u16,
        /// Echoed.
        pub id: u16,
        /// First request: the packet's size; others: bytes here.
        pub size: u16,
    }

    /// `struct netif_tx_response`.
    pub struct TxResponse {
        /// Of the request.
        pub id: u16,
        /// How it went.
        pub status: NetifRsp,
    }

    /// `struct netif_rx_request`.
    pub struct RxRequest {
        /// Echoed.
        pub id: u16,
        /// Zero.
        pub pad: u16,
        /// Page to fill.
        pub gref: Gref,
    }

    /// `struct netif_rx_response`.
    pub struct RxResponse {
        /// Of the request.
        pub id: u16,
        /// First byte of the data.
        pub offset: u16,
        /// `rxf`.
        pub flags: u16,
        /// Bytes, or a negative `NetifRsp`.
        pub status: NetifRsp,
    }

    /// `struct netif_extra_info`: in the place of a request (padded to it) or response.
    pub struct ExtraInfo {
        /// What `u` is.
        pub r#type: ExtraType,
        /// `EXTRA_FLAG_MORE`.
        pub flags: u8,
        /// `ExtraGso`, a MAC address (MCAST_ADD, MCAST_DEL), `ExtraHash` or `ExtraXdp`.
        pub u: [u8; 6],
    }

    /// `netif_extra_info.u.gso`.
    pub struct ExtraGso {
        /// Bytes of payload per segment.
        pub size: u16,
        /// Which protocol.
        pub r#type: GsoType,
        /// Zero.
        pub pad: u8,
        /// Zero.
        pub features: u16,
    }

    /// `netif_extra_info.u.hash`.
    pub struct ExtraHash {
        /// What was hashed.
        pub r#type: u8,
        /// How.
        pub algorithm: u8,
        /// The hash.
        pub value: [u8; 4],
    }

    /// `netif_extra_info.u.xdp`.
    pub struct ExtraXdp {
        /// Bytes before the data.
        pub headroom: u16,
        /// Zero.
        pub pad: [u16; 2],
    }

    /// `struct xen_netif_ctrl_request`.
    pub struct CtrlRequest {
        /// Echoed.
        pub id: u16,
        /// What.
        pub r#type: CtrlType,
        /// Its arguments.
        pub data: [u32; 3],
    }

    /// `struct xen_netif_ctrl_response`.
    pub struct CtrlResponse {
        /// Of the request.
        pub id: u16,
        /// Of the request.
        pub r#type: CtrlType,
        /// How it went.
        pub status: CtrlStatus,
        /// The answer.
        pub data: u32,
    }

    /// `struct xen_netif_gref`: one grant to keep mapped.
    pub struct NetifGref {
        /// Which.
        pub r#ref: Gref,
        /// Bit 0: read-only.
        pub flags: u16,
        /// Out.
        pub status: u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        TxRequest = 12 { gref: 0, offset: 4, flags: 6, id: 8, size: 10 }
        TxResponse = 4 { id: 0, status: 2 }
        RxRequest = 8 { id: 0, gref: 4 }
        RxResponse = 8 { id: 0, offset: 2, flags: 4, status: 6 }
        ExtraInfo = 8 { r#type: 0, flags: 1, u: 2 }
        ExtraGso = 6 { size: 0, r#type: 2, features: 4 }
        ExtraHash = 6 { r#type: 0, algorithm: 1, value: 2 }
        ExtraXdp = 6 { headroom: 0, pad: 2 }
        CtrlRequest = 16 { id: 0, r#type: 2, data: 4 }
        CtrlResponse = 12 { id: 0, r#type: 2, status: 4, data: 8 }
        NetifGref = 8 { r#ref: 0, flags: 4, status: 6 }
    }

    #[test]
    fn slots_hold_all_that_goes_into_them() {
        let tx = [size_of::<TxRequest>(), size_of::<TxResponse>(), size_of::<ExtraInfo>()];
        let rx = [size_of::<RxRequest>(), size_of::<RxResponse>(), size_of::<ExtraInfo>()];
        assert_eq!((tx.into_iter().max(), rx.into_iter().max()), (Some(TX_SLOT), Some(RX_SLOT)));
        assert_eq!(size_of::<CtrlRequest>().max(size_of::<CtrlResponse>()), CTRL_SLOT);
    }
}
