//! What the command line says and with which exit code, where nothing but files is needed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

fn rackwright(args: &[&str]) -> Said {
    rackwright_with(args, &[])
}

/// Runs the program with these variables, and with a state folder of its own that must stay as it is.
fn rackwright_with(args: &[&str], variables: &[(&str, &str)]) -> Said {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackwright"));
    command.args(args).current_dir(folder.path()).env("XDG_STATE_HOME", folder.path());
    command.env("XDG_CONFIG_HOME", folder.path());
    for name in ["RACKWRIGHT_URL", "RACKWRIGHT_CA", "RACKWRIGHT_INVENTORY", "RACKWRIGHT_LOCK", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    let output = command.output().unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?} touched something");
    Said {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn every_area_says_what_it_can_do() {
    let mut golden = String::new();
    let areas: [&[&str]; 11] = [
        &[],
        &["lab"],
        &["artifacts"],
        &["check"],
        &["plan"],
        &["apply"],
        &["data"],
        &["job"],
        &["job", "submit"],
        &["serve"],
        &["cost"],
    ];
    for area in areas {
        let said = rackwright(&[area, &["--help"]].concat());
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{area:?}");
        writeln!(golden, "$ rackwright {}\n{}", [area, &["--help"]].concat().join(" "), said.stdout).unwrap();
    }
    insta::assert_snapshot!("help", golden);
}

#[test]
fn input_that_cannot_be_used_is_exit_code_2_with_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let lab = std::fs::read_to_string(repository().join("inventory/lab.toml")).unwrap();
    let inventory = |name: &str, from: &str, to: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, lab.replace(from, to)).unwrap();
        path.display().to_string()
    };
    let lock = repository().join("artifacts.lock").display().to_string();
    let other = inventory("other.toml", "kubernetes = \"1.36.3\"", "kubernetes = \"1.35.0\"");
    let slip = inventory("slip.toml", "cni = \"routes\"", "cny = \"routes\"");
    let good = inventory("good.toml", "", "");
    let cases: [(&[&str], &[&str]); 5] = [
        (&["frobnicate"], &["unrecognized subcommand", "--help"]),
        (&["check", "-i", "/nowhere.toml"], &["failed to read /nowhere.toml", "help: "]),
        (
            &["check", "-i", &slip, "--lock", &lock],
            &["slip.toml:11", "did you mean `cni`?", "nothing was touched"],
        ),
        (&["check", "-i", &good], &["failed to read the artifact lock artifacts.lock", "--lock"]),
        (
            &["check", "-i", &other, "--lock", &lock],
            &[
                "failed to build Kubernetes 1.35.0: the artifact lock pins 1.36.3",
                "help: write `kubernetes = \"1.36.3\"`",
            ],
        ),
    ];
    for (args, texts) in cases {
        let said = rackwright(args);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{args:?}: {}", said.stderr);
        for text in texts {
            assert!(said.stderr.contains(text), "{args:?} says {text:?}:\n{}", said.stderr);
        }
    }
}

#[test]
fn an_address_or_ca_that_cannot_be_used_is_said_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("ca.crt");
    std::fs::write(&empty, "not a certificate\n").unwrap();
    let empty = empty.display().to_string();
    let token = ("RACKWRIGHT_TOKEN", "rwt_x");
    let refused = |variables: &[(&str, &str)], text: &str| {
        let said = rackwright_with(&["job", "list"], &[&[token], variables].concat());
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{variables:?}: {}", said.stderr);
        assert!(said.stderr.contains(text), "{variables:?} says {text:?}:\n{}", said.stderr);
    };
    refused(&[], "find the controller's address\n  help: set RACKWRIGHT_URL");
    refused(&[("RACKWRIGHT_URL", "foo")], "use \"foo\" as the controller's address: it is no URL");
    refused(&[("RACKWRIGHT_URL", "http://127.0.0.1:1")], "the token would travel in clear");
    let good = ("RACKWRIGHT_URL", "https://127.0.0.1:1");
    refused(&[good, ("RACKWRIGHT_CA", &empty)], "it holds no certificate");
    refused(&[good, ("RACKWRIGHT_CA", "/nowhere.crt")], "/nowhere.crt");
}

#[test]
fn output_that_could_not_be_written_is_a_failure_and_a_closed_pipe_is_none() {
    let run = |stdout: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackwright"));
        let output = command.args(["completions", "bash"]).stdout(stdout).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, said) = run(full.into());
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("failed to write to standard output"), "{said}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer.into()), (0, String::new()));
}
