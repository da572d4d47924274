//! The rules of watches.

use crate::script::{Player, play};

#[test]
fn v1_the_reply_and_then_one_event() {
    play(
        "0 mkdir /a
         0 watch /a t => OK ! 0 /a t
         0 watch /a t => EEXIST
         0 watch /a u => OK ! 0 /a u
         x watch /a t => OK ! x /a t
         0 watch /nope/x t => OK ! 0 /nope/x t
         0 watch rel t => OK ! 0 rel t
         0 watch /local/domain/0/rel t => EEXIST
         5 watch /a t => OK ! 5 /a t
         5 watch home t => OK ! 5 home t
         0 watch /a => EINVAL
         0 watch /a/ t => EINVAL
         0 watch /a v x => EINVAL
         0 watch /a '' => OK ! 0 /a",
    );
}

#[test]
fn v2_a_watch_hears_of_its_node_and_of_those_below() {
    play(
        "0 mkdir /a
         0 watch /a t => OK ! 0 /a t
         0 watch rel r => OK ! 0 rel r
         0 write /a 1 => OK ! 0 /a t
         0 write /ab 1
         0 write /a/b/c/d 1 => OK ! 0 /a/b/c/d t
         0 mkdir /a/b/c/d
         0 write /local/domain/0/rel/sub 1 => OK ! 0 rel/sub r
         0 unwatch /a t
         0 write /a 2",
    );
}

#[test]
fn v3_a_removal_is_told_above_and_exactly_below() {
    play(
        "0 write /a/b/c/d 1
         0 watch / root => OK ! 0 / root
         0 watch /a/b self => OK ! 0 /a/b self
         x watch /a/b/c exact => OK ! x /a/b/c exact
         y watch /a/b/c/d deep => OK ! y /a/b/c/d deep
         z watch /a/b/none never => OK ! z /a/b/none never
         z watch /a/b-c other => OK ! z /a/b-c other
         0 rm /a/b => OK ! y /a/b/c/d deep ! x /a/b/c exact ! 0 /a/b root ! 0 /a/b self
         0 rm /a/b",
    );
}

#[test]
fn v4_set_perms_is_told_to_who_may_read_before_or_after() {
    play(
        "0 mkdir /shut
         5 watch /shut t => OK ! 5 /shut t
         0 set_perms /shut n0 r5 => OK ! 5 /shut t
         0 set_perms /shut n0 => OK ! 5 /shut t
         0 set_perms /shut n0",
    );
}

#[test]
fn v5_events_are_for_those_who_may_read_the_node_or_its_parent() {
    play(
        "0 mkdir /d/shut
         0 set_perms /d n0
         0 set_perms /d/shut n0
         5 watch /d t => OK ! 5 /d t
         0 write /d/shut 1
         0 set_perms /d r0 => OK ! 5 /d t
         0 write /d/shut 2 => OK ! 5 /d/shut t
         0 write /d/shut/x 1
         0 set_perms /d n0 => OK ! 5 /d t
         0 write /d/shut 3
         0 set_perms /d/shut r0 => OK ! 5 /d/shut t
         0 write /d/shut/x 2 => OK ! 5 /d/shut/x t
         0 rm /d/shut => OK ! 5 /d/shut t",
    );
}

#[test]
fn v6_transactions_are_silent_until_they_commit() {
    play(
        "0 write /a/old/x 1
         0 watch /a w => OK ! 0 /a w
         0 watch /a/old/x exact => OK ! 0 /a/old/x exact
         0 transaction_start => 1
         0.1 write /a/x 1
         0.1 write /a/x 2
         0.1 write /a/y 1
         0.1 rm /a/old
         0.77 watch /b w => OK ! 0 /b w
         0.77 unwatch /b w
         0.1 transaction_end T => OK ! 0 /a/x w ! 0 /a/y w ! 0 /a/old/x exact ! 0 /a/old w
         0 transaction_start => 2
         0.2 rm /a
         0.2 transaction_end F
         0 read /a/x => 2
         0 transaction_start => 3
         0.3 write /a/x 3
         0 write /a/x 4 => OK ! 0 /a/x w
         0.3 transaction_end T => EAGAIN",
    );
}

#[test]
fn v7_events_come_in_the_order_of_changes_and_too_long_ones_not_at_all() {
    play(
        "0 watch / w => OK ! 0 / w
         0 transaction_start => 1
         0.1 write /z 1
         0.1 write /a 1
         0.1 write /z 2
         0.1 write /m 1
         0.1 transaction_end T => OK ! 0 /z w ! 0 /a w ! 0 /m w
         0 unwatch / w
         0 watch /{p*1000} {t*3000} => OK ! 0 /{p*1000} {t*3000}
         0 write /{p*1000}/{q*92} heard => OK ! 0 /{p*1000}/{q*92} {t*3000}
         0 write /{p*1000}/{q*93} lost",
    );
}

