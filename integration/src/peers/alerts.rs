//! promtool's opinion of the alert rules and of an agent's metrics.
//!
//! Each alert is tried on series made for it: quiet first, then firing with its text filled in.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Stage, Test};
use crate::{process, world::World};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "peers::promtool_has_every_alert_fire",
        about: "the rules are sound; each alert is quiet before its time, and fires",
        work: alerts,
    },
    Test {
        name: "peers::promtool_reads_what_an_agent_measures",
        about: "a live agent's metrics parse, and have every series that an alert asks for",
        work: metrics,
    },
];

/// An alert, and series on which it is quiet at one minute and fires at another.
struct Case {
    alert: &'static str,
    /// Name, labels and samples a minute apart, in promtool's notation.
    series: &'static [(&'static str, &'static str)],
    /// The labels that its text names.
    labels: &'static [(&'static str, &'static str)],
    /// What `$value` is once it fires.
    value: &'static str,
    quiet: u32,
    firing: u32,
}

const NODE: (&str, &str) = ("instance", "node1");

const CASES: &[Case] = &[
    Case {
        alert: "AmbitDown",
        series: &[("up{job=\"ambit-agent-metrics\",instance=\"node1\"}", "1 1 0x20")],
        labels: &[NODE, ("job", "ambit-agent-metrics")],
        value: "0",
        quiet: 3,
        firing: 6,
    },
    Case {
        alert: "AmbitRemoteClusterAway",
        series: &[(
            "ambit_remote_cluster_lag_seconds{cluster=\"west\",instance=\"node1\"}",
            "0 120 601 661 721 781x20",
        )],
        labels: &[NODE, ("cluster", "west")],
        value: "661",
        quiet: 2,
        firing: 3,
    },
    Case {
        alert: "AmbitAgentMissing",
        series: &[(
            "kube_daemonset_status_number_unavailable{daemonset=\"ambit\",instance=\"node1\"}",
            "0 0 2x20",
        )],
        labels: &[NODE, ("daemonset", "ambit")],
        value: "2",
        quiet: 6,
        firing: 10,
    },
    Case {
        alert: "AmbitNotReady",
        series: &[("ambit_not_ready{instance=\"node1\",waits_for=\"certificates\"}", "_ _ 1x20")],
        labels: &[NODE, ("waits_for", "certificates")],
        value: "1",
        quiet: 6,
        firing: 10,
    },
    Case {
        alert: "AmbitPodsNotEnrolled",
        series: &[("ambit_pods_failed{instance=\"node1\"}", "0 0 4x20")],
        labels: &[NODE],
        value: "4",
        quiet: 3,
        firing: 6,
    },
    Case {
        alert: "AmbitCniMissing",
        series: &[("ambit_cni_installed{instance=\"node1\"}", "1 1 0x20")],
        labels: &[NODE],
        value: "0",
        quiet: 3,
        firing: 6,
    },
    Case {
        alert: "AmbitCniOverwritten",
        series: &[("ambit_cni_repairs_total{instance=\"node1\",what=\"network\"}", "0x40 1+1x40")],
        labels: &[NODE, ("what", "network")],
        value: "",
        quiet: 40,
        firing: 60,
    },
    Case {
        alert: "AmbitCertificatesMissing",
        series: &[("ambit_certificates_missing{instance=\"node1\"}", "0 0 3x20")],
        labels: &[NODE],
        value: "3",
        quiet: 3,
        firing: 6,
    },
    Case {
        alert: "AmbitCertificateLate",
        series: &[("ambit_certificates_late{instance=\"node1\"}", "0 0 3x20")],
        labels: &[NODE],
        value: "3",
        quiet: 2,
        firing: 5,
    },
    Case {
        alert: "AmbitCertificateExpired",
        series: &[(
            "ambit_certificate_expiry_timestamp_seconds{instance=\"node1\",identity=\"spiffe://cluster.local/ns/shop/sa/a\"}",
            "300x60",
        )],
        labels: &[NODE, ("identity", "spiffe://cluster.local/ns/shop/sa/a")],
        value: "300",
        quiet: 4,
        firing: 10,
    },
    Case {
        alert: "AmbitRenewalsFailing",
        series: &[
            ("ambit_certificate_failures_total{instance=\"node1\"}", "0+1x60"),
            ("ambit_certificates_issued_total{instance=\"node1\"}", "0+1x20 20x40"),
        ],
        labels: &[NODE],
        value: "",
        quiet: 25,
        firing: 45,
    },
    Case {
        alert: "AmbitClockSkew",
        series: &[("ambit_certificate_clock_skews_total{instance=\"node1\"}", "0x10 1x60")],
        labels: &[NODE],
        value: "",
        quiet: 9,
        firing: 15,
    },
    Case {
        alert: "AmbitRootExpiring",
        // Of a day's life, as SPIRE's have it, a tenth and two hours are left. One that nothing leads to may end.
        series: &[
            ("ambit_root_expiry_timestamp_seconds{instance=\"node1\",root=\"one\"}", "15840x300"),
            ("ambit_root_lifetime_seconds{instance=\"node1\",root=\"one\"}", "86400x300"),
            ("ambit_root_certificates{instance=\"node1\",root=\"one\"}", "3x300"),
            ("ambit_root_expiry_timestamp_seconds{instance=\"node1\",root=\"old\"}", "15840x300"),
            ("ambit_root_lifetime_seconds{instance=\"node1\",root=\"old\"}", "86400x300"),
            ("ambit_root_certificates{instance=\"node1\",root=\"old\"}", "0x300"),
        ],
        labels: &[NODE, ("root", "one")],
        value: "3",
        quiet: 115,
        firing: 145,
    },
    Case {
        alert: "AmbitRootExpiringSoon",
        // Of ten years three days and one hour are left.
        series: &[
            ("ambit_root_expiry_timestamp_seconds{instance=\"node1\",root=\"one\"}", "262800x120"),
            ("ambit_root_lifetime_seconds{instance=\"node1\",root=\"one\"}", "315360000x120"),
            ("ambit_root_certificates{instance=\"node1\",root=\"one\"}", "2x120"),
        ],
        labels: &[NODE, ("root", "one")],
        value: "2",
        quiet: 55,
        firing: 80,
    },
    Case {
        alert: "AmbitRevocationListStale",
        series: &[(
            "ambit_crl_next_update_timestamp_seconds{instance=\"node1\",issuer=\"CN=one\"}",
            "600x60",
        )],
        labels: &[NODE, ("issuer", "CN=one")],
        value: "",
        quiet: 15,
        firing: 25,
    },
    Case {
        alert: "AmbitRefusalsRising",
        // Thirty a minute all the time, and then twenty times as many.
        series: &[(
            "ambit_refusals_total{instance=\"node1\",reporter=\"source\",reason=\"certificate_untrusted\"}",
            "0+30x120 3600+600x60",
        )],
        labels: &[NODE, ("reason", "certificate_untrusted")],
        value: "",
        quiet: 119,
        firing: 150,
    },
    Case {
        alert: "AmbitPlaintextRefused",
        series: &[("ambit_plaintext_refused_total{instance=\"node1\",namespace=\"shop\"}", "0x10 0+1x40")],
        labels: &[("namespace", "shop")],
        value: "",
        quiet: 10,
        firing: 30,
    },
    Case {
        alert: "AmbitCaptureFull",
        series: &[
            ("ambit_capture_everything{instance=\"node1\"}", "0x20"),
            ("ambit_pods_kept_out{instance=\"node1\"}", "0 0 2x20"),
        ],
        labels: &[NODE],
        value: "2",
        quiet: 2,
        firing: 5,
    },
];

