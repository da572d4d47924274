//! Images of every compression, made with the crates that unpack them.

use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use std::io::Write;

/// How a payload is packed.
#[derive(Clone, Copy, Debug)]
pub enum Pack {
    None,
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    XzX86,
    Lz4,
    Zstd,
    ZstdStream,
}

impl Pack {
    /// All of them.
    pub const ALL: [Pack; 9] = [
        Pack::None,
        Pack::Gzip,
        Pack::Bzip2,
        Pack::Lzma,
        Pack::Xz,
        Pack::XzX86,
        Pack::Lz4,
        Pack::Zstd,
        Pack::ZstdStream,
    ];

    /// The bytes packed, without the size appended.
    pub fn stream(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Pack::None => bytes.to_vec(),
            Pack::Gzip => {
                let mut out = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Pack::Bzip2 => {
                let mut out = bzip2::write::BzEncoder::new(vec![], bzip2::Compression::fast());
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Pack::Lzma => {
                lzma(bytes, Stream::new_lzma_encoder(&LzmaOptions::new_preset(1).unwrap()).unwrap())
            }
            Pack::Xz => lzma(bytes, Stream::new_easy_encoder(1, Check::Crc32).unwrap()),
            Pack::XzX86 => {
                let mut filters = Filters::new();
                filters.x86().lzma2(&LzmaOptions::new_preset(1).unwrap());
                lzma(bytes, Stream::new_stream_encoder(&filters, Check::Crc32).unwrap())
            }
            Pack::Lz4 => bytes.chunks(8 << 20).fold(b"\x02\x21\x4c\x18".to_vec(), |mut out, chunk| {
                let block = lz4_flex::block::compress(chunk);
                out.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
                out.extend(block);
                out
            }),
            Pack::Zstd => zstd::bulk::compress(bytes, 1).unwrap(),
            Pack::ZstdStream => zstd::stream::encode_all(bytes, 1).unwrap(),
        }
    }
}

fn lzma(bytes: &[u8], stream: Stream) -> Vec<u8> {
    let mut out = liblzma::write::XzEncoder::new_stream(vec![], stream);
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// The payload as the kernel's build makes it: the size appended, but for gzip, which ends in it anyway.
pub(crate) fn packed(bytes: &[u8], pack: Pack) -> Vec<u8> {
    let mut payload = pack.stream(bytes);
    if !matches!(pack, Pack::Gzip | Pack::None) {
        payload.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    }
    payload
}

/// A bzImage around an ELF image.
pub fn bzimage(elf: &[u8], pack: Pack) -> Vec<u8> {
    let payload = packed(elf, pack);
    let mut file = vec![0u8; 5 * 512 + 0x123];
    file[0x1f1] = 0;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    file[0x248..0x24c].copy_from_slice(&0x123u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    file.extend(payload);
    file.extend([0xaa; 1000]);
    file
}
