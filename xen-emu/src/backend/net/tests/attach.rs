//! The real other ends: streams as passt has them, passt itself, and TAP interfaces in a network of their own.

use super::*;
use crate::backend::net::link::Slice;
use crate::backend::net::proto::chain::Gso;
use crate::backend::net::proto::offload::transmit;
use crate::backend::net::sys;
use crate::backend::net::tap::Tap;
use crate::backend::net::user::{Passt, Stream};
use std::os::unix::net::UnixStream;
use xen_emu_api::device::Forward;

/// Frames survive a stream that takes and gives them in pieces of any size.
#[test]
fn frames_on_a_stream() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    nix::sys::socket::setsockopt(&ours, nix::sys::socket::sockopt::SndBuf, &5000).unwrap();
    let mut stream = Stream::new(ours);
    let frames: Vec<Vec<u8>> = (0..50u8).map(|i| vec![i; 60 + usize::from(i) * 1300]).collect();
    let expected = frames.clone();
    let echo = std::thread::spawn(move || {
        for frame in &expected {
            let mut prefix = [0; 4];
            theirs.read_exact(&mut prefix).unwrap();
            assert_eq!(u32::from_be_bytes(prefix) as usize, frame.len());
            let mut got = vec![0; frame.len()];
            theirs.read_exact(&mut got).unwrap();
            assert_eq!(got, *frame);
        }
        for piece in expected
            .iter()
            .flat_map(|f| [&u32::try_from(f.len()).unwrap().to_be_bytes(), &f[..]].concat())
            .collect::<Vec<u8>>()
            .chunks(4097)
        {
            theirs.write_all(piece).unwrap();
        }
    });
    let mut buffer = vec![0; 65536];
    let header = VnetHeader::default();
    for frame in &frames {
        let mut rest = frame[50..].to_vec();
        while stream.send(&header, &mut frame[..50].to_vec(), &[Slice::from(rest.as_mut_slice())]).is_err() {
            std::thread::yield_now();
        }
    }
    while stream.flush() {
        std::thread::yield_now();
    }
    for frame in &frames {
        let n = loop {
            match stream.receive(&mut VnetHeader::default(), &[Slice::from(buffer.as_mut_slice())]) {
                Ok(n) => break n,
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
            }
            ready(&[&stream.fd()]);
        };
        assert_eq!(buffer[..n], frame[..]);
    }
    echo.join().unwrap();
    let end = stream.receive(&mut VnetHeader::default(), &[Slice::from(buffer.as_mut_slice())]);
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

/// passt answers ARP for whoever is asked for, and reports a port that is taken.
#[test]
fn passt_answers() {
    let mut passt = match Passt::start(&[], false, 1500) {
        Ok(passt) => passt,
        Err(e) => return println!("SKIP: {e}"),
    };
    let mut link = passt.links(1, Accepts::default()).unwrap().pop().unwrap();
    let mut arp = [
        &[0xff; 6][..],
        &[0x52, 0x54, 0, 0, 0, 1],
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &[0x52, 0x54, 0, 0, 0, 1],
        &[192, 0, 2, 2],
        &[0; 6],
        &[192, 0, 2, 1],
        &[0; 18],
    ]
    .concat();
    link.send(&VnetHeader::default(), &mut arp, &[]).unwrap();
    // Frames of passt's own (router advertisements) may come first, and a frame may come in two pieces.
    let mut buffer = vec![0; 65536];
    loop {
        assert!(ready(&[&link.fd()]), "no answer");
        let mut header = VnetHeader::default();
        match link.receive(&mut header, &[Slice::from(buffer.as_mut_slice())]) {
            Ok(n) if n >= 42 && buffer[12..14] == [8, 6] && buffer[20..22] == [0, 2] => break,
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{e}"),
        }
    }
    passt.release(vec![link]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let forward =
        Forward { udp: false, address: Some(address.ip()), host_port: address.port(), guest_port: 22 };
    let error = Passt::start(&[forward], false, 1500).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains(&address.port().to_string()), "{error:?}");
}

