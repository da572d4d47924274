//! The rules of the store as tables: who asks what, what is answered, who is told.
//!
//! A line is `WHO[.TRANSACTION] REQUEST ARGS... => REPLY ! WHO PATH TOKEN ! ...`. `WHO` is a domain; 0 and letters are
//! clients on the socket. Without `=>` the reply is OK; NUL is shown as `|`, the last one not at all. Every event that
//! a request causes is listed, in order. `{x*9}` stands for nine times `x`.
#![expect(clippy::unwrap_used, reason = "a panic is the verdict of a test")]

mod model;
mod script;

use script::play;

#[test]
fn w4_w5_w8_requests_that_are_refused() {
    play(
        "0 20 /a => ENOSYS
         0 watch_event a => ENOSYS
         0 error a => ENOSYS
         0 999 a => ENOSYS
         5 control help => EACCES
         5 introduce 6 1 1 => EACCES
         5 release 6 => EACCES
         5 is_domain_introduced 5 => EACCES
         5 resume 5 => EACCES
         5 set_target 5 0 => EACCES
         5 set_feature 6 1 => EACCES
         5 get_quota nodes => EACCES
         5 set_quota nodes 1 => EACCES
         5 get_feature 5 => EACCES
         5 get_feature '' => 15
         0 read /a b => EINVAL
         0 read '' => EINVAL",
    );
}

#[test]
fn p1_p2_p3_paths() {
    play(
        "5 write x 1 => EACCES
         0 mkdir /local/domain/5
         0 set_perms /local/domain/5 n5
         5 write x 1
         0 read /local/domain/5/x => 1
         0 write rel 2
         0 read /local/domain/0/rel => 2
         5 read /local/domain/5/x => 1
         5 read /local/domain/ => EINVAL
         5 read @x => EINVAL
         5 write {a*2048} 1 => ENOSPC
         5 write {a*2049} 1 => EINVAL
         0 write /{a*3071} 1
         0 write /{a*3072} 1 => EINVAL
         0 get_perms @releaseDomain => n0
         0 get_perms @other => ENOENT",
    );
}

#[test]
fn s1_s3_s4_write_mkdir_rm() {
    play(
        "0 watch / w => OK ! 0 / w
         0 write /a/b/c 1 => OK ! 0 /a/b/c w
         0 read /a/b => ''
         0 mkdir /a/b/c
         0 read /a/b/c => 1
         0 mkdir /a/d/e => OK ! 0 /a/d/e w
         0 directory /a => b|d
         0 directory /a/b/c => ''
         0 rm /a/x
         0 rm /a/x/y => ENOENT
         0 rm / => EINVAL
         0 rm /a => OK ! 0 /a w
         0 read /a => ENOENT",
    );
}

#[test]
fn s2_s3_s5_permissions_and_hiding() {
    play(
        "0 write /open/secret 1
         0 set_perms /open b0
         0 set_perms /open/secret n0
         5 read /open/secret => EACCES
         5 read /open/missing => ENOENT
         5 read /open/secret/below => EACCES
         5 read /tool/missing => EACCES
         5 rm /tool/missing => EACCES
         5 write /tool/x 1 => EACCES
         5 write /open/own/deep 1
         5 get_perms /open/own => b5
         5 get_perms /open/own/deep => b5
         0 write /open/own/theirs 1
         0 get_perms /open/own/theirs => b5
         0 set_perms /open r0
         5 write /open/other 1 => EACCES
         5 rm /open/none => EACCES
         5 read /open/none => ENOENT",
    );
}

#[test]
fn a1_a2_set_perms() {
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
         5 set_perms /d => EINVAL
         5 set_perms /d n5 => EACCES
         5 set_perms /d/own x5 => EINVAL
         5 set_perms /d/own n5 r1 r2 r3 r4
         5 set_perms /d/own n5 r1 r2 r3 r4 r6 => ENOSPC
         5 set_perms /d/none n5 => ENOENT
         0 set_perms /d n99 => ENOENT
         0 set_perms /d n0 r99
         0 get_perms /d => n0|r99
         0 set_perms /d/own n0 r32756
         7 read /d/own => ''
         5 set_perms @releaseDomain n0 r5 => EACCES",
    );
}

#[test]
fn a3_xsa322_xsa417_rights_die_with_their_domain() {
    play(
        "0 write /early 1
         0 set_perms /early n0 r7
         5 get_feature '' => 15
         0 write /grant 1
         0 set_perms /grant n0 r5
         5 read /grant => 1
         0 release 5
         5 read /grant => EACCES
         7 read /early => EACCES",
    );
}

