//! What brought other stores down, by Xen's security advisories. Those about the ring and the sockets themselves are in
//! the tests of the daemon and of the ring.

use xenstored::store::Store;
use xenstored::wire::{Header, MsgType, TooLong, split};

use crate::script::{Player, play};

#[test]
fn xsa_072_big_directories_do_not_break_the_protocol() {
    let mut player = Player::new();
    for n in 0..1500 {
        player.step(&format!("0 mkdir /d/{n}-child"));
    }
    assert_eq!(player.step("0 directory /d"), "E2BIG");
    assert_eq!(player.step("0 read /d"), "");
}

#[test]
fn xsa_115_guests_learn_nothing_they_may_not_read() {
    play(
        "0 write /shut/x 1
         5 watch /shut t => OK ! 5 /shut t
         5 watch /shut/x t => OK ! 5 /shut/x t
         5 watch @introduceDomain t => OK ! 5 @introduceDomain t
         5.99 watch /tx t => OK ! 5 /tx t
         0 write /shut/x 2
         0 rm /shut
         0 introduce 6 1 1
         5 is_domain_introduced 6 => EACCES
         0 set_perms @introduceDomain n0 r5 => OK ! 5 @introduceDomain t
         0 introduce 7 1 1 => OK ! 5 @introduceDomain t
         5 write /shut/y 1 => EACCES
         0 control check => OK",
    );
}

#[test]
fn xsa_206_a_guest_cannot_make_every_transaction_fail() {
    let mut player = Player::new();
    for step in ["0 mkdir /d", "0 set_perms /d b0", "5 write /d/x 0"] {
        player.step(step);
    }
    let (mut now, mut commits) = (0, 0);
    for _ in 0..100 {
        let id = player.step("0 transaction_start");
        let tx = format!("0.{}", id.split(' ').next().unwrap());
        player.step(&format!("{tx} read /d/x"));
        now += 1;
        player.step(&format!("at {now}"));
        player.step("5 write /d/x 1");
        player.step(&format!("{tx} write /d/x 2"));
        commits += usize::from(player.step(&format!("{tx} transaction_end T")) == "OK");
    }
    assert!(commits >= 60, "{commits} of 100 transactions");
}

#[test]
fn xsa_206_a_long_transaction_that_a_guest_made_lose_often_wins() {
    use xenstored::store::Store;
    use xenstored::wire::{Header, MsgType};
    let mut store = Store::new();
    let mut out = xenstored::out::Out::default();
    let host = store.connect();
    let mut ask = |store: &mut Store, conn, kind, tx_id, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap();
        out.clear();
        store.handle(conn, Header { kind, req_id: 0, tx_id, len }, payload, true, &mut out);
        let serves = out.actions.iter().find_map(|action| match action {
            xenstored::out::Action::Serve { conn, .. } => Some(*conn),
            _ => None,
        });
        let reply =
            out.messages().next().map(|(_, bytes, _)| String::from_utf8_lossy(&bytes[16..]).into_owned());
        (reply.unwrap_or_default(), serves)
    };
    ask(&mut store, host, MsgType::WRITE, 0, b"/local/domain/5\0");
    ask(&mut store, host, MsgType::SET_PERMS, 0, b"/local/domain/5\0n5\0");
    let guest = ask(&mut store, host, MsgType::INTRODUCE, 0, b"5\x001\x002\0").1.unwrap();
    // For 4 s the guest writes whenever it is heard, and each transaction takes 10 ms; the clock is in half milliseconds.
    let (mut tx, mut begun, mut commits, mut lost, mut writes) = (0, 0, 0, 0, 0);
    let header = Header { kind: MsgType::WRITE, req_id: 0, tx_id: 0, len: 0 };
    for tick in 0..8000u64 {
        store.advance(std::time::Duration::from_micros(500 * tick));
        if tx == 0 && store.must_wait(host, &Header { kind: MsgType::TRANSACTION_START, ..header }).is_none()
        {
            tx = ask(&mut store, host, MsgType::TRANSACTION_START, 0, b"\0")
                .0
                .trim_end_matches('\0')
                .parse()
                .unwrap();
            begun = tick;
            ask(&mut store, host, MsgType::READ, tx, b"/local/domain/5/n\0");
        }
        if store.must_wait(guest, &header).is_none() {
            ask(&mut store, guest, MsgType::WRITE, 0, format!("n\0{tick}").as_bytes());
            writes += 1;
        }
        if tx != 0 && tick == begun + 20 {
            ask(&mut store, host, MsgType::WRITE, tx, format!("/own\0{tick}").as_bytes());
            let ended = ask(&mut store, host, MsgType::TRANSACTION_END, tx, b"T\0").0;
            commits += u32::from(ended == "OK\0");
            lost += u32::from(ended == "EAGAIN\0");
            tx = 0;
        }
    }
    assert!(commits >= 40, "{commits} won, {lost} lost");
    assert!(writes >= 400, "the guest wrote {writes} times: it is heard at least half of the time");
}

