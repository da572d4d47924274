//! The block backend against a file, driven by a frontend in this process: what `fio --ioengine=io_uring` does without
//! a ring between. Not run with the tests:
//!
//! `cargo test --release -p xen-emu blk_bench -- --ignored --nocapture`
//!
//! Environment: `BLK_FILE` (made if missing, 1 GiB), `BLK_SECONDS` (5), `BLK_DEPTH` (32), `BLK_RW` (`randread` or
//! `randwrite`), `BLK_PERSISTENT` (1), `BLK_POLL` (0; 1 = the frontend looks for responses all the time instead of
//! sleeping until it is notified, as fio has nobody to wake), `XLR_BLK_ENGINE`. The same by fio:
//! `fio --name=x --filename=FILE --ioengine=io_uring --direct=1 --bs=4k --iodepth=32 --rw=randread --runtime=5 --time_based`

use super::Blk;
use super::fake::{DATA, Guest, Wish, config, segments};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use xen_abi::io::blkif::{BlkifOp, BlkifRsp};
use xen_emu_api::device::{DiskCache, DiskFormat};

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

#[test]
#[ignore = "a measurement"]
fn blk_bench() {
    let path = PathBuf::from(std::env::var("BLK_FILE").unwrap_or_else(|_| "/var/tmp/blk-bench.img".into()));
    if !path.exists() {
        let filled = std::fs::File::create(&path).unwrap();
        let chunk = vec![0x5a; 1 << 20];
        (0..1024).for_each(|_| std::io::Write::write_all(&mut &filled, &chunk).unwrap());
        filled.sync_all().unwrap();
    }
    let write = std::env::var("BLK_RW").is_ok_and(|rw| rw == "randwrite");
    let operation = if write { BlkifOp::WRITE } else { BlkifOp::READ };
    let (depth, time) = (setting("BLK_DEPTH", 32), Duration::from_secs(setting("BLK_SECONDS", 5)));
    let poll = setting("BLK_POLL", 0) != 0;
    let wish = Wish { persistent: setting("BLK_PERSISTENT", 1) != 0, ..Wish::default() };
    let mut guest = Guest::new(Blk::open(&config(&path, DiskFormat::Raw, DiskCache::None), 1).unwrap(), 0);
    guest.connect(wish).unwrap();
    let disk = guest.blk.disk().unwrap().clone();
    let (pages, mut state, mut count) = (disk.len() / 4096, 88_172_645_463_325_252u64, 0u64);
    let ring = &mut guest.rings[0];
    let mut post = |ring: &mut super::fake::Ring, id: u64| {
        // xorshift
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ring.direct(
            operation,
            id,
            state % pages * 8,
            &segments(&[(DATA + u32::try_from(id).unwrap(), 0, 7)]),
        );
    };
    let start = Instant::now();
    (0..depth).for_each(|id| post(ring, id));
    ring.publish();
    while start.elapsed() < time {
        while let Some((id, _, status)) = ring.take() {
            assert_eq!(status, BlkifRsp::OKAY);
            post(ring, id);
            count += 1;
        }
        ring.publish();
        if poll { std::hint::spin_loop() } else { assert!(ring.wait()) }
    }
    let elapsed = start.elapsed().as_secs_f64();
    crate::backend::device::Device::disconnect(&mut guest.blk);
    let counters = &guest.blk.counters;
    let per = |n: u64| n as f64 / count as f64;
    let (turns, calls) = (counters.turns.load(Ordering::Relaxed), counters.calls.load(Ordering::Relaxed));
    println!("file           {} ({} MiB), O_DIRECT: {}", path.display(), disk.len() >> 20, disk.direct());
    println!("engine         {}", guest.blk.engine.choice(Some(&disk)));
    println!("load           4 KiB {operation}, depth {depth}, persistent grants: {}", wish.persistent);
    println!("IOPS           {:.0}", count as f64 / elapsed);
    println!("system calls   {:.3} per request, {:.1} requests per turn", per(calls), 1.0 / per(turns));
    println!("notifications  {:.3} per request", per(counters.notifications.load(Ordering::Relaxed)));
    println!("data copies    {:.3} per request", per(disk.bounces()));
}