#[test]
fn a_toolstack_may_prepare_a_domain_before_it_is_introduced() {
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
fn a5_set_target() {
    play(
        "0 set_target 5 6 => ENOENT
         0 introduce 5 1 1
         0 set_target 5 6 => ENOENT
         0 introduce 6 1 1
         0 mkdir /six
         0 set_perms /six n6
         5 read /six => EACCES
         0 set_target 5 6
         5 read /six => ''
         5 set_perms /six r6",
    );
}

#[test]
fn v1_v2_v3_v4_watches() {
    play(
        "0 mkdir /a
         0 watch /a t => OK ! 0 /a t
         0 watch /a t => EEXIST
         0 watch /a u => OK ! 0 /a u
         0 watch /nope/x t => OK ! 0 /nope/x t
         0 write /ab 1
         0 write /a/b/c 1 => OK ! 0 /a/b/c t ! 0 /a/b/c u
         0 unwatch /a u
         0 unwatch /a u => ENOENT
         0 set_perms /a/b r0 => OK ! 0 /a/b t
         x watch /a/b/c exact => OK ! x /a/b/c exact
         x watch /a/b/none never => OK ! x /a/b/none never
         0 rm /a/b => OK ! 0 /a/b t ! x /a/b/c exact
         0 watch rel r => OK ! 0 rel r
         0 write /local/domain/0/rel/sub 1 => OK ! 0 rel/sub r
         0 rm /local/domain/0 => OK ! 0 rel r
         0 watch /a => EINVAL
         0 watch /a/ t => EINVAL",
    );
}

#[test]
fn v5_xsa115_events_are_for_those_who_may_read() {
    play(
        "0 mkdir /shut
         5 watch /shut t => OK ! 5 /shut t
         5 watch @introduceDomain t => OK ! 5 @introduceDomain t
         0 write /shut/x 1
         0 set_perms /shut n0 r5 => OK ! 5 /shut t
         0 write /shut/y 1 => OK ! 5 /shut/y t
         0 set_perms /shut n0 => OK ! 5 /shut t
         0 rm /shut
         0 introduce 6 1 1
         0 set_perms @introduceDomain n0 r5
         0 introduce 7 1 1 => OK ! 5 @introduceDomain t",
    );
}

#[test]
fn v6_v7_watches_and_transactions() {
    play(
        "0 watch /a w => OK ! 0 /a w
         0 transaction_start => 1
         0.1 write /a/x 1
         0.1 write /a/x 2
         0.1 write /a/y 1
         0.77 watch /b w => OK ! 0 /b w
         0.1 transaction_end T => OK ! 0 /a/x w ! 0 /a/y w
         0 transaction_start => 2
         0.2 rm /a
         0.2 transaction_end F
         0 read /a/x => 2
         0 watch /{p*1000} {t*3000} => OK ! 0 /{p*1000} {t*3000}
         0 write /{p*1000}/{q*200} lost",
    );
}

#[test]
fn v8_v9_special_events_and_depth() {
    play(
        "0 watch @releaseDomain any => OK ! 0 @releaseDomain any
         0 watch @releaseDomain which 1 => OK ! 0 @releaseDomain which
         0 watch @releaseDomain/6 six => OK ! 0 @releaseDomain/6 six
         0 watch @introduceDomain in => OK ! 0 @introduceDomain in
         0 introduce 6 1 1 => OK ! 0 @introduceDomain in
         0 introduce 6 1 2
         0 introduce 7 1 1 => OK ! 0 @introduceDomain in
         0 release 7 => OK ! 0 @releaseDomain any ! 0 @releaseDomain/7 which
         0 release 6 => OK ! 0 @releaseDomain any ! 0 @releaseDomain/6 which ! 0 @releaseDomain/6 six
         0 release 6 => ENOENT
         0 release 0 => EINVAL
         0 watch /d zero 0 => OK ! 0 /d zero
         0 watch /d one 1 => OK ! 0 /d one
         0 write /d/a/b 1
         0 write /d/a 1 => OK ! 0 /d/a one
         0 write /d 1 => OK ! 0 /d zero ! 0 /d one",
    );
}

#[test]
fn v10_xsa484_reset_watches() {
    play(
        "0 watch /a t => OK ! 0 /a t
         0 transaction_start => 1
         0 transaction_start => 2
         0.1 write /a 1
         0.1 reset_watches ''
         0.1 transaction_end T => ENOENT
         0.2 transaction_end T => ENOENT
         0 reset_watches ''
         0 write /a 1
         0 unwatch /a t => ENOENT",
    );
}

#[test]
fn t1_t5_transaction_ids() {
    play(
        "0 transaction_start => 1
         0.1 transaction_start => EBUSY
         0.9 read / => ENOENT
         x.1 read / => ENOENT
         0 transaction_end T => ENOENT
         0.1 transaction_end x => EINVAL
         0.1 transaction_end T
         0.1 transaction_end T => ENOENT",
    );
}

#[test]
fn t2_t3_t6_isolation_and_conflicts() {
    play(
        "0 write /a 1
         0 write /d/x 1
         0 transaction_start => 1
         0 write /a first
         0.1 read /a => first
         0 write /a second
         0.1 read /a => first
         0.1 write /b 1
         0 read /b => ENOENT
         0.1 transaction_end T => EAGAIN
         0 read /b => ENOENT
         0 transaction_start => 2
         0.2 read /missing => ENOENT
         0 write /missing 1
         0.2 transaction_end T => EAGAIN
         0 transaction_start => 3
         0 transaction_start => 4
         0.3 write /d/new3 3
         0.4 write /d/new4 4
         0.3 write /d/x 3
         0.3 transaction_end T
         0.4 transaction_end T
         0 directory /d => x|new3|new4
         0 transaction_start => 5
         0.5 directory /d => x|new3|new4
         0 write /d/new5 1
         0.5 transaction_end T => EAGAIN
         0 transaction_start => 6
         0.6 read /a => second
         0 rm /a
         0 write /a second
         0.6 transaction_end T => EAGAIN",
    );
}

#[test]
fn t4_xsa414_xsa415_quota_failures_leave_nothing_and_spoil_transactions() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         0 set_quota 5 nodes 3 => ENOENT
         5 mkdir /d/five
         0 set_quota 5 nodes 3
         5 write /d/five/a/b/c 1 => ENOSPC
         5 directory /d/five => ''
         5 transaction_start => 1
         5.1 write /d/five/a 1
         5.1 write /d/five/b/c 1 => ENOSPC
         5.1 transaction_end T => ENOSPC
         5 directory /d/five => ''
         5 write /d/five/a/b 1
         5 write /d/five/c 1 => ENOSPC
         5 rm /d/five/a
         5 write /d/five/c 1
         0 write /d/five/by/host 1
         5 write /d/five/x 1 => ENOSPC
         0 control check => OK",
    );
}

