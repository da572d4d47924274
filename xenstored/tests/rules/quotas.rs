//! The rules of quotas.

use crate::script::{Player, play};

#[test]
fn q1_every_limit_and_its_error() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 write /d/v {v*2024}
         5 write /d/v {v*2025} => ENOSPC
         5 set_perms /d/v n5 r6 => ENOSPC
         5 write /d/p 1
         5 set_perms /d/p n5 r6 r7
         5 write /d/p {v*2009} => ENOSPC
         5 write /d/p {v*2008}
         5 write /d/c/abc 1
         5 write /d/c {v*2021} => ENOSPC
         5 write /d/c {v*2020}
         0 write /d/v {v*4000}
         0 set_quota watches 2
         5 watch /d 1 => OK ! 5 /d 1
         5 watch /d 2 => OK ! 5 /d 2
         5 watch /d 3 => ENOSPC
         0 set_quota transactions 1
         5 transaction_start => 1
         5 transaction_start => ENOSPC
         0 set_quota transaction-nodes 2
         5.1 read /d => ''
         5.1 read /d/v => {v*4000}
         5.1 read /d/w => ENOSPC
         5.1 transaction_end T => ENOSPC
         5 transaction_start => 2
         5.2 read /d => ''
         5.2 get_perms @one => EACCES
         5.2 get_perms @one => EACCES
         5.2 get_perms @two => ENOSPC
         5.2 read /d/v => ENOSPC
         5.2 transaction_end F",
    );
    play(
        "0 mkdir /d
         0 set_perms /d b0
         0 set_quota nodes 3
         5 write /d/a/b/c 1
         5 write /d/e 1 => ENOSPC
         5 rm /d/a/b/c
         5 write /d/e 1
         0 set_quota 5 nodes 4
         5 write /d/f 1
         6 write /d/a6/b/c/d 1 => ENOSPC
         0 set_quota 5 nodes 0
         5 write /d/1/2/3/4/5/6/7/8 1
         0 release 5
         0 introduce 5 1 1
         5 write /d/1/2/3/4 1 => ENOSPC",
    );
}

/// What a transaction takes away is what is there when it commits.
#[test]
fn q1_changes_outside_do_not_make_room_for_a_transaction() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         0 set_quota nodes 5
         5 write /d/s/b/x 1
         5 write /d/s/b/y 1
         5 transaction_start => 1
         5.1 rm /d/s
         5.1 write /d/p/1 1
         5.1 write /d/p/2 1
         5.1 write /d/p/3 1
         5 rm /d/s/b/x
         5 rm /d/s/b/y
         5 write /d/q/1 1
         5 write /d/q/2 1
         5.1 transaction_end T => EAGAIN
         0 directory /d => s|q
         5 write /d/q/3 1 => ENOSPC",
    );
}

/// Whose nodes are among others that were removed and are still counted need not wait for all of them.
#[test]
fn q2_a_refusal_does_not_do_everybodys_work() {
    let mut player = Player::new();
    for step in ["0 mkdir /d", "0 set_perms /d b0", "0 set_quota 5 nodes 300"] {
        player.step(step);
    }
    for n in 0..5000 {
        player.step(&format!("0 write /big/{}/{n} 1", n / 100));
    }
    player.step("5 get_feature ''");
    player.step("0 set_quota 5 nodes 300");
    for n in 0..299 {
        assert_eq!(player.step(&format!("5 write /d/a/{n} 1")), "OK");
    }
    let all = player.store().nodes();
    assert_eq!(player.step("0 rm /big"), "OK");
    let before = player.store().nodes();
    assert!(before > all - 1000, "{before} of {all}: done at its end");
    assert_eq!(player.step("5 write /d/a/more 1"), "ENOSPC");
    assert!(player.store().nodes() + 100 > before, "{before}, then {}", player.store().nodes());
    // What it has removed itself counts no more, whatever waits before it.
    assert_eq!(player.step("5 rm /d/a"), "OK");
    for n in 0..299 {
        assert_eq!(player.step(&format!("5 write /d/b/{n} 1")), "OK");
    }
    assert_eq!(player.step("5 write /d/b/more 1"), "ENOSPC");
    let client = player.connection("0");
    assert!(player.store().is_removing(client), "{} of {all}", player.store().nodes());
    assert_eq!(player.store().check(), Ok(()));
    assert!(!player.store().is_removing(client));
}

#[test]
fn q1_defaults() {
    let mut player = Player::new();
    for (name, value) in [
        ("nodes", "1000"),
        ("node-size", "2048"),
        ("watches", "128"),
        ("transactions", "10"),
        ("transaction-nodes", "1024"),
        ("node-permissions", "5"),
        ("path-max", "2048"),
        ("outstanding", "20"),
        ("memory", "2621440"),
    ] {
        assert_eq!(player.step(&format!("0 get_quota {name}")), value, "{name}");
    }
}

