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

/// Arguments: the control groups' folders, `--`, the program with its own.
const SCRIPT: &str = r#"
read -r word && [ "$word" = go ] || exit 0
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done
shift
exec "$@" < /dev/null
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
        let shell = ["sh", "-c", SCRIPT, "sh"].map(OsString::from);
        let groups = self.groups.into_iter().map(PathBuf::into_os_string);
        let words = shell
            .into_iter()
            .chain(groups)
            .chain([OsString::from("--")])
            .chain(self.words);
        let mut command = tool::command("setsid", words);
        command.envs(self.variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(output).stderr(errors);
        let line = tool::line(&command);
        let start = |cause| LabError::Start {
            command: line.clone(),
            cause,
        };
        let mut child = command.spawn().map_err(start)?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let gone = || start(std::io::Error::other("it ended at once"));
        let id = pid
            .and_then(|pid| process::identify(pid, boot))
            .ok_or_else(gone)?;
        append(
            journal,
            &Entry::Process {
                server: self.server.map(str::to_owned),
                id: id.clone(),
            },
        )?;
        let mut stdin = child.stdin.take().ok_or_else(gone)?;
        stdin.write_all(b"go\n").await.map_err(start)?;
        Ok((child, id))
    }
}

/// Appends to a record that several servers' starts share.
///
/// # Errors
/// [`LabError::File`].
pub(crate) fn append(journal: &Mutex<Journal>, entry: &Entry) -> Result<(), LabError> {
    journal
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .write(entry)
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
        let journal = Mutex::new(Journal::create(&path, &boot, &lab(vec![server("ml1", 11)])).unwrap());
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
        assert_eq!(
            std::fs::read_to_string(folder.path().join("cgroup.procs"))
                .unwrap()
                .trim(),
            pid
        );
        assert_eq!(
            std::fs::read_to_string(&output).unwrap().trim(),
            format!("{pid} hello")
        );
        assert_eq!(record::read(&path).unwrap().unwrap().process("ml1"), Some(&id));
    }

    #[tokio::test]
    async fn without_the_word_nothing_is_started() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        let words = ["sh", "-c", SCRIPT, "sh", "--", "touch"].map(OsString::from);
        let mut command = tool::command("setsid", words.into_iter().chain([made.clone().into_os_string()]));
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        drop(child.stdin.take());
        assert!(child.wait().await.unwrap().success());
        assert!(!made.exists());
    }
}
