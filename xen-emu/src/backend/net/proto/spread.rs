//! Packets for the guest, spread over its receive requests.
//!
//! A response stands in the slot of its request; extra descriptors stand in the slots behind the first, whose
//! requests are used up without their pages. So chunk 0 of a packet goes to the page of request 0, and chunk n to that
//! of request n + the number of extra descriptors.

use super::PAGE;
use xen_abi::io::netif::{
    EXTRA_FLAG_MORE, ExtraGso, ExtraHash, ExtraInfo, ExtraType, NetifRsp, RX_SLOT, RxResponse, rxf,
};
use zerocopy::IntoBytes;

/// What is said of a packet beside its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announce {
    /// `rxf` of the first response, without `MORE_DATA` and `EXTRA_INFO`.
    pub flags: u16,
    /// To be segmented.
    pub gso: Option<ExtraGso>,
    /// Its hash.
    pub hash: Option<ExtraHash>,
}

impl Announce {
    /// Extra descriptors.
    pub fn extras(&self) -> usize {
        usize::from(self.gso.is_some()) + usize::from(self.hash.is_some())
    }

    /// Requests that a packet of `size` bytes uses up.
    pub fn slots(&self, size: usize) -> usize {
        chunks(size) + self.extras()
    }

    fn infos(&self) -> impl Iterator<Item = [u8; RX_SLOT]> {
        fn info(r#type: ExtraType, u: &[u8], more: bool) -> [u8; RX_SLOT] {
            let mut bytes = [0; RX_SLOT];
            let flags = if more { EXTRA_FLAG_MORE } else { 0 };
            let u = u.try_into().unwrap_or_default();
            bytes.copy_from_slice(ExtraInfo { r#type, flags, u }.as_bytes());
            bytes
        }
        let more = self.hash.is_some();
        let gso = self.gso.map(|gso| info(ExtraType::GSO, gso.as_bytes(), more));
        let hash = self.hash.map(|hash| info(ExtraType::HASH, hash.as_bytes(), false));
        gso.into_iter().chain(hash)
    }

    /// The responses for a packet of `size` bytes, whose requests had these ids; as many as [`Announce::slots`].
    pub fn responses(
        &self,
        size: usize,
        ids: impl Iterator<Item = u16>,
    ) -> impl Iterator<Item = [u8; RX_SLOT]> {
        let (extras, chunks) = (self.extras(), chunks(size));
        let mut infos = self.infos();
        let mut chunk = 0;
        let response = move |(slot, id)| {
            if (1..=extras).contains(&slot) {
                return infos.next().unwrap_or_default();
            }
            let first =
                if chunk == 0 { self.flags | if extras > 0 { rxf::EXTRA_INFO } else { 0 } } else { 0 };
            let more = if chunk + 1 < chunks { rxf::MORE_DATA } else { 0 };
            let bytes = size.saturating_sub(chunk * PAGE).min(PAGE);
            chunk += 1;
            answer(id, first | more, NetifRsp(i16::try_from(bytes).unwrap_or(i16::MAX)))
        };
        ids.take(extras + chunks).enumerate().map(response)
    }
}

/// Pages that `size` bytes fill.
pub fn chunks(size: usize) -> usize {
    size.div_ceil(PAGE).max(1)
}

/// One response.
pub fn answer(id: u16, flags: u16, status: NetifRsp) -> [u8; RX_SLOT] {
    let mut bytes = [0; RX_SLOT];
    bytes.copy_from_slice(RxResponse { id, offset: 0, flags, status }.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_abi::io::netif::GsoType;
    use zerocopy::FromBytes;

    #[test]
    fn a_gso_packet_with_a_hash() {
        let gso = Some(ExtraGso { size: 1448, r#type: GsoType::TCPV4, pad: 0, features: 0 });
        let hash = Some(ExtraHash { r#type: 1, algorithm: 1, value: [1, 2, 3, 4] });
        let announce = Announce { flags: rxf::CSUM_BLANK | rxf::DATA_VALIDATED, gso, hash };
        let slots = announce.responses(9000, 10..).collect::<Vec<_>>();
        assert_eq!(slots.len(), announce.slots(9000));
        let data = |i: usize| {
            let r = RxResponse::read_from_bytes(&slots[i]).unwrap();
            (r.id, r.flags, r.status.0)
        };
        assert_eq!(data(0), (10, 0b1111, 4096));
        assert_eq!(slots[1], [1, 1, 0xa8, 5, 1, 0, 0, 0]);
        assert_eq!(slots[2], [4, 0, 1, 1, 1, 2, 3, 4]);
        assert_eq!((data(3), data(4)), ((13, rxf::MORE_DATA, 4096), (14, 0, 808)));
        assert_eq!(Announce::default().responses(60, 7..).count(), 1);
    }
}