#[test]
fn xsa421_create_and_remove_in_one_transaction() {
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
         0 control check => OK",
    );
}

#[test]
fn quotas() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 write /d/v {v*2015}
         5 write /d/v {v*2016} => ENOSPC
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
         0 get_quota nodes => 1000
         0 get_quota 5 watches => 2
         0 set_quota nodes x => EINVAL
         0 get_quota bogus => EINVAL",
    );
}

#[test]
fn q2_xsa419_charges_follow_the_owner() {
    play(
        "0 mkdir /d
         0 set_perms /d b0
         5 write /d/five/a 1
         6 write /d/six 1
         0 write /d/five/host 1
         0 set_perms /d/five n6
         0 control check => OK
         0 set_perms /d/five/a n0
         0 control check => OK
         0 release 6
         0 directory /d => ''
         0 control check => OK
         0 release 5
         0 control check => OK",
    );
}

#[test]
fn domains() {
    play(
        "0 introduce 5 1 => EINVAL
         0 introduce 5 x 1 => EINVAL
         0 introduce 5 1 0 => EINVAL
         0 introduce 0 1 1 => EINVAL
         0 introduce 32752 1 1 => EINVAL
         0 is_domain_introduced 5 => F
         0 is_domain_introduced 0 => T
         0 set_feature 5 3
         0 introduce 5 1 1
         0 set_feature 5 1 => EBUSY
         0 get_feature 5 => 3
         0 is_domain_introduced 5 => T
         0 get_domain_path 007 => /local/domain/7
         5 get_domain_path 7 => /local/domain/7
         0 get_domain_path x => EINVAL
         0 resume 6 => ENOENT
         5 watch x t => OK ! 5 x t
         5 transaction_start => 1
         0 introduce 5 1 2
         5.1 read x => ENOENT
         5 unwatch x t => ENOENT",
    );
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
         0 directory_part /d => EINVAL",
    );
}

#[test]
fn xsa418_deep_trees() {
    let deep = "/a".repeat(1500);
    play(&format!(
        "0 write {deep} 1
         0 transaction_start => 1
         0.1 write {deep} 2
         0 control check => OK
         0 rm /a
         0.1 transaction_end T => EAGAIN
         0 control check => OK"
    ));
}
