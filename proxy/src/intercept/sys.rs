//! Two socket options that have no safe wrapper.
#![expect(
    unsafe_code,
    reason = "SO_ORIGINAL_DST and SO_PRIORITY have no safe wrapper"
)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` (linux/netfilter_ipv4.h, ip6_tables.h).
const ORIGINAL_DST: libc::c_int = 80;

pub(super) fn original_dst(fd: BorrowedFd<'_>, mapped: bool) -> io::Result<Option<SocketAddr>> {
    let found = if mapped {
        get::<libc::sockaddr_in>(fd, libc::SOL_IP).map(|address| {
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(address.sin_port)))
        })
    } else {
        get::<libc::sockaddr_in6>(fd, libc::SOL_IPV6).map(|address| {
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            let port = u16::from_be(address.sin6_port);
            SocketAddr::V6(SocketAddrV6::new(ip, port, 0, 0))
        })
    };
    match found {
        Ok(address) => Ok(Some(address)),
        // No redirection on record.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn get<T>(fd: BorrowedFd<'_>, level: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed; `value` has room for `length`
    // bytes and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            ORIGINAL_DST,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: T is a plain C structure for which all-zero is valid, and the kernel has written it.
    Ok(unsafe { value.assume_init() })
}

pub(super) fn set_priority(fd: BorrowedFd<'_>, priority: u32) -> io::Result<()> {
    let priority = priority as libc::c_int;
    // SAFETY: the descriptor is open for as long as it is borrowed; the value is an int that
    // outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PRIORITY,
            (&raw const priority).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