#[test]
fn q1_get_and_set_quota() {
    play(
        "0 set_quota watches 2
         0 get_quota watches => 2
         0 introduce 5 1 1
         0 get_quota 5 watches => 2
         0 set_quota 5 watches 3
         0 get_quota 5 watches => 3
         0 get_quota watches => 2
         0 get_quota 6 watches => ENOENT
         0 set_quota 6 watches 1 => ENOENT
         0 set_quota nodes x => EINVAL
         0 set_quota nodes -1 => EINVAL
         0 set_quota bogus 1 => EINVAL
         0 get_quota bogus => EINVAL",
    );
    let names = Player::new().step("0 get_quota ''");
    assert!(names.split(' ').any(|name| name == "transaction-nodes"), "{names}");
    assert!(names.ends_with(" soft-memory"), "{names}");
    play(
        "0 introduce 5 1 1
         0 get_quota soft-memory => 2097152
         0 set_quota soft-memory 1000
         0 set_quota 5 soft-memory 2000
         0 get_quota soft-memory => 1000
         0 get_quota 5 soft-memory => 2000
         0 control quota set soft-memory 1 => EINVAL",
    );
}

#[test]
fn q2_charges_follow_the_owner() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 write /d/five/a 1
         6 write /d/six 1
         0 write /d/five/host 1
         0 set_quota nodes 4
         5 mkdir /d/five/last
         5 mkdir /d/five/more => ENOSPC
         0 mkdir /d/five/more
         5 mkdir /d/five/more/x => ENOSPC
         0 set_perms /d/five/host n6
         0 set_perms /d/five/more n6
         5 mkdir /d/five/again
         6 mkdir /d/five/more/x
         6 mkdir /d/five/more/y => ENOSPC
         0 set_perms /d/five n6
         0 set_perms /d/five/a n0
         0 release 6
         0 directory /d => ''
         0 release 5",
    );
}

#[test]
fn q2_a_child_can_be_removed_from_a_node_that_is_too_big() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 write /d/n/a 1
         5 write /d/n/b 1
         0 write /d/n {v*3000}
         5 write /d/n/c 1 => ENOSPC
         5 rm /d/n/a
         0 directory /d/n => b",
    );
}

#[test]
fn q2_memory_is_counted_and_given_back() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 mkdir /d/five
         0 set_quota 5 memory 10000
         5 write /d/five/a {v*2000}
         5 write /d/five/b {v*2000}
         5 write /d/five/c {v*2000}
         5 write /d/five/d {v*2000}
         5 write /d/five/e {v*2000} => ENOMEM
         5 watch {w*1000} t => ENOMEM
         5 rm /d/five/a
         0 control check => OK
         5 write /d/five/e {v*1500}
         0 write /d/five/f {v*4000}
         5 write /d/five/b {v*2001} => ENOMEM
         5 write /d/five/b 1
         0 set_quota 5 memory 0
         5 write /d/five/g {v*2000}
         5 watch {w*1000} t => OK ! 5 {w*1000} t
         0 set_quota 5 memory 1
         5 unwatch {w*1000} t
         5 read /d/five/g => {v*2000}",
    );
}

/// Between two requests nobody has cleaned up.
#[test]
fn q2_what_was_removed_is_given_back_at_once() {
    let mut player = Player::new();
    let value = "v".repeat(2000);
    for step in ["0 mkdir /d", "0 set_perms /d b0", "5 mkdir /d/five", "0 set_quota 5 memory 10000"] {
        assert_eq!(player.step(step), "OK");
    }
    for _ in 0..3 {
        for n in 0..4 {
            assert_eq!(player.step(&format!("5 write /d/five/a/{n} {value}")), "OK");
        }
        assert_eq!(player.step(&format!("5 write /d/five/more {value}")), "ENOMEM");
        assert_eq!(player.step("5 rm /d/five/a"), "OK");
    }
}

#[test]
fn q3_a_guest_that_disturbs_transactions_is_slowed_down() {
    let mut player = Player::new();
    for step in ["0 mkdir /d", "0 set_perms /d b0", "6 get_feature ''", "0 transaction_start"] {
        player.step(step);
    }
    for _ in 0..11 {
        assert_eq!(player.step("5 write /d/x 1"), "OK");
    }
    assert_eq!(player.step("5 write /d/x 1"), "waits until 5");
    assert_eq!(player.step("5 read /d/x"), "waits until 5");
    assert_eq!(player.step("6 write /d/y 1"), "OK");
    assert_eq!(player.step("0 write /d/z 1"), "OK");
    player.step("at 5");
    assert_eq!(player.step("5 write /d/x 1"), "OK");
    assert_eq!(player.step("5 transaction_start"), "waits until 10");
    player.step("at 1000");
    assert_eq!(player.step("0.1 transaction_end F"), "OK");
    for _ in 0..100 {
        assert_eq!(player.step("5 write /d/x 1"), "OK", "nobody is disturbed");
    }
}
