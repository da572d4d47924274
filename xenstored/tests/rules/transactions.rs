//! The rules of transactions.

use crate::script::{Player, play};

#[test]
fn t1_ids() {
    play(
        "0 transaction_start => 1
         0.1 transaction_start => EBUSY
         0 transaction_start => 2
         0.9 read / => ENOENT
         0.9 write /a 1 => ENOENT
         x.1 read / => ENOENT
         x transaction_start => 1
         0.1 transaction_end F
         0.1 read / => ENOENT
         0 transaction_start => 3",
    );
}

#[test]
fn t2_what_was_seen_stays_and_own_writes_are_seen_inside_only() {
    play(
        "0 write /a 1
         0 write /d/x 1
         0 transaction_start => 1
         0 write /a first
         0.1 read /a => first
         0 write /a second
         0.1 read /a => first
         0.1 write /b 1
         0.1 read /b => 1
         0 read /b => ENOENT
         0.1 directory /d => x
         0 write /d/y 1
         0.1 directory /d => x
         0.1 read /none => ENOENT
         0 write /none 1
         0.1 read /none => ENOENT
         0.1 get_perms /d/x => n0
         0 set_perms /d/x r0
         0.1 get_perms /d/x => n0
         0.1 rm /d
         0.1 read /d/x => ENOENT
         0.1 write /d/new/z 1
         0.1 directory /d => new
         0.1 directory /d/new => z
         0 directory /d => x|y
         0.1 transaction_end F
         0 directory /d => x|y",
    );
}

#[test]
fn t2_so_does_what_decided_that_nothing_was_there() {
    play(
        "0 mkdir /a/b
         0 set_perms /a/b r0
         5 transaction_start => 1
         5.1 read /a/b/c => ENOENT
         0 rm /a
         5.1 read /a/b/c => ENOENT
         5.1 transaction_end T => EAGAIN",
    );
}

#[test]
fn t3_a_commit_fails_if_what_was_seen_has_changed() {
    let table = [
        ("read /a", "write /a 1", "EAGAIN"),
        ("read /a", "rm /a", "EAGAIN"),
        ("read /a", "set_perms /a r0", "EAGAIN"),
        ("read /a", "write /a/child 1", "OK"),
        ("read /a", "write /b 1", "OK"),
        ("write /a 2", "write /a 1", "EAGAIN"),
        ("write /a 2", "write /b 1", "OK"),
        ("rm /a", "write /a 1", "EAGAIN"),
        ("rm /a", "write /b 1", "OK"),
        ("rm /a", "write /a/new 1", "EAGAIN"),
        ("rm /a", "write /a/new/x/y 1", "EAGAIN"),
        ("rm /d", "write /d/s/x/y 1", "EAGAIN"),
        ("rm /d", "rm /d/s/x", "EAGAIN"),
        ("rm /d", "rm /d/s", "EAGAIN"),
        ("rm /d", "set_perms /d/s/x r0", "EAGAIN"),
        ("rm /d/s/x", "write /d/s/other 1", "OK"),
        ("write /d 1", "write /d/s/x 1", "OK"),
        ("directory /d", "write /d/s/x/y 1", "OK"),
        ("read /none", "write /none 1", "EAGAIN"),
        ("read /none/x", "mkdir /none", "EAGAIN"),
        ("read /none", "write /other 1", "OK"),
        ("mkdir /none", "mkdir /none", "EAGAIN"),
        ("directory /", "write /none 1", "EAGAIN"),
        ("directory /", "rm /a", "EAGAIN"),
        ("directory /a", "write /none 1", "OK"),
        ("get_perms /a", "set_perms /a r0", "EAGAIN"),
        ("set_perms /a r0", "write /a 1", "EAGAIN"),
        ("write /a/x 1", "rm /a", "EAGAIN"),
        ("write /a/x/y/z 1", "write /a/x/other 1", "EAGAIN"),
    ];
    for (inside, outside, want) in table {
        let mut player = Player::new();
        for step in ["0 write /a 0", "0 write /b 0", "0 write /d/s/x 0", "x transaction_start"] {
            player.step(step);
        }
        player.step(&format!("x.1 {inside}"));
        assert_eq!(player.step(&format!("0 {outside}")), "OK");
        assert_eq!(player.step("x.1 transaction_end T"), want, "{inside} against {outside}");
        assert_eq!(player.step("x.1 transaction_end T"), "ENOENT", "over in any case");
        assert_eq!(player.store().check(), Ok(()));
    }
}

