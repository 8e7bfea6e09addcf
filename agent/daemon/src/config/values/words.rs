//! Settings that are one of a few words.

use std::{fmt, str::FromStr};

/// Declares them: what each is called in code, and the word for it.
macro_rules! words {
    ($($(#[$meta:meta])* enum $kind:ident { $($(#[$one_meta:meta])* $one:ident = $word:literal,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub(crate) enum $kind {
                $($(#[$one_meta])* $one,)*
            }

            impl $kind {
                const WORDS: &[(&str, Self)] = &[$(($word, Self::$one),)*];
            }

            impl FromStr for $kind {
                type Err = String;

                fn from_str(text: &str) -> Result<Self, String> {
                    named(Self::WORDS, text)
                }
            }

            impl fmt::Display for $kind {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(match self {
                        $(Self::$one => $word,)*
                    })
                }
            }
        )*
    };
}

words! {
    /// Where certificates come from.
    enum IssuerKind {
        /// A CA in a folder.
        #[default]
        Builtin = "builtin",
        /// `ambit ca`, which speaks Istio's CreateCertificate.
        Ambit = "ambit",
        /// Another service that does.
        Istio = "istio",
        /// Certificates that others put into a folder.
        Files = "files",
        /// HashiCorp Vault's PKI engine.
        Vault = "vault",
        /// A SPIRE agent's Delegated Identity API.
        Spire = "spire",
    }

    /// Who may read metrics.
    enum MetricsAuth {
        /// Everybody.
        #[default]
        None = "none",
        /// Who bears a token of the cluster whose owner RBAC lets read them.
        Token = "token",
    }

    /// Where the roots that workloads trust come from, with a certificate service.
    enum CaTrust {
        /// With every certificate.
        #[default]
        Answers = "answers",
        /// From the file with the service's own roots.
        Root = "root",
    }

    /// Whether tunnels use the hybrid post-quantum key exchange X25519MLKEM768.
    enum PostQuantum {
        /// Never.
        Off = "off",
        /// Where the peer wants it; X25519 is offered first.
        #[default]
        Offer = "offer",
        /// Offered first.
        Prefer = "prefer",
        /// Nothing else: a peer without it is refused.
        Require = "require",
    }

    /// How pods of one node talk with each other.
    enum LocalTraffic {
        /// Without a tunnel, under the same identities and policies.
        #[default]
        Join = "join",
        /// As with pods of other nodes.
        Encrypt = "encrypt",
    }

    /// Whether the kernel seals and opens the records of tunnels.
    enum KernelTls {
        /// The agent does.
        #[default]
        Off = "off",
        /// Where the kernel can do all that it takes.
        Auto = "auto",
        /// Also by a kernel that cannot renew keys; and no start where there is none.
        Force = "force",
    }

    /// Whether small messages of many connections between two pods share packets.
    enum Bundling {
        /// Each connection's go by themselves.
        Off = "off",
        /// While many connections speak at a time.
        #[default]
        Auto = "auto",
        /// Wherever there are two, however seldom they speak.
        Force = "force",
    }

    /// Where pods may connect to, by the names of Istio's `outboundTrafficPolicy`.
    enum OutboundPolicy {
        /// Anywhere.
        #[default]
        AllowAny = "ALLOW_ANY",
        /// To the cluster, and to what a ServiceEntry names.
        RegistryOnly = "REGISTRY_ONLY",
    }

    /// Whether connections to outside are counted and logged.
    enum Switch {
        /// What it is about is left alone, and costs nothing.
        #[default]
        Off = "off",
        /// It is the agent's affair.
        On = "on",
    }
}

/// Which of `words` is meant; an error that lists them.
fn named<T: Copy>(words: &[(&str, T)], text: &str) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, one)| *one).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        match words.split_last() {
            Some((last, rest)) => format!("use {} or {last}", rest.join(", ")),
            None => String::new(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_as_they_are_written_and_others_told_which_there_are() {
        for (word, kind) in IssuerKind::WORDS {
            assert_eq!(word.parse(), Ok(*kind));
            assert_eq!(kind.to_string(), *word);
        }
        assert_eq!("Off".parse::<Switch>(), Err("use off or on".to_owned()));
        assert_eq!("".parse::<Bundling>(), Err("use off, auto or force".to_owned()));
    }
}
