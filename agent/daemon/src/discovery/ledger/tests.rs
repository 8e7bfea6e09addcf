mod authorization;

use std::time::Instant;

use ambit_core::{model::Labels, policy::MtlsMode};

use super::*;
use crate::discovery::folder::{
    documents::{self, Syntax},
    manifest,
};

struct Bench(Ledger);

impl Bench {
    fn new() -> Self {
        Self(Ledger::new(Settings::default()))
    }

    fn put(&mut self, file: &str, text: &str) {
        let documents = documents::read(text.as_bytes(), Syntax::Yaml);
        manifest::take(&mut self.0, &at(file), documents, &Settings::default());
        self.0.settle();
    }

    fn drop(&mut self, file: &str) {
        self.0.forget(&at(file));
        self.0.settle();
    }

    fn assign(&mut self, uid: &str, ip: &str) {
        self.0.assign_addresses(uid, &[ip.parse().unwrap()], Instant::now());
    }

    /// Which of these addresses some pod has.
    fn known<'a>(&self, ips: [&'a str; 2]) -> Vec<&'a str> {
        let known = |ip: &&str| self.0.mesh.workload_by_ip(ip.parse().unwrap()).is_some();
        ips.into_iter().filter(known).collect()
    }

    fn mode(&self) -> MtlsMode {
        self.0.policies.compile_for(&"shop".into(), &Labels::new()).mtls(80).mode
    }

    fn problems(&self) -> Vec<String> {
        self.0.problems.iter().map(ToString::to_string).collect()
    }
}

fn at(file: &str) -> Origin {
    Origin::file(std::path::Path::new(file))
}

fn policy(name: &str, mode: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

fn pod(ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop}}\nspec: {{nodeName: n1}}\n\
         status: {{podIP: {ip}}}\n"
    )
}

fn namespace(label: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{ambit.dev/dataplane: {label}}}}}\n"
    )
}

#[test]
fn an_invalid_object_keeps_its_last_good_version() {
    let mut bench = Bench::new();
    bench.put("a", &(policy("p", "STRICT") + &namespace("enabled")));
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Strict, 0));
    bench.put("a", &(policy("p", "STRIKT") + &namespace("disabled")));
    assert_eq!(bench.mode(), MtlsMode::Strict);
    assert_eq!(
        bench.problems(),
        [
            "a: PeerAuthentication shop/p: spec.mtls.mode: \"STRIKT\" is not one of UNSET, DISABLE, PERMISSIVE, STRICT; until it \
          can be read it counts as STRICT for all that it may select"
        ]
    );
    bench.put("a", &policy("p", "PERMISSIVE"));
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Permissive, 0));
    bench.put("a", &policy("p", "STRIKT"));
    assert_eq!(bench.mode(), MtlsMode::Strict, "what it said before is not what it says");
    bench.drop("a");
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Permissive, 0));
    bench.put("a", &policy("p", "STRIKT"));
    assert_eq!(bench.mode(), MtlsMode::Strict, "after a restart it counts for nothing");
}

/// A namespace or pod keeps its last good version; of one that never was good what can be read counts.
#[test]
fn an_object_of_the_mesh_keeps_its_last_good_version() {
    let enrolled = |bench: &Bench| bench.0.mesh.pod(&ObjectName::new("shop", "a")).map(|pod| pod.enrolled);
    let broken_pod = pod("10.0.0.7").replace("nodeName: n1", "nodeName: [n1]");
    let mut bench = Bench::new();
    bench.put("n", &namespace("enabled"));
    bench.put("a", &pod("10.0.0.7"));
    assert_eq!(enrolled(&bench), Some(true));
    bench.put("n", &namespace("[1]"));
    bench.put("a", &broken_pod);
    assert_eq!((enrolled(&bench), bench.problems().len()), (Some(true), 2));
    assert_eq!(bench.0.mesh.pods_on("n1").count(), 1, "the last good version is forgotten");
    bench.put("n", &namespace("disabled"));
    assert_eq!(enrolled(&bench), Some(false));
    bench.put("n", &namespace("[1]"));
    assert_eq!(enrolled(&bench), Some(false), "a mistake has brought pods into the mesh");

    let mut bench = Bench::new();
    bench.put("a", &broken_pod);
    bench.put("n", &namespace("[1]"));
    assert_eq!(enrolled(&bench), Some(true), "after a restart it is left in plaintext");
    assert_eq!(bench.known(["10.0.0.7", "10.0.0.8"]), ["10.0.0.7"]);
    // A good claim goes before a guess.
    bench.put("b", &pod("10.0.0.8"));
    assert_eq!(bench.known(["10.0.0.7", "10.0.0.8"]), ["10.0.0.8"]);
}

