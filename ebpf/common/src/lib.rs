//! Keys and values shared by ambit's eBPF programs and its agent.
