use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::{
    discovery::{Change, HostPort, Pod, PodDelta, Service, TargetPort, mesh::tests::*},
    model::{DATAPLANE_LABEL, Workload},
};

/// Numbers that are the same in every run (Knuth's multiplier for 64 bits).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn one_of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }

    fn namespace(&mut self) -> &'static str {
        self.one_of(&["shop", "plain"])
    }

    fn address(&mut self) -> String {
        format!("10.0.0.{}", self.below(6))
    }

    /// A change in a world so small that everything meets everything: addresses are shared, slices name strangers.
    fn change(&mut self) -> Change {
        match self.below(12) {
            0 => {
                let label = self.one_of(&["enabled", "disabled", ""]);
                namespace(self.namespace(), (!label.is_empty()).then_some(label))
            }
            1 => Change::NamespaceGone(self.namespace().into()),
            2..=5 => Change::Pod(Arc::new(self.pod())),
            6 => Change::PodGone(self.pod().name),
            7 | 8 => Change::Service(Arc::new(self.service())),
            9 if self.below(3) == 0 => Change::ServiceGone(self.service().name),
            9 | 10 => {
                let service = self.service().name.to_string();
                let port = self.one_of(&["p80", "p81", "p443"]);
                let endpoints: Vec<_> =
                    (0..self.below(4)).map(|_| (self.address(), self.below(2) == 0)).collect();
                let endpoints: Vec<_> = endpoints.iter().map(|(ip, ready)| (&**ip, *ready, "")).collect();
                Change::EndpointSlice(Arc::new(slice(&self.slice(), &service, &[(port, 80)], &endpoints)))
            }
            _ => Change::EndpointSliceGone(name(&self.slice())),
        }
    }

    fn pod(&mut self) -> Pod {
        let id = format!("{}/{}-{}", self.namespace(), self.one_of(&["web", "db"]), self.below(3));
        let addresses: Vec<String> = (0..self.below(3)).map(|_| self.address()).collect();
        let mut pod = pod(&id, &addresses.iter().map(|ip| &**ip).collect::<Vec<_>>());
        let label = self.one_of(&["enabled", "disabled", "", ""]);
        if !label.is_empty() {
            pod.labels.insert(DATAPLANE_LABEL.into(), label.into());
        }
        if self.below(2) == 0 {
            pod.named_ports.insert("http".into(), 8080);
        }
        Pod {
            node: self.one_of(&["n1", "n2"]).into(),
            uid: if self.below(4) == 0 { "shared".into() } else { Arc::clone(&pod.uid) },
            created: Some(self.below(3) as i64),
            host_ports: (0..self.below(2))
                .map(|_| HostPort { ip: None, port: 80 + self.below(2) as u16, target: 8080 })
                .collect(),
            host_ips: ips(&["192.0.2.1", "192.0.2.2"][..self.below(3) as usize]),
            host_network: self.below(8) == 0,
            terminal: self.below(8) == 0,
            deleting: self.below(8) == 0,
            ready: self.below(2) == 0,
            ..pod
        }
    }

    fn service(&mut self) -> Service {
        let id = format!("{}/{}", self.namespace(), self.one_of(&["web", "db"]));
        let vips = [format!("10.96.0.{}", self.below(3)), self.address()];
        let vips: Vec<_> = vips[..1 + usize::from(self.below(8) == 0)].iter().map(|ip| &**ip).collect();
        let targets = [(80, TargetPort::Number(80)), (81, TargetPort::Name("http".into()))];
        let from = self.below(2) as usize;
        let mut service = service(&id, &vips, &targets[from..]);
        if self.below(3) == 0 {
            service.external_ips = ips(&["203.0.113.1"]);
        }
        if self.below(3) == 0 {
            service.ports[0].node_port = Some(30_080 + self.below(2) as u16);
        }
        service
    }

    fn slice(&mut self) -> String {
        format!("{}/s{}", self.namespace(), self.below(3))
    }
}