#[test]
fn v7_one_change_is_told_in_the_order_of_registration_and_from_the_bottom_up() {
    play(
        "0 write /a/b/c 1
         0 write /a/b/a/x 1
         0 watch /a/b near => OK ! 0 /a/b near
         0 watch / root => OK ! 0 / root
         0 watch /a/b/c c => OK ! 0 /a/b/c c
         0 watch /a middle => OK ! 0 /a middle
         0 watch /a/b again => OK ! 0 /a/b again
         0 watch /a/b/a a => OK ! 0 /a/b/a a
         0 watch /a/b/a/x ax => OK ! 0 /a/b/a/x ax
         0 write /a/b 1 => OK ! 0 /a/b near ! 0 /a/b root ! 0 /a/b middle ! 0 /a/b again
         0 rm /a/b => OK ! 0 /a/b/c c ! 0 /a/b/a/x ax ! 0 /a/b/a a ! 0 /a/b near ! 0 /a/b root ! 0 /a/b middle ! 0 /a/b again",
    );
    play(
        "0 introduce 6 1 1
         0 watch @releaseDomain/6 six => OK ! 0 @releaseDomain/6 six
         0 watch @releaseDomain any => OK ! 0 @releaseDomain any
         0 release 6 => OK ! 0 @releaseDomain/6 six ! 0 @releaseDomain any",
    );
}

#[test]
fn v8_special_events() {
    let mut player = Player::new();
    for (step, want) in [
        ("0 watch @introduceDomain in", "OK ! 0 @introduceDomain in"),
        ("0 watch @releaseDomain out", "OK ! 0 @releaseDomain out"),
        ("0 introduce 6 1 1", "OK ! 0 @introduceDomain in"),
        ("0 introduce 6 1 2", "OK"),
        ("6 watch @releaseDomain six", "OK ! 6 @releaseDomain six"),
    ] {
        assert_eq!(player.step(step), want, "{step}");
    }
    let shut_down = "0 @releaseDomain out";
    assert_eq!(player.shut_down(6), shut_down);
    assert_eq!(player.shut_down(6), "", "told already");
    assert_eq!(player.step("0 resume 6"), "OK");
    let told = "OK ! 0 @releaseDomain out ! 6 @releaseDomain six";
    assert_eq!(player.step("0 set_perms @releaseDomain n0 r6"), told);
    assert_eq!(player.shut_down(6), "0 @releaseDomain out ! 6 @releaseDomain six");
    assert_eq!(player.step("0 introduce 7 1 1"), "OK ! 0 @introduceDomain in");
    assert_eq!(player.step("0 release 7"), "OK ! 0 @releaseDomain out ! 6 @releaseDomain six");
    assert_eq!(player.step("0 release 6"), "OK ! 0 @releaseDomain out");
}

#[test]
fn v9_depth() {
    play(
        "0 watch /d zero 0 => OK ! 0 /d zero
         0 watch /d one 1 => OK ! 0 /d one
         0 watch /d two 2 => OK ! 0 /d two
         0 write /d/a/b/c 1
         0 write /d/a/b 1 => OK ! 0 /d/a/b two
         0 write /d/a 1 => OK ! 0 /d/a one ! 0 /d/a two
         0 write /d 1 => OK ! 0 /d zero ! 0 /d one ! 0 /d two
         0 rm /d/a => OK ! 0 /d/a one ! 0 /d/a two
         0 watch /d x -1 => EINVAL
         0 watch @releaseDomain x 0 => OK ! 0 @releaseDomain x
         0 introduce 9 1 1
         0 release 9 => OK ! 0 @releaseDomain x
         0 watch @releaseDomain x 2 => EINVAL",
    );
    play(
        "0 watch @releaseDomain any => OK ! 0 @releaseDomain any
         0 watch @releaseDomain which 1 => OK ! 0 @releaseDomain which
         0 watch @releaseDomain/6 six => OK ! 0 @releaseDomain/6 six
         0 watch @introduceDomain in 1 => OK ! 0 @introduceDomain in
         0 introduce 6 1 1 => OK ! 0 @introduceDomain/6 in
         0 introduce 7 1 1 => OK ! 0 @introduceDomain/7 in
         0 introduce 5 1 1 => OK ! 0 @introduceDomain/5 in
         5 watch @releaseDomain/6 five => OK ! 5 @releaseDomain/6 five
         5 watch @releaseDomain/7 five => OK ! 5 @releaseDomain/7 five
         0 get_perms @releaseDomain/6 => ENOENT
         0 set_perms @releaseDomain/6 n0 r5 => OK ! 0 @releaseDomain/6 six ! 5 @releaseDomain/6 five
         0 get_perms @releaseDomain/6 => n0|r5
         0 set_perms @releaseDomain/99 n0 => ENOENT
         0 set_perms @releaseDomain/x n0 => ENOENT
         0 release 7 => OK ! 0 @releaseDomain any ! 0 @releaseDomain/7 which
         0 release 6 => OK ! 0 @releaseDomain any ! 0 @releaseDomain/6 which ! 0 @releaseDomain/6 six ! 5 @releaseDomain/6 five
         0 get_perms @releaseDomain/6 => ENOENT",
    );
}

#[test]
fn v10_reset_watches_drops_watches_and_transactions() {
    play(
        "0 watch /a t => OK ! 0 /a t
         x watch /a x => OK ! x /a x
         0 transaction_start => 1
         0 reset_watches ''
         0.1 transaction_end T => ENOENT
         0 write /a 1 => OK ! x /a x
         0 unwatch /a t => ENOENT
         0 watch /a t => OK ! 0 /a t
         0 unwatch /a other => ENOENT
         0 unwatch /b t => ENOENT
         0 unwatch /a t",
    );
}
