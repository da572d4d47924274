//! System calls that nix does not wrap, with nothing else around them: ioctls of TAP interfaces and bridges, and
//! vectored I/O on guest memory.
#![expect(unsafe_code, reason = "ioctls with C structs, and iovecs that point into guest memory")]

use super::link::Slice;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Longest vector: a header, a head, the pieces of a packet, a buffer for the rest.
const VECTOR_MAX: usize = 24;

nix::ioctl_write_int_bad!(tun_set_offload, 0x4004_54d0);
nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);
nix::ioctl_read_bad!(tun_get_iff, 0x8004_54d2_u32, libc::ifreq);
nix::ioctl_write_ptr_bad!(tun_set_vnet_hdr_size, 0x4004_54d8, libc::c_int);
nix::ioctl_write_ptr_bad!(tun_set_carrier, 0x4004_54e2, libc::c_int);
nix::ioctl_read_bad!(get_index, libc::SIOCGIFINDEX, libc::ifreq);
nix::ioctl_read_bad!(get_mtu, libc::SIOCGIFMTU, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFHWADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(bridge_add, 0x89a0, libc::c_char);
nix::ioctl_write_ptr_bad!(bridge_remove, 0x89a1, libc::c_char);
nix::ioctl_read_bad!(bridge_private, 0x89f0, libc::ifreq);
nix::ioctl_write_ptr_bad!(bridge_add_port, 0x89a2, libc::ifreq);

/// `IFF_*` flags of `TUNSETIFF`.
pub mod iff {
    /// Ethernet frames.
    pub const TAP: u16 = 0x0002;
    /// Several queues.
    pub const MULTI_QUEUE: u16 = 0x0100;
    /// The interface outlives its descriptors: somebody has made it beforehand.
    pub const PERSIST: u16 = 0x0800;
    /// Without a protocol word before each packet.
    pub const NO_PI: u16 = 0x1000;
    /// With a `virtio_net_hdr` before each packet.
    pub const VNET_HDR: u16 = 0x4000;
    /// An error if the interface exists.
    pub const EXCLUSIVE: u16 = 0x8000;
}

/// A request for an interface; a name that does not fit is refused.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: a C struct of integers and unions of integers, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.bytes().any(|b| b == 0 || b == b'/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of a network interface"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Attaches an open `/dev/net/tun` to the interface, which is made when missing.
pub fn attach(tun: &impl AsFd, name: &str, flags: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    // SAFETY: the descriptor is open and the struct initialised.
    unsafe { tun_set_iff(tun.as_fd().as_raw_fd(), &raw const request)? };
    Ok(())
}

/// Flags of the interface that this is attached to.
pub fn flags(tun: &impl AsFd) -> io::Result<u16> {
    // SAFETY: a C struct of integers and unions of integers, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open; the kernel fills in the whole struct, and the union's flags.
    unsafe {
        tun_get_iff(tun.as_fd().as_raw_fd(), &raw mut request)?;
        Ok(request.ifr_ifru.ifru_flags.cast_unsigned())
    }
}

/// Length of the header before each packet.
pub fn vnet_hdr_size(tun: &impl AsFd, size: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the kernel reads one int.
    unsafe { tun_set_vnet_hdr_size(tun.as_fd().as_raw_fd(), &raw const size)? };
    Ok(())
}

/// What the reader of the TAP takes: `TUN_F_*`.
pub fn offload(tun: &impl AsFd, what: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the argument is a number.
    unsafe { tun_set_offload(tun.as_fd().as_raw_fd(), what)? };
    Ok(())
}

/// Whether the TAP looks plugged in.
pub fn carrier(tun: &impl AsFd, on: bool) -> io::Result<()> {
    let on = libc::c_int::from(on);
    // SAFETY: the descriptor is open, and the kernel reads one int.
    unsafe { tun_set_carrier(tun.as_fd().as_raw_fd(), &raw const on)? };
    Ok(())
}

/// A socket for the calls below.
pub fn control() -> io::Result<impl AsFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    Ok(socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Number of an interface.
pub fn index(control: &impl AsFd, name: &str) -> io::Result<i32> {
    let mut request = request(name)?;
    // SAFETY: the descriptor is open and the struct initialised; the kernel fills in the union's index.
    unsafe {
        get_index(control.as_fd().as_raw_fd(), &raw mut request)?;
        Ok(request.ifr_ifru.ifru_ifindex)
    }
}

/// MTU of an interface.
pub fn mtu(control: &impl AsFd, name: &str) -> io::Result<i32> {
    let mut request = request(name)?;
    // SAFETY: the descriptor is open and the struct initialised; the kernel fills in the union's MTU.
    unsafe {
        get_mtu(control.as_fd().as_raw_fd(), &raw mut request)?;
        Ok(request.ifr_ifru.ifru_mtu)
    }
}

/// Sets it.
pub fn change_mtu(control: &impl AsFd, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    // SAFETY: the descriptor is open and the struct initialised.
    unsafe { set_mtu(control.as_fd().as_raw_fd(), &raw const request)? };
    Ok(())
}

/// Sets an interface up; nothing happens if it is.
pub fn up(control: &impl AsFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    let up = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open and the struct initialised; the kernel fills in the union's flags.
    unsafe {
        get_flags(control.as_fd().as_raw_fd(), &raw mut request)?;
        if request.ifr_ifru.ifru_flags & up == 0 {
            request.ifr_ifru.ifru_flags |= up;
            set_flags(control.as_fd().as_raw_fd(), &raw const request)?;
        }
    }
    Ok(())
}

/// Sets the host's own Ethernet address of an interface.
pub fn change_address(control: &impl AsFd, name: &str, address: [u8; 6]) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: a C struct of integers, for which zeros are a value.
    let mut data: libc::sockaddr = unsafe { std::mem::zeroed() };
    data.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in data.sa_data.iter_mut().zip(address) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_hwaddr = data;
    // SAFETY: the descriptor is open and the struct initialised.
    unsafe { set_address(control.as_fd().as_raw_fd(), &raw const request)? };
    Ok(())
}

/// Makes a bridge.
pub fn add_bridge(control: &impl AsFd, name: &str) -> io::Result<()> {
    let request = request(name)?;
    // SAFETY: the descriptor is open; the kernel reads IFNAMSIZ bytes, which the name has, with its terminating 0.
    unsafe { bridge_add(control.as_fd().as_raw_fd(), request.ifr_name.as_ptr())? };
    Ok(())
}

/// Most ports of a bridge (`BR_MAX_PORTS` of Linux).
const PORTS_MAX: usize = 1024;
/// `BRCTL_GET_PORT_LIST`: the numbers of the interfaces that are ports.
const PORT_LIST: libc::c_ulong = 7;

/// Whether a bridge has ports.
pub fn has_ports(control: &impl AsFd, bridge: &str) -> io::Result<bool> {
    let mut request = request(bridge)?;
    let mut ports: [libc::c_int; PORTS_MAX] = [0; PORTS_MAX];
    let mut wish = [PORT_LIST, ports.as_mut_ptr().expose_provenance() as libc::c_ulong, PORTS_MAX as _, 0];
    request.ifr_ifru.ifru_data = wish.as_mut_ptr().cast();
    // SAFETY: the descriptor is open; the kernel reads the four words and writes as many ints as the third says.
    unsafe { bridge_private(control.as_fd().as_raw_fd(), &raw mut request)? };
    Ok(ports.iter().any(|port| *port != 0))
}

/// Removes a bridge.
pub fn remove_bridge(control: &impl AsFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: the descriptor is open and the struct initialised. Without flags the interface is down, as it has to be;
    // then the kernel reads IFNAMSIZ bytes, which the name has, with its terminating 0.
    unsafe {
        request.ifr_ifru.ifru_flags = 0;
        set_flags(control.as_fd().as_raw_fd(), &raw const request)?;
        bridge_remove(control.as_fd().as_raw_fd(), request.ifr_name.as_ptr())?;
    }
    Ok(())
}

/// Makes the interface a port of the bridge.
pub fn add_port(control: &impl AsFd, bridge: &str, port: &str) -> io::Result<()> {
    let index = index(control, port)?;
    let mut request = request(bridge)?;
    request.ifr_ifru.ifru_ifindex = index;
    // SAFETY: the descriptor is open and the struct initialised.
    unsafe { bridge_add_port(control.as_fd().as_raw_fd(), &raw const request)? };
    Ok(())
}

/// Iovecs over slices; valid as long as the slices are.
fn vector<'a, 'm: 'a>(
    slices: impl IntoIterator<Item = &'a Slice<'m>>,
) -> io::Result<([libc::iovec; VECTOR_MAX], libc::c_int)> {
    let mut vector = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; VECTOR_MAX];
    let mut count = 0;
    for slice in slices {
        let to = vector.get_mut(count).ok_or(io::ErrorKind::InvalidInput)?;
        *to = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
        count += 1;
    }
    Ok((vector, libc::c_int::try_from(count).map_err(io::Error::other)?))
}

/// `writev` from guest memory.
pub fn write_from<'a, 'm: 'a>(
    fd: &impl AsFd,
    slices: impl IntoIterator<Item = &'a Slice<'m>>,
) -> io::Result<usize> {
    let (vector, count) = vector(slices)?;
    // SAFETY: each entry is a slice that outlives the call; the kernel copies from memory that others may change.
    let written = unsafe { libc::writev(fd.as_fd().as_raw_fd(), vector.as_ptr(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// `readv` into guest memory.
pub fn read_into<'a, 'm: 'a>(
    fd: &impl AsFd,
    slices: impl IntoIterator<Item = &'a Slice<'m>>,
) -> io::Result<usize> {
    let (vector, count) = vector(slices)?;
    // SAFETY: each entry is a slice of volatile memory that outlives the call and that nothing refers to.
    let read = unsafe { libc::readv(fd.as_fd().as_raw_fd(), vector.as_ptr(), count) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