#[test]
fn xsa_233_a_domain_may_watch_its_own_end() {
    play(
        "0 introduce 5 1 1
         0 set_perms @releaseDomain n0 r5
         5 watch @releaseDomain t => OK ! 5 @releaseDomain t
         0 introduce 5 1 2
         5 watch @releaseDomain t => OK ! 5 @releaseDomain t
         0 watch @releaseDomain h => OK ! 0 @releaseDomain h
         0 release 5 => OK ! 0 @releaseDomain h
         0 release 5 => ENOENT
         0 introduce 5 1 1
         0 release 5 => OK ! 0 @releaseDomain h",
    );
}

#[test]
fn xsa_272_a_create_in_a_failing_write_counts_nothing() {
    let mut player = Player::new();
    for step in ["0 mkdir /d", "0 set_perms /d b0", "5 mkdir /d/five", "0 set_quota 5 nodes 10"] {
        player.step(step);
    }
    for n in 0..50 {
        assert_eq!(player.step(&format!("5 write /d/five/n{n}/x {}", "v".repeat(3000))), "ENOSPC");
    }
    for n in 0..9 {
        assert_eq!(player.step(&format!("5 write /d/five/n{n} 1")), "OK");
    }
    assert_eq!(player.step("5 write /d/five/n9 1"), "ENOSPC");
    assert_eq!(player.store().check(), Ok(()));
}

#[test]
fn xsa_322_a_new_domain_has_no_rights_of_the_one_before() {
    play(
        "0 write /grant 1
         5 get_feature '' => 15
         0 set_perms /grant n0 b5
         5 write /grant 2
         0 release 5
         5 read /grant => EACCES
         5 write /grant 3 => EACCES
         5 watch /grant t => OK ! 5 /grant t
         0 write /grant 4",
    );
}

#[test]
fn xsa_323_long_paths() {
    play(
        "0 set_perms / b0
         0 mkdir /local/domain/5
         0 set_perms /local/domain/5 b5
         0 set_quota 5 node-size 0
         5 write {a*2048} 1
         5 write {a*2049} 1 => EINVAL
         5 watch {a*2048} t => OK ! 5 {a*2048} t
         5 rm {a*2048} => OK ! 5 {a*2048} t
         5 read /{a*3071} => EINVAL
         0 write /{a*3071} 1
         0 rm /{a*3071}
         0 read /{a*4090} => EINVAL",
    );
}

#[test]
fn xsa_324_events_that_do_not_fit_are_left_out() {
    play(
        "0 watch / {t*4000} => OK ! 0 / {t*4000}
         0 watch / short => OK ! 0 / short
         0 write /{p*92} 1 => OK ! 0 /{p*92} {t*4000} ! 0 /{p*92} short
         0 write /{p*94} 1 => OK ! 0 /{p*94} short",
    );
}

#[test]
fn xsa_330_watches_that_are_reset_leave_nothing() {
    let mut player = Player::new();
    for n in 0..2000 {
        assert_eq!(player.step(&format!("5 watch /some/path/{n} t")), format!("OK ! 5 /some/path/{n} t"));
        assert_eq!(player.step("5 reset_watches ''"), "OK");
    }
    assert_eq!(player.store().check(), Ok(()));
    let conn = player.connection("5");
    assert_eq!(player.store().memory(conn), 0);
    assert_eq!(player.step("0 write /some/path/7 1"), "OK");
}

#[test]
fn xsa_352_a_guest_cannot_give_a_node_away() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 mkdir /d/five
         6 mkdir /d/six
         5 set_perms /d/five n6 => EPERM
         5 set_perms /d/five n0 => EPERM
         5 set_perms /d/six n5 => EACCES
         5 transaction_start => 1
         5.1 set_perms /d/five n6 => EPERM
         5.1 transaction_end T",
    );
}

#[test]
fn xsa_353_the_root_has_permissions_too() {
    play(
        "5 read / => EACCES
         5 directory / => EACCES
         5 write / 1 => EACCES
         5 set_perms / n5 => EACCES
         5 rm / => EACCES
         5 mkdir /x => EACCES
         0 set_perms / r0
         5 directory / => tool
         5 rm / => EACCES
         5 rm /tool => EACCES",
    );
}

