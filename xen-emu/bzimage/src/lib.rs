//! A Linux bzImage: where its payload lies (boot protocol 2.08) and how it is unpacked.
//! Source: Linux Documentation/arch/x86/boot.rst.
//!
//! A domain's process unpacks the kernels that the host's administrator gives (`kernel=`). Those on guests' disks are
//! unpacked by the reader of boot menus, which is confined: two of the formats have their unpackers in C.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "testing"))]
#[allow(clippy::unwrap_used, missing_docs, reason = "images for tests")]
pub mod testing;

use std::io::{self, Read};
use std::ops::Range;

/// The largest kernel we unpack; the announced size is only a guess until the unpacker has been there.
pub const MAX_UNPACKED: u64 = 1 << 30;

/// So much is unpacked to look at the ELF headers: more than one block of any format but lz4.
const PEEK: usize = 256 << 10;

/// Memory an xz or lzma decoder may take: the dictionary (Linux uses 32 or 128 MiB) and a little.
const LZMA_MEMORY: u64 = 512 << 20;

/// First bytes of a gzip stream; its last four are the size as those of every payload.
const GZIP: &[u8] = b"\x1f\x8b";

/// First bytes of an ELF image.
pub const ELF: &[u8] = b"\x7fELF";

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Some other file.
    #[error("neither an ELF image nor a Linux bzImage")]
    Unknown,
    /// The file is shorter than it says.
    #[error("truncated: the payload reaches to byte {end}, but there are only {have}")]
    Truncated {
        /// Where it ends by the headers.
        end: u64,
        /// Length of the file.
        have: u64,
    },
    /// A bzImage before boot protocol 2.08 does not say where its payload is.
    #[error("boot protocol {}.{:02}, 2.08 (Linux 2.6.26) or later needed", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// A compression without an unpacker here.
    #[error("payload compressed with {0}, which is not supported (supported: {list})", list = supported())]
    Compression(&'static str),
    /// The payload announces an absurd size.
    #[error("payload announces {0} bytes unpacked; at most {MAX_UNPACKED} are accepted")]
    TooLarge(u64),
    /// The unpacker gave up.
    #[error("{format} payload cannot be unpacked: {error}")]
    Unpack {
        /// Name of the compression.
        format: &'static str,
        /// What the unpacker says.
        error: io::Error,
    },
}

/// Unpacks the first complete stream of the source into the target, from its start; bytes behind the stream are
/// ignored. Gives back how many bytes came out. [`io::ErrorKind::WriteZero`]: the target is too small.
type Unpack = fn(src: &[u8], dst: &mut [u8]) -> io::Result<usize>;

/// Every compression a kernel can be built with: first bytes, name, unpacker.
const FORMATS: &[(&[u8], &str, Option<Unpack>)] = &[
    (GZIP, "gzip", Some(gzip)),
    (b"BZh", "bzip2", Some(bzip2)),
    (b"\x5d\0\0", "lzma", Some(lzma)),
    (b"\xfd7zXZ\0", "xz", Some(xz)),
    (b"\x89LZO", "lzo", None),
    (b"\x02\x21\x4c\x18", "lz4", Some(lz4)),
    (b"\x28\xb5\x2f\xfd", "zstd", Some(zstd)),
];

/// The names of the compressions that can be unpacked.
fn supported() -> String {
    let names: Vec<_> = FORMATS.iter().filter(|f| f.2.is_some()).map(|f| f.1).collect();
    names.join(", ")
}

/// Where the kernel lies in its file, be it an ELF image, a gzipped one (as of the BSDs and unikernels) or a bzImage:
/// an ELF image, or a [`Payload`].
///
/// # Errors
/// [`Fault::Unknown`] where it is none of them; else what is wrong with its header.
pub fn kernel(file: &[u8]) -> Result<Range<usize>, Fault> {
    if file.starts_with(ELF) || file.starts_with(GZIP) { Ok(0..file.len()) } else { payload(file) }
}

/// Where the payload lies in a bzImage: a compressed or plain ELF image.
fn payload(file: &[u8]) -> Result<Range<usize>, Fault> {
    if array(file, 0x1fe) != Some([0x55, 0xaa]) || array(file, 0x202) != Some(*b"HdrS") {
        return Err(Fault::Unknown);
    }
    let truncated = |end: u64| Fault::Truncated { end, have: file.len() as u64 };
    let protocol = array(file, 0x206).map(u16::from_le_bytes).ok_or_else(|| truncated(0x208))?;
    if protocol < 0x208 {
        return Err(Fault::OldProtocol(protocol));
    }
    let word = |at| array(file, at).map(|b| u64::from(u32::from_le_bytes(b))).ok_or_else(|| truncated(0x250));
    // 0 sectors of setup code mean 4, for the sake of very old loaders.
    let sectors = match file.get(0x1f1) {
        None | Some(0) => 4,
        Some(&n) => u64::from(n),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    let end = start + word(0x24c)?;
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(from), Ok(to)) if to <= file.len() => Ok(from..to),
        _ => Err(truncated(end)),
    }
}

