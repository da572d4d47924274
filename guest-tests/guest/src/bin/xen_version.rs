//! Every subcommand of xen_version.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::mem::offset_of;
use guest::text::Why;
use guest::{Stop, Verdict, check, check_eq, fail, hypercall, println};
use xen_abi::Errno;
use xen_abi::hypercall::Hypercall;
use xen_abi::version::{
    CAPABILITIES_LEN, CHANGESET_LEN, COMMANDLINE_LEN, CompileInfo, EXTRAVERSION_LEN, FeatureInfo, Features,
    PlatformParameters, XenVer,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

guest::test!(run);

/// `xen_varbuf` with room for 1024 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Varbuf {
    len: u32,
    buf: [u8; 1024],
}

fn get<T: FromBytes + IntoBytes>(cmd: XenVer) -> Result<(i64, T), Errno> {
    let mut arg = T::new_zeroed();
    // Xen fills the rest with zeroes; what was there before must not shine through.
    arg.as_mut_bytes().fill(0x55);
    let rc = hypercall::op(Hypercall::XEN_VERSION, cmd.0, &mut arg)?;
    Ok((rc, arg))
}

fn text<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, Stop> {
    let end = bytes.iter().position(|b| *b == 0);
    let text = end.and_then(|end| bytes.get(..end)).and_then(|b| core::str::from_utf8(b).ok());
    text.ok_or_else(|| Stop::Failure(Why::of(format_args!("{what} is no NUL-terminated text"))))
}

fn string<const N: usize>(cmd: XenVer, second: XenVer) -> Verdict {
    let (rc, bytes) = get::<[u8; N]>(cmd)?;
    check_eq!(rc, 0, "{cmd}");
    let first = text(cmd.name().unwrap_or_default(), &bytes)?;
    println!("{cmd}: {first}");
    match hypercall::op_null(Hypercall::XEN_VERSION, second.0) {
        // Before 4.18, or not for a guest.
        Err(Errno::ENOSYS | Errno::EPERM) => println!("{second}: not there"),
        Err(e) => fail!("length of {second}: {e}"),
        Ok(len) => {
            let mut var = Varbuf { len: 1024, buf: [0; 1024] };
            check_eq!(hypercall::op(Hypercall::XEN_VERSION, second.0, &mut var), Ok(len), "{second}");
            let long = var.buf.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
            check!(long.starts_with(first.as_bytes()), "{second} is not {cmd}");
            if len > 1 {
                let mut short = Varbuf { len: 1, buf: [0; 1024] };
                let rc = hypercall::op(Hypercall::XEN_VERSION, second.0, &mut short);
                check_eq!(rc, Err(Errno::ENOBUFS), "{second} without room");
            }
        }
    }
    Ok(())
}

fn features() -> Verdict {
    let mut info = FeatureInfo { submap_idx: 0, submap: 0 };
    check_eq!(
        hypercall::op(Hypercall::XEN_VERSION, XenVer::GET_FEATURES.0, &mut info),
        Ok(0),
        "GET_FEATURES"
    );
    println!("features {:#x}", info.submap);
    let features = Features::from_bits_retain(info.submap);
    let wanted = Features::WRITABLE_PAGE_TABLES
        | Features::AUTO_TRANSLATED_PHYSMAP
        | Features::HVM_CALLBACK_VECTOR
        | Features::HVM_SAFE_PVCLOCK;
    check!(features.contains(wanted), "features {:#x} lack {:#x}", info.submap, (wanted - features).bits());
    check!(!features.contains(Features::HVM_PIRQS), "PIRQs on a PVH guest");
    check!(!features.contains(Features::DOM0), "the guest is told it is dom0");
    let mut info = FeatureInfo { submap_idx: 1, submap: 0 };
    let rc = hypercall::op(Hypercall::XEN_VERSION, XenVer::GET_FEATURES.0, &mut info);
    check_eq!(rc, Err(Errno::EINVAL), "features of map 1");
    Ok(())
}

fn run() -> Verdict {
    let version = hypercall::op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0)?;
    println!("version {}.{}", version >> 16, version & 0xffff);
    check!(version >> 16 >= 4, "version {version:#x}");
    string::<EXTRAVERSION_LEN>(XenVer::EXTRAVERSION, XenVer::EXTRAVERSION2)?;
    string::<CAPABILITIES_LEN>(XenVer::CAPABILITIES, XenVer::CAPABILITIES2)?;
    string::<CHANGESET_LEN>(XenVer::CHANGESET, XenVer::CHANGESET2)?;
    string::<COMMANDLINE_LEN>(XenVer::COMMANDLINE, XenVer::COMMANDLINE2)?;

    let (rc, info) = get::<CompileInfo>(XenVer::COMPILE_INFO)?;
    check_eq!(rc, 0, "COMPILE_INFO");
    println!("compiler: {}", text("compiler", &info.compiler)?);
    for part in [&info.compile_by[..], &info.compile_domain, &info.compile_date] {
        text("compile info", part)?;
    }
    let (rc, _) = get::<PlatformParameters>(XenVer::PLATFORM_PARAMETERS)?;
    check_eq!(rc, 0, "PLATFORM_PARAMETERS");
    let (rc, handle) = get::<[u8; 16]>(XenVer::GUEST_HANDLE)?;
    check_eq!(rc, 0, "GUEST_HANDLE");
    println!("uuid {:032x}", u128::from_be_bytes(handle));
    check_eq!(hypercall::op_null(Hypercall::XEN_VERSION, XenVer::PAGESIZE.0), Ok(4096), "PAGESIZE");
    features()?;

    match hypercall::op_null(Hypercall::XEN_VERSION, XenVer::BUILD_ID.0) {
        Ok(len) => {
            let mut var = Varbuf { len: 1024, buf: [0; 1024] };
            check_eq!(
                hypercall::op(Hypercall::XEN_VERSION, XenVer::BUILD_ID.0, &mut var),
                Ok(len),
                "BUILD_ID"
            );
        }
        // Xen keeps it from guests; a build without one has none.
        Err(Errno::EPERM | Errno::ENODATA) => println!("no build id"),
        Err(e) => fail!("BUILD_ID: {e}"),
    }
    check_eq!(hypercall::op_null(Hypercall::XEN_VERSION, 99), Err(Errno::ENOSYS), "an unknown subcommand");
    const { assert!(offset_of!(Varbuf, buf) == 4) };
    Ok(())
}