#[test]
fn t3_what_changed_before_it_was_looked_at_is_no_conflict() {
    play(
        "0 write /a 1
         0 transaction_start => 1
         0.1 read /tool => ''
         0 write /a 2
         0.1 read /a => 2
         0.1 write /c 1
         0.1 transaction_end T
         0 read /c => 1",
    );
}

#[test]
fn t4_a_failure_inside_spoils_it() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 mkdir /d/five
         0 set_quota 5 nodes 2
         5 transaction_start => 1
         5.1 write /d/five/a 1
         5.1 write /d/five/b 1 => ENOSPC
         5.1 transaction_end T => ENOSPC
         5 directory /d/five => ''
         5 transaction_start => 2
         5.2 read /none => EACCES
         5.2 write /d/five/x {v*3000} => ENOSPC
         5.2 transaction_end F
         5 transaction_start => 3
         5.3 read /none => EACCES
         5.3 read /d/none => ENOENT
         5.3 write /d/five/a 1
         5.3 transaction_end T
         0 set_quota 5 memory 1000
         5 write /d/five/a {v*1500} => ENOMEM
         5 transaction_start => 4
         5.4 write /d/five/a {v*1500} => ENOMEM
         5.4 transaction_end T => ENOMEM",
    );
}

#[test]
fn t5_transaction_end() {
    let mut player = Player::new();
    for (step, want) in [
        ("0 transaction_end T", "ENOENT"),
        ("0 transaction_start", "1"),
        ("0.1 transaction_end x", "EINVAL"),
        ("0.1 transaction_end ''", "EINVAL"),
        ("0.1 transaction_end T", "OK"),
        ("0.1 transaction_end T", "ENOENT"),
        ("x transaction_start", "1"),
        ("x.1 write /a 1", "OK"),
    ] {
        assert_eq!(player.step(step), want, "{step}");
    }
    player.disconnect("x");
    assert_eq!(player.step("0 read /a"), "ENOENT");
    assert_eq!(player.step("x.1 transaction_end T"), "ENOENT");
    assert_eq!(player.store().check(), Ok(()));
}

#[test]
fn t6_independent_creations_below_one_parent_both_commit() {
    play(
        "0 write /d/x 1
         0 transaction_start => 1
         x transaction_start => 1
         0.1 write /d/new1/state 1
         x.1 write /d/new2/state 2
         0.1 write /d/x 3
         0 write /d/new0 1
         0.1 transaction_end T
         x.1 transaction_end T
         0 directory /d => x|new0|new1|new2
         0 transaction_start => 2
         x transaction_start => 2
         0.2 rm /d/new1
         x.2 rm /d/new2
         0.2 transaction_end T
         x.2 transaction_end T
         0 directory /d => x|new0",
    );
}

