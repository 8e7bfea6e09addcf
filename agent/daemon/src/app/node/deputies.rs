//! Where pods of this node have the kubelet connect to that is not those pods: the kubelet does not say for which pod it
//! connects, so what such a pod may have asked for is no probe of the pod that is connected to.
//!
//! Promises that a declaration counts from the round that follows it on, and for a while after its pod has gone: hooks run then.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ambit_core::{
    discovery::{ForeignProbe, Mesh},
    model::ObjectName,
};

/// How long a pod that the API does not show any more may have the kubelet connect.
const LINGERS: Duration = Duration::from_secs(120);
/// Declarations of one node; with more nothing can be told apart any more.
const MAX_DECLARATIONS: usize = 65_536;

/// The declarations, each with the pod that has made it and when it was seen last.
#[derive(Debug, Default)]
pub(super) struct Deputies {
    declared: BTreeMap<ForeignProbe, (ObjectName, Instant)>,
    told: BTreeMap<(IpAddr, u16), ObjectName>,
}

impl Deputies {
    /// Takes note of what the pods on `node` declare now.
    pub(super) fn look(&mut self, mesh: &Mesh, node: &str, now: Instant) {
        for (pod, probe) in mesh.foreign_probes_on(node) {
            if self.declared.len() >= MAX_DECLARATIONS {
                self.declared.clear();
                self.declared.insert(ForeignProbe { host: None, port: None }, (pod.clone(), now));
                return;
            }
            self.declared.insert(probe, (pod.clone(), now));
        }
        self.declared.retain(|_, (_, seen)| now.duration_since(*seen) < LINGERS);
    }

    /// The pod that may have the kubelet connect to `port` of `ip` beside the pod there.
    pub(super) fn deputy_of(&self, ip: IpAddr, port: u16) -> Option<&ObjectName> {
        self.declared.iter().find(|(probe, _)| probe.may_reach(ip, port)).map(|(_, (pod, _))| pod)
    }

    /// Says once which probes are refused therefore.
    pub(super) fn tell(&mut self, withdrawn: BTreeMap<(IpAddr, u16), ObjectName>) {
        for ((ip, port), deputy) in withdrawn.iter().filter(|(target, _)| !self.told.contains_key(*target)) {
            tracing::warn!(
                %ip, port, %deputy,
                "probes of this pod are treated as any plaintext: a probe or hook of another pod of the node names another \
                 host, so what the kubelet connects for cannot be told"
            );
        }
        self.told = withdrawn;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ambit_core::discovery::{Change, Settings};

    use super::*;

    fn mesh(probes: &[(Option<&str>, Option<u16>)]) -> Mesh {
        let mut mesh = Mesh::new(Settings::default());
        let probe = |(host, port): &(Option<&str>, Option<u16>)| ForeignProbe {
            host: host.map(|host| host.parse().unwrap()),
            port: *port,
        };
        let name = ObjectName::new("legacy", "d");
        let pod = ambit_core::discovery::Pod {
            uid: "d".into(),
            created: None,
            identity: "spiffe://cluster.local/ns/legacy/sa/d".parse().unwrap(),
            name,
            node: "n1".into(),
            ips: vec![],
            host_ips: vec![],
            labels: Default::default(),
            host_network: false,
            terminal: false,
            deleting: false,
            ready: true,
            named_ports: Default::default(),
            ports: vec![],
            probe_ports: vec![],
            host_ports: vec![],
            foreign_probes: probes.iter().map(probe).collect(),
            netns: None,
            http_telemetry: None,
        };
        mesh.apply(Change::Pod(Arc::new(pod)));
        mesh
    }

    fn withdrawn(deputies: &Deputies) -> Vec<(&'static str, u16)> {
        let all = [("10.0.0.1", 80), ("10.0.0.1", 81), ("10.0.0.2", 80), ("10.0.0.2", 81)];
        all.into_iter()
            .filter(|(ip, port)| deputies.deputy_of(ip.parse().unwrap(), *port).is_some())
            .collect()
    }

    #[test]
    fn what_another_pod_may_have_asked_for_is_withdrawn() {
        for (probes, expected) in [
            (&[][..], &[][..]),
            (&[(Some("10.0.0.1"), Some(80))], &[("10.0.0.1", 80)]),
            (&[(Some("10.0.0.1"), None)], &[("10.0.0.1", 80), ("10.0.0.1", 81)]),
            (&[(None, Some(81))], &[("10.0.0.1", 81), ("10.0.0.2", 81)]),
            (&[(Some("192.0.2.1"), Some(80))], &[]),
        ] {
            let mut deputies = Deputies::default();
            deputies.look(&mesh(probes), "n1", Instant::now());
            assert_eq!(withdrawn(&deputies), expected, "{probes:?}");
            let mut elsewhere = Deputies::default();
            elsewhere.look(&mesh(probes), "n2", Instant::now());
            assert!(withdrawn(&elsewhere).is_empty(), "of another node's kubelet");
        }
    }

    #[test]
    fn a_pod_that_has_gone_may_still_have_hooks_run() {
        let mut deputies = Deputies::default();
        let start = Instant::now();
        deputies.look(&mesh(&[(None, Some(80))]), "n1", start);
        deputies.look(&mesh(&[]), "n1", start + LINGERS - Duration::from_secs(1));
        assert_eq!(withdrawn(&deputies).len(), 2);
        deputies.look(&mesh(&[]), "n1", start + LINGERS);
        assert!(withdrawn(&deputies).is_empty());
    }
}