fn alerts(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let rules = rules(&stage.kit.alerts)?;
    let file = world.folder.join("rules.json");
    fs::write(&file, rules.to_string())?;
    let promtool = || Command::new(stage.kit.programs.path("promtool"));
    process::must(promtool().args(["check", "rules"]).arg(&file))?;
    let all: Vec<&Value> = each(&rules).collect();
    let tried: Vec<Value> = all.iter().map(|rule| tried(rule)).collect::<Result<_>>()?;
    ensure!(CASES.len() == all.len(), "{} cases for {} alerts", CASES.len(), all.len());
    let tests = json!({ "rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": tried });
    let file = world.folder.join("alerts.json");
    fs::write(&file, tests.to_string())?;
    process::must(promtool().args(["test", "rules"]).arg(&file))?;
    world.notes.push(format!("{} alerts, each quiet and then firing", all.len()));
    Ok(())
}

fn metrics(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    world.start_agents()?;
    world.must_reach("a", "b")?;
    let scraped = world.agents[0].metrics()?;
    let mut promtool = Command::new(stage.kit.programs.path("promtool"));
    promtool.args(["check", "metrics"]);
    process::run_with_input(&mut promtool, scraped.text(), Duration::from_secs(10))?.ok()?;
    // Those that only come with what they tell of.
    let later = [
        "ambit_crl_next_update_timestamp_seconds",
        "ambit_cni_installed",
        "ambit_cni_repairs_total",
        "ambit_not_ready",
        "ambit_plaintext_refused_total",
        "ambit_refusals_total",
        "ambit_remote_cluster_lag_seconds",
    ];
    for rule in each(&rules(&stage.kit.alerts)?) {
        let expression = rule["expr"].as_str().context("an alert without an expression")?;
        let names = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        for name in names.filter(|name| name.starts_with("ambit_") && !later.contains(name)) {
            let known = scraped.text().lines().any(|line| line.split([' ', '{']).next() == Some(name));
            ensure!(known, "{} asks for {name}, which no agent has", rule["alert"]);
        }
    }
    Ok(())
}

