//! What happens to jobs when the controller, the API server or a node goes away, and when people cancel
//! and delete behind our back: nothing is lost, nothing runs twice, and the states are right afterwards.
//!
//! One rack for all of it, in the order of the calls below; each leaves the rack idle.

mod apiserver;
mod controller;
mod node;
mod people;
mod rig;

use crate::story_rack;
use rig::Rig;

#[test]
fn jobs_outlive_a_killed_controller_an_absent_api_server_and_a_dead_node() {
    let Some(rack) = story_rack("jobs", "10.79.4") else { return };
    let rig = Rig::raise(&rack);
    controller::killed_while_jobs_run_and_wait(&rig);
    apiserver::away_for_a_minute(&rig);
    node::without_power_for_a_moment(&rig);
    node::dead_with_jobs_on_it(&rig);
}
