//! Starting a process that outlives us, in a session and control groups of its own.
//!
//! The process first waits for one word. In that time its id goes into the record; if we die before, the word
//! never comes and it ends by itself. Then it moves itself into its groups and becomes the program.

use crate::error::{LabError, file_error};
use crate::process;
use crate::record::{Entry, Journal, ProcessId};
use crate::tool;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;

/// Waits for the word, then goes on as [`ENTER`] does.
const WAIT: &str = r#"
read -r word && [ "$word" = go ] || exit 0
exec < /dev/null
"#;
/// Arguments: the control groups' folders, `--`, the program with its own.
const ENTER: &str = r#"
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done
shift
exec "$@"
"#;
/// Arguments: [`ENTER`] and its arguments. systemd-nspawn leaves a reboot to whoever started it and asks for it
/// with this exit status. The loop stays outside the program's groups, so that a group has either
/// processes or groups in it, as v2 demands.
const REBOOT: &str = r#"
enter=$1; shift
while :; do sh -c "$enter" sh "$@"; status=$?; [ $status = 133 ] || exit $status; done
"#;

/// What to start, and where.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The server that it will be, if any.
    pub(crate) server: Option<&'a str>,
    /// Folders of its control groups.
    pub(crate) groups: Vec<PathBuf>,
    /// The program and its arguments.
    pub(crate) words: Vec<OsString>,
    /// Variables of its environment.
    pub(crate) variables: &'a [(&'a str, &'a str)],
    /// Where its output goes; a file that is there is appended to.
    pub(crate) output: &'a Path,
}

impl Launch<'_> {
    /// Starts it, after its id is in the record.
    ///
    /// # Errors
    /// [`LabError::Start`], [`LabError::File`].
    pub(crate) async fn start(
        self,
        journal: &Mutex<Journal>,
        boot: &str,
    ) -> Result<(Child, ProcessId), LabError> {
        let output = File::options().create(true).append(true).open(self.output);
        let output = output.map_err(file_error("open", self.output))?;
        let errors = output.try_clone().map_err(file_error("open", self.output))?;
        let script = format!("{WAIT}{ENTER}");
        let shell = ["sh", "-c", &script, "sh"].map(OsString::from);
        let groups = self.groups.into_iter().map(PathBuf::into_os_string);
        let words = shell.into_iter().chain(groups).chain([OsString::from("--")]).chain(self.words);
        let mut command = tool::command("setsid", words);
        command.envs(self.variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(output).stderr(errors);
        let line = tool::line(&command);
        let start = |cause| LabError::Start { command: line.clone(), cause };
        let mut child = command.spawn().map_err(start)?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let gone = || start(std::io::Error::other("it ended at once"));
        let id = pid.and_then(|pid| process::identify(pid, boot)).ok_or_else(gone)?;
        append(journal, &Entry::Process { server: self.server.map(str::to_owned), id: id.clone() })?;
        let mut stdin = child.stdin.take().ok_or_else(gone)?;
        stdin.write_all(b"go\n").await.map_err(start)?;
        Ok((child, id))
    }
}

/// The words of a program that enters further groups and is started again whenever it asks for a reboot.
pub(crate) fn rebooting(groups: Vec<PathBuf>, words: Vec<OsString>) -> Vec<OsString> {
    let shell = ["sh", "-c", REBOOT, "sh", ENTER].map(OsString::from);
    let groups = groups.into_iter().map(PathBuf::into_os_string);
    shell.into_iter().chain(groups).chain([OsString::from("--")]).chain(words).collect()
}

/// Appends to a record that several servers' starts share.
///
/// # Errors
/// [`LabError::File`].
pub(crate) fn append(journal: &Mutex<Journal>, entry: &Entry) -> Result<(), LabError> {
    journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner).write(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;
    use crate::spec::tests::{lab, server};

    #[tokio::test]
    async fn a_process_is_in_the_record_and_its_group_before_it_is_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let boot = process::boot().unwrap();
        let path = folder.path().join("record.jsonl");
        let journal = Mutex::new(
            Journal::create(&path, &boot, &lab(vec![server("ml1", 11)]), Path::new("/c/base-1")).unwrap(),
        );
        let output = folder.path().join("out");
        let launch = Launch {
            server: Some("ml1"),
            groups: vec![folder.path().to_owned()],
            words: ["sh", "-c", "cat; echo $$ $WORD"].map(OsString::from).into(),
            variables: &[("WORD", "hello")],
            output: &output,
        };
        let (mut child, id) = launch.start(&journal, &boot).await.unwrap();
        assert!(child.wait().await.unwrap().success());
        let pid = id.pid.to_string();
        assert_eq!(std::fs::read_to_string(folder.path().join("cgroup.procs")).unwrap().trim(), pid);
        assert_eq!(std::fs::read_to_string(&output).unwrap().trim(), format!("{pid} hello"));
        assert_eq!(record::read(&path).unwrap().unwrap().process("ml1"), Some(&id));
    }

    #[tokio::test]
    async fn a_program_that_asks_for_a_reboot_is_started_again_and_one_that_ends_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let starts = folder.path().join("starts");
        let script = "echo start >> \"$1\"; [ $(wc -l < \"$1\") -lt 3 ] && exit 133; exit 7";
        let mut program = ["sh", "-c", script, "sh"].map(OsString::from).to_vec();
        program.push(starts.clone().into());
        let words = rebooting(vec![folder.path().to_owned()], program);
        let status = tool::command("env", words).status().await.unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(std::fs::read_to_string(&starts).unwrap().lines().count(), 3);
    }

    #[tokio::test]
    async fn without_the_word_nothing_is_started() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        let script = format!("{WAIT}{ENTER}");
        let words = ["sh", "-c", &script, "sh", "--", "touch"].map(OsString::from);
        let mut command = tool::command("setsid", words.into_iter().chain([made.clone().into_os_string()]));
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        drop(child.stdin.take());
        assert!(child.wait().await.unwrap().success());
        assert!(!made.exists());
    }
}
