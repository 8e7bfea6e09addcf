//! The cluster's DNS: CoreDNS for the cluster's names, and behind it a resolver for all others, as on real nodes.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::ApiServer;

/// How many addresses `many.example.test` has: more than an answer by UDP has room for.
pub const MANY: usize = 60;
/// Where the resolver behind it listens.
const UPSTREAM: u16 = 5300;

/// Writes what CoreDNS is to do; returns the path of its configuration.
pub(super) fn configuration(api: &ApiServer) -> Result<PathBuf> {
    let (bind, admin) = (api.ground().control_plane(), api.admin());
    let [corefile, zone] = ["Corefile", "world.zone"].map(|name| api.folder().join(name));
    write(&zone, &world(&bind))?;
    let text = format!(
        ".:53 {{\n bind {bind}\n kubernetes cluster.local {{\n  kubeconfig {}\n }}\n forward . {bind}:{UPSTREAM}\n cache 2\n}}\n\
         .:{UPSTREAM} {{\n bind {bind}\n file {} .\n}}\n",
        admin.display(),
        zone.display()
    );
    write(&corefile, &text)?;
    Ok(corefile)
}

/// All names that are not the cluster's: some of `example.test`, of which `outside` is where the control plane is. There are no others.
fn world(control_plane: &str) -> String {
    let mut zone = format!(
        "$TTL 60\n@ IN SOA ns.example.test. root.example.test. 1 60 60 60 60\n@ IN NS ns.example.test.\n$ORIGIN example.test.\n\
         ns IN A {control_plane}\noutside IN A {control_plane}\nalias IN CNAME second\nsecond IN CNAME outside\n\
         six IN AAAA 2001:db8::6\nmail IN MX 10 outside\n"
    );
    for last in 1..=MANY {
        let _ = writeln!(zone, "many IN A 192.0.2.{last}");
    }
    zone
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
