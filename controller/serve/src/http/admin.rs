//! Tokens and the audit log: for operators.

use super::input::{Body, Params};
use super::jobs::unlisted;
use crate::api::{AuditList, Token, TokenList, TokenMade, TokenWanted};
use crate::app::App;
use crate::auth::{Caller, new_token};
use crate::brain::now_ms;
use crate::problem::Problem;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use rackwright_store::{AuditQuery, AuditRow, Batch, Store as _, StoreError};
use serde::Deserialize;

/// `GET /v1/tokens`.
pub(super) async fn list(State(app): State<App>) -> Result<Json<TokenList>, Problem> {
    let rows = app.store.tokens().await.map_err(unlisted)?;
    Ok(Json(TokenList { tokens: rows.into_iter().map(Token::of).collect() }))
}

/// `POST /v1/tokens`.
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<(StatusCode, Json<TokenMade>), Problem> {
    let wanted: TokenWanted = body.json()?;
    let made = new_token(wanted.role, wanted.owner, wanted.team, wanted.note, now_ms());
    let (token, row) = made.map_err(|cause| Problem::internal("draw a token", &cause))?;
    let answer = TokenMade {
        id: row.id.clone(),
        token,
        role: row.role,
        owner: row.owner.clone(),
        team: row.team.clone(),
    };
    app.store.create_token(row).await.map_err(|cause| Problem::internal("keep the token", &cause))?;
    note(&app, &caller, "token.create", &answer.id).await?;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// `POST /v1/tokens/{id}/revoke`.
pub(super) async fn revoke(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Token>, Problem> {
    let missing =
        || Problem::not_found(format_args!("token {id}")).hint("`rackwright serve token list` lists them");
    match app.store.revoke_token(&id, now_ms()).await {
        Ok(()) => {}
        Err(StoreError::Unknown { .. }) => return Err(missing()),
        Err(cause) => return Err(Problem::internal("revoke the token", &cause)),
    }
    app.tokens.forget();
    note(&app, &caller, "token.revoke", &id).await?;
    let rows = app.store.tokens().await.map_err(unlisted)?;
    let row = rows.into_iter().find(|row| row.id == id).ok_or_else(missing)?;
    Ok(Json(Token::of(row)))
}

/// The query of the audit log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    limit: Option<u32>,
    after: Option<String>,
}

/// `GET /v1/audit`.
pub(super) async fn audit(
    State(app): State<App>,
    Params(query): Params<PageQuery>,
) -> Result<Json<AuditList>, Problem> {
    let query = AuditQuery { limit: query.limit.unwrap_or(0), after: query.after };
    let page = app.store.audit(query).await.map_err(unlisted)?;
    Ok(Json(AuditList { rows: page.rows, next: page.next }))
}

/// Writes down that the caller did something.
///
/// # Errors
/// The store cannot write.
pub(super) async fn note(app: &App, caller: &Caller, action: &str, subject: &str) -> Result<(), Problem> {
    let row = AuditRow {
        at_ms: now_ms(),
        owner: caller.owner.clone(),
        team: caller.team.clone(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        result: "ok".to_owned(),
    };
    let batch = Batch { audit: vec![row], ..Batch::default() };
    app.store.append(batch).await.map_err(|cause| Problem::internal("write the audit log", &cause))?;
    Ok(())
}
