//! Stage 7: every result row once, although the loader was killed in the middle, and also with both ml
//! nodes cut off; the best score recomputed outside the pods.

use super::jobs::SWEEP;
use super::{Demo, DemoError, must, unexpected};
use crate::http::wait_until;
use crate::shell;
use crate::stage;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

impl Demo {
    /// Stage 7.
    pub(super) fn query_results(&mut self) -> Result<(), DemoError> {
        self.findings.results_rows = self.wait_for_rows()?;
        stage::note("killing the loader, making it load everything again");
        self.reload_and_kill()?;
        let again = self.wait_for_rows()?;
        must(again == self.findings.results_rows, "the same rows after a killed reload", again)?;
        for server in ["ml1", "ml2"] {
            self.rackwright(&["lab", "cut", "--inventory", &self.inventory, server])?;
        }
        let outcome = self.query_without_ml();
        for server in ["ml1", "ml2"] {
            self.rackwright(&["lab", "heal", "--inventory", &self.inventory, server])?;
        }
        outcome
    }

    fn count_rows(&self) -> String {
        format!("SELECT count() FROM results.rows WHERE job = '{}'", self.sweep)
    }

    fn best_row(&self) -> String {
        format!(
            "SELECT task, visitParamExtractFloat(row, 'rmse') AS rmse, visitParamExtractFloat(row, 'rmse_mean') AS \
             mean FROM results.rows WHERE job = '{}' ORDER BY rmse LIMIT 1 FORMAT JSON",
            self.sweep
        )
    }

    fn wait_for_rows(&self) -> Result<u64, DemoError> {
        let results = self.site.clickhouse("results1");
        let rows = wait_until("every sealed result is loaded", Duration::from_mins(1), || {
            let text = results.run(&self.count_rows(), b"").unwrap_or_default();
            Ok(text.trim().parse::<u64>().ok().filter(|rows| *rows >= SWEEP))
        })?;
        must(rows == SWEEP, &format!("{SWEEP} rows, each once"), rows)?;
        Ok(rows)
    }

    /// Forgets that the sets were loaded, so that the loader does them again, and kills it while it does.
    fn reload_and_kill(&self) -> Result<(), DemoError> {
        let marks = "/data/rackwright/loaded";
        let line = format!(
            "rm -rf {marks}; systemctl restart rackwright-data; \
             export PID=$(systemctl show -p MainPID --value rackwright-data); \
             timeout 30 sh -c 'until [ \"$(ls {marks} 2>/dev/null | wc -l)\" -ge 3 ]; do :; done; kill -9 $PID'"
        );
        self.site.on("results1", &line)?;
        let left = self.site.on("results1", &format!("ls {marks} | wc -l"))?;
        stage::note(format_args!("killed after {} of {SWEEP} sets", left.trim()));
        let all = format!("until [ \"$(ls {marks} | grep -c results)\" -ge {SWEEP} ]; do sleep 0.1; done");
        self.site.on("results1", &format!("timeout 60 sh -c '{all}'"))?;
        Ok(())
    }

    fn query_without_ml(&mut self) -> Result<(), DemoError> {
        let results = self.site.clickhouse("results1");
        let rows = results.run(&self.count_rows(), b"")?;
        self.findings.results_rows_with_ml_cut = rows.trim().parse().unwrap_or(0);
        stage::command("SELECT task, rmse … ORDER BY rmse LIMIT 1   (both ml nodes cut off)");
        let answer = results.run(&self.best_row(), b"")?;
        let best: Value = serde_json::from_str(&answer).unwrap_or_default();
        let best = best.pointer("/data/0").cloned().unwrap_or_default();
        stage::note(&best);
        let get = |name: &str| best.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let beats = get("rmse") < get("mean");
        if beats || self.options.data.is_none() {
            must(beats, "the best fit beats predicting the mean", &best)?;
        } else {
            stage::note(
                "no fit beats predicting the mean: the other columns of this table say nothing about it",
            );
        }
        self.recompute(&best)?;
        self.findings.best = best;
        Ok(())
    }

    /// The same script on the data server's own copy of the version, in a plain Python outside any pod.
    fn recompute(&self, best: &Value) -> Result<(), DemoError> {
        let Some(task) = best.get("task").and_then(Value::as_u64) else {
            return Err(unexpected("a best task", best, Path::new("the results table")));
        };
        let folder = self.export_copy()?;
        let script = self.folder.join("train.py");
        let failed = |cause| DemoError::File { path: script.clone(), cause };
        std::fs::write(&script, include_str!("../../demo/train.py")).map_err(failed)?;
        let args = [&script.to_string_lossy(), &folder.to_string_lossy(), self.target(), &task.to_string()];
        let mine = shell::json("/usr/bin/python3", &args.map(|arg| -> &str { arg }))?;
        let (mine, theirs) =
            (mine.get("rmse").and_then(Value::as_f64), best.get("rmse").and_then(Value::as_f64));
        let near = mine.zip(theirs).is_some_and(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
        must(near, "the recomputed score agrees", format_args!("{mine:?} against {theirs:?}"))?;
        stage::note(format_args!("recomputed outside the pods: {}", mine.unwrap_or(f64::NAN)));
        Ok(())
    }
}
