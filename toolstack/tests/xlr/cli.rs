//! xlr as its users meet it: words, exit codes, and what stays behind.

use crate::bed::{Bed, ran};

#[test]
fn usage_errors_have_xl_s_words_and_codes() {
    let bed = Bed::new();
    for (line, status, err) in [
        ("bogus", 1, "command not implemented\n"),
        ("-N list", 1, "command does not implement -N (dryrun) option\n"),
        ("list -q", 2, "option `q' not supported.\n"),
        ("pause", 2, "'xlr pause' requires at least 1 argument(s).\n\nUsage: xlr [-vtTfN] pause <Domain>\n"),
        ("shutdown", 1, "You must specify -a or a domain id.\n\n"),
        ("shutdown nosuch", 1, "nosuch is an invalid domain identifier (rc=-6)\n"),
        ("destroy nosuch", 1, "nosuch is an invalid domain identifier (rc=-6)\n"),
        ("console nosuch", 1, "nosuch is an invalid domain identifier (rc=-6)\n"),
        ("list nosuch", 1, "nosuch is an invalid domain identifier (rc=-6)\n"),
        ("list 77", 1, "Error: Domain '77' does not exist.\n"),
        ("vcpu-list nosuch", 1, "nosuch is an invalid domain identifier (rc=-6)\n"),
        ("uptime nosuch", 1, "nosuch is an invalid domain identifier (rc=-6)\n"),
        ("destroy 0", 1, "Not destroying domain 0: it is this host.\n"),
        ("pause Domain-0", 1, "Domain-0 is this host, not a guest\n"),
        ("domid x", 1, "Can't get domid of domain name 'x', maybe this domain does not exist.\n"),
        ("domname 99", 1, "Can't get domain name of domain id '99', maybe this domain does not exist.\n"),
        ("create", 6, "Config file not specified: xlr create FILE [key=value ...]\n"),
        ("create memory=64", 6, "Config file not specified: xlr create FILE [key=value ...]\n"),
        (
            "create a.cfg b.cfg",
            2,
            "'xlr create' does not take `b.cfg'.\n\nUsage: xlr [-vtTfN] create <ConfigFile> [options] [vars]\n",
        ),
        (
            "create -f a.cfg b.cfg",
            2,
            "'xlr create' does not take `b.cfg'.\n\nUsage: xlr [-vtTfN] create <ConfigFile> [options] [vars]\n",
        ),
    ] {
        let words: Vec<_> = line.split(' ').collect();
        let ran = bed.xlr(&words);
        assert_eq!((ran.status, ran.err.as_str(), ran.out.as_str()), (status, err, ""), "{line}");
    }
    let bare = bed.xlr(&[]);
    assert_eq!(bare.status, 1);
    assert!(bare.out.starts_with("Usage xlr [-vfNtT] <subcommand> [args]\n"), "{}", bare.out);
    assert_eq!(bed.xlr(&["help"]).out, bare.out);
    let usage = bed.xlr(&["create", "-h"]);
    assert_eq!(usage.status, 0);
    assert!(usage.out.contains("-f FILE, --defconfig=FILE\n"), "{}", usage.out);
    assert!(bed.xlr(&["--version"]).out.starts_with("xlr 0."));
}

#[test]
fn list_has_xl_s_further_columns() {
    let bed = Bed::new();
    let ran = bed.xlr(&["list", "-cn"]);
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines[0].split('\t').next_back(), Some("Time(s)         Cpupool NODE Affinity"));
    assert!(lines[1].starts_with("Domain-0 ") && lines[1].ends_with("          Pool-0 all"), "{}", lines[1]);
}

#[test]
fn the_name_xl_works_too() {
    let bed = Bed::new();
    let help = std::process::Command::new(bed.path("bin/xl")).arg("help").output().unwrap();
    assert!(ran(help).out.starts_with("Usage xl "));
}

