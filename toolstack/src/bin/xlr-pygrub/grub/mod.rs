//! GRUB's menus: the part of its shell that generated and hand-written grub.cfg files use. Facts from GRUB's manual.

pub mod condition;
pub mod env;
pub mod parse;
pub mod shell;
