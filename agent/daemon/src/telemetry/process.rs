//! The usual `process_*` metrics, read from /proc when scraped. What cannot be read is left out.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Clock ticks a second in /proc (proc_pid_stat(5)): Linux gives user space 100 on every architecture we build for.
const USER_HZ: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => ConstGauge::new(value).encode(encoder.encode_descriptor(
                name,
                help,
                None,
                MetricType::Gauge,
            )?),
            None => Ok(()),
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let resident = kilobytes(&status, "VmRSS:").map(|kb| kb * 1024.0);
        gauge("process_resident_memory_bytes", "Resident memory.", resident)?;
        let virtual_memory = kilobytes(&status, "VmSize:").map(|kb| kb * 1024.0);
        gauge("process_virtual_memory_bytes", "Virtual memory.", virtual_memory)?;
        let open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
        gauge("process_open_fds", "Open file descriptors.", open_fds)?;
        gauge("process_max_fds", "Most file descriptors that may be open.", max_fds(&limits))?;
        gauge("process_start_time_seconds", "When the process started.", start_time(&stat))?;
        if let (Some(user), Some(system)) = (stat_field(&stat, 14), stat_field(&stat, 15)) {
            ConstCounter::new((user + system) / USER_HZ).encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                "Processor time in user and kernel mode.",
                None,
                MetricType::Counter,
            )?)?;
        }
        Ok(())
    }
}

fn kilobytes(status: &str, key: &str) -> Option<f64> {
    status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

fn max_fds(limits: &str) -> Option<f64> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn start_time(stat: &str) -> Option<f64> {
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + stat_field(stat, 22)? / USER_HZ)
}

/// Field `number` (from 3) of /proc/self/stat; the second may hold spaces, so counting starts behind its parenthesis.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(number - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 1 0 1234 99";
        assert_eq!(stat_field(stat, 14), Some(250.0));
        assert_eq!(stat_field(stat, 15), Some(50.0));
        assert_eq!(stat_field(stat, 22), Some(1234.0));
        assert_eq!(stat_field("nonsense", 14), None);
    }
}
