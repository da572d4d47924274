//! The guest's kernel, unpacked: the domain's process gets a plain ELF image and has nothing to unpack that a guest has
//! packed. What is no kernel goes over as it is, and is refused there.

use anyhow::{Context, bail};
use bzimage::{ELF, Fault, Payload};
use std::io::Read;
use xen_emu_api::bootloader::MAX_KERNEL;

/// The bytes to hand over for a kernel file of this size.
pub fn plain(mut bytes: impl Read, size: u64) -> anyhow::Result<Vec<u8>> {
    let mut file = Vec::new();
    let read = bytes.by_ref().take(size).read_to_end(&mut file)?;
    if read as u64 != size {
        bail!("a file of {size} bytes ends after {read}");
    }
    let range = match bzimage::kernel(&file) {
        Err(Fault::Unknown) => return Ok(file),
        range => range?,
    };
    let packed = file.get(range).unwrap_or_default();
    if packed.starts_with(ELF) {
        return Ok(packed.to_vec());
    }
    let payload = Payload::new(packed)?;
    if payload.size as u64 > MAX_KERNEL {
        bail!("{} bytes unpacked, at most {MAX_KERNEL} are accepted", payload.size);
    }
    // The size is the guest's word, the room is taken page by page as bytes come.
    let mut image = Vec::new();
    image.try_reserve_exact(payload.size).context("no memory to unpack it")?;
    image.resize(payload.size, 0);
    let length = payload.unpack(&mut image)?;
    image.truncate(length);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bzimage::testing::{Pack, bzimage};

    #[test]
    fn kernels_come_out_as_they_were_packed_and_bombs_do_not() {
        let mut elf = ELF.to_vec();
        elf.extend((0..200_000u32).map(|i| (i / 5).to_le_bytes()[0]));
        for pack in Pack::ALL {
            let file = bzimage(&elf, pack);
            assert!(plain(&file[..], file.len() as u64).unwrap() == elf, "{pack:?}");
            let cut = file.len() as u64 - 2000;
            assert!(
                plain(&file[..], cut).unwrap_err().to_string().contains("truncated: the payload"),
                "{pack:?}"
            );
        }
        let gzipped = Pack::Gzip.stream(&elf);
        assert!(plain(&gzipped[..], gzipped.len() as u64).unwrap() == elf);
        assert_eq!(plain(&b"no kernel"[..], 9).unwrap(), b"no kernel");
        assert!(plain(&b"short"[..], 9).unwrap_err().to_string().contains("ends after 5"));

        // Zeros without end, with the truth and with a lie about their length.
        let zeros = vec![0; 300 << 20];
        let bomb = Pack::Zstd.stream(&zeros);
        for (size, expected) in [(300u32 << 20, "314572800 bytes unpacked"), (1 << 20, "more than the size")]
        {
            let mut file = bzimage(&[], Pack::None);
            file.truncate(5 * 512 + 0x123);
            let payload = [&bomb[..], &size.to_le_bytes()].concat();
            file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
            file.extend(payload);
            let said = plain(&file[..], file.len() as u64).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }
}
