//! What policies cost: to compile them for one workload, and to judge one connection, where there are ten thousand of both.
//!
//! `cargo xtask bench --policies` runs it, optimised. Ends with an error where a verdict takes longer than it may, or a compilation.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_core::{
    model::{Labels, ObjectName, SpiffeId},
    policy::{
        Action, Attribute, AuthorizationPolicy, Change, Context, Decision, Facts, Field, InvalidValue,
        PolicySet, Rule, Target, TrustDomains, WorkloadPolicy, decide,
    },
};

const POLICIES: usize = 10_000;
const RULES: usize = 10;
const WORKLOADS: usize = 10_000;
/// Connections judged to each workload.
const CALLS: usize = 20;
/// Policies of the root namespace: half of them for the mesh, half by label.
const OF_ROOT: usize = 20;
const ROOT: &str = "ambit-system";

/// A verdict at the 99th percentile, and a compilation, may take so long.
const VERDICT: Duration = Duration::from_micros(2);
const COMPILATION: Duration = Duration::from_millis(5);

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let json = std::env::args().any(|argument| argument == "--json");
    let mut figures = Vec::new();
    for (name, namespaces) in [("100 namespaces", 100), ("one namespace", 1)] {
        figures.push((name, Figures::measure(namespaces)?));
    }
    if json {
        let told: Vec<String> = figures.iter().map(|(name, figures)| figures.json(name)).collect();
        println!("{{\"policies\":[{}]}}", told.join(","));
    } else {
        println!(
            "{POLICIES} policies of {RULES} rules, {WORKLOADS} workloads, {CALLS} connections to each\n"
        );
        println!("{:<16} {:<22} {:>10} {:>10} {:>10}", "", "", "p50", "p99", "most");
        figures.iter().for_each(|(name, figures)| figures.print(name));
        println!("\na verdict may take {VERDICT:?} at p99, and a compilation {COMPILATION:?} at most");
    }
    let good = figures.iter().all(|(_, figures)| figures.are_good());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sorted times.
struct Times(Vec<Duration>);

struct Figures {
    compile: Times,
    let_in: Times,
    refused: Times,
}