fn from_scratch(mesh: &Mesh) -> BTreeSet<Destination> {
    let pods = mesh.by_ip.keys().copied().map(Destination::Address);
    // What pods state, not what was made of it.
    let stated = mesh.pods.values().map(|record| &record.pod).filter(|pod| !pod.terminal);
    let nodes = stated.flat_map(|pod| pod.host_ips.iter().copied().map(Destination::Node));
    let host_ports = mesh.host_ports.keys().copied().map(Destination::Port);
    let all = pods.chain(mesh.claims.keys().copied()).chain(host_ports);
    all.filter(|destination| mesh.is_to_be_captured(*destination)).chain(nodes).collect()
}

fn workloads(mesh: &Mesh) -> BTreeMap<ObjectName, Arc<Workload>> {
    mesh.pods.iter().map(|(name, record)| (name.clone(), Arc::clone(&record.workload))).collect()
}

/// What a follower has who began with what was there before.
#[derive(Clone, Default)]
struct Follower {
    captured: BTreeSet<Destination>,
    pods: BTreeMap<ObjectName, Arc<Workload>>,
}

impl Follower {
    fn follow(&mut self, delta: &Delta) {
        for begun in delta.begun() {
            assert!(self.captured.insert(begun), "the capture of {begun:?} begins twice");
        }
        for ended in delta.ended() {
            assert!(self.captured.remove(&ended), "the capture of {ended:?} ends twice");
        }
        for (name, PodDelta { before, after }) in delta.pods() {
            assert_eq!(self.pods.get(name), before.as_ref(), "{name}");
            assert_ne!(before, after, "{name}");
            match after {
                Some(after) => self.pods.insert(name.clone(), after.clone()),
                None => self.pods.remove(name),
            };
        }
    }

    fn assert_is(&self, mesh: &Mesh) {
        assert_eq!(self.captured, from_scratch(mesh));
        assert_eq!(self.pods, workloads(mesh));
    }
}

#[test]
fn who_follows_the_deltas_has_what_is_worked_out_from_scratch() {
    let (mut begun, mut ended, mut undone) = (0, 0, 0);
    for seed in 0..200 {
        let mut numbers = Numbers(seed);
        let mut mesh = Mesh::new(Default::default());
        let (mut at_once, mut now_and_then, mut pending) =
            (Follower::default(), Follower::default(), Delta::default());
        for step in 0..120 {
            let change = numbers.change();
            let delta = mesh.apply(change.clone());
            at_once.follow(&delta);
            assert_eq!(at_once.captured, from_scratch(&mesh), "seed {seed}, step {step}: {change:?}");
            begun += delta.begun().count();
            ended += delta.ended().count();
            undone += delta.begun().filter(|begun| pending.ended().any(|ended| ended == *begun)).count();
            pending.merge(delta);
            if numbers.below(7) == 0 {
                now_and_then.follow(&std::mem::take(&mut pending));
                now_and_then.assert_is(&mesh);
            }
        }
        at_once.assert_is(&mesh);
        assert_eq!(mesh.captured_destinations().collect::<BTreeSet<_>>(), at_once.captured);
    }
    assert!(begun > 1_000 && ended > 1_000 && undone > 100, "{begun} begun, {ended} ended, {undone} undone");
}

#[test]
fn what_changes_nothing_for_others_is_no_delta() {
    let mut mesh = mesh([pod("shop/web-1", &["10.0.0.1"])]);
    let not_ready = Pod { ready: false, ..pod("shop/web-1", &["10.0.0.1"]) };
    assert!(mesh.apply(Change::Pod(Arc::new(not_ready))).is_empty());
    assert!(mesh.apply(namespace("shop", Some("enabled"))).is_empty());
    assert!(mesh.apply(Change::PodGone(name("shop/nobody"))).is_empty());
    let moved = Pod { node: "n2".into(), ..pod("shop/web-1", &["10.0.0.1"]) };
    let delta = mesh.apply(Change::Pod(Arc::new(moved)));
    assert_eq!(["n1", "n2", "n3"].map(|node| delta.on(node).is_empty()), [false, false, true]);
    assert_eq!(delta.begun().chain(delta.ended()).count(), 0);
}
