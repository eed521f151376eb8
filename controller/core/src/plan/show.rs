//! A plan as people read it: what changes where, with the diffs, and who is missing.

use super::Plan;
use rackwright_wire::plan::ServerPlan;
use rackwright_wire::words::counted;
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.id.get(..12).unwrap_or(&self.id);
        writeln!(f, "plan {short} of cluster {}, generation {}", self.cluster, self.generation)?;
        for server in self.servers.iter().filter(|server| !server.is_empty()) {
            writeln!(f)?;
            show(server, f)?;
        }
        if !self.absent.is_empty() {
            writeln!(f)?;
            for absent in &self.absent {
                writeln!(f, "{}: absent: {}", absent.server, absent.reason)?;
            }
        }
        writeln!(f)?;
        summary(self, f)
    }
}

fn show(server: &ServerPlan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}: {}", server.server, counted(server.differences.len(), "change"))?;
    let widest = server.differences.iter().map(|difference| difference.step.chars().count()).max();
    let width = widest.unwrap_or(0);
    for difference in &server.differences {
        writeln!(f, "  {:width$}  {}", difference.step, difference.summary)?;
        for line in difference.detail.lines() {
            writeln!(f, "      {line}")?;
        }
    }
    Ok(())
}

fn summary(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let changing = plan.servers.iter().filter(|server| !server.is_empty()).count();
    let same = plan.servers.len() - changing;
    if plan.is_empty() {
        write!(f, "nothing to do on {}", counted(same, "server"))?;
    } else {
        let changes = counted(plan.changes(), "change");
        write!(f, "{changes} on {}, {same} unchanged", counted(changing, "server"))?;
    }
    if plan.absent.is_empty() { writeln!(f) } else { writeln!(f, ", {} absent", plan.absent.len()) }
}