#[test]
fn xsa_326_what_one_guest_can_have_kept_is_bounded() {
    let mut player = Player::new();
    for step in ["0 mkdir /d", "0 set_perms /d b0", "5 mkdir /d/five"] {
        player.step(step);
    }
    let conn = player.connection("5");
    let mut ids = Vec::new();
    while let Ok(id) = player.step("5 transaction_start").parse::<u32>() {
        ids.push(id);
    }
    assert_eq!(ids.len(), 10);
    for id in &ids {
        for n in 0..1100 {
            player.step(&format!("5.{id} write /d/five/{n} {}", "v".repeat(1500)));
        }
    }
    for n in 0..1100 {
        player.step(&format!("5 write /d/five/{n} {}", "v".repeat(1500)));
        player.step(&format!("5 watch /{n}/{} {n}", "w".repeat(2000)));
    }
    let kept = player.store().memory(conn);
    // Each transaction may have had one node too many when it was spoiled.
    assert!((2_000_000..2_621_440 + 10 * 8192).contains(&kept), "{kept} bytes");
    for id in ids {
        let reply = player.step(&format!("5.{id} transaction_end T"));
        assert!(["ENOMEM", "ENOSPC"].contains(&&*reply), "{reply}");
    }
    assert_eq!(player.step("0 release 5"), "OK");
    assert_eq!(player.store().check(), Ok(()));
}

#[test]
fn xsa_414_a_creation_that_fails_half_way_leaves_nothing() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 mkdir /d/five
         0 set_quota 5 nodes 3
         5 write /d/five/a/b/c 1 => ENOSPC
         5 directory /d/five => ''
         5 rm /d/five/a
         5 rm /d/five/a/b => ENOENT
         5 write /d/five/a/b 1
         5 write /d/five/c 1 => ENOSPC
         5 rm /d/five/a
         5 write /d/five/c 1
         0 control check => OK",
    );
}

#[test]
fn xsa_415_nor_does_one_in_a_transaction() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 mkdir /d/five
         0 set_quota 5 nodes 3
         5 transaction_start => 1
         5.1 write /d/five/a 1
         5.1 write /d/five/b/c 1 => ENOSPC
         5.1 read /d/five/b => ENOENT
         5.1 transaction_end T => ENOSPC
         5 directory /d/five => ''
         5 write /d/five/a/b 1
         0 control check => OK",
    );
}

#[test]
fn xsa_416_malformed_requests_leave_nothing() {
    let mut player = Player::new();
    player.step("5 get_feature ''");
    let conn = player.connection("5");
    for round in 0..200 {
        for kind in 0..30 {
            player.request("5", MsgType(kind), round, &[b'/'; 4096]);
            player.request("5", MsgType(kind), 0, &[0; 4096]);
        }
    }
    assert_eq!(player.store().memory(conn), 0);
    assert_eq!(player.store().check(), Ok(()));
}

#[test]
fn xsa_417_entries_from_before_a_domain_existed_are_not_its_own() {
    play(
        "0 write /early 1
         0 set_perms /early n0 b5
         5 read /early => EACCES
         5 write /early 1 => EACCES
         0 set_perms /early n0 b5
         5 write /early 2",
    );
}

#[test]
fn xsa_418_deep_trees_need_no_deep_stack() {
    let small = std::thread::Builder::new().stack_size(256 * 1024);
    let test = || {
        let deep = "/a".repeat(1500);
        play(&format!(
            "0 write {deep} 1
             0 transaction_start => 1
             0.1 write {deep} 2
             0.1 write {deep}/b/c 2
             x transaction_start => 1
             x.1 rm /a
             x.1 write {deep} 3
             x.1 directory {deep} => ''
             0 control check => OK
             0.1 transaction_end T
             x.1 transaction_end T => EAGAIN
             x transaction_start => 2
             x.2 rm /a
             x.2 write {deep} 3
             x.2 transaction_end T
             0 watch {deep} w => OK ! 0 {deep} w
             0 rm /a => OK ! 0 {deep} w
             0 control check => OK
             0 transaction_start => 2
             0.2 write {deep} 2
             0.2 transaction_end T => OK ! 0 {deep} w
             0 read {deep} => 2"
        ));
    };
    small.spawn(test).unwrap().join().unwrap();
}

#[test]
fn xsa_419_nodes_of_dead_domains_are_nobodys() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 mkdir /d/five
         6 get_feature '' => 15
         5 set_perms /d/five b5
         6 write /d/five/six/x 1
         0 release 6
         0 directory /d/five => ''
         0 control check => OK
         6 write /d/five/six/x 1
         0 release 5
         0 directory /d => ''
         0 control check => OK
         0 transaction_start => 1
         0.1 mkdir /for-six
         0.1 set_perms /for-six b6
         0.1 mkdir /for-six/below
         0 release 6
         0.1 transaction_end T
         0 get_perms /for-six => n0
         6 read /for-six => EACCES
         0 control check => OK",
    );
}