#[test]
fn what_may_hold_policies_closes_until_it_is_read() {
    let open = policy("p", "PERMISSIVE");
    let rows = [
        "a: [",
        "just a text",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentcation, metadata: {name: q, namespace: shop}}",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: 5}}",
    ];
    for broken in rows {
        let mut bench = Bench::new();
        bench.put("a", &open);
        assert_eq!(bench.mode(), MtlsMode::Permissive);
        bench.put("b", broken);
        assert_eq!(bench.mode(), MtlsMode::Strict, "{broken}");
        assert!(
            bench.problems().iter().any(|problem| problem.contains("may hold policies")),
            "{:?}",
            bench.problems()
        );
        bench.put("b", &(open.replace("name: p", "name: q") + "---\n" + broken));
        assert_eq!(bench.mode(), MtlsMode::Strict, "{broken}: still not read to its end");
        bench.put("b", &policy("q", "PERMISSIVE"));
        assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Permissive, 0), "{broken}");
        // What it held of policies is known now.
        bench.put("b", broken);
        assert_eq!(bench.mode(), MtlsMode::Permissive, "{broken}");
        bench.drop("b");
        bench.put("b", broken);
        bench.drop("b");
        assert_eq!(bench.mode(), MtlsMode::Permissive, "{broken}: gone, and still in the way");
    }
    // A pod without a name is no policy.
    let mut bench = Bench::new();
    bench.put("a", "{apiVersion: v1, kind: Pod, metadata: {name: 5}}");
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Permissive, 1));
}

#[test]
fn a_file_that_breaks_keeps_what_it_held() {
    let mut bench = Bench::new();
    bench.put("a", &policy("p", "STRICT"));
    for broken in [policy("p", "STRICT") + "---\na: [", String::new(), "# all gone\n".into(), "text".into()] {
        bench.put("a", &broken);
        assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Strict, 1), "{broken:?}");
    }
    bench.put("a", &policy("q", "PERMISSIVE"));
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Permissive, 0));
}

#[test]
fn the_documents_before_an_error_count_in_a_new_file() {
    let mut bench = Bench::new();
    bench.put("a", &(policy("p", "STRICT") + "---\na: ["));
    // The error, and that what follows it may be a policy.
    assert_eq!((bench.mode(), bench.problems().len(), bench.0.in_force.len()), (MtlsMode::Strict, 2, 1));
}

#[test]
fn a_nameless_object_takes_nothing_out_of_force() {
    let mut bench = Bench::new();
    bench.put("a", &policy("p", "STRICT"));
    // The name has become a number: this might be `p`, and `p` must not be lost.
    bench.put("a", &policy("5", "PERMISSIVE"));
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Strict, 1));
    bench.put("a", &policy("5", "DISABLE"));
    assert_eq!(bench.mode(), MtlsMode::Strict, "kept once, lost at the next change");
    bench.put("a", &policy("q", "PERMISSIVE"));
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Permissive, 0));
}

#[test]
fn of_two_claims_the_first_file_counts() {
    let mut bench = Bench::new();
    bench.put("b", &policy("p", "PERMISSIVE"));
    bench.put("c", &policy("p", "STRICT"));
    assert_eq!(bench.mode(), MtlsMode::Permissive);
    assert_eq!(
        bench.problems(),
        ["c: PeerAuthentication shop/p: metadata.name: stands in b too, which comes first and is in force"]
    );
    bench.put("a", &(policy("p", "STRICT") + &policy("p", "PERMISSIVE")));
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Strict, 3));
    assert!(bench.problems()[0].contains("stands twice in this file"));
    // The claim holds while the object is bad.
    bench.put("a", &policy("p", "BAD"));
    assert_eq!(bench.mode(), MtlsMode::Strict);
    bench.drop("a");
    assert_eq!(bench.mode(), MtlsMode::Permissive);
    bench.drop("b");
    assert_eq!((bench.mode(), bench.problems().len()), (MtlsMode::Strict, 0));
}

#[test]
fn a_bad_claim_does_not_hold_up_a_good_one() {
    let mut bench = Bench::new();
    bench.put("a", &pod("10.0.0.7").replace("nodeName: n1", "nodeName: [n1]"));
    bench.put("b", &pod("10.0.0.8"));
    assert_eq!(bench.known(["10.0.0.7", "10.0.0.8"]), ["10.0.0.8"]);
    // But an object that moves and breaks in one step keeps its last good version.
    bench.drop("b");
    assert_eq!(bench.known(["10.0.0.7", "10.0.0.8"]), ["10.0.0.8"]);
    // A policy that cannot be read is in force all the same: as the strictest that it may be.
    bench.put("a", &policy("p", "BAD"));
    bench.put("b", &policy("p", "PERMISSIVE"));
    assert_eq!(bench.mode(), MtlsMode::Strict);
}

