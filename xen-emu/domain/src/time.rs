//! Time as an argument, and the wall clock in shared_info.

use xen_abi::shared_info::Layout;

use crate::domain::Domain;
use crate::hypercall::Cx;
use crate::mem::{Fault, Gpa, GuestMem, SpecialPage};

/// The clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Guest system time: nanoseconds since the domain started, as its pvclock tells it.
    pub system_ns: u64,
    /// Wall clock: nanoseconds since 1970 (UTC).
    pub wall_ns: u64,
}

impl Now {
    /// Wall clock of system time 0: nanoseconds since 1970.
    #[must_use]
    pub const fn boot_ns(self) -> u64 {
        self.wall_ns.saturating_sub(self.system_ns)
    }

    /// The same as shared_info tells it: seconds and nanoseconds.
    const fn wallclock(self) -> (u64, u32) {
        let boot = self.boot_ns();
        (boot / 1_000_000_000, (boot % 1_000_000_000) as u32)
    }
}

impl Domain {
    /// Writes the wall clock into shared_info. The machine calls it when the host's clock has been set.
    pub fn update_wallclock(&self, cx: &mut Cx<'_>) {
        // The page is always there at its home; a machine that has lost it has worse trouble than the time.
        let _ = write_wallclock(cx.mem, SpecialPage::SharedInfo.home(), Layout::of(self.width), (cx.now)());
    }
}

/// The version is odd while the rest changes (`public/xen.h`, wc_version).
#[expect(clippy::cast_possible_truncation, reason = "the two halves of the seconds")]
fn write_wallclock(mem: &dyn GuestMem, page: Gpa, layout: Layout, now: Now) -> Result<(), Fault> {
    let wc = page.offset(layout.wc_version as u64);
    let (seconds, nanoseconds) = now.wallclock();
    let busy = mem.load_u32(wc)? | 1;
    mem.store_u32(wc, busy)?;
    mem.store_u32(wc.offset(4), seconds as u32)?;
    mem.store_u32(wc.offset(8), nanoseconds)?;
    mem.store_u32(page.offset(layout.wc_sec_hi as u64), (seconds >> 32) as u32)?;
    mem.store_u32(wc, busy.wrapping_add(1))
}
