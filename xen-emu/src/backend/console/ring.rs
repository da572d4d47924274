//! The two byte rings of the console page (`struct xencons_interface`, public/io/console.h), host side.

use std::sync::Arc;
use xen_abi::io::console::{self, IN_SIZE, OUT_SIZE};
use xen_abi::io::ring::{self, BadIndex, pieces};
use xen_domain::mem::{Fault, Gpa, GuestMem};

const IN: u64 = console::IN_RING as u64;
const OUT: u64 = console::OUT_RING as u64;
const IN_CONS: u64 = console::IN_CONS as u64;
const IN_PROD: u64 = console::IN_PROD as u64;
const OUT_CONS: u64 = console::OUT_CONS as u64;
const OUT_PROD: u64 = console::OUT_PROD as u64;

/// Why a ring cannot be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The guest wrote an index that cannot be.
    #[error(transparent)]
    Index(#[from] BadIndex),
    /// No page.
    #[error(transparent)]
    Page(#[from] Fault),
}

/// The rings. Our own two indices are kept here and only published to the page: the guest cannot move them.
pub struct Ring {
    page: Arc<dyn GuestMem + Send + Sync>,
    at: Gpa,
    in_prod: u32,
    out_cons: u32,
}

impl Ring {
    /// The rings in the page at `at`, continued where the page says they are (0 in a new domain).
    pub fn new(page: Arc<dyn GuestMem + Send + Sync>, at: Gpa) -> Result<Ring, Fault> {
        let in_prod = page.load_u32(at.offset(IN_PROD))?;
        let out_cons = page.load_u32(at.offset(OUT_CONS))?;
        Ok(Ring { page, at, in_prod, out_cons })
    }

    /// Bytes of the guest's output that wait.
    pub fn waiting(&self) -> Result<u32, RingError> {
        let prod = self.page.load_u32(self.at.offset(OUT_PROD))?;
        Ok(ring::queued::<OUT_SIZE>(prod, self.out_cons)?)
    }

    /// Append at most `max` bytes of the guest's output to `to` and free their place in the ring.
    pub fn take(&mut self, to: &mut Vec<u8>, max: usize) -> Result<usize, RingError> {
        let len = self.waiting()?.min(u32::try_from(max).unwrap_or(u32::MAX));
        if len == 0 {
            return Ok(0);
        }
        let run = pieces::<OUT_SIZE>(self.out_cons, len);
        let mut bytes = [0; OUT_SIZE as usize];
        let (head, rest) = bytes.split_at_mut(run.head);
        self.page.read(self.at.offset(OUT + run.offset as u64), head)?;
        let (tail, _) = rest.split_at_mut(run.tail);
        self.page.read(self.at.offset(OUT), tail)?;
        self.out_cons = self.out_cons.wrapping_add(len);
        self.page.store_u32(self.at.offset(OUT_CONS), self.out_cons)?;
        to.extend_from_slice(head);
        to.extend_from_slice(tail);
        Ok(run.head + run.tail)
    }

    /// Put as much of `bytes` into the guest's input as there is space; how many.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let cons = self.page.load_u32(self.at.offset(IN_CONS))?;
        let free = ring::free::<IN_SIZE>(self.in_prod, cons)?;
        let len = free.min(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let run = pieces::<IN_SIZE>(self.in_prod, len);
        let (head, rest) = bytes.split_at(run.head);
        let (tail, _) = rest.split_at(run.tail);
        self.page.write(self.at.offset(IN + run.offset as u64), head)?;
        self.page.write(self.at.offset(IN), tail)?;
        self.in_prod = self.in_prod.wrapping_add(len);
        self.page.store_u32(self.at.offset(IN_PROD), self.in_prod)?;
        Ok(run.head + run.tail)
    }
}

/// The guest's side of the rings, for tests: a page of its own, in no guest.
#[cfg(test)]
pub mod fake {
    use super::{IN, IN_CONS, IN_PROD, IN_SIZE, OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
    use std::sync::Mutex;
    use xen_domain::mem::{Fault, Gpa, GuestMem};

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
