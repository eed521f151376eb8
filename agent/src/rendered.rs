//! The units' files as the playbooks render them, taken from the golden files of the rendering: what one
//! side writes, the other must read. They carry no version; an unknown key is refused.

use std::path::PathBuf;

/// One file of every server's golden rendering that has it, with a copy of it on disk.
pub(crate) fn files(path: &str) -> Vec<(tempfile::TempDir, PathBuf)> {
    let renderings = [
        include_str!("../../controller/core/tests/rack/snapshots/rack__playbooks__v1_control1.snap"),
        include_str!("../../controller/core/tests/rack/snapshots/rack__playbooks__v1_data1.snap"),
        include_str!("../../controller/core/tests/rack/snapshots/rack__playbooks__v1_ml1.snap"),
        include_str!("../../controller/core/tests/rack/snapshots/rack__playbooks__v1_results1.snap"),
    ];
    let steps = renderings.into_iter().flat_map(|text| text.split("\n== "));
    let wanted = steps.filter(|step| step.lines().any(|line| line == format!("path: {path}")));
    wanted
        .map(|step| {
            let lines = step.lines().filter_map(|line| line.strip_prefix("  | "));
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("config.toml");
            std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
            (folder, file)
        })
        .collect()
}

#[test]
fn data_and_node_units_read_what_the_playbooks_write() {
    let data = files("/etc/rackwright/data.toml");
    let node = files("/etc/rackwright/node.toml");
    assert_eq!((data.len(), node.len()), (4, 4));
    for (_folder, file) in data {
        rackwright_data::config::Config::read(&file).unwrap();
    }
    for (_folder, file) in node {
        rackwright_node::config::Config::read(&file).unwrap();
    }
}