#[test]
fn problems_of_one_file_are_bounded_and_only_news_makes_a_world() {
    let mut bench = Bench::new();
    let many: String = (0..500).map(|n| policy(&format!("p{n}"), "BAD")).collect();
    bench.put("a", &many);
    assert_eq!(bench.problems().len(), problems::MAX_ORIGIN_PROBLEMS + 1);
    assert_eq!(bench.problems()[problems::MAX_ORIGIN_PROBLEMS], "a: 400 more problems in this file");
    assert!(bench.0.settle().is_none());
    bench.0.set_source_problem(&at("/m"), Some("is gone".into()));
    bench.0.complete();
    let world = bench.0.settle().unwrap();
    assert_eq!(world.problems[0].to_string(), "/m: is gone");
    assert!(world.synced);
}

#[test]
fn the_number_of_objects_is_bounded() {
    let mut bench = Bench::new();
    bench.put("a", &policy("p", "STRICT"));
    bench.0.objects = MAX_OBJECTS;
    bench.put("b", &policy("q", "STRICT"));
    assert_eq!(bench.problems().len(), 2);
    assert_eq!(bench.problems()[1], "b: makes more than 200000 objects");
    bench.put("a", &policy("p", "PERMISSIVE"));
    assert_eq!(bench.mode(), MtlsMode::Strict, "policies that are not known count for nothing");
    bench.drop("b");
    assert_eq!(
        (bench.mode(), bench.problems().len()),
        (MtlsMode::Permissive, 0),
        "a file of the old size was refused"
    );
}

#[test]
fn objects_of_the_api_beyond_the_bound_close_and_take_no_room() {
    let mut bench = Bench::new();
    bench.put("a", &policy("p", "PERMISSIVE"));
    bench.0.objects = MAX_OBJECTS;
    for n in 0..100 {
        let key = Key { kind: Kind::Pod, name: ObjectName::new("shop", format!("p{n}")) };
        bench.0.take(&Origin::Object(key.clone()), vec![Entry::unreadable(key)], Vec::new());
    }
    bench.0.settle();
    assert_eq!((bench.0.origins.len(), bench.problems().len(), bench.mode()), (1, 1, MtlsMode::Strict));
    assert!(
        bench.problems()[0].starts_with("kubernetes pods: more than 200000 objects"),
        "{:?}",
        bench.problems()
    );
}

#[test]
fn an_origin_that_holds_the_same_costs_nothing() {
    let mut bench = Bench::new();
    bench.0.complete();
    let read = |mode: &str| {
        let documents = documents::read(policy("p", mode).as_bytes(), Syntax::Yaml);
        manifest::Manifest::read(documents.values, &Settings::default()).entries
    };
    for mode in ["PERMISSIVE", "STRIKT"] {
        bench.0.take(&at("a"), read(mode), Vec::new());
        assert!(bench.0.settle().is_some(), "{mode}");
        bench.0.take(&at("a"), read(mode), Vec::new());
        assert!(bench.0.stale.is_empty() && bench.0.settle().is_none(), "{mode}");
    }
    assert_eq!(bench.mode(), MtlsMode::Strict);
}

#[test]
fn an_address_of_a_new_sandbox_counts_until_the_object_follows() {
    let mut bench = Bench::new();
    let (first, second) = ("10.0.0.7", "10.0.0.8");
    bench.put("a", &pod(first));
    assert_eq!(bench.known([first, second]), [first]);
    bench.assign("shop/a", second);
    assert_eq!(bench.known([first, second]), [second], "not at once");
    let unready = "conditions: [{type: Ready, status: 'False'}]";
    bench.put("a", &pod(&format!("{first}, {unready}")));
    assert_eq!(bench.known([first, second]), [second], "the object still states the old sandbox's");
    bench.put("a", &pod(second));
    assert_eq!(bench.known([first, second]), [second]);
    bench.put("a", &pod(first));
    assert_eq!(bench.known([first, second]), [first], "kept over what the object states since");
}

/// What others have said stands in the middle of the agent's sentence, and what is to be done at its end.
#[test]
fn what_is_wrong_with_the_source_is_told_to_its_end() {
    let mut bench = Bench::new();
    let advice = "in the chart: egress.secretNamespaces";
    let told = |length: usize| format!("cannot be read: {}; {advice}", "x".repeat(length));
    bench.0.set_source_problem(&Origin::Api, Some(told(900)));
    bench.0.settle();
    assert!(bench.problems()[0].ends_with(advice), "{:?}", bench.problems());
    // There is a bound all the same.
    bench.0.set_source_problem(&Origin::Api, Some(told(100_000)));
    bench.0.settle();
    assert!(bench.problems()[0].len() < 2_000, "{} bytes", bench.problems()[0].len());
}