/// What a guest leaves to be segmented and summed up reaches one that takes nothing of the kind in whole, small packets.
fn segments(from: &mut dyn Link, to: &mut dyn Link) {
    for (v6, gso_type) in [(false, 1), (true, 4)] {
        let payload: Vec<u8> = (0..20_000u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let (mut data, at) = packets::blank(v6, &payload);
        data[..6].fill(0xff);
        let gso = Some(Gso { v6, size: 1400 });
        let header = transmit(txf::CSUM_BLANK, gso, &mut data, 20_000 + at + 20).unwrap();
        assert_eq!(header.gso_type, gso_type);
        from.send(&header, &mut data, &[]).unwrap();
        let (mut buffer, mut got) = (vec![0; 2000], Vec::<u8>::new());
        while got.len() < payload.len() {
            assert!(ready(&[&to.fd()]), "{} bytes are missing", payload.len() - got.len());
            let n = to.receive(&mut VnetHeader::default(), &[Slice::from(buffer.as_mut_slice())]).unwrap();
            let frame = &buffer[..n];
            if frame[..12] == data[..12] {
                assert!(n <= at + 20 + 1400 && packets::sum_is_right(frame, at), "segment of {n} bytes");
                got.extend(&frame[at + 20..]);
            }
        }
        assert_eq!(got, payload);
    }
}

/// In a network namespace of its own, so that nothing of the host is touched.
#[test]
fn taps_on_a_bridge() {
    use nix::sched::{CloneFlags, unshare};
    let run = || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            return println!("SKIP: no network namespace: {e}");
        }
        if let Err(e) = File::open("/dev/net/tun") {
            return println!("SKIP: /dev/net/tun: {e}");
        }
        let bridge = |create| VifAttach::Bridge { bridge: "xenbr0".into(), create };
        let refused =
            |result: Result<Tap, DeviceError>| result.err().map(|e| e.to_string()).unwrap_or_default();
        let missing = refused(Tap::open("vif7.0", &bridge(false), None));
        assert!(missing.contains("bridge xenbr0 does not exist; make it with"), "{missing}");
        let mut one = Tap::open("vif7.0", &bridge(true), None).unwrap();
        let mut two = Tap::open("vif8.0", &bridge(false), None).unwrap();
        let control = sys::control().unwrap();
        let no_bridge = VifAttach::Bridge { bridge: "vif7.0".into(), create: false };
        let error = refused(Tap::open("vif9.0", &no_bridge, None));
        assert!(error.contains("vif7.0 is a network interface, but no bridge"), "{error}");
        assert!(sys::index(&control, "vif9.0").is_err(), "left behind");
        let taken = refused(Tap::open("vif7.0", &VifAttach::Tap, None));
        assert!(taken.contains("vif7.0 is in use by somebody else"), "{taken}");
        assert_eq!((one.mtu(), one.queues() > 1), (Some(1500), true));
        let all = Accepts { sg: true, csum_v4: true, csum_v6: true, gso_v4: true, gso_v6: true };
        let mut from = one.links(4, all).unwrap();
        let mut to = two.links(1, Accepts::default()).unwrap();
        let mut frame = [&[0xff; 6][..], &[0x52, 0x54, 0, 0, 0, 1], &[0x88, 0xb5], &[7; 50]].concat();
        let header = VnetHeader { num_buffers: 1, ..VnetHeader::default() };
        let mut buffer = vec![0; 2000];
        let mut arrived = || {
            // A port takes a moment to notice that it was plugged in, and the host's own packets come along.
            from[3].send(&header, &mut frame, &[]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut got = VnetHeader::default();
            let mut receive = || to[0].receive(&mut got, &[Slice::from(buffer.as_mut_slice())]);
            let sizes: Vec<usize> = std::iter::from_fn(|| receive().ok()).collect();
            sizes.contains(&frame.len()) && buffer[..frame.len()] == frame[..]
        };
        assert!((0..500).any(|_| arrived()), "the bridge forwards nothing");
        segments(from[0].as_mut(), to[0].as_mut());
        one.release(from);
        drop(one);
        assert!(sys::index(&control, "vif7.0").is_err(), "it goes away with us");
        let big = Tap::open("vif7.0", &bridge(false), Some(9000)).unwrap();
        assert_eq!(sys::mtu(&control, "vif7.0").unwrap(), 9000);
        drop(big);
        drop(two);
        assert!(sys::index(&control, "xenbr0").is_ok(), "a guest has used it");

        // What was made for an attach that fails goes with it, but not from below another vif.
        let fresh = |create| VifAttach::Bridge { bridge: "xenbr1".into(), create };
        let other = Tap::open("other", &VifAttach::Tap, None).unwrap();
        let taken = refused(Tap::open("other", &fresh(true), None));
        assert!(taken.contains("other is in use by somebody else"), "{taken}");
        assert!(sys::index(&control, "xenbr1").is_err(), "left behind");
        drop((Tap::open("vif7.0", &fresh(true), None).unwrap(), other));
        assert!(sys::index(&control, "xenbr1").is_err(), "no guest has used it");
        let (first, mut second) = (
            Tap::open("vif7.0", &fresh(true), None).unwrap(),
            Tap::open("vif7.1", &fresh(true), None).unwrap(),
        );
        drop(first);
        assert!(sys::index(&control, "xenbr1").is_ok(), "it has a port");
        second.links(1, all).unwrap();
    };
    std::thread::spawn(run).join().unwrap();
}
