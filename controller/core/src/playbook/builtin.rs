//! The playbooks that this build carries, so that one binary is enough.

/// File name and content, in the order of the layers.
pub const BUILTIN: &[(&str, &str)] = &[
    ("playbooks/00-base.toml", include_str!("../../../../playbooks/00-base.toml")),
    ("playbooks/10-agent.toml", include_str!("../../../../playbooks/10-agent.toml")),
    ("playbooks/20-pki.toml", include_str!("../../../../playbooks/20-pki.toml")),
    ("playbooks/30-containerd.toml", include_str!("../../../../playbooks/30-containerd.toml")),
    ("playbooks/40-etcd.toml", include_str!("../../../../playbooks/40-etcd.toml")),
    ("playbooks/50-control-plane.toml", include_str!("../../../../playbooks/50-control-plane.toml")),
    ("playbooks/60-node.toml", include_str!("../../../../playbooks/60-node.toml")),
    ("playbooks/70-data.toml", include_str!("../../../../playbooks/70-data.toml")),
    ("playbooks/80-serve.toml", include_str!("../../../../playbooks/80-serve.toml")),
];
