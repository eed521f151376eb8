//! `rackwright serve`: the controller as a service, and the tokens that open it.

use crate::client::Client;
use crate::out::Out;
use crate::report::Report;
use clap::{Args, Subcommand, ValueEnum};
use rackwright_serve::api::{Token, TokenList, TokenMade, TokenWanted};
use rackwright_serve::auth::new_token;
use rackwright_serve::{Config, Server};
use rackwright_store::{Role, SqliteOptions, SqliteStore, Store as _};
use rackwright_wire::id::{Owner, Team};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};

/// Serve jobs.
#[derive(Debug, Args)]
pub(crate) struct ServeCommand {
    /// The configuration.
    #[arg(long, default_value = "/etc/rackwright/serve.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<ServeSubcommand>,
}

#[derive(Debug, Subcommand)]
enum ServeSubcommand {
    /// Make, list and revoke tokens.
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token; it is printed this once.
    Create {
        /// Write to this store directly, on the control server; without it the controller is asked.
        #[arg(long, value_name = "FILE")]
        store: Option<PathBuf>,
        /// What it may do.
        #[arg(long)]
        role: RoleName,
        /// Whom it stands for.
        #[arg(long)]
        owner: Owner,
        /// In which team.
        #[arg(long)]
        team: Team,
        /// For people.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// List tokens.
    List,
    /// Revoke a token by its id.
    Revoke {
        /// The id, as `list` prints it.
        id: String,
    },
}

/// A role as written on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    Viewer,
    Submitter,
    Operator,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::Submitter => Self::Submitter,
            RoleName::Operator => Self::Operator,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(command: ServeCommand, out: Out) -> Result<ExitCode, Report> {
    match command.command {
        None => serve(&command.config, out).await,
        Some(ServeSubcommand::Token(command)) => token(command, out).await,
    }
}

/// Serves until it is told to stop. When the server ends by itself that is a failure, so that whoever
/// watches over the service starts it again.
async fn serve(path: &std::path::Path, out: Out) -> Result<ExitCode, Report> {
    let config = Config::read(path).map_err(|cause| Report::new(cause).exit(Report::BAD_INPUT))?;
    let deaf = |cause: std::io::Error| Report::new(format!("listen for signals: {cause}"));
    let mut terminated = signal(SignalKind::terminate()).map_err(deaf)?;
    let server = Server::start(config).await?;
    out.say(format_args!("serving on https://{}", server.address()));
    tokio::select! {
        _ = terminated.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(deaf)?,
        () = server.ended() => {
            server.stop().await;
            return Err(Report::new("serve: the loop that owns the jobs has ended")
                .help("the log says why; a new start goes on from what the store holds"));
        }
    }
    out.say("stopping");
    server.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn token(command: TokenCommand, out: Out) -> Result<ExitCode, Report> {
    match command {
        TokenCommand::Create { store, role, owner, team, note } => {
            let wanted = TokenWanted { owner, team, role: role.into(), note };
            let made = match store {
                Some(path) => create_in(path, wanted).await?,
                None => Client::from_env()?.post("/v1/tokens", &wanted).await?,
            };
            out.data(&made.token, &made);
        }
        TokenCommand::List => {
            let list: TokenList = Client::from_env()?.get("/v1/tokens").await?;
            out.data(table(&list.tokens), &list);
        }
        TokenCommand::Revoke { id } => {
            let token: Token = Client::from_env()?.post(&format!("/v1/tokens/{id}/revoke"), &()).await?;
            out.data(format_args!("revoked {}", token.id), &token);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create_in(path: PathBuf, wanted: TokenWanted) -> Result<TokenMade, Report> {
    if !path.is_file() {
        return Err(Report::new(format!("find the store {}", path.display()))
            .help("the service makes it at its first start")
            .exit(Report::BAD_INPUT));
    }
    let store = SqliteStore::open(SqliteOptions::at(path))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let (token, row) = new_token(wanted.role, wanted.owner, wanted.team, wanted.note, now_ms)?;
    let made = TokenMade {
        id: row.id.clone(),
        token,
        role: row.role,
        owner: row.owner.clone(),
        team: row.team.clone(),
    };
    store.create_token(row).await?;
    Ok(made)
}

fn table(tokens: &[Token]) -> String {
    let mut lines = vec![format!("{:<12} {:<10} {:<20} {:<16} STATE", "ID", "ROLE", "OWNER", "TEAM")];
    lines.extend(tokens.iter().map(|token| {
        let state = if token.revoked_at_ms.is_some() { "revoked" } else { "valid" };
        format!("{:<12} {:<10} {:<20} {:<16} {state}", token.id, token.role, token.owner, token.team)
    }));
    lines.join("\n")
}