impl Figures {
    fn measure(namespaces: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let set = policies(namespaces)?;
        let per_namespace = WORKLOADS / namespaces;
        let callers = callers(namespaces)?;
        let (mut compile, mut let_in, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for workload in 0..WORKLOADS {
            let namespace: Arc<str> = format!("ns-{}", workload / per_namespace).into();
            let labels = app(workload % per_namespace);
            let start = Instant::now();
            let compiled = black_box(set.compile_for(&namespace, &labels));
            compile.push(start.elapsed());
            for call in 0..CALLS {
                let caller = &callers[(workload * CALLS + call * 7) % callers.len()];
                let (decision, took) = judge(&compiled, caller, call);
                if decision == Decision::Allow { &mut let_in } else { &mut refused }.push(took);
            }
        }
        Ok(Self { compile: Times::of(compile), let_in: Times::of(let_in), refused: Times::of(refused) })
    }

    fn print(&self, name: &str) {
        let rows =
            [("compile one workload", &self.compile), ("let in", &self.let_in), ("refused", &self.refused)];
        for (what, times) in rows {
            let [p50, p99, most] = [50, 99, 100].map(|percent| format!("{:.1?}", times.at(percent)));
            println!("{name:<16} {what:<22} {p50:>10} {p99:>10} {most:>10}   ({})", times.0.len());
        }
    }

    fn json(&self, name: &str) -> String {
        let rows = [("compile", &self.compile), ("let_in", &self.let_in), ("refused", &self.refused)];
        let rows = rows.map(|(what, times)| {
            let [p50, p99, most] = [50, 99, 100].map(|percent| times.at(percent).as_nanos());
            format!("\"{what}\":{{\"p50_ns\":{p50},\"p99_ns\":{p99},\"most_ns\":{most}}}")
        });
        format!("{{\"layout\":\"{name}\",{}}}", rows.join(","))
    }

    /// What one compilation takes at most is as much the machine's as ours: of a hundred the slowest may be.
    fn are_good(&self) -> bool {
        self.let_in.at(99) < VERDICT && self.refused.at(99) < VERDICT && self.compile.at(99) < COMPILATION
    }
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn at(&self, percent: usize) -> Duration {
        self.0
            .get((self.0.len() * percent / 100).min(self.0.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

fn judge(compiled: &WorkloadPolicy, caller: &SpiffeId, call: usize) -> (Decision, Duration) {
    let ip = |last: usize| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last as u8));
    let port = if call.is_multiple_of(4) { 9090 } else { 8080 };
    let facts = Facts {
        port,
        peer: Some(caller),
        source_ip: ip(call + 1),
        destination_ip: ip(200),
        request: None,
        admitted: false,
        sni: None,
    };
    let start = Instant::now();
    let decision = black_box(decide(black_box(compiled), black_box(&facts)));
    (decision, start.elapsed())
}

/// Service accounts of which policies let in one out of a few.
fn callers(namespaces: usize) -> Result<Vec<SpiffeId>, Box<dyn std::error::Error>> {
    let mut callers = Vec::new();
    for number in 0..997 {
        let id = format!("spiffe://cluster.local/ns/ns-{}/sa/caller-{}", number % namespaces, number % 40);
        callers.push(id.parse()?);
    }
    Ok(callers)
}

fn policies(namespaces: usize) -> Result<PolicySet, InvalidValue> {
    let mut set = PolicySet::new(ROOT);
    let per_namespace = (POLICIES - OF_ROOT) / namespaces;
    for number in 0..OF_ROOT {
        let selector = if number.is_multiple_of(2) { Labels::new() } else { app(number) };
        apply(&mut set, ROOT, number, selector, Action::Deny)?;
    }
    for number in 0..POLICIES - OF_ROOT {
        let namespace = format!("ns-{}", (number / per_namespace).min(namespaces - 1));
        // One in a hundred is for the whole namespace, where that is not all of the mesh.
        let wide = namespaces > 1 && number.is_multiple_of(per_namespace);
        let selector = if wide { Labels::new() } else { app(number % per_namespace) };
        let action = if number % 10 == 9 { Action::Deny } else { Action::Allow };
        apply(&mut set, &namespace, number, selector, action)?;
    }
    Ok(set)
}

fn apply(
    set: &mut PolicySet,
    namespace: &str,
    number: usize,
    selector: Labels,
    action: Action,
) -> Result<(), InvalidValue> {
    let rules = (0..RULES).map(|at| rule(namespace, number, at, action)).collect::<Result<_, _>>()?;
    let policy = AuthorizationPolicy {
        name: ObjectName::new(namespace, format!("policy-{number}")),
        target: Target::Pods(selector),
        action,
        provider: None,
        rules,
        dry_run: false,
        doubt: None,
    };
    set.apply(Change::AuthorizationPolicy(Arc::new(policy)));
    Ok(())
}

/// Rules as they are written: by account, by namespace and port, by address. Those that refuse match hardly anybody.
fn rule(namespace: &str, number: usize, at: usize, action: Action) -> Result<Rule, InvalidValue> {
    let trust_domains = TrustDomains::new(Default::default(), []);
    let context = Context { namespace, trust_domains: &trust_domains };
    let field =
        |name: &str, attribute, values: &[String]| Field::new(name, attribute, false, values, context);
    let caller = if action == Action::Deny { 1_000 + at } else { (number + at * 4) % 40 };
    let accounts = [format!("{namespace}/caller-{caller}"), format!("elsewhere/caller-{at}")];
    Ok(match at % 3 {
        0 => Rule::new(
            vec![vec![field("from[0].source.serviceAccounts", Attribute::ServiceAccount, &accounts)?]],
            vec![vec![field("to[0].operation.ports", Attribute::Port, &["8080".to_owned()])?]],
            vec![],
        ),
        1 => Rule::new(
            vec![vec![field(
                "from[0].source.principals",
                Attribute::Principal,
                &[format!("cluster.local/ns/{namespace}/sa/caller-{caller}")],
            )?]],
            vec![],
            vec![],
        ),
        _ => Rule::new(
            vec![vec![
                field("from[0].source.namespaces", Attribute::Namespace, &[format!("far-{at}*")])?,
                field("from[0].source.ipBlocks", Attribute::SourceIp, &["192.168.0.0/16".to_owned()])?,
            ]],
            vec![],
            vec![],
        ),
    })
}

/// The label of one application.
fn app(number: usize) -> Labels {
    Labels::from([("app".to_owned(), format!("app-{number}"))])
}
