//! The floor: a daemon that keeps nothing and looks at nothing. It waits, receives and sends as every daemon must that has
//! a socket per client, and answers what lets the loads go on. What it takes no xenstored can do without.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use xenstored::wire::{HEADER_LEN, MsgType, put, split};

use crate::load::VALUE;

/// The listening socket among the descriptors.
const LISTENER: u64 = u64::MAX;

/// Serves until it is killed.
pub fn serve(path: &Path) -> ! {
    let listener = UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).unwrap();
    let mut clients: HashMap<RawFd, UnixStream> = HashMap::new();
    let (mut events, mut chunk) = (vec![EpollEvent::empty(); 256], vec![0; 16 * 1024]);
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
        let mut written = Vec::new();
        for event in &events[..ready] {
            if event.data() == LISTENER {
                accept(&listener, &epoll, &mut clients);
                continue;
            }
            let fd = RawFd::try_from(event.data()).unwrap();
            let Some(client) = clients.get_mut(&fd) else { continue };
            match client.read(&mut chunk) {
                Ok(0) => drop(clients.remove(&fd)),
                Ok(count) => written.push((fd, answers(&chunk[..count]))),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        // All at the end of the turn, as ours does.
        for (fd, bytes) in written {
            clients.get_mut(&fd).map(|client| client.write(&bytes));
        }
    }
}

fn accept(listener: &UnixListener, epoll: &Epoll, clients: &mut HashMap<RawFd, UnixStream>) {
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    while let Ok((client, _)) = listener.accept() {
        client.set_nonblocking(true).unwrap();
        let fd = client.as_raw_fd();
        epoll.add(&client, EpollEvent::new(flags, u64::try_from(fd).unwrap())).unwrap();
        clients.insert(fd, client);
    }
}

/// A reply of the usual length to every request. Clients that wait for each send whole requests.
fn answers(mut bytes: &[u8]) -> Vec<u8> {
    let mut replies = Vec::new();
    while let Some((header, payload)) = split(bytes).unwrap() {
        let reply: &[u8] = match header.kind {
            MsgType::READ => VALUE,
            MsgType::DIRECTORY => b"k0\0k1\0k2\0k3\0k4\0k5\0k6\0k7\0k8\0k9\0",
            MsgType::TRANSACTION_START => b"1\0",
            _ => b"OK\0",
        };
        put(&mut replies, header.kind, header.req_id, header.tx_id, &[reply]).unwrap();
        bytes = &bytes[HEADER_LEN + payload.len()..];
    }
    replies
}
