//! The HTTPS client of every command that talks to a running controller.
//!
//! Address, CA and token come from `RACKWRIGHT_URL`, `RACKWRIGHT_CA`, `RACKWRIGHT_TOKEN` or
//! `RACKWRIGHT_TOKEN_FILE`, else from `~/.config/rackwright/client.toml`. A token is never an argument:
//! arguments can be read by everybody on the machine.

use crate::report::Report;
use rackwright_serve::problem::ProblemBody;
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer's head may take; the controller gives up sooner.
const ANSWER: Duration = Duration::from_mins(1);

/// A connection to a controller, with the caller's token.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// Why a request did not succeed; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// A setting is missing.
    #[error("find the controller's {what}")]
    Missing {
        /// Which setting.
        what: &'static str,
    },
    /// The address is of no use.
    #[error("use {url:?} as the controller's address: {reason}")]
    Address {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file of the client's own is of no use.
    #[error("use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The controller did not answer.
    #[error("reach {url}")]
    Reach {
        /// Where.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The controller answered with a problem, and with all that is wrong with the body, a line each.
    #[error("do what was asked: {detail} [{code}]{findings}", detail = .0.detail, code = .0.code, findings = .1)]
    Problem(Box<ProblemBody>, String),
    /// The answer is not what this version understands.
    #[error("understand the answer of {url}")]
    Answer {
        /// Where.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
}

/// `client.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    url: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

impl Client {
    /// A client from the environment and the client file.
    pub(crate) fn from_env() -> Result<Self, Report> {
        let settings = settings()?;
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = var("RACKWRIGHT_URL").or(settings.url);
        let ca = var("RACKWRIGHT_CA").map(PathBuf::from).or(settings.ca);
        let token_file = var("RACKWRIGHT_TOKEN_FILE").map(PathBuf::from).or(settings.token_file);
        let token = match (var("RACKWRIGHT_TOKEN"), token_file) {
            (Some(token), _) => token,
            (None, Some(path)) => read(&path)?,
            (None, None) => return Err(missing("token", "set RACKWRIGHT_TOKEN or RACKWRIGHT_TOKEN_FILE")),
        };
        let url =
            url.ok_or_else(|| missing("address", "set RACKWRIGHT_URL, such as https://10.77.0.11:7443"))?;
        let ca = ca.map(|path| read(&path).map(|pem| (path, pem))).transpose()?;
        Self::new(&url, ca, token.trim())
    }

    fn new(url: &str, ca: Option<(PathBuf, String)>, token: &str) -> Result<Self, Report> {
        check_address(url)?;
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(missing("usable token", "it is one word that begins with rw_"));
        }
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT).read_timeout(ANSWER);
        if let Some((path, pem)) = ca {
            let unusable = |cause| Report::from(cause).exit(Report::BAD_INPUT);
            let bundle = reqwest::Certificate::from_pem_bundle(pem.as_bytes());
            let certificates = bundle.map_err(file(&path)).map_err(unusable)?;
            if certificates.is_empty() {
                return Err(unusable(file(&path)("it holds no certificate in PEM")));
            }
            builder = certificates.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
        }
        let http = builder.build().map_err(|source| ClientError::Reach { url: url.to_owned(), source })?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), token: token.to_owned() })
    }

    /// Reads a JSON answer.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Report> {
        self.parsed(self.send(Method::GET, path, None::<&()>, None).await?).await
    }

    /// Reads a plain-text answer.
    pub(crate) async fn text(&self, path: &str) -> Result<String, Report> {
        let response = self.open(path).await?;
        Ok(response.text().await.map_err(|source| self.unread(source))?)
    }

    /// Starts to read an answer that goes on for as long as it likes.
    pub(crate) async fn open(&self, path: &str) -> Result<Response, Report> {
        self.send(Method::GET, path, None::<&()>, None).await
    }

    /// Sends a body and reads a JSON answer.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Report> {
        self.parsed(self.send(Method::POST, path, Some(body), None).await?).await
    }

    /// Sends a body under an idempotency key, so that a repeat is answered with the first outcome.
    pub(crate) async fn post_once<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        key: &str,
    ) -> Result<T, Report> {
        self.parsed(self.send(Method::POST, path, Some(body), Some(key)).await?).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        key: Option<&str>,
    ) -> Result<Response, Report> {
        let url = format!("{}{path}", self.url);
        let mut request = self.http.request(method, &url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let response = request.send().await.map_err(|source| {
            Report::new(ClientError::Reach { url: url.clone(), source: source.without_url() })
                .help("is RACKWRIGHT_URL right, RACKWRIGHT_CA the CA that signed its certificate, and the controller up?")
        })?;
        if response.status().is_success() { Ok(response) } else { Err(refused(url, response).await) }
    }

    async fn parsed<T: DeserializeOwned>(&self, response: Response) -> Result<T, Report> {
        Ok(response.json().await.map_err(|source| self.unread(source))?)
    }

    /// Why an answer that began well could not be read to its end.
    pub(crate) fn unread(&self, source: reqwest::Error) -> ClientError {
        ClientError::Answer { url: self.url.clone(), source: source.without_url() }
    }
}

