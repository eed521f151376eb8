//! A command that runs on a server: bytes in, bytes and a status out.
//!
//! Output must always be read: one full channel holds up every other channel of its connection.

use crate::session::{Output, SessionError};
use bytes::Bytes;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client};
use tokio::sync::OwnedSemaphorePermit;

/// The status of a command that ended without one: its channel closed, or a signal killed it.
pub const NO_STATUS: u32 = 255;

/// A running command.
pub struct Process {
    /// Where its output is read.
    pub output: ProcessOutput,
    /// Where its input is written.
    pub input: ProcessInput,
}

/// The reading side of a [`Process`].
pub struct ProcessOutput {
    server: String,
    channel: ChannelReadHalf,
    refused: bool,
    _permit: OwnedSemaphorePermit,
}

/// The writing side of a [`Process`].
pub struct ProcessInput {
    server: String,
    channel: ChannelWriteHalf<client::Msg>,
}

/// One piece of a command's output.
#[derive(Debug)]
pub enum Piece {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The command ended.
    Exit(u32),
}

impl Process {
    pub(crate) fn new(server: String, channel: Channel<client::Msg>, permit: OwnedSemaphorePermit) -> Self {
        let (read, write) = channel.split();
        Self {
            output: ProcessOutput { server: server.clone(), channel: read, refused: false, _permit: permit },
            input: ProcessInput { server, channel: write },
        }
    }

    /// Writes all of `stdin`, and collects what comes until the command ends.
    pub async fn finish(self, stdin: &[u8]) -> Result<Output, SessionError> {
        let Self { output, input } = self;
        let bytes = Bytes::copy_from_slice(stdin);
        let feed = async {
            input.write(bytes).await?;
            input.end().await
        };
        output.collect_while(feed).await
    }
}

impl ProcessInput {
    /// Writes bytes; waits while the server's window is full.
    pub async fn write(&self, bytes: Bytes) -> Result<(), SessionError> {
        let lost = |source| SessionError::Lost { server: self.server.clone(), source };
        self.channel.data_bytes(bytes).await.map_err(lost)
    }

    /// Says that no more input comes.
    pub async fn end(&self) -> Result<(), SessionError> {
        let lost = |source| SessionError::Lost { server: self.server.clone(), source };
        self.channel.eof().await.map_err(lost)
    }
}

impl ProcessOutput {
    /// The next piece; `None` when the channel closed. Without an [`Piece::Exit`] before it, the connection
    /// was lost. Output may still come after the exit.
    #[expect(clippy::wildcard_enum_match_arm, reason = "russh adds messages; all others mean nothing here")]
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            match self.channel.wait().await? {
                ChannelMsg::Data { data } => return Some(Piece::Stdout(data)),
                ChannelMsg::ExtendedData { data, .. } => return Some(Piece::Stderr(data)),
                ChannelMsg::ExitStatus { exit_status } => return Some(Piece::Exit(exit_status)),
                ChannelMsg::ExitSignal { .. } => return Some(Piece::Exit(NO_STATUS)),
                ChannelMsg::Failure => {
                    self.refused = true;
                    return None;
                }
                ChannelMsg::Close => return None,
                _ => {}
            }
        }
    }

    /// Collects all output while `feed` writes the input. A command that ends before it has read all of
    /// its input is no error: its status says what it meant.
    pub async fn collect_while(
        mut self,
        feed: impl Future<Output = Result<(), SessionError>>,
    ) -> Result<Output, SessionError> {
        let mut output = Output { status: NO_STATUS, stdout: Vec::new(), stderr: String::new() };
        let mut stderr = Vec::new();
        let mut ended = false;
        let mut writing = true;
        let mut feed = std::pin::pin!(feed);
        loop {
            tokio::select! {
                biased;
                piece = self.next() => match piece {
                    Some(Piece::Stdout(bytes)) => output.stdout.extend_from_slice(&bytes),
                    Some(Piece::Stderr(bytes)) => stderr.extend_from_slice(&bytes),
                    // sshd sends the status when the command exits: output may still follow it.
                    Some(Piece::Exit(status)) => {
                        output.status = status;
                        ended = true;
                    }
                    None => break,
                },
                result = &mut feed, if writing => {
                    writing = false;
                    // A broken pipe shows as the command's end; a lost connection as the end of output.
                    let _seen_by_the_reader = result;
                }
            }
        }
        if !ended {
            return Err(self.closed());
        }
        output.stderr = String::from_utf8_lossy(&stderr).into_owned();
        Ok(output)
    }

    /// Why the output ended without a status.
    pub fn closed(&self) -> SessionError {
        let server = self.server.clone();
        if self.refused { SessionError::Refused { server } } else { SessionError::Closed { server } }
    }
}
