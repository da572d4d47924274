//! The store's wire protocol and its ring page (`public/io/xs_wire.h`).

open_enum! {
    /// `enum xsd_sockmsg_type`: what a message asks or answers. 20 (RESTRICT) was removed from the protocol.
    pub struct XsdSockmsgType(u32) {
        /// Commands to the daemon itself (once `XS_DEBUG`).
        CONTROL = 0,
        /// Children of a node.
        DIRECTORY = 1,
        /// Value of a node.
        READ = 2,
        /// Permissions of a node.
        GET_PERMS = 3,
        /// Register a watch.
        WATCH = 4,
        /// Remove a watch.
        UNWATCH = 5,
        /// Begin a transaction.
        TRANSACTION_START = 6,
        /// Commit (`T`) or abandon (`F`) a transaction.
        TRANSACTION_END = 7,
        /// Make a domain known to the store.
        INTRODUCE = 8,
        /// Forget a domain.
        RELEASE = 9,
        /// Home path of a domain.
        GET_DOMAIN_PATH = 10,
        /// Set a node's value.
        WRITE = 11,
        /// Create a node with an empty value.
        MKDIR = 12,
        /// Remove a node and all below.
        RM = 13,
        /// Set the permissions of a node.
        SET_PERMS = 14,
        /// Sent by the store only: a watch fired.
        WATCH_EVENT = 15,
        /// Sent by the store only: a request failed.
        ERROR = 16,
        /// Whether a domain is known.
        IS_DOMAIN_INTRODUCED = 17,
        /// Re-arm a domain's shutdown notice.
        RESUME = 18,
        /// Give a domain the rights of another.
        SET_TARGET = 19,
        /// Drop all watches and transactions of the caller.
        RESET_WATCHES = 21,
        /// Children of a node in chunks.
        DIRECTORY_PART = 22,
        /// Features offered to a domain.
        GET_FEATURE = 23,
        /// Limit the features offered to a domain.
        SET_FEATURE = 24,
        /// Read a quota.
        GET_QUOTA = 25,
        /// Set a quota.
        SET_QUOTA = 26,
        /// Never a valid type.
        INVALID = 0xffff,
    }
}

abi_structs! {
    /// `struct xsd_sockmsg`: the header before every payload, in both directions, native little-endian.
    pub struct XsdSockmsg {
        /// `XsdSockmsgType`.
        pub r#type: u32,
        /// Chosen by the client, echoed in the reply.
        pub req_id: u32,
        /// Transaction, 0 for none.
        pub tx_id: u32,
        /// Bytes of payload that follow, at most `XENSTORE_PAYLOAD_MAX`.
        pub len: u32,
    }

    /// `struct xenstore_domain_interface` without its two byte rings: the indices and words at offset 2048.
    pub struct XenstoreDomainIndices {
        /// Request ring: bytes taken by the store.
        pub req_cons: u32,
        /// Request ring: bytes put by the guest.
        pub req_prod: u32,
        /// Response ring: bytes taken by the guest.
        pub rsp_cons: u32,
        /// Response ring: bytes put by the store.
        pub rsp_prod: u32,
        /// `XENSTORE_SERVER_FEATURE_*`, written by the store's side.
        pub server_features: u32,
        /// `XENSTORE_CONNECTED` or `XENSTORE_RECONNECT`.
        pub connection: u32,
        /// `XENSTORE_ERROR_*`, valid with `XENSTORE_SERVER_FEATURE_ERROR`.
        pub error: u32,
    }
}

/// Bytes in each of the two rings.
pub const XENSTORE_RING_SIZE: u32 = 1024;
/// Offset in the page of the bytes the guest sends.
pub const REQ_RING: usize = 0;
/// Offset in the page of the bytes the store sends.
pub const RSP_RING: usize = 1024;
/// Offset in the page of `req_cons` (`XenstoreDomainIndices` begins here).
pub const REQ_CONS: usize = 2048;
/// Offset in the page of `req_prod`.
pub const REQ_PROD: usize = 2052;
/// Offset in the page of `rsp_cons`.
pub const RSP_CONS: usize = 2056;
/// Offset in the page of `rsp_prod`.
pub const RSP_PROD: usize = 2060;
/// Offset in the page of `server_features`.
pub const SERVER_FEATURES: usize = 2064;
/// Offset in the page of `connection`.
pub const CONNECTION: usize = 2068;
/// Offset in the page of `error`.
pub const ERROR: usize = 2072;

/// Longest payload in either direction; a longer one breaks the connection.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;
/// Longest absolute path.
pub const XENSTORE_ABS_PATH_MAX: usize = 3072;
/// Longest relative path.
pub const XENSTORE_REL_PATH_MAX: usize = 2048;

/// The ring can be reconnected through `connection`.
pub const XENSTORE_SERVER_FEATURE_RECONNECTION: u32 = 1;
/// The ring page has the `error` word.
pub const XENSTORE_SERVER_FEATURE_ERROR: u32 = 2;
/// WATCH takes a depth.
pub const XENSTORE_SERVER_FEATURE_WATCHDEPTH: u32 = 4;
/// Permissions may name all domains (`DOMID_ANY`).
pub const XENSTORE_SERVER_FEATURE_DOMID_ANY: u32 = 8;

/// `connection`: the steady state.
pub const XENSTORE_CONNECTED: u32 = 0;
/// `connection`: the guest asked to reconnect, or the store has not come yet.
pub const XENSTORE_RECONNECT: u32 = 1;

/// `error`: none.
pub const XENSTORE_ERROR_NONE: u32 = 0;
/// `error`: communication problem.
pub const XENSTORE_ERROR_COMM: u32 = 1;
/// `error`: invalid ring index.
pub const XENSTORE_ERROR_RINGIDX: u32 = 2;
/// `error`: protocol violation (payload too long).
pub const XENSTORE_ERROR_PROTO: u32 = 3;

/// Payload part of a watch event: the path.
pub const XS_WATCH_PATH: usize = 0;
/// Payload part of a watch event: the token.
pub const XS_WATCH_TOKEN: usize = 1;

/// The only names an ERROR reply may carry (`xsd_errors`); clients map them back by this list.
pub const XSD_ERRORS: [&str; 16] = [
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
];

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    layout! {
        XsdSockmsg = 16 { r#type: 0, req_id: 4, tx_id: 8, len: 12 }
        XenstoreDomainIndices = 28 {
            req_cons: 0, req_prod: 4, rsp_cons: 8, rsp_prod: 12, server_features: 16, connection: 20, error: 24,
        }
    }

    #[test]
    fn page_offsets_follow_the_struct() {
        assert_eq!(REQ_PROD, REQ_CONS + offset_of!(XenstoreDomainIndices, req_prod));
        assert_eq!(RSP_CONS, REQ_CONS + offset_of!(XenstoreDomainIndices, rsp_cons));
        assert_eq!(RSP_PROD, REQ_CONS + offset_of!(XenstoreDomainIndices, rsp_prod));
        assert_eq!(SERVER_FEATURES, REQ_CONS + offset_of!(XenstoreDomainIndices, server_features));
        assert_eq!(CONNECTION, REQ_CONS + offset_of!(XenstoreDomainIndices, connection));
        assert_eq!(ERROR, REQ_CONS + offset_of!(XenstoreDomainIndices, error));
    }

    #[test]
    fn types_have_names_and_unknown_ones_do_not() {
        assert_eq!(XsdSockmsgType(22).name(), Some("DIRECTORY_PART"));
        assert_eq!(XsdSockmsgType(20).name(), None);
    }
}