#[test]
fn a_create_that_fails_says_one_line_and_leaves_nothing() {
    let bed = Bed::new();
    let kernel = bed.path("nowhere");
    let missing = format!(
        "command line:1:8: cannot open kernel {}: No such file or directory (os error 2)",
        kernel.display()
    );
    for (more, word, status, err) in [
        (
            "memory = \"lots\"",
            "",
            1,
            "web.cfg:5:10: memory must be a number, \"lots\" is none; for example memory = 512",
        ),
        ("memry = 5", "", 1, "web.cfg:5:1: unknown key `memry`, did you mean `memory`?"),
        (
            "vcpus = ",
            "",
            1,
            "web.cfg:5:9: unexpected end of line, expected a string, a number or `[` for `vcpus`",
        ),
        ("", "kernel=nowhere", 3, missing.as_str()),
        ("", "cmdline=no-note", 3, "kernel /k: no PVH entry"),
        ("", "cmdline=die", 3, "the domain's process ended (exit status: 7): last words"),
    ] {
        let ran = bed.xlr(&["create", "-q", bed.config(more), word][..if word.is_empty() { 3 } else { 4 }]);
        assert_eq!((ran.status, ran.err.trim_end()), (status, err), "{more}{word}");
        assert_eq!(bed.domain_dirs(), [0u16; 0], "{more}{word}");
        assert_eq!(bed.store.paths(), [""; 0]);
    }
    let latin1 = bed.path("latin1.cfg");
    std::fs::write(&latin1, b"name = 'web'\n# f\xfcr alle\n").unwrap();
    let ran = bed.xlr(&["create", "-q", "latin1.cfg"]);
    let line = "latin1.cfg:2: byte 0xfc is not UTF-8 text: `iconv -f LATIN1` converts it\n";
    assert_eq!((ran.status, ran.err.as_str()), (1, line));
    let ran = bed.xlr(&["create", "/nonexist.cfg"]);
    let (status, line) =
        (3, "Failed to read config file: /nonexist.cfg: No such file or directory (os error 2)");
    assert_eq!((ran.status, ran.err.lines().last()), (status, Some(line)));
}

#[test]
fn dry_runs_print_libxl_s_json_and_touch_nothing() {
    let bed = Bed::new();
    let ran = bed.xlr(&["create", "-n", bed.config("disk=[]; pool='x'"), "vcpus=2", "name=over"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["c_info"]["name"], "over");
    assert_eq!(json["b_info"]["avail_vcpus"], serde_json::json!([0, 1]));
    assert_eq!(
        ran.err,
        "Parsing config from web.cfg\nweb.cfg:5:10: warning: `pool` has no meaning on KVM and no effect\n"
    );
    assert_eq!(bed.xlr(&["-N", "create", "-q", "web.cfg", "name=over"]).err, "");
    let before = bed.xlr(&["create", "-nq", "vcpus=2", "web.cfg", "name=over"]);
    assert!(before.out.contains("\"name\": \"over\","), "{}{}", before.out, before.err);
    assert!(!bed.path("run").exists());
    std::fs::write(bed.path("web.yaml"), "name: web\ntype: pvh\nkernel: kernel\nmemory: 64\n").unwrap();
    let yaml = bed.xlr(&["create", "-n", "web.yaml"]);
    assert!(yaml.out.contains("\"target_memkb\": 65536,"), "{}{}", yaml.out, yaml.err);
}

#[test]
fn info_has_xl_s_keys_and_the_backend() {
    let bed = Bed::new();
    let out = bed.xlr(&["info"]).out;
    let keys: Vec<_> =
        out.lines().filter_map(|line| line.split_once(" : ")).map(|(key, _)| key.trim()).collect();
    assert_eq!(keys[..4], ["host", "release", "version", "machine"]);
    assert!(
        out.contains("xend_config_format     : 4\n") && out.contains("\nbackend                : kernel\n"),
        "{out}"
    );
    let json: serde_json::Value = serde_json::from_str(&bed.xlr(&["info", "--json"]).out).unwrap();
    assert_eq!(json.as_object().unwrap().len(), keys.len());
    assert_eq!(json["kvm_xen_hvm"], "0x6f");
    let one = bed.xlr(&["info", "virt_caps"]);
    assert_eq!((one.status, one.out.trim_end()), (0, json["virt_caps"].as_str().unwrap()));
    let none = bed.xlr(&["info", "xen_cap"]);
    let line = "info has no field `xen_cap', did you mean `xen_caps'?\n";
    assert_eq!((none.status, none.out.as_str(), none.err.as_str()), (1, "", line));
}

#[test]
fn bash_completes_with_the_script() {
    let bed = Bed::new();
    let script = bed.xlr(&["completion", "bash"]).out;
    let bin = bed.path("bin");
    let complete = |words: &str| {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _xlr; echo ${{COMPREPLY[@]}}"
        );
        let mut bash = std::process::Command::new("bash");
        bash.arg("-c").arg(ask).env("PATH", format!("{}:/bin:/usr/bin", bin.display()));
        ran(bash.env("XLR_RUN_DIR", bed.path("run")).output().unwrap()).out
    };
    assert_eq!(complete("xlr sh"), "shutdown\n");
    assert_eq!(complete("xlr -v trigger web p"), "power\n");
    assert_eq!(complete("xlr completion ''"), "bash zsh fish\n");
}
