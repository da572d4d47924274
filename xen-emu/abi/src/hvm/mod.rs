//! What only HVM and PVH guests have (`public/hvm/`, `public/arch-x86/hvm/`).

pub mod op;
pub mod params;
pub mod start_info;
