//! Who is believed.

use std::{path::PathBuf, str::FromStr};

use ambit_core::model::TrustDomain;

use super::Location;

/// Trust domains joined by commas.
#[derive(Clone, Debug)]
pub(crate) struct TrustDomains(pub(crate) Vec<TrustDomain>);

impl FromStr for TrustDomains {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(trust_domain).collect::<Result<_, _>>().map(Self)
    }
}

/// One of several, spaces around it not counted.
fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.trim().parse().map_err(|error| format!("{error}"))
}

/// Trust domains and the files with their roots, joined by commas.
#[derive(Clone, Debug)]
pub(crate) struct TrustBundles(pub(crate) Vec<(TrustDomain, PathBuf)>);

impl FromStr for TrustBundles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bundle = |bundle: &str| {
            let (domain, file) =
                bundle.split_once('=').ok_or("use DOMAIN=FILE, with commas between several")?;
            Ok((trust_domain(domain)?, file.parse::<Location>().map_err(|error| error.to_string())?.0))
        };
        let bundles = text.split(',').map(bundle).collect::<Result<Vec<_>, String>>()?;
        let twice = bundles
            .iter()
            .enumerate()
            .find(|(at, (domain, _))| bundles[..*at].iter().any(|(earlier, _)| earlier == domain));
        match twice {
            Some((_, (domain, _))) => {
                Err(format!("{domain} is there twice; one file may hold several roots"))
            }
            None => Ok(Self(bundles)),
        }
    }
}