/// Eight clients add to one counter, each answer before the next request.
#[test]
fn no_writer_starves_and_no_update_is_lost() {
    const WRITERS: usize = 8;
    let mut player = Player::new();
    player.step("0 write /counter 0");
    let names: Vec<String> = (0..WRITERS).map(|n| format!("w{n}")).collect();
    let (mut state, mut done, mut lost) = (vec![(0, 0); WRITERS], [0; WRITERS], 0);
    for round in 0..4000 {
        let n = round % WRITERS;
        let (who, (step, tx)) = (&names[n], state[n]);
        let reply = match step {
            0 => player.step(&format!("{who} transaction_start ''")),
            1 => player.step(&format!("{who}.{tx} read /counter")),
            2 => "OK".into(),
            _ => player.step(&format!("{who}.{tx} transaction_end T")),
        };
        let reply = reply.split(" ! ").next().unwrap();
        state[n] = match step {
            0 if reply.starts_with("waits") => (0, 0),
            0 => (1, reply.parse().unwrap()),
            1 => {
                let next: usize = reply.parse::<usize>().unwrap() + 1;
                player.step(&format!("{who}.{tx} write /counter {next}"));
                (2, tx)
            }
            2 => (3, tx),
            _ => {
                done[n] += usize::from(reply == "OK");
                lost += usize::from(reply == "EAGAIN");
                (0, 0)
            }
        };
    }
    let total: usize = done.iter().sum();
    assert_eq!(player.step("0 read /counter"), total.to_string());
    let (least, most) = (done.iter().min().unwrap(), done.iter().max().unwrap());
    assert!(least + 1 >= *most && *least > 0, "{done:?}");
    assert!(lost < 2 * WRITERS, "{lost} lost, {done:?}");
}

#[test]
fn v6_what_came_and_went_in_a_transaction_is_told_to_nobody() {
    play(
        "0 write /a/old/x 1
         0 watch / w => OK ! 0 / w
         0 watch /a/old/x exact => OK ! 0 /a/old/x exact
         0 transaction_start => 1
         0.1 write /a/b/c/d 1
         0.1 rm /a/b/c/d
         0.1 rm /a/b
         0.1 write /a/kept 1
         0.1 write /a/old/x 2
         0.1 rm /a/old
         0.1 transaction_end T => OK ! 0 /a/kept w ! 0 /a/old/x w ! 0 /a/old/x exact ! 0 /a/old/x exact ! 0 /a/old w
         0 transaction_start => 2
         0.2 write /new 1
         0.2 rm /new
         0.2 write /new 2
         0.2 rm /a/kept
         0.2 write /a/kept 1
         0.2 transaction_end T => OK ! 0 /new w ! 0 /a/kept w",
    );
}

#[test]
fn t_special_names_are_changed_when_the_transaction_commits() {
    play(
        "0 introduce 5 1 1
         0 watch @releaseDomain w => OK ! 0 @releaseDomain w
         0 transaction_start => 1
         0.1 set_perms @releaseDomain n0 r5
         0.1 get_perms @releaseDomain => n0|r5
         0 get_perms @releaseDomain => n0
         0.1 transaction_end F
         0 get_perms @releaseDomain => n0
         0 transaction_start => 2
         0.2 write /a 1
         0.2 set_perms @releaseDomain n0 r5
         0.2 set_perms @releaseDomain/5 n5
         0.2 set_perms @releaseDomain/6 n0 => ENOENT
         0.2 transaction_end T => OK ! 0 @releaseDomain w
         0 get_perms @releaseDomain => n0|r5
         0 get_perms @releaseDomain/5 => n5
         0 transaction_start => 3
         0.3 get_perms @releaseDomain => n0|r5
         0.3 write /a 2
         0 set_perms @releaseDomain n0 => OK ! 0 @releaseDomain w
         0.3 transaction_end T => EAGAIN
         0 transaction_start => 4
         0.4 set_perms @releaseDomain/5 n0
         0 release 5 => OK ! 0 @releaseDomain w
         0.4 transaction_end T => EAGAIN
         0 get_perms @releaseDomain/5 => ENOENT",
    );
}

#[test]
fn control_check_counts_the_transaction_it_is_asked_in() {
    play(
        "0 transaction_start => 1
         0.1 control check
         0.1 control nope => EINVAL
         0.1 write /a 1
         0.1 transaction_end T
         0 read /a => 1",
    );
}
