//! Call stacks with how often each was met, read from what `perf script` prints.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
};

/// Stacks, outermost function first: the thread's name, then functions.
#[derive(Clone, Debug, Default)]
pub(super) struct Stacks(BTreeMap<Vec<String>, u64>);

impl Stacks {
    /// Reads samples: a line with the thread's name, lines of `address symbol+offset (object)`, innermost first, an empty line.
    pub(super) fn read(script: &str) -> Self {
        let mut stacks = Self::default();
        for sample in script.split("\n\n") {
            let mut lines = sample.trim_start_matches('\n').lines();
            let Some(thread) = lines.next().and_then(thread) else { continue };
            let mut stack: Vec<String> = lines.filter_map(function).collect();
            stack.push(thread);
            stack.reverse();
            stacks.add(stack, 1);
        }
        stacks
    }

    pub(super) fn add(&mut self, stack: Vec<String>, samples: u64) {
        *self.0.entry(stack).or_default() += samples;
    }

    pub(super) fn samples(&self) -> u64 {
        self.0.values().sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[String], u64)> {
        self.0.iter().map(|(stack, samples)| (stack.as_slice(), *samples))
    }

    /// In the format that flame graph tools read: functions with `;` between them, and the samples.
    pub(super) fn told(&self) -> String {
        self.iter().map(|(stack, samples)| format!("{} {samples}\n", stack.join(";"))).collect()
    }

    /// The functions in which most time was spent: in themselves, and with all that they called.
    pub(super) fn top(&self, most: usize) -> String {
        let (mut own, mut total) = (HashMap::<&str, u64>::new(), HashMap::<&str, u64>::new());
        for (stack, samples) in self.iter() {
            if let [_, .., last] = stack {
                *own.entry(last).or_default() += samples;
            }
            // A function that calls itself counts once.
            for function in stack.iter().skip(1).map(String::as_str).collect::<HashSet<_>>() {
                *total.entry(function).or_default() += samples;
            }
        }
        let all = self.samples().max(1) as f64;
        let mut sorted: Vec<(&str, u64)> = own.into_iter().collect();
        sorted.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        let mut text = "   self  total  function\n".to_owned();
        for (function, samples) in sorted.into_iter().take(most) {
            let share = |samples: u64| 100.0 * samples as f64 / all;
            let with_callees = total.get(function).copied().unwrap_or(samples);
            // Writing into a String does not fail.
            let _ = writeln!(text, "{:>6.1}% {:>5.1}%  {function}", share(samples), share(with_callees));
        }
        text
    }
}

/// The thread's name, which may have spaces in it, before process and thread id.
fn thread(line: &str) -> Option<String> {
    let ids = line.split_whitespace().position(|word| {
        word.split_once('/').is_some_and(|(pid, tid)| [pid, tid].iter().all(|id| id.parse::<u32>().is_ok()))
    })?;
    Some(line.split_whitespace().take(ids).collect::<Vec<_>>().join(" "))
}

/// The function of a frame, short: without offset, generic arguments and hash. One without a symbol has its object's name.
fn function(line: &str) -> Option<String> {
    let (_, rest) = line.trim().split_once(' ')?;
    let (symbol, object) = rest.rsplit_once(" (").unwrap_or((rest, ""));
    if symbol == "[unknown]" {
        let object = object.trim_end_matches(')');
        let name = object.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("unknown");
        return Some(format!("[{}]", name.trim_matches(['[', ']'])));
    }
    let symbol = symbol.rsplit_once("+0x").map_or(symbol, |(name, _)| name);
    let symbol = match symbol.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.chars().all(|digit| digit.is_ascii_hexdigit()) => name,
        _ => symbol,
    };
    let is_kernel = object.starts_with("[kernel");
    let short = short(symbol).replace(';', ",");
    Some(if is_kernel { format!("{short}_[k]") } else { short })
}

/// A name without what stands in angle brackets, but for that of the type whose method it is.
fn short(symbol: &str) -> String {
    let (mut text, mut depth) = (String::new(), 0_usize);
    let body = match symbol.strip_prefix('<') {
        // `<Type as Trait>::method` is `Type::method`.
        Some(rest) => {
            let mut level = 1;
            let end = rest.char_indices().find(|(at, sign)| {
                // Not the arrow of a function's type.
                let arrow = *sign == '>' && rest[..*at].ends_with('-');
                level += i32::from(*sign == '<') - i32::from(*sign == '>' && !arrow);
                level == 0
            });
            match end {
                Some((end, _)) => {
                    let (own, method) = (&rest[..end], &rest[end + 1..]);
                    let own = own.split(" as ").next().unwrap_or(own);
                    format!("{own}{method}")
                }
                None => symbol.to_owned(),
            }
        }
        None => symbol.to_owned(),
    };
    for sign in body.chars() {
        match sign {
            '<' => depth += 1,
            '>' if depth > 0 && !text.ends_with('-') => depth -= 1,
            _ if depth == 0 => text.push(sign),
            _ => {}
        }
    }
    text.replace("::{{closure}}", "::{}").replace("::{closure#0}", "::{}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "tokio-rt-worker  100/101  1.5: cpu-clock:ppp: \n\
        \tffffffff81a tcp_sendmsg+0x12 ([kernel.kallsyms])\n\
        \t    55aa <alloc::vec::Vec<T> as core::Drop>::drop::h0123456789abcdef+0x5 (/opt/ambit)\n\
        \t    55ab ambit::proxy::relay::Relay<A,B>::turn+0x5 (/opt/ambit)\n\n\
        tokio-rt-worker  100/102  1.6: cpu-clock:ppp: \n\
        \t    55ab ambit::proxy::relay::Relay<A,B>::turn+0x9 (/opt/ambit)\n\n\
        a b  100/103  1.7: cpu-clock:ppp: \n\t  7f [unknown] (/usr/lib/libc.so.6)\n\n";

    #[test]
    fn samples_become_stacks_of_short_names() {
        let stacks = Stacks::read(SCRIPT);
        assert_eq!(
            stacks.told(),
            "a b;[libc.so.6] 1\n\
             tokio-rt-worker;ambit::proxy::relay::Relay::turn 1\n\
             tokio-rt-worker;ambit::proxy::relay::Relay::turn;alloc::vec::Vec::drop;tcp_sendmsg_[k] 1\n"
        );
        assert_eq!(stacks.samples(), 3);
    }

    #[test]
    fn the_list_has_own_time_and_that_of_callees() {
        let list = Stacks::read(SCRIPT).top(10);
        assert!(list.contains("  33.3%  66.7%  ambit::proxy::relay::Relay::turn\n"), "{list}");
        assert!(list.contains("  33.3%  33.3%  tcp_sendmsg_[k]\n"), "{list}");
    }

    #[test]
    fn a_function_that_calls_itself_counts_once() {
        let mut stacks = Stacks::default();
        stacks.add(["t", "f", "f", "g"].map(str::to_owned).to_vec(), 4);
        stacks.add(["t", "f"].map(str::to_owned).to_vec(), 4);
        assert!(stacks.top(5).contains("  50.0% 100.0%  f\n"));
    }
}
