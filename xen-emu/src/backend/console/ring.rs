//! The two byte rings of the console page (`struct xencons_interface`, public/io/console.h), host side.

use std::sync::Arc;
use xen_abi::io::console::{IN_CONS, IN_PROD, OUT_CONS, OUT_PROD};
use xen_domain::mem::{Fault, Gpa, GuestMem};
use xen_domain::ring::{ConsoleIn, ConsoleOut, RingError, SpecialRing};

/// The page and our end of its rings.
pub struct Ring {
    page: Arc<dyn GuestMem + Send + Sync>,
    at: Gpa,
    input: ConsoleIn,
    output: ConsoleOut,
}

impl Ring {
    /// The rings in the page at `at`, continued where the page says they are (0 in a new domain).
    pub fn new(page: Arc<dyn GuestMem + Send + Sync>, at: Gpa) -> Result<Ring, Fault> {
        let view = SpecialRing::at(&*page, at);
        let (input, output) = (ConsoleIn::attach(&view)?, ConsoleOut::attach(&view)?);
        Ok(Ring { page, at, input, output })
    }

    /// Both rings are empty, for a guest that begins anew.
    pub fn reset(&mut self) -> Result<(), Fault> {
        for index in [IN_CONS, IN_PROD, OUT_CONS, OUT_PROD] {
            self.page.store_u32(self.at.offset(index as u64), 0)?;
        }
        *self = Ring::new(self.page.clone(), self.at)?;
        Ok(())
    }

    /// Bytes of the guest's output that wait.
    pub fn waiting(&self) -> Result<u32, RingError> {
        self.output.available(&SpecialRing::at(&*self.page, self.at))
    }

    /// Append at most `max` bytes of the guest's output to `to` and free their place in the ring.
    pub fn take(&mut self, to: &mut Vec<u8>, max: usize) -> Result<usize, RingError> {
        let view = SpecialRing::at(&*self.page, self.at);
        let (start, room) = (to.len(), self.output.available(&view)? as usize);
        to.resize(start + room.min(max), 0);
        let taken = self.output.take(&view, to.get_mut(start..).unwrap_or_default())?;
        to.truncate(start + taken);
        Ok(taken)
    }

    /// Put as much of `bytes` into the guest's input as there is space; how many.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        self.input.put(&SpecialRing::at(&*self.page, self.at), bytes)
    }
}

/// The guest's side of the rings, for tests: a page of its own, in no guest.
#[cfg(test)]
pub mod fake {
    use std::sync::Mutex;
    use xen_abi::io::console::{self, IN_SIZE, OUT_SIZE};
    use xen_domain::mem::{Fault, Gpa, GuestMem};

    const IN: u64 = console::IN_RING as u64;
    const OUT: u64 = console::OUT_RING as u64;
    const IN_CONS: u64 = console::IN_CONS as u64;
    const IN_PROD: u64 = console::IN_PROD as u64;
    const OUT_CONS: u64 = console::OUT_CONS as u64;
    const OUT_PROD: u64 = console::OUT_PROD as u64;

    /// The page at address 0.
    pub struct Page(Mutex<[u8; 4096]>);

    impl Default for Page {
        /// All zero.
        fn default() -> Page {
            Page(Mutex::new([0; 4096]))
        }
    }

    impl Page {
        /// What a frontend does with `text`; how much fitted.
        pub fn guest_writes(&self, text: &[u8]) -> usize {
            let (cons, prod) = (self.load_u32(Gpa(OUT_CONS)).unwrap(), self.load_u32(Gpa(OUT_PROD)).unwrap());
            let len = text.len().min((OUT_SIZE - prod.wrapping_sub(cons)) as usize);
            for (i, byte) in text[..len].iter().enumerate() {
                let slot = (prod as usize).wrapping_add(i) % OUT_SIZE as usize;
                self.write(Gpa(OUT + slot as u64), &[*byte]).unwrap();
            }
            self.store_u32(Gpa(OUT_PROD), prod.wrapping_add(u32::try_from(len).unwrap())).unwrap();
            len
        }