/// A compressed payload, ready to be unpacked into memory of the caller's choice.
pub struct Payload<'a> {
    packed: &'a [u8],
    format: &'static str,
    unpack: Unpack,
    /// Bytes it announces to unpack to, in its last four; a guess until it is unpacked, at most [`MAX_UNPACKED`].
    pub size: usize,
}

impl<'a> Payload<'a> {
    /// Recognise a payload by its first and last bytes.
    ///
    /// # Errors
    /// An unknown or unsupported compression, an absurd size.
    pub fn new(packed: &'a [u8]) -> Result<Payload<'a>, Fault> {
        let format = FORMATS.iter().find(|(magic, ..)| packed.starts_with(magic));
        let &(_, format, unpack) = format.ok_or(Fault::Compression("an unknown method"))?;
        let unpack = unpack.ok_or(Fault::Compression(format))?;
        let size = packed.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if u64::from(size) > MAX_UNPACKED {
            return Err(Fault::TooLarge(u64::from(size)));
        }
        Ok(Payload { packed, format, unpack, size: size as usize })
    }

    /// How the unpacked image begins: enough for its headers, or zeros where the format cannot be unpacked in part.
    pub fn start(&self) -> Vec<u8> {
        let mut start = vec![0; self.size.min(PEEK)];
        // It ends for lack of room; what came before is enough.
        let _ = self.unpack(&mut start);
        start
    }

    /// Unpack to the start of `target`; gives back how many bytes came out. What lies behind them is undefined.
    ///
    /// # Errors
    /// Damaged data, or more than `target` holds.
    pub fn unpack(&self, target: &mut [u8]) -> Result<usize, Fault> {
        (self.unpack)(self.packed, target).map_err(|error| Fault::Unpack { format: self.format, error })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn too_small() -> io::Error {
    io::Error::new(io::ErrorKind::WriteZero, "it unpacks to more than the size in its last four bytes")
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Read a decoder to its end.
fn drain(mut decoder: impl Read, dst: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest @ [_, ..]) = dst.get_mut(done..) {
        match decoder.read(rest)? {
            0 => return Ok(done),
            n => done += n,
        }
    }
    // The target is full: the end of the stream, where checksums stand, must come now.
    match decoder.read(&mut [0])? {
        0 => Ok(done),
        _ => Err(too_small()),
    }
}

fn gzip(src: &[u8], dst: &mut [u8]) -> io::Result<usize> {
    drain(flate2::bufread::GzDecoder::new(src), dst)
}

fn bzip2(src: &[u8], dst: &mut [u8]) -> io::Result<usize> {
    drain(bzip2::bufread::BzDecoder::new(src), dst)
}

fn lzma(src: &[u8], dst: &mut [u8]) -> io::Result<usize> {
    let stream = liblzma::stream::Stream::new_lzma_decoder(LZMA_MEMORY)?;
    drain(liblzma::bufread::XzDecoder::new_stream(src, stream), dst)
}

/// xz, with any filter liblzma knows (Linux uses the x86 one).
fn xz(src: &[u8], dst: &mut [u8]) -> io::Result<usize> {
    let stream = liblzma::stream::Stream::new_stream_decoder(LZMA_MEMORY, 0)?;
    drain(liblzma::bufread::XzDecoder::new_stream(src, stream), dst)
}

/// The legacy frame format: a magic, then {compressed size, block} up to the end; a block unpacks to 8 MiB or, the
/// last one, to less.
fn lz4(src: &[u8], dst: &mut [u8]) -> io::Result<usize> {
    const BLOCK: usize = 8 << 20;
    let (mut at, mut done) = (4, 0);
    while let Some(size) = array(src, at).map(u32::from_le_bytes) {
        at += 4;
        // What is no size of a block that is there is the size of the whole, appended by the kernel's build.
        let Some(block) = src.get(at..).and_then(|rest| rest.get(..size as usize)).filter(|b| !b.is_empty())
        else {
            break;
        };
        at += block.len();
        let room = dst.len().min(done + BLOCK);
        let target = dst.get_mut(done..room).unwrap_or_default();
        done += lz4_flex::block::decompress_into(block, target).map_err(|error| match error {
            lz4_flex::block::DecompressError::OutputTooSmall { .. } => too_small(),
            other => invalid(other),
        })?;
    }
    Ok(done)
}

/// One shot, straight into the target: streaming would copy through a window of up to 128 MiB.
fn zstd(src: &[u8], dst: &mut [u8]) -> io::Result<usize> {
    use zstd::zstd_safe;
    let said = |code| match zstd_safe::get_error_name(code) {
        "Destination buffer is too small" => too_small(),
        name => invalid(name),
    };
    let frame = zstd_safe::find_frame_compressed_size(src).map_err(said)?;
    let mut context = zstd_safe::DCtx::try_create().ok_or_else(|| invalid("out of memory"))?;
    context.decompress(dst, src.get(..frame).unwrap_or(src)).map_err(said)
}

#[cfg(test)]
mod tests {
    //! Every compression, and damage.
    use super::testing::{Pack, bzimage, packed};
    use super::*;
    use proptest::prelude::*;

    fn unpack(packed: &[u8]) -> Result<Vec<u8>, Fault> {
        let payload = Payload::new(packed)?;
        let mut bytes = vec![0; payload.size];
        let length = payload.unpack(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// More than one lz4 block, with relative calls for the x86 filter to rewrite.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; (8 << 20) + 70_000];
        for (i, call) in bytes.chunks_exact_mut(64).enumerate() {
            call[0] = 0xe8;
            call[1..3].copy_from_slice(&(i % 1000).to_le_bytes()[..2]);
            call[40] = i.to_le_bytes()[1];
        }
        bytes
    }

    #[test]
    fn every_format_unpacks_to_its_size_and_no_further() {
        let sample = sample();
        for pack in Pack::ALL {
            if matches!(pack, Pack::None) {
                continue;
            }
            let good = packed(&sample, pack);
            assert!(unpack(&good).unwrap_or_else(|e| panic!("{pack:?}: {e}")) == sample, "{pack:?}");
            let resized = |size: u32| {
                let mut bytes = pack.stream(&sample);
                bytes.extend(size.to_le_bytes());
                bytes
            };
            // Room to spare: what comes out counts.
            assert_eq!(unpack(&resized(9 << 20)).unwrap().len(), sample.len(), "{pack:?}");
            let short = unpack(&resized(8 << 20)).unwrap_err().to_string();
            assert!(short.contains("more than the size"), "{pack:?}: {short}");
            let huge = unpack(&resized(0xffff_0000)).unwrap_err().to_string();
            assert!(huge.contains("announces 4294901760 bytes"), "{pack:?}: {huge}");
            let mut cut = pack.stream(&sample);
            cut.truncate(cut.len() / 2);
            cut.extend(u32::try_from(sample.len()).unwrap().to_le_bytes());
            assert!(unpack(&cut).is_err() || matches!(pack, Pack::Lz4), "{pack:?}: half a stream");
        }
    }

    #[test]
    fn header_and_compression_faults() {
        let good = bzimage(b"\x7fELF", Pack::Gzip);
        let patch = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            payload(&file).unwrap_err().to_string()
        };
        assert!(patch(0x1fe, &[0]).contains("neither"));
        assert!(patch(0x206, &[7, 2]).contains("boot protocol 2.07, 2.08"));
        assert!(patch(0x24c, &[0xff; 4]).contains("truncated: the payload reaches to byte"));
        assert!(payload(&good[..0x208]).unwrap_err().to_string().contains("truncated"));
        let said = unpack(b"\x89LZO\0\0\0\0").unwrap_err().to_string();
        assert_eq!(
            said,
            "payload compressed with lzo, which is not supported (supported: gzip, bzip2, lzma, xz, lz4, zstd)"
        );
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            format in 0usize..9,
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes: Vec<u8> = (0..4000u32).map(|i| (i * i / 50).to_le_bytes()[0]).collect();
            let mut payload = packed(&bytes, Pack::ALL[format]);
            let keep = payload.len() - 4;
            for (at, byte) in flips {
                payload[at.index(keep)] ^= byte;
            }
            if cut.index(3) == 0 {
                payload.drain(cut.index(keep)..keep);
            }
            if let Ok(out) = unpack(&payload) {
                prop_assert!(out.len() as u64 <= MAX_UNPACKED);
            }
        }

        #[test]
        fn any_bytes_never_panic(which in 0usize..7, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut payload = FORMATS[which].0.to_vec();
            payload.extend(&bytes);
            payload.extend(100_000u32.to_le_bytes());
            let _ = unpack(&payload);
            let mut file = vec![0x55u8; 0x1fe];
            file.extend(b"\x55\xaa\0\0HdrS\x0f\x02");
            file.extend(bytes);
            let _ = super::payload(&file);
        }
    }
}
