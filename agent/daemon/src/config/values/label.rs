//! The label that opts in and out.

use std::str::FromStr;

use super::DnsName;

/// The label that opts namespaces in and pods out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataplaneLabel {
    /// The label's key.
    pub(crate) key: String,
    /// The value that opts a namespace or pod in.
    pub(crate) enabled: String,
    /// The value that opts a pod out.
    pub(crate) disabled: String,
}

impl Default for DataplaneLabel {
    fn default() -> Self {
        Self {
            key: ambit_core::model::DATAPLANE_LABEL.to_owned(),
            enabled: "enabled".to_owned(),
            disabled: "disabled".to_owned(),
        }
    }
}

impl FromStr for DataplaneLabel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or("use KEY=ENABLED or KEY=ENABLED,DISABLED")?;
        let (enabled, disabled) = values.split_once(',').unwrap_or((values, "disabled"));
        let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
        if !is_label_text(name) || prefix.is_some_and(|prefix| prefix.parse::<DnsName>().is_err()) {
            return Err(format!("{key:?} is not the key of a label"));
        }
        if let Some(bad) = [enabled, disabled].into_iter().find(|value| !is_label_text(value)) {
            return Err(format!("{bad:?} is not the value of a label"));
        }
        if enabled == disabled {
            return Err(format!("{enabled:?} cannot mean both in and out"));
        }
        Ok(Self { key: key.to_owned(), enabled: enabled.to_owned(), disabled: disabled.to_owned() })
    }
}

fn is_label_text(text: &str) -> bool {
    let edge = |c: u8| c.is_ascii_alphanumeric();
    let inner = |c: u8| edge(c) || matches!(c, b'-' | b'_' | b'.');
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && text.bytes().next().is_some_and(edge)
        && text.bytes().last().is_some_and(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_has_a_key_and_two_values() {
        let label: DataplaneLabel = "istio.io/dataplane-mode=ambient,none".parse().unwrap();
        assert_eq!(
            (&*label.key, &*label.enabled, &*label.disabled),
            ("istio.io/dataplane-mode", "ambient", "none")
        );
        assert_eq!("mesh=on".parse::<DataplaneLabel>().unwrap().disabled, "disabled");
        for bad in
            ["", "=", "a", "a=", "a=b,", "a=b,b", "a/b/c=d", "/a=b", "a b=c", "-a=b", "a=b,c,d", "A.b/c=d"]
        {
            assert!(bad.parse::<DataplaneLabel>().is_err(), "{bad} was taken");
        }
    }
}
