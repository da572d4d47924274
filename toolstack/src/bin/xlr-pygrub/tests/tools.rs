//! Programs that make and check file systems.

use std::path::Path;
use std::process::{Command, Stdio};

/// A program of e2fsprogs; `None`, with a line that says so, where it is missing and may be.
pub fn tool(name: &str) -> Option<Command> {
    // Where nobody but root has it in PATH.
    let sbin = Path::new("/usr/sbin").join(name);
    let mut command = Command::new(if sbin.exists() { sbin.as_os_str() } else { name.as_ref() });
    if command.arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        assert!(
            std::env::var_os("XLR_TOOLS_REQUIRED").is_none(),
            "XLR_TOOLS_REQUIRED is set, but there is no {name}"
        );
        println!("SKIP: no {name}: apt-get install e2fsprogs");
        return None;
    }
    let mut command = Command::new(command.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Some(command)
}

/// What it says on both streams.
pub fn output(mut command: Command) -> String {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}
