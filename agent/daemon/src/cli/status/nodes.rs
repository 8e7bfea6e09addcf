//! The status of many nodes in one answer: tables with a column for the node, or a list for programs.

use std::{fmt::Write as _, time::SystemTime};

use ambit_proto::admin::v1::StatusResponse;
use serde::Serialize;

use super::{table, view::StatusView};
use crate::cli::{remote::Answer, table::Table};

/// What came of asking one node's agent.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum NodeView {
    /// It answered.
    Answered(Box<StatusView>),
    /// It did not.
    Silent {
        /// The node.
        node: String,
        /// Why.
        error: String,
    },
}

impl NodeView {
    pub(super) fn new(answer: Answer, view: impl FnOnce(StatusResponse) -> StatusView) -> Self {
        match answer.status {
            Ok(status) => Self::Answered(Box::new(view(status))),
            Err(error) => Self::Silent { node: answer.node, error: format!("{error:#}") },
        }
    }
}

/// Draws a line for each node, then what was asked for, of all nodes together.
pub(super) fn render(views: &[NodeView], now: SystemTime) -> String {
    let mut nodes =
        Table::new(["NODE", "READY", "VERSION", "PODS", "CERTIFICATES", "CONNECTIONS", "PROBLEMS", "ERROR"]);
    for view in views {
        nodes.row(match view {
            NodeView::Answered(view) => summary(view),
            NodeView::Silent { node, error } => {
                let blank = String::new;
                [
                    node.clone(),
                    "unknown".to_owned(),
                    blank(),
                    blank(),
                    blank(),
                    blank(),
                    blank(),
                    error.clone(),
                ]
            }
        });
    }
    let mut out = String::from("NODES\n");
    nodes.draw(&mut out);
    let answered: Vec<&StatusView> = views
        .iter()
        .filter_map(|view| match view {
            NodeView::Answered(view) => Some(&**view),
            NodeView::Silent { .. } => None,
        })
        .collect();
    for (title, tables) in table::sections(&answered, now) {
        if let Some(table) = Table::by_node(tables) {
            let _ = write!(out, "\n{title}\n");
            table.draw(&mut out);
        }
    }
    out
}

fn summary(view: &StatusView) -> [String; 8] {
    let count = |number: Option<usize>| number.map(|number| number.to_string()).unwrap_or_default();
    let ready = if view.ready { "yes".to_owned() } else { format!("no: {}", view.pending.join(", ")) };
    [
        view.node.clone(),
        ready,
        view.version.clone(),
        count(view.pods.as_ref().map(Vec::len)),
        count(view.certificates.as_ref().map(Vec::len)),
        view.connections_total.to_string(),
        count(view.problems.as_ref().map(Vec::len)),
        String::new(),
    ]
}

#[cfg(test)]
mod tests {
    use ambit_proto::admin::v1::{Pod, Problem};
    use anyhow::anyhow;

    use super::*;
    use crate::cli::status::Section;

    #[test]
    fn nodes_share_tables_and_one_that_is_silent_says_why() {
        let answer = |node: &str, status| Answer { node: node.to_owned(), status };
        let status = |node: &str| StatusResponse {
            node: node.to_owned(),
            version: "0.1.0".to_owned(),
            ready: true,
            pods: vec![Pod { namespace: "shop".to_owned(), name: format!("web-{node}"), ..Pod::default() }],
            problems: vec![Problem { message: "odd".to_owned(), ..Problem::default() }],
            ..StatusResponse::default()
        };
        let answers =
            [answer("a", Ok(status("a"))), answer("b", Ok(status("b"))), answer("c", Err(anyhow!("gone")))];
        let sections = [Section::Pods, Section::Problems];
        let view = |answer| NodeView::new(answer, |status| StatusView::new(status, &sections));
        let views: Vec<_> = answers.into_iter().map(view).collect();
        let text = render(&views, SystemTime::UNIX_EPOCH);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = text.lines().map(words).collect();
        for expected in [
            "a yes 0.1.0 1 - 0 1 -",
            "c unknown - - - - - gone",
            "a shop web-a unknown",
            "b shop web-b unknown",
            "b odd",
        ] {
            let expected = words(expected);
            assert!(lines.iter().any(|line| line.starts_with(&expected)), "{expected:?} is not in\n{text}");
        }
        assert!(!text.contains("CERTIFICATES\n") && !text.contains("CONNECTIONS\n"), "{text}");
        let json = serde_json::to_value(&views).unwrap();
        assert_eq!((&json[1]["node"], &json[2]["error"]), (&"b".into(), &"gone".into()));
    }
}