/// A problem as a report: findings one a line, the hint as help, bad input with its own exit code.
async fn refused(url: String, response: Response) -> Report {
    let status = response.status();
    let body = match response.json::<ProblemBody>().await {
        Ok(body) => body,
        Err(source) => {
            let source = source.without_url();
            return Report::new(ClientError::Answer { url, source }).help(format!("it answered {status}"));
        }
    };
    let mut findings = String::new();
    for finding in &body.findings {
        let _infallible = write!(findings, "\n  {finding}");
    }
    let hint = body.hint.clone();
    let bad_input = matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY);
    let mut report = Report::new(ClientError::Problem(Box::new(body), findings));
    if let Some(hint) = hint {
        report = report.help(hint);
    }
    if bad_input { report.exit(Report::BAD_INPUT) } else { report }
}

/// A token goes only where nobody on the way can read it.
fn check_address(url: &str) -> Result<(), Report> {
    let refused = |reason: &'static str| {
        Report::new(ClientError::Address { url: url.to_owned(), reason })
            .help("it looks like https://10.77.0.11:7443")
            .exit(Report::BAD_INPUT)
    };
    let Ok(parsed) = reqwest::Url::parse(url) else {
        return Err(refused("it is no URL"));
    };
    if parsed.scheme() != "https" {
        return Err(refused("it is not https: the token would travel in clear"));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() || !parsed.username().is_empty() {
        return Err(refused("only scheme, host and port belong to it"));
    }
    Ok(())
}

fn settings() -> Result<Settings, Report> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".config"));
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or(home);
    let Some(path) = folder.map(|folder| folder.join("rackwright/client.toml")) else {
        return Ok(Settings::default());
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            toml::from_str(&text).map_err(|cause| Report::new(file(&path)(cause)).exit(Report::BAD_INPUT))
        }
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(Settings::default()),
        Err(cause) => Err(file(&path)(cause).into()),
    }
}

fn read(path: &Path) -> Result<String, Report> {
    std::fs::read_to_string(path).map_err(|cause| {
        Report::new(file(path)(cause))
            .help("RACKWRIGHT_CA, RACKWRIGHT_TOKEN_FILE or client.toml name it")
            .exit(Report::BAD_INPUT)
    })
}

fn file<E: Into<Box<dyn std::error::Error + Send + Sync>>>(path: &Path) -> impl Fn(E) -> ClientError {
    let path = path.to_owned();
    move |source| ClientError::File { path: path.clone(), source: source.into() }
}

fn missing(what: &'static str, help: &str) -> Report {
    Report::new(ClientError::Missing { what })
        .help(format!("{help}, or write it to ~/.config/rackwright/client.toml"))
        .exit(Report::BAD_INPUT)
}