        /// All input that waits.
        pub fn guest_reads(&self) -> Vec<u8> {
            let (cons, prod) = (self.load_u32(Gpa(IN_CONS)).unwrap(), self.load_u32(Gpa(IN_PROD)).unwrap());
            let bytes = (0..prod.wrapping_sub(cons)).map(|i| {
                let mut byte = [0];
                self.read(Gpa(IN + u64::from(cons.wrapping_add(i) % IN_SIZE)), &mut byte).unwrap();
                byte[0]
            });
            let bytes = bytes.collect();
            self.store_u32(Gpa(IN_CONS), prod).unwrap();
            bytes
        }

        /// Set all four indices: in cons, in prod, out cons, out prod.
        pub fn set_indices(&self, indices: [u32; 4]) {
            for (offset, index) in [IN_CONS, IN_PROD, OUT_CONS, OUT_PROD].into_iter().zip(indices) {
                self.store_u32(Gpa(offset), index).unwrap();
            }
        }

        fn place<R>(&self, gpa: Gpa, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> Result<R, Fault> {
            let start = usize::try_from(gpa.0).map_err(|_| Fault)?;
            let mut page = self.0.lock().unwrap();
            page.get_mut(start..start + len).map(f).ok_or(Fault)
        }
    }

    impl GuestMem for Page {
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
            self.place(gpa, buf.len(), |bytes| buf.copy_from_slice(bytes))
        }
        fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), Fault> {
            self.place(gpa, buf.len(), |bytes| bytes.copy_from_slice(buf))
        }
        fn load_u32(&self, gpa: Gpa) -> Result<u32, Fault> {
            self.place(gpa, 4, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        }
        fn store_u32(&self, gpa: Gpa, value: u32) -> Result<(), Fault> {
            self.place(gpa, 4, |bytes| bytes.copy_from_slice(&value.to_le_bytes()))
        }
        fn load_u64(&self, _: Gpa) -> Result<u64, Fault> {
            Err(Fault)
        }
        fn fetch_or_u8(&self, _: Gpa, _: u8) -> Result<u8, Fault> {
            Err(Fault)
        }
        fn fetch_or_u32(&self, _: Gpa, _: u32) -> Result<u32, Fault> {
            Err(Fault)
        }
        fn fetch_and_u32(&self, _: Gpa, _: u32) -> Result<u32, Fault> {
            Err(Fault)
        }
        fn fetch_or_u64(&self, _: Gpa, _: u64) -> Result<u64, Fault> {
            Err(Fault)
        }
        fn fetch_and_u64(&self, _: Gpa, _: u64) -> Result<u64, Fault> {
            Err(Fault)
        }
        fn cas_u32(&self, _: Gpa, _: u32, _: u32) -> Result<Result<u32, u32>, Fault> {
            Err(Fault)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_the_end_of_the_ring_and_of_the_index() {
        let page = Arc::new(fake::Page::default());
        let near_wrap = u32::MAX - 700;
        page.set_indices([near_wrap; 4]);
        let mut ring = Ring::new(page.clone(), Gpa(0)).unwrap();
        let text: Vec<u8> = (0..3000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        let (mut got, mut sent) = (Vec::new(), 0);
        while got.len() < text.len() {
            sent += page.guest_writes(&text[sent..]);
            ring.take(&mut got, 999).unwrap();
        }
        assert_eq!(got, text);
        assert_eq!(ring.put(&text).unwrap(), 1024, "as much as fits");
        assert_eq!(page.guest_reads(), text[..1024]);
        assert_eq!(ring.put(&text[1024..1030]).unwrap(), 6);
        assert_eq!(page.guest_reads(), text[1024..1030]);
    }

    #[test]
    fn impossible_indices_move_nothing() {
        let page = Arc::new(fake::Page::default());
        let mut ring = Ring::new(page.clone(), Gpa(0)).unwrap();
        page.set_indices([1, 0, 0, 2049]);
        let mut got = Vec::new();
        assert!(matches!(ring.take(&mut got, 10), Err(RingError::Index(_))));
        assert!(matches!(ring.put(b"x"), Err(RingError::Index(_))));
        assert!(got.is_empty());
        page.set_indices([0, 77, 88, 5]);
        assert_eq!(ring.take(&mut got, 10), Ok(5), "the page's copies of our own indices are not believed");
    }
}
