//! Whether an apply was a success: "N of M" for each role.

use crate::inventory::Role;
use std::collections::BTreeMap;
use std::fmt;

/// How one server came out of an apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is as planned.
    Done,
    /// It did not answer, or stopped answering.
    Absent,
    /// Steps failed.
    Failed,
}

/// One role after an apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The role.
    pub role: Role,
    /// Servers that are as planned.
    pub done: u32,
    /// Servers of the role.
    pub servers: u32,
    /// Servers that had to be as planned.
    pub needed: u32,
}

/// Whether an apply was a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every server is as planned.
    Complete,
    /// Every role has as many servers as its rule asks for, but not all.
    Enough(Vec<Standing>),
    /// A role has fewer servers than its rule asks for.
    Short(Vec<Standing>),
}

impl Verdict {
    /// The exit code of `apply`: 0 complete, 3 enough but not all, 1 short.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Enough(_) => 3,
            Self::Short(_) => 1,
        }
    }
}

/// Judges the outcomes. `rules` says how many servers of a role must be done; a role without a rule needs all.
pub fn verdict(rules: &BTreeMap<Role, u32>, outcomes: &[(Role, Outcome)]) -> Verdict {
    let mut standings: BTreeMap<Role, Standing> = BTreeMap::new();
    for (role, outcome) in outcomes {
        let standing = standings.entry(*role).or_insert_with(|| Standing {
            role: *role,
            done: 0,
            servers: 0,
            needed: 0,
        });
        standing.servers += 1;
        standing.done += u32::from(*outcome == Outcome::Done);
        standing.needed = rules.get(role).copied().unwrap_or(standing.servers).min(standing.servers);
    }
    let incomplete: Vec<Standing> =
        standings.into_values().filter(|standing| standing.done < standing.servers).collect();
    if incomplete.is_empty() {
        Verdict::Complete
    } else if incomplete.iter().all(|standing| standing.done >= standing.needed) {
        Verdict::Enough(incomplete)
    } else {
        Verdict::Short(incomplete)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, standings) = match self {
            Self::Complete => return f.write_str("every server is as planned"),
            Self::Enough(standings) => ("enough servers are as planned", standings),
            Self::Short(standings) => ("too few servers are as planned", standings),
        };
        f.write_str(text)?;
        for (index, standing) in standings.iter().enumerate() {
            let separator = if index == 0 { ": " } else { ", " };
            write!(f, "{separator}{} {} of {}", standing.role, standing.done, standing.servers)?;
            if standing.needed < standing.servers {
                write!(f, " (at least {})", standing.needed)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(rules: &[(Role, u32)], outcomes: &[(Role, Outcome)]) -> (u8, String) {
        let verdict = verdict(&rules.iter().copied().collect(), outcomes);
        (verdict.exit_code(), verdict.to_string())
    }

    #[test]
    fn a_role_without_a_rule_needs_all_of_its_servers() {
        let outcomes =
            [(Role::Control, Outcome::Done), (Role::Ml, Outcome::Absent), (Role::Ml, Outcome::Done)];
        assert_eq!(judge(&[], &outcomes), (1, "too few servers are as planned: ml 1 of 2".to_owned()));
    }

    #[test]
    fn an_absent_server_within_the_rule_is_said_but_no_failure() {
        let outcomes =
            [(Role::Control, Outcome::Done), (Role::Ml, Outcome::Absent), (Role::Ml, Outcome::Done)];
        let (code, text) = judge(&[(Role::Ml, 1)], &outcomes);
        assert_eq!((code, text.as_str()), (3, "enough servers are as planned: ml 1 of 2 (at least 1)"));
    }

    #[test]
    fn all_servers_done_is_complete() {
        assert_eq!(judge(&[(Role::Ml, 1)], &[(Role::Ml, Outcome::Done)]).0, 0);
    }
}
