//! Stage 8: one honest bill for the demo's hours.

use super::{Demo, DemoError, must};
use crate::field::text;
use crate::stage;
use serde_json::Value;

impl Demo {
    /// Stage 8.
    pub(super) fn bill(&mut self) -> Result<(), DemoError> {
        let since = self.since_ms.to_string();
        let args = ["cost", "bill", "--inventory", &self.inventory, "--from", &since, "--by", "team,project"];
        let bill = self.rackwright_json(&args)?;
        let found = &mut self.findings.bill;
        found.invoice = text(&bill, "invoice");
        found.sum = text(&bill, "sum");
        found.cloud = text(&bill, "cloud");
        found.currency = text(&bill, "currency");
        let rows = bill.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
        found.rows =
            rows.iter().map(|row| (text(row, "team"), text(row, "project"), text(row, "amount"))).collect();
        must(found.invoice == found.sum, "the rows sum to the invoice", &bill)?;
        must(found.rows.len() >= 3, "rows for teams, idle and system", &bill)?;
        for (team, project, amount) in &found.rows {
            stage::note(format_args!("{amount:>12}  {team} / {project}"));
        }
        Ok(())
    }
}
