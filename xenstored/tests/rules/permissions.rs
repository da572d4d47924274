//! The rules of permissions.

use crate::script::play;

#[test]
fn a1_owner_then_first_entry_that_matches_then_default() {
    play(
        "5 get_feature '' => 15
         6 get_feature '' => 15
         7 get_feature '' => 15
         0 write /n 1
         0 set_perms /n r5 w6 b6 n7
         5 read /n => 1
         5 write /n 2
         6 read /n => EACCES
         6 write /n 3
         7 read /n => EACCES
         8 read /n => 3
         8 write /n 4 => EACCES
         x write /n 5",
    );
}

#[test]
fn a2_set_perms() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 mkdir /d/own
         6 get_domain_path 6 => /local/domain/6
         5 set_perms /d/own n5 r6
         6 read /d/own => ''
         6 set_perms /d/own b5 => EACCES
         7 read /d/own => EACCES
         5 set_perms /d/own n6 => EPERM
         5 set_perms /d n5 => EACCES
         5 set_perms /d/own x5 => EINVAL
         5 set_perms /d/own n => EINVAL
         5 set_perms /d/own n5 r-1 => EINVAL
         5 set_perms /d/own n5 r70000 => EINVAL
         5 set_perms /d/own n5 r1 r2 r3 r4
         5 set_perms /d/own n5 r1 r2 r3 r4 r6 => ENOSPC
         5 set_perms /d/none n5 => ENOENT
         0 set_perms /d n99 => ENOENT
         0 set_perms /d n0 r99
         0 get_perms /d => n0|r99
         5 set_perms @releaseDomain n0 r5 => EACCES",
    );
}

#[test]
fn a2_special_names_have_owners_and_tell_of_changes() {
    play(
        "0 watch @releaseDomain t => OK ! 0 @releaseDomain t
         5 watch @releaseDomain five => OK ! 5 @releaseDomain five
         0 set_perms @releaseDomain n0 => OK ! 0 @releaseDomain t
         0 set_perms @releaseDomain n5 => OK ! 0 @releaseDomain t ! 5 @releaseDomain five
         6 set_perms @releaseDomain n6 => EACCES
         5 set_perms @releaseDomain n6 => EPERM
         5 set_perms @releaseDomain n5 r6 => OK ! 0 @releaseDomain t ! 5 @releaseDomain five
         6 get_perms @releaseDomain => n5|r6
         7 get_perms @releaseDomain => EACCES
         7 get_perms @foo => EACCES
         7 set_perms @foo n7 => EACCES
         0 get_perms @foo => ENOENT
         0 set_perms @foo n0 => ENOENT",
    );
}

#[test]
fn a3_rights_die_with_their_domain() {
    play(
        "0 write /early 1
         0 set_perms /early n0 r7
         5 get_feature '' => 15
         0 write /grant 1
         0 set_perms /grant n0 r5
         5 read /grant => 1
         0 release 5
         5 read /grant => EACCES
         7 read /early => EACCES
         0 get_perms /grant => n0|r5
         0 set_perms /grant n0 r5
         5 read /grant => 1",
    );
}

#[test]
fn a3_a_toolstack_may_prepare_a_domain_before_it_is_introduced() {
    play(
        "0 transaction_start => 1
         0.1 rm /local/domain/8 => ENOENT
         0.1 mkdir /local/domain/8
         0.1 set_perms /local/domain/8 n0 r8
         0.1 write /local/domain/8/device 1
         0.1 set_perms /local/domain/8/device n8
         0.1 transaction_end T
         8 read name => ENOENT
         8 read device => 1
         8 write device 2
         0 release 8
         0 read /local/domain/8/device => ENOENT
         8 read x => EACCES",
    );
}

#[test]
fn a4_an_entry_for_every_domain() {
    play(
        "0 write /n 1
         0 set_perms /n n0 r32757
         5 read /n => 1
         9 read /n => 1
         9 write /n 2 => EACCES
         0 set_perms /n n0 n9 b32757
         9 read /n => EACCES
         5 write /n 2
         0 get_perms /n => n0|n9|b32757
         0 set_perms /n n32757 => ENOENT",
    );
}

#[test]
fn a5_a_domain_has_its_targets_rights() {
    play(
        "0 set_target 5 6 => ENOENT
         0 introduce 5 1 1
         0 set_target 5 6 => ENOENT
         0 introduce 6 1 1
         0 write /six 1
         0 set_perms /six n6
         0 write /for-six 1
         0 set_perms /for-six n0 r6
         5 read /six => EACCES
         5 watch /six t => OK ! 5 /six t
         0 write /six 2
         0 set_target 5 6
         5 read /six => 2
         5 read /for-six => 1
         5 set_perms /six r6 => OK ! 5 /six t
         0 write /six 3 => OK ! 5 /six t
         6 read /six => 3
         0 set_perms /six n6 => OK ! 5 /six t
         0 release 6 => OK ! 5 /six t
         0 introduce 6 1 1
         0 write /again 1
         0 set_perms /again n6
         5 read /again => EACCES
         0 set_target 5 x => EINVAL
         0 set_target 5 => EINVAL",
    );
}
