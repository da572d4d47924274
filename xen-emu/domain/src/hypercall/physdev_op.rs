//! physdev_op: a guest without XENFEAT_hvm_pirqs has none of it.

use crate::hypercall::Handler;

pub(super) const OPS: &[(u32, Handler)] = &[];
