//! The program as its starter meets it.

use std::process::Command;

#[test]
fn a_start_that_fails_before_there_is_a_log_says_why_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let launch = dir.path().join("launch.json");
    for (text, why) in [(None, "No such file or directory"), (Some("{"), "EOF while parsing")] {
        text.into_iter().for_each(|text| std::fs::write(&launch, text).unwrap());
        let mut program = Command::new(env!("CARGO_BIN_EXE_xen-emu"));
        let ran = program.arg("--run-dir").arg(dir.path()).output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!((ran.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(launch.to_str().unwrap()) && said.contains(why), "{said}");
    }
}
