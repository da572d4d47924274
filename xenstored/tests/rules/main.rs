//! The rules of the store as tables: who asks what, what is answered, who is told.
//!
//! A line is `WHO[.TRANSACTION] REQUEST ARGS... => REPLY ! WHO PATH TOKEN ! ...`. `WHO` is a domain; 0 and letters are
//! clients on the socket. Without `=>` the reply is OK; NUL is shown as `|`, the last one not at all. Every event that
//! a request causes is listed, in order. `{x*9}` stands for nine times `x`.
#![expect(clippy::unwrap_used, reason = "a panic is the verdict of a test")]

mod domains;
mod model;
mod nodes;
mod paths;
mod permissions;
mod quotas;
mod script;
mod transactions;
mod watches;
mod wire;
mod xsa;
