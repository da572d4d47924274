//! Messages on the control ring.

use super::hash::{Hash, KEY_MAX, MAPPING_MAX};
use xen_abi::Gref;
use xen_abi::io::netif::{CtrlRequest, CtrlResponse, CtrlStatus, CtrlType, hash_algorithm, hash_type};

/// Where messages find what they refer to, and how many queues there are.
pub struct Surroundings<'a> {
    /// The first bytes of a granted page; `None` if it is not granted.
    pub read: &'a dyn Fn(Gref, &mut [u8]) -> Option<()>,
    /// Queues in use.
    pub queues: u32,
}

type Answer = Result<u32, CtrlStatus>;
type Handler = fn(&mut Hash, [u32; 3], &Surroundings<'_>) -> Answer;

/// Grants kept mapped are not offered: as with Linux's backend those messages are not supported.
const TABLE: [(CtrlType, Handler); 7] = [
    (CtrlType::GET_HASH_FLAGS, get_flags),
    (CtrlType::SET_HASH_FLAGS, set_flags),
    (CtrlType::SET_HASH_KEY, set_key),
    (CtrlType::GET_HASH_MAPPING_SIZE, |_, _, _| Ok(MAPPING_MAX)),
    (CtrlType::SET_HASH_MAPPING_SIZE, set_mapping_size),
    (CtrlType::SET_HASH_MAPPING, set_mapping),
    (CtrlType::SET_HASH_ALGORITHM, set_algorithm),
];

/// Does what a message asks for and answers it.
pub fn answer(hash: &mut Hash, request: &CtrlRequest, around: &Surroundings<'_>) -> CtrlResponse {
    let handler = TABLE.iter().find(|(kind, _)| *kind == request.r#type).map(|(_, handler)| handler);
    let answer = handler.map_or(Err(CtrlStatus::NOT_SUPPORTED), |f| f(hash, request.data, around));
    let (status, data) = answer.map_or_else(|status| (status, 0), |data| (CtrlStatus::SUCCESS, data));
    CtrlResponse { id: request.id, r#type: request.r#type, status, data }
}

fn require(holds: bool, otherwise: CtrlStatus) -> Result<(), CtrlStatus> {
    if holds { Ok(()) } else { Err(otherwise) }
}

fn set_algorithm(hash: &mut Hash, data: [u32; 3], _: &Surroundings<'_>) -> Answer {
    let known = [hash_algorithm::NONE, hash_algorithm::TOEPLITZ].contains(&data[0]);
    require(known, CtrlStatus::INVALID_PARAMETER)?;
    hash.algorithm = data[0];
    Ok(0)
}

fn get_flags(hash: &mut Hash, _: [u32; 3], _: &Surroundings<'_>) -> Answer {
    require(hash.algorithm != hash_algorithm::NONE, CtrlStatus::NOT_SUPPORTED)?;
    Ok(hash_type::ALL)
}

fn set_flags(hash: &mut Hash, data: [u32; 3], _: &Surroundings<'_>) -> Answer {
    require(data[0] & !hash_type::ALL == 0, CtrlStatus::INVALID_PARAMETER)?;
    require(hash.algorithm != hash_algorithm::NONE, CtrlStatus::INVALID_PARAMETER)?;
    hash.types = data[0];
    Ok(0)
}

fn set_key(hash: &mut Hash, data: [u32; 3], around: &Surroundings<'_>) -> Answer {
    let [gref, len, _] = data;
    let mut key = [0; KEY_MAX];
    let part = key.get_mut(..len as usize).ok_or(CtrlStatus::BUFFER_OVERFLOW)?;
    if !part.is_empty() {
        (around.read)(Gref(gref), part).ok_or(CtrlStatus::INVALID_PARAMETER)?;
    }
    hash.key = key;
    Ok(0)
}

fn set_mapping_size(hash: &mut Hash, data: [u32; 3], _: &Surroundings<'_>) -> Answer {
    require(data[0] <= MAPPING_MAX, CtrlStatus::INVALID_PARAMETER)?;
    hash.mapping = vec![0; data[0] as usize];
    Ok(0)
}

fn set_mapping(hash: &mut Hash, data: [u32; 3], around: &Surroundings<'_>) -> Answer {
    let [gref, len, from] = data.map(|word| word as usize);
    let end = from.checked_add(len).ok_or(CtrlStatus::INVALID_PARAMETER)?;
    let table = hash.mapping.get_mut(from..end).ok_or(CtrlStatus::INVALID_PARAMETER)?;
    let mut bytes = vec![0; table.len() * 4];
    let gref = u32::try_from(gref).map_err(|_| CtrlStatus::INVALID_PARAMETER)?;
    if !bytes.is_empty() {
        (around.read)(Gref(gref), &mut bytes).ok_or(CtrlStatus::INVALID_PARAMETER)?;
    }
    let entries: Vec<u32> = bytes.as_chunks().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect();
    require(entries.iter().all(|queue| *queue < around.queues), CtrlStatus::INVALID_PARAMETER)?;
    table.copy_from_slice(&entries);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(gref: Gref, buf: &mut [u8]) -> Option<()> {
        let page: Vec<u8> = (0..1024u32).flat_map(|i| (i % 3).to_le_bytes()).collect();
        buf.copy_from_slice(page.get(..buf.len())?);
        (gref.0 == 5).then_some(())
    }

    #[test]
    fn answers_as_the_header_has_them() {
        use CtrlStatus as S;
        use CtrlType as T;
        let around = Surroundings { read: &read, queues: 3 };
        let mut hash = Hash::default();
        for (kind, data, status, answered) in [
            (T::GET_HASH_FLAGS, [0; 3], S::NOT_SUPPORTED, 0),
            (T::SET_HASH_FLAGS, [1, 0, 0], S::INVALID_PARAMETER, 0),
            (T::SET_HASH_ALGORITHM, [2, 0, 0], S::INVALID_PARAMETER, 0),
            (T::SET_HASH_ALGORITHM, [1, 0, 0], S::SUCCESS, 0),
            (T::GET_HASH_FLAGS, [0; 3], S::SUCCESS, 15),
            (T::SET_HASH_FLAGS, [16, 0, 0], S::INVALID_PARAMETER, 0),
            (T::SET_HASH_FLAGS, [3, 0, 0], S::SUCCESS, 0),
            (T::SET_HASH_KEY, [5, 41, 0], S::BUFFER_OVERFLOW, 0),
            (T::SET_HASH_KEY, [6, 40, 0], S::INVALID_PARAMETER, 0),
            (T::SET_HASH_KEY, [5, 40, 0], S::SUCCESS, 0),
            (T::GET_HASH_MAPPING_SIZE, [0; 3], S::SUCCESS, 128),
            (T::SET_HASH_MAPPING_SIZE, [129, 0, 0], S::INVALID_PARAMETER, 0),
            (T::SET_HASH_MAPPING_SIZE, [8, 0, 0], S::SUCCESS, 0),
            (T::SET_HASH_MAPPING, [5, 5, 4], S::INVALID_PARAMETER, 0),
            (T::SET_HASH_MAPPING, [5, u32::MAX, 4], S::INVALID_PARAMETER, 0),
            (T::SET_HASH_MAPPING, [5, 4, 4], S::SUCCESS, 0),
            (T::GET_GREF_MAPPING_SIZE, [0; 3], S::NOT_SUPPORTED, 0),
            (CtrlType(99), [0; 3], S::NOT_SUPPORTED, 0),
        ] {
            let request = CtrlRequest { id: 7, r#type: kind, data };
            let expected = CtrlResponse { id: 7, r#type: kind, status, data: answered };
            assert_eq!(answer(&mut hash, &request, &around), expected, "{kind:?} {data:?}");
        }
        assert_eq!((&hash.mapping[..], hash.types, hash.key[4]), (&[0, 0, 0, 0, 0, 1, 2, 0][..], 3, 1));
        let two = Surroundings { read: &read, queues: 2 };
        let request = CtrlRequest { id: 1, r#type: CtrlType::SET_HASH_MAPPING, data: [5, 4, 0] };
        assert_eq!(answer(&mut hash, &request, &two).status, CtrlStatus::INVALID_PARAMETER);
        assert_eq!(hash.mapping, [0, 0, 0, 0, 0, 1, 2, 0], "nothing is changed by a bad table");
    }

    proptest! {
        /// Whatever is asked: it is answered, and packets go to queues that there are.
        #[test]
        fn any_requests(requests in proptest::collection::vec((0u16..14, any::<[u8; 3]>(), any::<u32>()), 1..60)) {
            let around = Surroundings { read: &read, queues: 3 };
            let mut hash = Hash::default();
            for (id, (kind, small, large)) in (0..).zip(requests) {
                // Mostly numbers that make some sense.
                let data = small.map(|word| if word == 255 { large } else { u32::from(word % 160) });
                let request = CtrlRequest { id, r#type: CtrlType(kind), data };
                let answered = answer(&mut hash, &request, &around);
                prop_assert_eq!((answered.id, answered.r#type), (id, CtrlType(kind)));
                prop_assert!(hash.mapping.len() <= MAPPING_MAX as usize);
                prop_assert!(hash.mapping.iter().all(|queue| *queue < 3));
            }
        }
    }
}
