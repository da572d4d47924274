//! The rules of nodes: creation, removal, hiding, listing.

use crate::script::{Player, play};

#[test]
fn s1_write_and_mkdir_create_missing_parents() {
    play(
        "0 watch / w => OK ! 0 / w
         0 write /a/b/c 1 => OK ! 0 /a/b/c w
         0 read /a => ''
         0 read /a/b => ''
         0 mkdir /a/b/c
         0 read /a/b/c => 1
         0 mkdir /a/d/e => OK ! 0 /a/d/e w
         0 directory /a => b|d
         0 directory /a/d => e
         0 mkdir /
         0 write / root => OK ! 0 / w
         0 read / => root",
    );
}

#[test]
fn s2_new_nodes_inherit_permissions_and_guests_own_what_they_create() {
    play(
        "0 mkdir /open
         0 set_perms /open b0 r6 w7
         5 write /open/own/deep 1
         0 get_perms /open/own => b5|r6|w7
         0 get_perms /open/own/deep => b5|r6|w7
         0 write /open/own/theirs 1
         0 get_perms /open/own/theirs => b5|r6|w7
         0 write /open/host 1
         0 get_perms /open/host => b0|r6|w7",
    );
}

#[test]
fn s3_the_nearest_existing_ancestor_decides_on_creation() {
    play(
        "5 get_feature '' => 15
         0 mkdir /closed/open
         0 set_perms /closed r0
         0 set_perms /closed/open n0 w5
         5 write /closed/x 1 => EACCES
         5 write /closed/x/y/z 1 => EACCES
         5 mkdir /closed/x => EACCES
         5 write /closed/open/x/y 1
         0 read /closed/open/x/y => 1",
    );
}

#[test]
fn s4_rm() {
    play(
        "0 write /a/b/c 1
         0 rm /a/x
         0 rm /a/x/y => ENOENT
         0 rm /x
         0 rm /x/y => ENOENT
         0 rm / => EINVAL
         0 rm /a
         0 read /a/b/c => ENOENT
         0 read /a => ENOENT
         0 rm /a",
    );
}

#[test]
fn s5_who_may_not_look_does_not_learn_what_is_there() {
    play(
        "0 write /open/secret/x 1
         0 set_perms /open b0
         0 set_perms /open/secret n0
         5 read /open/secret => EACCES
         5 read /open/secret/x => EACCES
         5 read /open/secret/missing => EACCES
         5 read /open/missing => ENOENT
         5 directory /open/missing => ENOENT
         5 get_perms /open/missing => ENOENT
         5 set_perms /open/missing n5 => ENOENT
         5 directory_part /open/secret 0 => EACCES
         5 read /tool/missing => EACCES
         5 rm /tool/missing => EACCES
         5 mkdir /open/secret => EACCES
         0 set_perms /open r0
         5 rm /open/none => EACCES
         5 read /open/none => ENOENT",
    );
}

#[test]
fn s6_directory_lists_in_the_order_of_creation() {
    let mut player = Player::new();
    let mut want = Vec::new();
    for n in (0..300).rev() {
        player.step(&format!("0 write /d/n{n} 1"));
        want.push(format!("n{n}"));
    }
    assert_eq!(player.step("0 directory /d"), want.join("|"));
    for n in (0..300).step_by(3) {
        player.step(&format!("0 rm /d/n{n}"));
        want.retain(|name| *name != format!("n{n}"));
    }
    player.step("0 write /d/n0 1");
    want.push("n0".into());
    assert_eq!(player.step("0 directory /d"), want.join("|"));
    assert_eq!(player.step("0 directory /d/n0"), "");
}

/// Takes a directory in parts, as libxenstore does.
fn parts(player: &mut Player, path: &str) -> (String, Vec<String>, usize) {
    let (mut names, mut messages) = (String::new(), 0);
    loop {
        let reply = player.step(&format!("0 directory_part {path} {}", names.len()));
        messages += 1;
        // The script shows NUL as | and leaves one at the end away.
        let (generation, part) = reply.split_once('|').unwrap();
        names.push_str(part);
        if part.ends_with('|') || part.is_empty() {
            let names = names.split_terminator('|').map(str::to_owned).collect();
            return (generation.to_owned(), names, messages);
        }
        names.push('|');
    }
}

#[test]
fn s7_directory_part() {
    play(
        "0 mkdir /d
         0 directory_part /d 0 => 3|
         0 write /d/a 1
         0 write /d/bb 1
         0 directory_part /d 0 => 5|a|bb|
         0 directory_part /d 2 => 5|bb|
         0 directory_part /d 5 => 5|
         0 directory_part /d 99 => 5|
         0 write /d x
         0 directory_part /d 5 => 6|
         0 directory_part /d -1 => EINVAL
         0 directory_part /d => EINVAL
         0 directory_part /d 0 0 => EINVAL
         0 directory_part /none 0 => ENOENT
         0 transaction_start => 1
         0.1 write /d/c 1
         0.1 directory_part /d 0 => 7|a|bb|c|
         0.1 rm /d/a
         0.1 directory_part /d 0 => 8|bb|c|
         0 directory_part /d 0 => 6|a|bb|",
    );
    let mut player = Player::new();
    let want: Vec<String> = (0..2000).map(|n| format!("child-{n}")).collect();
    for name in &want {
        assert_eq!(player.step(&format!("0 write /big/{name} 1")), "OK");
    }
    let (generation, names, messages) = parts(&mut player, "/big");
    assert_eq!((names, messages), (want, 6));
    for change in ["write /big x", "set_perms /big r0", "write /big/new 1", "rm /big/new"] {
        let (before, ..) = parts(&mut player, "/big");
        assert_eq!(player.step(&format!("0 {change}")), "OK");
        assert_ne!(parts(&mut player, "/big").0, before, "{change}");
    }
    assert_ne!(parts(&mut player, "/big").0, generation);
}

/// Whose memory is told to be free when an RM is answered.
#[test]
fn s4_a_removal_waits_for_its_own_nodes_only() {
    let mut player = Player::new();
    for step in ["0 mkdir /d", "0 set_perms /d b0"] {
        player.step(step);
    }
    for n in 0..900 {
        assert_eq!(player.step(&format!("5 write /d/five/{}/{n} 1", n / 100)), "OK");
        assert_eq!(player.step(&format!("0 write /big/{n} 1")), "OK");
    }
    player.step("x write /small/leaf 1");
    player.step("5 rm /d/five");
    player.step("0 rm /big");
    let [client, other] = ["0", "x"].map(|who| player.connection(who));
    assert!(player.store().is_removing(client));
    for step in [
        "x rm /small",
        "x rm /gone",
        "x rm /no/way",
        "x transaction_start",
        "x.1 rm /d",
        "x.1 transaction_end F",
    ] {
        player.step(step);
        assert!(!player.store().is_removing(other), "{step}");
    }
    // Its own come before the guest's. Some went at the end of the request.
    let (before, left) = (player.store().nodes(), 901 - 128);
    assert!(player.store().tidy(left));
    assert!(!player.store().is_removing(client));
    assert_eq!(player.store().nodes(), before - left);
    assert!(!player.store().tidy(1000));
    assert_eq!(player.store().check(), Ok(()));
}
