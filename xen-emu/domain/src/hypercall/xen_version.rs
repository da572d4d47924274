//! xen_version(cmd, arg): who we are.

use zerocopy::IntoBytes;

use xen_abi::errno::Errno;
use xen_abi::version::{
    CAPABILITIES_LEN, CHANGESET_LEN, COMMANDLINE_LEN, CompileInfo, EXTRAVERSION_LEN, FeatureInfo, Features,
    PlatformParameters, VarbufHeader, XenVer,
};

use crate::domain::Domain;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Width, value};
use crate::version::{
    CAPABILITIES, CHANGESET, COMPILER, EXTRAVERSION, VIRT_START, VIRT_START_COMPAT, XEN_VERSION,
};

pub(super) const OPS: &[(u32, Handler)] = &[
    (XenVer::VERSION.0, |_, _, _| value(XEN_VERSION.into())),
    (XenVer::EXTRAVERSION.0, |_, call, cx| text::<EXTRAVERSION_LEN>(call, cx, EXTRAVERSION)),
    (XenVer::COMPILE_INFO.0, compile_info),
    (XenVer::CAPABILITIES.0, |_, call, cx| text::<CAPABILITIES_LEN>(call, cx, CAPABILITIES)),
    (XenVer::CHANGESET.0, |_, call, cx| text::<CHANGESET_LEN>(call, cx, CHANGESET)),
    (XenVer::PLATFORM_PARAMETERS.0, platform_parameters),
    (XenVer::GET_FEATURES.0, get_features),
    (XenVer::PAGESIZE.0, pagesize),
    (XenVer::GUEST_HANDLE.0, guest_handle),
    (XenVer::COMMANDLINE.0, |domain, call, cx| text::<COMMANDLINE_LEN>(call, cx, &domain.config.commandline)),
    // Privileged on Xen too.
    (XenVer::BUILD_ID.0, |_, _, _| Err(Errno::EPERM)),
    (XenVer::EXTRAVERSION2.0, |_, call, cx| varbuf(call, cx, EXTRAVERSION)),
    (XenVer::CAPABILITIES2.0, |_, call, cx| varbuf(call, cx, CAPABILITIES)),
    (XenVer::CHANGESET2.0, |_, call, cx| varbuf(call, cx, CHANGESET)),
    (XenVer::COMMANDLINE2.0, |domain, call, cx| varbuf(call, cx, &domain.config.commandline)),
];

/// A text in a fixed array, NUL-padded and always NUL-terminated.
fn fixed<const N: usize>(text: &str) -> [u8; N] {
    let mut array = [0; N];
    for (to, from) in array.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = from;
    }
    array
}

fn text<const N: usize>(call: &Call, cx: &mut Cx<'_>, text: &str) -> Answer {
    cx.copy_out(call.arg(1), &fixed::<N>(text))?;
    DONE
}

/// The variants without truncation: length first (NULL asks only for it), then the bytes without NUL.
fn varbuf(call: &Call, cx: &mut Cx<'_>, text: &str) -> Answer {
    if call.arg(1) != 0 {
        let header: VarbufHeader = cx.get(call.arg(1))?;
        if header.len == 0 {
            return Err(Errno::EINVAL);
        }
        if text.len() > header.len as usize {
            return Err(Errno::ENOBUFS);
        }
        cx.copy_out(call.arg(1).wrapping_add(size_of::<VarbufHeader>() as u64), text.as_bytes())?;
    }
    value(text.len() as u64)
}

fn compile_info(_: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let info = CompileInfo {
        compiler: fixed(COMPILER),
        compile_by: fixed("xlr"),
        compile_domain: fixed(""),
        compile_date: fixed(""),
    };
    cx.put(call.arg(1), &info)?;
    DONE
}

fn platform_parameters(_: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    match call.width {
        Width::Bits64 => cx.put(call.arg(1), &PlatformParameters { virt_start: VIRT_START })?,
        Width::Bits32 => {
            cx.put(call.arg(1), &PlatformParameters { virt_start: VIRT_START_COMPAT }.to_compat())?;
        }
    }
    DONE
}

/// What is true here: translated memory, callback vectors, a safe pvclock, the areas by physical address.
fn features() -> Features {
    Features::WRITABLE_PAGE_TABLES
        | Features::AUTO_TRANSLATED_PHYSMAP
        | Features::HVM_CALLBACK_VECTOR
        | Features::HVM_SAFE_PVCLOCK
        | Features::NOT_DIRECT_MAPPED
        | Features::RUNSTATE_PHYS_AREA
        | Features::VCPU_TIME_PHYS_AREA
}

fn get_features(_: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let mut info: FeatureInfo = cx.get(call.arg(1))?;
    if info.submap_idx != 0 {
        return Err(Errno::EINVAL);
    }
    info.submap = features().bits();
    cx.put(call.arg(1), &info)?;
    DONE
}

fn pagesize(_: &mut Domain, call: &Call, _: &mut Cx<'_>) -> Answer {
    match call.arg(1) {
        0 => value(xen_abi::xen::PAGE_SIZE as u64),
        _ => Err(Errno::EINVAL),
    }
}

fn guest_handle(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    cx.copy_out(call.arg(1), domain.config.uuid.as_bytes())?;
    DONE
}
