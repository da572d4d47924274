//! The rules of paths.

use crate::script::play;

#[test]
fn p1_shape_and_length() {
    play(
        "0 write /a-b_c@d/0Z 1
         0 read /a-b_c@d/0Z => 1
         0 read '' => EINVAL
         0 read // => EINVAL
         0 read /a/ => EINVAL
         0 read /a//b => EINVAL
         0 read /a.b => EINVAL
         0 read /a:b => EINVAL
         0 read a/ => EINVAL
         0 write /{a*3071} 1
         0 read /{a*3072} => EINVAL
         0 set_perms / b0
         5 read /{a*2047} => ENOENT
         5 read /{a*2048} => EINVAL
         5 read {a*2048} => ENOENT
         5 read {a*2049} => EINVAL
         5 read /local/domain/5/{a*2048} => ENOENT
         5 read /local/domain/5/{a*2049} => EINVAL
         5 read /local/domain/12345/{a*2048} => ENOENT
         0 set_quota path-max 10
         5 read /{a*9} => ENOENT
         5 read /{a*10} => EINVAL
         0 set_quota 5 path-max 0
         5 read /{a*3071} => EACCES",
    );
}

#[test]
fn p2_relative_paths_begin_at_home() {
    play(
        "5 write x 1 => EACCES
         0 mkdir /local/domain/5
         0 set_perms /local/domain/5 n5
         5 write x/y 1
         0 read /local/domain/5/x/y => 1
         5 directory x => y
         0 write rel 2
         x read /local/domain/0/rel => 2
         5 rm x
         0 directory /local/domain/5 => ''",
    );
}

#[test]
fn p3_special_names_are_for_watches_and_permissions() {
    let refused = ["read", "directory", "mkdir", "rm", "write"];
    for request in refused {
        play(&format!("0 {request} @releaseDomain => EINVAL"));
    }
    play(
        "0 directory_part @releaseDomain 0 => EINVAL
         0 get_perms @releaseDomain => n0
         0 get_perms @introduceDomain => n0
         0 get_perms @other => ENOENT
         0 set_perms @other n0 => ENOENT
         0 set_perms @releaseDomain n0 r5
         0 get_perms @releaseDomain => n0|r5
         0 watch @releaseDomain t => OK ! 0 @releaseDomain t
         0 watch @other t => OK ! 0 @other t
         0 unwatch @other t
         0 get_perms @ => EINVAL",
    );
}

#[test]
fn p4_initial_nodes() {
    play(
        "0 directory / => tool
         0 directory /tool => xenstored
         0 get_perms / => n0
         0 get_perms /tool => n0
         0 get_perms /tool/xenstored => n0",
    );
}
