//! An order in which every step comes after what it needs, and otherwise as it was written.

use rackwright_wire::step::Step;
use std::collections::{BTreeMap, BTreeSet};

/// Sorts the steps; the ids of a circle when there is none.
///
/// Kahn's algorithm, taking the ready step that was written first: the same playbooks give the same order.
pub(super) fn sort(steps: Vec<Step>) -> Result<Vec<Step>, Vec<String>> {
    let places: BTreeMap<String, usize> =
        steps.iter().enumerate().map(|(place, step)| (step.id.clone(), place)).collect();
    let mut open: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut dependants: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, step) in steps.iter().enumerate() {
        let needs: BTreeSet<usize> = step.needs.iter().filter_map(|id| places.get(id).copied()).collect();
        for need in &needs {
            dependants.entry(*need).or_default().push(place);
        }
        open.insert(place, needs);
    }
    let mut ready: BTreeSet<usize> =
        open.iter().filter(|(_, needs)| needs.is_empty()).map(|(place, _)| *place).collect();
    let mut slots: BTreeMap<usize, Step> = steps.into_iter().enumerate().collect();
    let mut sorted = Vec::with_capacity(slots.len());
    while let Some(place) = ready.pop_first() {
        sorted.extend(slots.remove(&place));
        for dependant in dependants.get(&place).into_iter().flatten() {
            if let Some(needs) = open.get_mut(dependant)
                && needs.remove(&place)
                && needs.is_empty()
            {
                ready.insert(*dependant);
            }
        }
    }
    if slots.is_empty() { Ok(sorted) } else { Err(circle(&slots)) }
}

/// One circle among the steps that are left: follow needs until a step comes up again.
fn circle(left: &BTreeMap<usize, Step>) -> Vec<String> {
    let by_id: BTreeMap<&str, &Step> = left.values().map(|step| (step.id.as_str(), step)).collect();
    let mut path: Vec<&str> = Vec::new();
    let mut at = left.values().next().map(|step| step.id.as_str());
    while let Some(id) = at {
        if let Some(start) = path.iter().position(|seen| *seen == id) {
            return path.iter().skip(start).map(|id| (*id).to_owned()).collect();
        }
        path.push(id);
        at = by_id
            .get(id)
            .and_then(|step| step.needs.iter().find_map(|need| by_id.get_key_value(need.as_str())))
            .map(|(id, _)| *id);
    }
    path.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rackwright_wire::step::StepKind;

    fn step(id: usize, needs: &[usize]) -> Step {
        Step {
            id: format!("l/{id}"),
            needs: needs.iter().map(|need| format!("l/{need}")).collect(),
            kind: StepKind::Module { names: Vec::new() },
        }
    }

    #[test]
    fn a_circle_is_named_with_its_members_only() {
        let circle = sort(vec![step(0, &[1]), step(1, &[2]), step(2, &[1]), step(3, &[])]).unwrap_err();
        assert_eq!(circle, ["l/1", "l/2"]);
    }

    proptest! {
        #[test]
        fn every_step_comes_after_what_it_needs(
            edges in proptest::collection::vec((0_usize..20, 0_usize..20), 0..60),
            shift in 0_usize..20,
        ) {
            // Edges from a higher to a lower rank make no circle; the shift hides the rank from the written order.
            let rank = |id: usize| (id + shift) % 20;
            let steps: Vec<Step> = (0..20)
                .map(|id| {
                    let needs: Vec<usize> = edges
                        .iter()
                        .filter(|(from, to)| *from == id && rank(*to) < rank(id))
                        .map(|(_, to)| *to)
                        .collect();
                    step(id, &needs)
                })
                .collect();
            let sorted = sort(steps.clone()).unwrap();
            prop_assert_eq!(sorted.len(), steps.len());
            for (place, step) in sorted.iter().enumerate() {
                for need in &step.needs {
                    prop_assert!(sorted.iter().take(place).any(|earlier| earlier.id == *need));
                }
            }
        }
    }
}