/// What the Prometheus operator makes of the manifest: the rule file under `spec`.
fn rules(manifest: &Path) -> Result<Value> {
    let text = fs::read_to_string(manifest).with_context(|| manifest.display().to_string())?;
    let mut manifest: Value = serde_yaml_ng::from_str(&text)?;
    Ok(manifest["spec"].take())
}

fn each(rules: &Value) -> impl Iterator<Item = &Value> {
    let groups = rules["groups"].as_array().into_iter().flatten();
    groups.flat_map(|group| group["rules"].as_array().into_iter().flatten())
}

/// A test of promtool's for one alert.
fn tried(rule: &Value) -> Result<Value> {
    let alert = rule["alert"].as_str().context("an alert without a name")?;
    let case = CASES.iter().find(|case| case.alert == alert);
    let case = case.with_context(|| format!("no series here for which {alert} fires"))?;
    let series = case.series.iter().map(|(series, values)| json!({ "series": series, "values": values }));
    let mut labels = rule["labels"].clone();
    for (name, value) in case.labels {
        labels[name] = json!(value);
    }
    let mut annotations = rule["annotations"].clone();
    for (_, text) in annotations.as_object_mut().into_iter().flatten() {
        *text = json!(filled(text.as_str().unwrap_or_default(), case));
    }
    let at = |minute: u32, expected: Value| json!({ "eval_time": format!("{minute}m"), "alertname": alert, "exp_alerts": expected });
    let fires = json!([{ "exp_labels": labels, "exp_annotations": annotations }]);
    Ok(json!({
        "interval": "1m",
        "input_series": series.collect::<Vec<_>>(),
        "alert_rule_test": [at(case.quiet, json!([])), at(case.firing, fires)],
    }))
}

/// A text with what it names filled in, as Prometheus does it.
fn filled(text: &str, case: &Case) -> String {
    let labels = case.labels.iter().map(|(name, value)| (format!("{{{{ $labels.{name} }}}}"), *value));
    let all = labels.chain([("{{ $value }}".to_owned(), case.value)]);
    all.fold(text.to_owned(), |text, (name, value)| text.replace(&name, value))
}