#[test]
fn xsa_420_lengths_that_are_negative_elsewhere() {
    for len in [4097, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let header = Header { kind: MsgType::READ, req_id: 0, tx_id: 0, len };
        assert_eq!(split(&header.encode()), Err(TooLong(len)));
    }
}

#[test]
fn xsa_421_create_and_remove_in_one_transaction() {
    play(
        "0 write /d/old 1
         0 transaction_start => 1
         0.1 write /d/n/m 1
         0.1 rm /d/n
         0.1 write /d/n 2
         0.1 rm /d/old
         0.1 write /d/old/sub 1
         0.1 rm /d/gone
         0.1 transaction_end T
         0 directory /d => n|old
         0 directory /d/n => ''
         0 read /d/n => 2
         0 directory /d/old => sub
         0 transaction_start => 2
         0.2 write /d/old/first 1
         0.2 rm /d
         0.2 write /d/old/first 2
         0.2 transaction_end T
         0 directory /d => old
         0 directory /d/old => first
         0 read /d/old/first => 2",
    );
    let mut player = Player::new();
    for step in ["0 mkdir /d", "0 set_perms /d b0", "5 mkdir /d/five", "0 set_quota 5 nodes 5"] {
        player.step(step);
    }
    for _ in 0..100 {
        let id = player.step("5 transaction_start");
        for request in ["write /d/five/a/b/c 1", "rm /d/five/a", "write /d/five/a/b/c 1", "rm /d/five/a/b"] {
            assert_eq!(player.step(&format!("5.{id} {request}")), "OK");
        }
        assert_eq!(player.step(&format!("5.{id} transaction_end T")), "OK");
        assert_eq!(player.step("5 rm /d/five/a"), "OK");
        assert_eq!(player.store().check(), Ok(()));
    }
}

#[test]
fn xsa_425_a_domain_begins_anew_while_it_has_things_open() {
    play(
        "5 watch /a t => OK ! 5 /a t
         5 transaction_start => 1
         5 reset_watches ''
         0 introduce 5 1 1
         5.1 transaction_end T => ENOENT
         5 transaction_start => 2
         0 introduce 5 1 1
         5.2 transaction_end T => ENOENT
         5 watch /a t => OK ! 5 /a t",
    );
}

#[test]
fn xsa_481_odd_paths_on_every_request() {
    let mut player = Player::new();
    player.step("5 get_feature ''");
    let long = format!("/{}", "a".repeat(3072));
    let paths = [
        "/local/domain/",
        "/local/domain",
        "/local/domain//",
        "@",
        "@/",
        "@@",
        "",
        "/",
        "//",
        ".",
        " ",
        &long,
    ];
    for kind in 0..30 {
        for path in paths {
            for rest in ["", "\0", "\0\0", "\x001\0", "\0n5\0", "\x001\x001\0"] {
                for (who, tx) in [("0", 0), ("5", 0), ("0", 1)] {
                    player.request(who, MsgType(kind), tx, format!("{path}{rest}").as_bytes());
                }
            }
        }
        assert_eq!(player.store().check(), Ok(()), "after {kind}");
    }
    assert_eq!(player.step("0 read /tool"), "");
}

#[test]
fn xsa_483_a_reborn_domain_has_its_quota_and_no_more() {
    let mut player = Player::new();
    for step in ["0 mkdir /d", "0 set_perms /d b0", "0 set_quota nodes 20"] {
        player.step(step);
    }
    for _ in 0..20 {
        let made = (0..30).filter(|n| player.step(&format!("5 write /d/{n} 1")) == "OK").count();
        assert_eq!(made, 20);
        assert_eq!(player.step("0 release 5"), "OK");
        assert_eq!(player.store().check(), Ok(()));
    }
}

#[test]
fn xsa_484_reset_watches_in_a_transaction() {
    play(
        "0 watch /a t => OK ! 0 /a t
         0 transaction_start => 1
         0 transaction_start => 2
         0.1 write /a 1
         0.1 reset_watches ''
         0.1 transaction_end T => ENOENT
         0.2 transaction_end T => ENOENT
         0.2 reset_watches '' => ENOENT
         0 reset_watches ''
         0 reset_watches ''
         0 write /a 1
         0 unwatch /a t => ENOENT",
    );
    let mut store = Store::new();
    let conn = store.connect();
    store.reset(conn);
    store.disconnect(conn);
    store.disconnect(conn);
    store.reset(conn);
    assert_eq!(store.check(), Ok(()));
}
