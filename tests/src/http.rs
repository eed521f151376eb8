//! HTTP with curl, as the demo shows it: the API of the controller, of Kubernetes and of ClickHouse.

use crate::shell::{self, ShellError};
use serde_json::Value;
use std::path::PathBuf;

/// One HTTPS server and how we prove who we are.
#[derive(Debug, Clone)]
pub struct Api {
    /// `https://address:port`.
    pub base: String,
    /// CA certificate, PEM.
    pub ca: PathBuf,
    /// How we prove who we are.
    pub auth: Auth,
}

/// How a client proves who it is.
#[derive(Debug, Clone)]
pub enum Auth {
    /// A file with one `header` line for curl, so that no token stands in argv.
    Token(PathBuf),
    /// Client certificate and key, PEM.
    Certificate(PathBuf, PathBuf),
}

/// Status and body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body as JSON, or as a string when it is none.
    pub body: Value,
}

impl Api {
    /// Sends a request and returns whatever the server says.
    ///
    /// # Errors
    /// When curl cannot reach the server.
    pub fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[&str],
    ) -> Result<Answer, ShellError> {
        let url = format!("{}{path}", self.base);
        let ca = self.ca.to_string_lossy().into_owned();
        let mut args = vec!["-sS", "--max-time", "60", "--noproxy", "*", "-X", method, "--cacert", &ca];
        let (one, two);
        match &self.auth {
            Auth::Token(config) => {
                one = config.to_string_lossy().into_owned();
                args.extend(["--config", &one]);
            }
            Auth::Certificate(cert, key) => {
                (one, two) = (cert.to_string_lossy().into_owned(), key.to_string_lossy().into_owned());
                args.extend(["--cert", &one, "--key", &two]);
            }
        }
        for header in headers {
            args.extend(["-H", header]);
        }
        let text = body.map(ToString::to_string).unwrap_or_default();
        if body.is_some() {
            args.extend(["-H", "Content-Type: application/json", "--data-binary", "@-"]);
        }
        args.extend(["-w", "\n%{http_code}", &url]);
        let output = shell::capture_with("curl", &args, text.as_bytes())?;
        let (body, status) = output.rsplit_once('\n').unwrap_or(("", "0"));
        let parsed = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
        Ok(Answer { status: status.trim().parse().unwrap_or(0), body: parsed })
    }

    /// Sends a request that must succeed, and returns the body.
    ///
    /// # Errors
    /// When the server cannot be reached or answers with anything but 2xx.
    pub fn expect(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[&str],
    ) -> Result<Value, ShellError> {
        let answer = self.call(method, path, body, headers)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        let detail = format!("status {}: {}", answer.status, answer.body);
        Err(ShellError::Output { command: format!("curl -X {method} {}{path}", self.base), detail })
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// As [`Api::expect`].
    pub fn get(&self, path: &str) -> Result<Value, ShellError> {
        self.expect("GET", path, None, &[])
    }
}

/// ClickHouse's HTTP interface with user and password in headers from a curl config file.
#[derive(Debug, Clone)]
pub struct ClickHouse {
    /// `http://address:8123`.
    pub base: String,
    /// curl config with the `X-ClickHouse-…` header lines.
    pub config: PathBuf,
}

impl ClickHouse {
    /// Runs a statement; `input` follows it (rows of an INSERT).
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the statement.
    pub fn run(&self, statement: &str, input: &[u8]) -> Result<String, ShellError> {
        let config = self.config.to_string_lossy().into_owned();
        let base = ["-sS", "--fail-with-body", "--max-time", "120", "--noproxy", "*", "--config", &config];
        let url = format!("{}/", self.base);
        if input.is_empty() {
            return shell::capture_with(
                "curl",
                &[&base[..], &["--data-binary", "@-", &url]].concat(),
                statement.as_bytes(),
            );
        }
        // The statement goes into the URL, so the rows can be the body.
        let url = format!("{url}?query={}", percent_encode(statement));
        shell::capture_with(
            "curl",
            &[&base[..], &["-H", "Expect:", "--data-binary", "@-", &url]].concat(),
            input,
        )
    }
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

/// Waits for something to become true, looking a few times a second.
///
/// # Errors
/// What the probe says, or `describe` when the time is over.
pub fn wait_until<T>(
    describe: &str,
    limit: std::time::Duration,
    mut probe: impl FnMut() -> Result<Option<T>, ShellError>,
) -> Result<T, ShellError> {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            let detail = format!("not true after {} s", limit.as_secs());
            return Err(ShellError::Output { command: describe.to_owned(), detail });
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
