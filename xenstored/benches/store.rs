//! The core without sockets: one request at a time on small and large stores, transactions, watchers.
//!
//! `cargo bench -p xenstored --bench store`. On a store of n nodes an operation must cost the same for every n.

use criterion::{Criterion, criterion_group, criterion_main};
use xenstored::out::Out;
use xenstored::store::{ConnId, Store};
use xenstored::wire::{Header, MsgType};

/// A store with a client.
struct Bed {
    store: Store,
    conn: ConnId,
    out: Out,
    next: u32,
}

impl Bed {
    /// Homes of 100 nodes each, as domains have them.
    fn with(nodes: u32) -> Self {
        let mut store = Store::new();
        let conn = store.connect();
        let mut bed = Self { store, conn, out: Out::default(), next: 0 };
        for node in 0..nodes {
            let path = format!("{}\0value of some length", leaf(node));
            bed.ask(MsgType::WRITE, 0, path.as_bytes());
        }
        bed
    }

    fn ask(&mut self, kind: MsgType, tx_id: u32, payload: &[u8]) -> usize {
        self.out.clear();
        let header = Header { kind, req_id: 1, tx_id, len: u32::try_from(payload.len()).unwrap_or(0) };
        self.store.handle(self.conn, header, payload, false, &mut self.out);
        self.out.messages().map(|(_, bytes, _)| bytes.len()).sum()
    }

    fn begin(&mut self) -> u32 {
        self.ask(MsgType::TRANSACTION_START, 0, b"\0");
        let reply = self.out.messages().next().map_or(&[][..], |(_, bytes, _)| bytes);
        std::str::from_utf8(&reply[16..reply.len() - 1]).map_or(0, |id| id.parse().unwrap_or(0))
    }

    /// Any leaf, another one every time.
    fn leaf(&mut self, nodes: u32) -> String {
        self.next = self.next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        leaf((self.next >> 8) % nodes)
    }
}

fn leaf(node: u32) -> String {
    format!("/local/domain/{}/d{}/k{}", node / 100, node / 10 % 10, node % 10)
}

fn operations(criterion: &mut Criterion) {
    for nodes in [1000, 100_000] {
        let mut bed = Bed::with(nodes);
        let mut group = criterion.benchmark_group(format!("{nodes} nodes"));
        for (name, kind, tail) in [
            ("read", MsgType::READ, "\0"),
            ("write", MsgType::WRITE, "\0another value"),
            ("get_perms", MsgType::GET_PERMS, "\0"),
            ("set_perms", MsgType::SET_PERMS, "\0n0\0r5\0"),
        ] {
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let payload = bed.leaf(nodes) + tail;
                    bed.ask(kind, 0, payload.as_bytes())
                });
            });
        }
        group.bench_function("directory", |bencher| {
            bencher.iter(|| {
                let leaf = bed.leaf(nodes);
                let folder = leaf.rsplit_once('/').map_or("", |(folder, _)| folder);
                bed.ask(MsgType::DIRECTORY, 0, format!("{folder}\0").as_bytes())
            });
        });
        group.bench_function("create and rm", |bencher| {
            bencher.iter(|| {
                let path = bed.leaf(nodes);
                bed.ask(MsgType::WRITE, 0, format!("{path}/new\0x").as_bytes());
                bed.ask(MsgType::RM, 0, format!("{path}/new\0").as_bytes());
                bed.store.tidy(16)
            });
        });
        group.bench_function("transaction of 2 reads, 2 writes", |bencher| {
            bencher.iter(|| {
                let (one, two, tx) = (bed.leaf(nodes), bed.leaf(nodes), bed.begin());
                for path in [&one, &two] {
                    bed.ask(MsgType::READ, tx, format!("{path}\0").as_bytes());
                }
                for path in [&one, &two] {
                    bed.ask(MsgType::WRITE, tx, format!("{path}\0v").as_bytes());
                }
                bed.ask(MsgType::TRANSACTION_END, tx, b"T\0");
                bed.store.tidy(64)
            });
        });
    }
}

fn watchers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("write with watchers");
    // On a node above, and on nodes beside it, which must cost nothing.
    for (above, beside) in [(0, 0), (0, 1000), (1, 0), (1000, 0)] {
        let mut bed = Bed::with(1000);
        let paths = (0..above).map(|_| "/local/domain/1/d1".to_owned());
        for path in paths.chain((0..beside).map(|n| format!("/beside/{n}"))) {
            let conn = bed.store.connect();
            let own = std::mem::replace(&mut bed.conn, conn);
            bed.ask(MsgType::WATCH, 0, format!("{path}\0token\0").as_bytes());
            bed.conn = own;
        }
        group.bench_function(format!("{above} above, {beside} beside"), |bencher| {
            bencher.iter(|| bed.ask(MsgType::WRITE, 0, b"/local/domain/1/d1/k1\0x"));
        });
    }
}

criterion_group!(benches, operations, watchers);
criterion_main!(benches);
