//! Guest memory as the core sees it: bytes copied in and out, and atomic words, by guest-physical address.

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A guest frame number: a guest-physical address over 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The first byte of the frame.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << 12)
    }
}

impl Gpa {
    /// The frame it lies in.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> 12)
    }

    /// `bytes` further on; saturating, so that a hostile offset faults instead of wrapping.
    pub const fn offset(self, bytes: u64) -> Gpa {
        Gpa(self.0.saturating_add(bytes))
    }
}

/// No memory there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no guest memory at this address")]
pub struct Fault;

/// A page that the personality owns and the guest places where it likes (XENMEM_add_to_physmap).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecialPage {
    /// XENMAPSPACE_shared_info.
    SharedInfo,
    /// The primary console's ring.
    Console,
    /// The xenstore ring.
    Store,
    /// A frame of the grant table.
    GrantFrame(u16),
    /// A frame of grant status words (grant table v2).
    GrantStatus(u16),
}

impl SpecialPage {
    /// Where the page can always be reached through [`GuestMem`], placed by the guest or not: addresses from
    /// 2^56, above what any guest can name.
    pub const fn home(self) -> Gpa {
        let index = match self {
            SpecialPage::SharedInfo => 0,
            SpecialPage::Console => 1,
            SpecialPage::Store => 2,
            SpecialPage::GrantFrame(n) => 0x1_0000 + n as u64,
            SpecialPage::GrantStatus(n) => 0x2_0000 + n as u64,
        };
        Gpa((1 << 56) + (index << 12))
    }

    /// The page and the offset in it that a home address names.
    pub const fn at_home(gpa: Gpa) -> Option<(SpecialPage, u64)> {
        let Some(address) = gpa.0.checked_sub(1 << 56) else { return None };
        let index = address >> 12;
        let n = (index & 0xffff) as u16;
        let page = match (index >> 16, n) {
            (0, 0) => SpecialPage::SharedInfo,
            (0, 1) => SpecialPage::Console,
            (0, 2) => SpecialPage::Store,
            (1, n) => SpecialPage::GrantFrame(n),
            (2, n) => SpecialPage::GrantStatus(n),
            _ => return None,
        };
        Some((page, address & 0xfff))
    }
}

/// Guest RAM and special pages. Implemented by `xen-emu` over its mappings and by `FakeRam` in tests.
///
/// The guest runs while this is used: two reads of one place may differ, so copy once and judge the copy.
/// Word accesses are single atomic accesses, naturally aligned ([`Fault`] otherwise).
pub trait GuestMem {
    /// Copy out of guest memory; nothing is said about `buf` after a [`Fault`].
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Fault>;
    /// Copy into guest memory; on [`Fault`] a part may have been written.
    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), Fault>;
    /// Acquire load.
    fn load_u32(&self, gpa: Gpa) -> Result<u32, Fault>;
    /// Release store.
    fn store_u32(&self, gpa: Gpa, value: u32) -> Result<(), Fault>;
    /// Acquire load.
    fn load_u64(&self, gpa: Gpa) -> Result<u64, Fault>;
    /// Sequentially consistent; the old value comes back.
    fn fetch_or_u8(&self, gpa: Gpa, bits: u8) -> Result<u8, Fault>;
    /// Sequentially consistent; the old value comes back.
    fn fetch_or_u32(&self, gpa: Gpa, bits: u32) -> Result<u32, Fault>;
    /// Sequentially consistent; the old value comes back.
    fn fetch_and_u32(&self, gpa: Gpa, bits: u32) -> Result<u32, Fault>;
    /// Sequentially consistent; the old value comes back.
    fn fetch_or_u64(&self, gpa: Gpa, bits: u64) -> Result<u64, Fault>;
    /// Sequentially consistent; the old value comes back.
    fn fetch_and_u64(&self, gpa: Gpa, bits: u64) -> Result<u64, Fault>;
    /// Sequentially consistent compare-and-swap; `Ok(Err(found))` when it was not `old`.
    fn cas_u32(&self, gpa: Gpa, old: u32, new: u32) -> Result<Result<u32, u32>, Fault>;
}

/// The page tables of the calling vCPU.
pub trait Translate {
    /// The guest-physical address behind a guest-virtual one, or [`Fault`] where it is not mapped. The answer
    /// holds up to the end of the 4 KiB page.
    fn translate(&self, gva: u64) -> Result<Gpa, Fault>;
}

/// No page tables: for entry points outside any hypercall, which have no caller.
pub struct NoCaller;

impl Translate for NoCaller {
    fn translate(&self, _gva: u64) -> Result<Gpa, Fault> {
        Err(Fault)
    }
}
