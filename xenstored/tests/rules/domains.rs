//! The rules of domains.

use crate::script::{Player, play};

#[test]
fn d1_introduce() {
    play(
        "0 introduce 5 1 => EINVAL
         0 introduce 5 x 1 => EINVAL
         0 introduce 5 1 0 => EINVAL
         0 introduce 5 1 -1 => EINVAL
         0 introduce x 1 1 => EINVAL
         0 introduce 0 1 1 => EINVAL
         0 introduce 32752 1 1 => EINVAL
         0 introduce 70000 1 1 => EINVAL
         0 is_domain_introduced 5 => F
         0 introduce 5 1 1
         0 is_domain_introduced 5 => T
         0 is_domain_introduced 0 => T
         0 is_domain_introduced 32752 => T",
    );
    let mut player = Player::new();
    player.has_ring = false;
    assert_eq!(player.step("0 introduce 5 1 1"), "EINVAL", "without descriptors");
    assert_eq!(player.step("0 is_domain_introduced 5"), "F");
}

#[test]
fn d2_a_second_introduce_begins_anew() {
    play(
        "5 watch x t => OK ! 5 x t
         5 transaction_start => 1
         0 introduce 5 1 2
         5.1 read x => ENOENT
         5 unwatch x t => ENOENT
         0 is_domain_introduced 5 => T",
    );
}

#[test]
fn d3_release() {
    play(
        "0 release 6 => ENOENT
         0 release 0 => EINVAL
         0 release x => EINVAL
         0 mkdir /d
         0 set_perms /d b0
         5 write /d/five/x 1
         0 write /d/five/host 1
         6 write /d/six 1
         6 mkdir /d/six/mine
         0 mkdir /d/six/of-five
         0 set_perms /d/six/of-five n5
         0 watch /d w => OK ! 0 /d w
         0 release 5 => OK ! 0 /d/five w ! 0 /d/six/of-five w
         0 directory /d => six
         0 directory /d/six => mine
         0 is_domain_introduced 5 => F",
    );
}

#[test]
fn d3_a_domain_of_which_only_the_home_is_there_cannot_be_released() {
    play(
        "0 watch @releaseDomain w => OK ! 0 @releaseDomain w
         0 mkdir /local/domain/7
         0 set_perms /local/domain/7 n7
         0 release 7 => ENOENT
         0 get_perms /local/domain/7 => n7
         0 introduce 7 1 1
         0 release 7 => OK ! 0 @releaseDomain w
         0 release 7 => ENOENT",
    );
}

#[test]
fn d3_a_root_that_a_dead_domain_owned_is_the_hosts() {
    play(
        "0 introduce 5 1 1
         0 set_perms / b5
         5 write /a/b 1
         0 release 5
         0 get_perms / => n0
         0 directory / => tool",
    );
}

#[test]
fn d4_resume_arms_the_shutdown_event_again() {
    let mut player = Player::new();
    for step in ["0 introduce 5 1 1", "0 watch @releaseDomain t"] {
        player.step(step);
    }
    assert_eq!(player.shut_down(5), "0 @releaseDomain t");
    assert_eq!(player.shut_down(5), "");
    assert_eq!(player.step("0 resume 6"), "ENOENT");
    assert_eq!(player.step("0 resume 0"), "EINVAL");
    assert_eq!(player.step("0 resume 5"), "OK");
    assert_eq!(player.shut_down(5), "0 @releaseDomain t");
    assert_eq!(player.shut_down(9), "", "no such domain");
}

#[test]
fn d5_get_domain_path() {
    play(
        "0 get_domain_path 007 => /local/domain/7
         5 get_domain_path 7 => /local/domain/7
         0 get_domain_path 0 => /local/domain/0
         0 get_domain_path x => EINVAL",
    );
}

/// Without the features a domain is as with an older store.
#[test]
fn r6_what_was_withheld_is_not_there() {
    play(
        "0 mkdir /local/domain/5
         0 set_feature 5 0
         0 introduce 5 1 1
         5 watch /a t 0 => EINVAL
         5 watch /a t junk => EINVAL
         5 watch @releaseDomain t 1 => EINVAL
         5 watch @releaseDomain/6 t => EINVAL
         5 watch @releaseDomain t => OK ! 5 @releaseDomain t
         6 watch /a t 0 => OK ! 6 /a t
         6 watch @releaseDomain/6 t => OK ! 6 @releaseDomain/6 t
         0 mkdir /d
         0 set_perms /d b0
         5 write /d/five 1
         6 write /d/six 1
         5 set_perms /d/five n5 r32757
         6 set_perms /d/six n6 r32757
         6 read /d/five => EACCES
         5 read /d/six => 1
         6 get_perms /d/five => EACCES
         0 get_perms /d/five => n5|r32757
         0 set_perms /d/five n5 r32757
         6 read /d/five => 1",
    );
}

#[test]
fn r6_features() {
    let mut player = Player::new();
    use xenstored::wire::MsgType;
    assert_eq!(player.request("5", MsgType::GET_FEATURE, 0, b""), "15");
    play(
        "5 get_feature '' => 15
         0 get_feature '' => 15
         0 set_feature 6 3 => ENOENT
         0 mkdir /local/domain/6
         0 set_feature 6 3
         0 introduce 6 -1 1 reserved
         0 get_feature 6 => 3
         6 get_feature '' => 3
         0 set_feature 6 1 => EBUSY
         0 set_feature 7 16 => EINVAL
         0 set_feature 7 x => EINVAL
         0 set_feature 7 => EINVAL
         0 get_feature 99 => ENOENT
         0 set_feature 99 3 => ENOENT
         0 set_quota 99 nodes 3 => ENOENT
         0 release 6
         0 introduce 6 1 1
         0 get_feature 6 => 15",
    );
}

/// The daemon's option -K.
#[test]
fn d_orphans_can_be_kept() {
    let mut player = Player::new();
    player.store().keep_orphans(true);
    for step in ["0 mkdir /d", "0 set_perms /d b0", "5 write /d/five/a/b 1", "6 write /d/five/a/six 2"] {
        player.step(step);
    }
    for (step, want) in [
        ("0 set_perms /d/five b5 r6", "OK"),
        ("5 write /d/five/a/six/five/x 3", "OK"),
        ("6 mkdir /d/five/a/six/more", "OK"),
        ("0 set_perms /d/five/a/six/more n5", "OK"),
        ("0 watch /d w", "OK ! 0 /d w"),
        ("0 release 5", "OK"),
        ("0 control check", "OK"),
        ("0 get_perms /d/five", "b0|r6"),
        ("0 get_perms /d/five/a/b", "b0"),
        ("0 get_perms /d/five/a/six/more", "n0"),
        ("0 get_perms /d/five/a/six/five/x", "b0"),
        ("0 get_perms /d/five/a/six", "b6"),
        ("0 read /d/five/a/b", "1"),
        ("5 write /d/five/a/b 2", "OK"),
        ("5 set_perms /d/five/a/b n5", "EACCES"),
    ] {
        let reply = player.step(step);
        assert_eq!(reply.split(" ! 0 /d/five").next().unwrap(), want, "{step}");
    }
    assert_eq!(player.store().check(), Ok(()));
}
