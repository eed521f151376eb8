//! Waiting until a server answers SSH with its banner.

use crate::error::LabError;
use crate::process;
use crate::record::ProcessId;
use crate::tool;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// How long a server may take from power to its banner. Five take 4 s on two cores; a machine that is building
/// something beside it takes several times that.
const BOOT: Duration = Duration::from_mins(2);
const ATTEMPT: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(50);

/// Waits until SSH answers at the address, as long as the server's process lives.
///
/// # Errors
/// [`LabError::Late`] with the end of the console.
pub(crate) async fn wait_for_ssh(
    server: &str,
    address: Ipv4Addr,
    process: &ProcessId,
    console: &Path,
) -> Result<(), LabError> {
    let start = Instant::now();
    loop {
        if answers(SocketAddr::from((address, 22))).await {
            return Ok(());
        }
        let alive = process::is_alive(process, &process.boot);
        if !alive || start.elapsed() > BOOT {
            let words = tool::tail(&std::fs::read(console).unwrap_or_default());
            let why = if alive { "" } else { "; its process has ended" };
            return Err(LabError::Late {
                what: format!("{server} answer SSH at {address}"),
                waited_s: start.elapsed().as_secs(),
                detail: format!("{why}; its console ends with: {words}"),
            });
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether something that says it speaks SSH answers now.
pub(crate) async fn answers(address: SocketAddr) -> bool {
    let banner = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let mut start = [0; 4];
        stream.read_exact(&mut start).await.ok()?;
        Some(start)
    };
    matches!(tokio::time::timeout(ATTEMPT, banner).await, Ok(Some(start)) if &start == b"SSH-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    async fn serve(words: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(words).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn only_an_ssh_banner_counts() {
        assert!(answers(serve(b"SSH-2.0-OpenSSH_9.2p1\r\n").await).await);
        assert!(!answers(serve(b"HTTP/1.1 400 Bad Request\r\n").await).await);
    }

    #[tokio::test]
    async fn a_server_whose_process_ended_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let console = folder.path().join("console.log");
        std::fs::write(&console, "Failed to mount\n").unwrap();
        let dead = ProcessId { pid: i32::MAX, start_ticks: 1, boot: "b".to_owned() };
        // No TCP connection is ever made to the broadcast address.
        let error = wait_for_ssh("ml1", Ipv4Addr::BROADCAST, &dead, &console).await.unwrap_err();
        assert!(
            error.to_string().contains("its process has ended; its console ends with: Failed"),
            "{error}"
        );
    }
}
